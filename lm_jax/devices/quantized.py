"""Products in eight bits: operands are quantized by Qwix as they are multiplied, each row and
column with a scale of its own; parameters and checkpoints stay as they are.
"""

import dataclasses
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm_jax.devices.chips import chip_of
from lm_jax.devices.matmul import einsum
from lm_jax.errors import MachineError

Types = tuple[str, str]  # of the two operands
FORWARD: dict[str, Types] = {  # by config.model.quantization
    "int8": ("int8", "int8"),
    "int8_full": ("int8", "int8"),
    "fp8": ("float8_e4m3fn", "float8_e4m3fn"),
    "fp8_full": ("float8_e4m3fn", "float8_e4m3fn"),
}
# Products of gradients with weights: gradients need range more than precision (Micikevicius et al.
# 2022, arXiv:2209.05433, section 3). Products that give the gradient of a weight are never in eight
# bits: they sum over all tokens, and devices would have to send their parts of the sum in 32.
BACKWARD: dict[str, Types] = {
    "int8_full": ("int8", "int8"),
    "fp8_full": ("float8_e5m2", "float8_e4m3fn"),
}
# The largest number of a row becomes 127, and not 127.5, a tie, which rounds to even.
LARGEST = {"int8": f"absmax,{127.5 / 127}"}


def library() -> ModuleType:
    """Qwix. Raises MachineError where it is not installed."""
    try:
        import qwix
    except ImportError as error:
        raise MachineError(
            f"config.model.quantization: Qwix cannot be imported ({error}); "
            "pip install 'lm_jax[quantization]', or set it to none."
        ) from None
    return qwix


def warning(quantization: str, kind: str) -> str:
    """Warning before a run on devices of this kind, or "". Raises MachineError without Qwix."""
    if quantization == "none":
        return ""
    library()
    name = quantization.removesuffix("_full")
    chip = chip_of(kind)
    better = [other for other in ("int8", "fp8") if chip and chip.faster(other)]
    if name in better:
        return ""
    return (
        f"WARNING: config.model.quantization={quantization!r}: on {kind}, {name} is no faster than "
        f"bfloat16, and may be slower; set it to {' or '.join([*better, 'none'])}."
    )


def letters(equation: str) -> tuple[str, str, str]:
    """The letters of x, of w and of the result, in jnp.einsum(equation, x, w)."""
    inputs, out = equation.split("->")
    of_x, of_w = inputs.split(",")
    return of_x, of_w, out


def quantize(x: jax.Array, of: str, out: str, kind: str) -> Any:
    """x, with the letters `of`, in eight bits (a qwix.QArray). Along the axes that are summed over,
    those not in `out`, it has one scale, so that the scale can be taken out of the sum.
    """
    kept = [axis for axis, letter in enumerate(of) if letter in out]
    return library().quantize(x.astype(jnp.float32), jnp.dtype(kind), channelwise_axes=kept,
                              calibration_method=LARGEST.get(kind, "absmax"))  # fmt: skip


def scaled(names: Sequence[str | None], part: jax.Array) -> list[str | None]:
    """Logical axes of a part of an array in eight bits, its numbers or their scales, from the axes
    `names` of the array: dimensions of size 1 are not cut.
    """
    return [name if size > 1 else None for name, size in zip(names, part.shape, strict=True)]


def operands(equation: str, x: Any, w: Any, types: Types | None) -> tuple[Any, Any]:
    """The operands of a product: x and w themselves, or in eight bits where there are `types`."""
    of_x, of_w, out = letters(equation)
    return (quantize(x, of_x, out, types[0]), quantize(w, of_w, out, types[1])) if types else (x, w)


def with_scales_at(x: Any, of: str, out: str, axes: PartitionSpec | None) -> Any:
    """x in eight bits, its scales laid out as the result that they multiply."""
    if axes is None:
        return x
    place = [axes[out.index(letter)] if letter in out else None for letter in of]
    scale = jax.sharding.reshard(x.scale, PartitionSpec(*place))
    return dataclasses.replace(x, scale=scale)


def dot(equation: str, x: Any, w: Any, dtype: Any = None, axes: Any = None) -> jax.Array:
    """jnp.einsum(equation, x, w) laid out by `axes`. Operands in eight bits must have the letters
    of the result in its order; their product is in `dtype`.
    """
    if isinstance(x, jax.Array):
        return einsum(equation, x, w, out_sharding=axes)
    of_x, of_w, out = letters(equation)
    x, w = with_scales_at(x, of_x, out, axes), with_scales_at(w, of_w, out, axes)
    summed = [letter for letter in of_x if letter not in out]
    numbers = [of_x.index(letter) for letter in summed], [of_w.index(letter) for letter in summed]
    return library().dot_general(x, w, (numbers, ((), ())), out_sharding=axes).astype(dtype)


def sums_in(types: Types) -> Any:
    """The type in which products of these types are accumulated."""
    return jnp.int32 if types[0] == "int8" else jnp.float32


def multiply(
    equation: str, x: jax.Array, w: jax.Array, types: Types | None, axes: Any = None
) -> jax.Array:
    """jnp.einsum(equation, x, w), laid out by `axes`, in eight bits where there are `types`."""
    return dot(equation, *operands(equation, x, w, types), x.dtype, axes)
