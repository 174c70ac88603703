"""Matrix products in the precision of jax.default_matmul_precision, on CPUs as well."""

from typing import Any

import jax
import jax.numpy as jnp

MIXED_SINCE = (0, 10)  # jax: bfloat16 times bfloat16 is float32 on CPU; 0.7.2 ends in an error


def einsum(
    equation: str, x: jax.Array, w: jax.Array, dtype: Any = None, out_sharding: Any = None
) -> jax.Array:
    """jnp.einsum of two arrays, its result in `dtype`. Under jax.default_matmul_precision
    "bfloat16", float32 operands are rounded to bfloat16 and products summed in float32, as a TPU
    always does. XLA's CPU backend ignores the setting, so it is done here; a processor with AMX is
    four times as fast that way.
    """
    equation = in_order(equation)

    def plain(x, w, dtype=dtype):
        return jnp.einsum(equation, x, w, preferred_element_type=dtype, out_sharding=out_sharding)

    def rounded(x, w):
        if jax.__version_info__ < MIXED_SINCE:
            return plain(jax.lax.reduce_precision(x, 8, 7), jax.lax.reduce_precision(w, 8, 7))
        return plain(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), jnp.float32)

    settings: Any = jax.config
    wanted = settings.jax_default_matmul_precision == "bfloat16"
    if not wanted or not x.dtype == w.dtype == jnp.float32:
        return plain(x, w)
    return jax.lax.platform_dependent(x, w, cpu=rounded, default=plain)


def in_order(equation: str) -> str:
    """`equation` with its summed letters renamed so that they are in the order of x.

    jnp.einsum sums over letters in alphabetical order. A sum over heads and what is in them, `kgh`,
    runs over `ghk` then, and on CPU every operand is copied into that order first.
    """
    of_x, out = equation.split(",")[0], equation.split("->")[1]
    summed = [letter for letter in of_x if letter not in out]
    return equation.translate(str.maketrans("".join(summed), "".join(sorted(summed))))
