"""Grouped matrix products: rows times the matrix of their own expert, with group sizes known only
at run time, and the routing of rows to groups and back.
"""

# Shapes: T tokens, K choices of a token, R rows (T K + ROOM), D and F widths, E experts.

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm_jax.devices.matmul import einsum
from lm_jax.devices.quantized import BACKWARD, FORWARD, Types, quantize, sums_in

# Rows of a block on CPU: as many blocks of the first size as fit into a group, the rest in the
# second. Large blocks are faster, small ones leave less of the last block empty.
BLOCKS = (256, 32)
ROOM = BLOCKS[-1]  # rows behind the last group, where its last block may end


# y_r = x_r W_e of the expert e of row r: dx_r = g_r W_e^T, dW_e = sum over its rows of x_r^T g_r.
# x [R, D], W [E, D, F], y and g [R, F]; rows by expert, in the order of the experts.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def grouped(bits: str, x_RD: jax.Array, w_EDF: jax.Array, sizes_E: jax.Array) -> jax.Array:
    """Rows [R, F]: the first sizes[0] of x times w[0], the next sizes[1] times w[1] ...; bits:
    config.model.quantization.

    After the last group there are at least ROOM rows; their values are undefined and have no
    gradient. On TPU and GPU jax.lax.ragged_dot; on CPU, where that is E dense products, a loop over
    blocks.
    """
    return products(x_RD, w_EDF, sizes_E, FORWARD.get(bits))


def products(x_RD, w_EDF, sizes_E, types: Types | None) -> jax.Array:
    """`grouped`, in eight bits where there are `types`: a column has one scale for all experts, as
    in qwix.ragged_dot, and a row one for each device that holds a part of it.
    """
    if not types:
        return platform(forward, jax.lax.ragged_dot, x_RD, w_EDF, sizes_E)
    x, w = quantize(x_RD, "rd", "rf", types[0]), quantize(w_EDF, "edf", "rf", types[1])
    more = {"preferred_element_type": sums_in(types)}
    by_block, at_once = partial(forward, **more), partial(jax.lax.ragged_dot, **more)
    y_RF = platform(by_block, at_once, x.qvalue, w.qvalue, sizes_E)
    return (y_RF * x.scale * w.scale[0]).astype(x_RD.dtype)


def platform(cpu: Callable, default: Callable, *args: jax.Array) -> Any:
    """Calls `cpu` on CPUs and `default` on other platforms, chosen when compiled."""
    return jax.lax.platform_dependent(*args, cpu=cpu, default=default)


def forward(x_RD, w_EDF, sizes_E, preferred_element_type: Any = None) -> jax.Array:
    """`grouped` in blocks. The last block of a group may reach into the next group, which is
    written later.
    """
    product = partial(einsum, "rd,df->rf", dtype=preferred_element_type)

    def expert(y, group):
        w, start, size = group

        def block(rows, at, y):
            return put(y, product(take(x_RD, at, rows), w), at)

        return in_blocks(start, size, len(x_RD), block, y), None

    dtype = preferred_element_type or x_RD.dtype
    empty = zeros((len(x_RD), w_EDF.shape[2]), dtype, sizes_E[0])
    return jax.lax.scan(expert, empty, groups(w_EDF, sizes_E))[0]


def backward(x_RD, w_EDF, sizes_E, g_RF) -> tuple[jax.Array, jax.Array]:
    """Gradients of x and w in blocks."""

    def expert(dx, group):
        w, start, size = group

        def block(rows, at, grads):
            dx, dw = grads
            # Rows of the next group do not count here.
            mine = (at + jnp.arange(rows) < start + size)[:, None]
            part = jnp.where(mine, take(g_RF, at, rows), 0)
            dx = put(dx, einsum("rf,df->rd", part, w), at)
            more = einsum("rd,rf->df", take(x_RD, at, rows), part, jnp.float32)
            return dx, dw + more

        dx, dw = in_blocks(start, size, len(x_RD), block, (dx, zeros(w.shape, jnp.float32, size)))
        return dx, dw.astype(w.dtype)

    dx, dw = jax.lax.scan(expert, zeros(x_RD.shape, x_RD.dtype, sizes_E[0]), groups(w_EDF, sizes_E))
    return dx, dw


def backward_ragged(x_RD, w_EDF, sizes_E, g_RF) -> tuple[jax.Array, jax.Array]:
    """Gradients of x and w by jax.lax.ragged_dot."""
    return jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, sizes_E), x_RD, w_EDF)[1](g_RF)


def grouped_backward(bits, saved, g_RF):
    """Gradients of x and w; the sizes have none."""
    dx, dw = platform(backward, backward_ragged, *saved, g_RF)
    if types := BACKWARD.get(bits):
        _, w_EDF, sizes_E = saved
        dx = products(g_RF, w_EDF.swapaxes(1, 2), sizes_E, types)
    return dx, dw, None


grouped.defvjp(lambda bits, *args: (grouped(bits, *args), args), grouped_backward)


def groups(w_EDF: jax.Array, sizes_E: jax.Array) -> tuple[jax.Array, ...]:
    """(matrix, first row, rows) of each expert, to be scanned."""
    return w_EDF, jnp.cumsum(sizes_E) - sizes_E, sizes_E


def in_blocks(start: jax.Array, size: jax.Array, R: int, block: Callable, carry: Any) -> Any:
    """`carry` after block(rows, first row, carry) of all blocks that cover `size` of R rows."""
    *large, small = BLOCKS
    for rows in (*(rows for rows in large if rows <= R), small):
        count = (size + small - 1) // small if rows == small else size // rows
        step = lambda i, carry, at=start, rows=rows: block(rows, at + i * rows, carry)
        carry = jax.lax.fori_loop(0, count, step, carry)
        start, size = start + count * rows, size - count * rows
    return carry


def zeros(shape: tuple[int, ...], dtype: Any, like: jax.Array) -> jax.Array:
    """Zeros that, like the integers `like`, are each device's own (in a shard_map)."""
    return jnp.full(shape, (0 * like).astype(dtype))


def take(x: jax.Array, at: jax.Array, rows: int) -> jax.Array:
    """x[at : at + rows]."""
    return jax.lax.dynamic_slice_in_dim(x, at, rows)


def put(x: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
    """x with `part` from row `at` on."""
    return jax.lax.dynamic_update_slice_in_dim(x, part, at, 0)


# ---- Dispatch and combine. Both, and their gradients, are gathers: scatters are slow. ------------


def plan(ids_TK: jax.Array, experts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows by expert: (choice of each row [R], row of each choice [T, K], rows of each expert [E]).

    ids: the expert of each choice; `experts` drops the choice: its row is among the last ones,
    which are never read, and its place is R, behind them.
    """
    ids_R = ids_TK.reshape(-1)
    choice_R = jnp.argsort(ids_R, stable=True)
    row_R = jnp.where(ids_R < experts, jnp.argsort(choice_R), len(ids_R) + ROOM)
    sizes_E = jnp.sum(ids_R[:, None] == jnp.arange(experts)[None], 0, dtype=jnp.int32)
    return jnp.pad(choice_R, (0, ROOM)), row_R.reshape(ids_TK.shape), sizes_E


def rows_of(x: jax.Array, at: jax.Array) -> jax.Array:
    """x[at], zero behind the end."""
    return x.at[at].get(mode="fill", fill_value=0)


# x_r = x_t of the token t of row r: dx_t = sum over the rows of t of g_r. x [T, D], rows [R, D].
@jax.custom_vjp
def dispatch(x_TD: jax.Array, choice_R: jax.Array, row_TK: jax.Array) -> jax.Array:
    """The token of each row, [R, D]."""
    return x_TD.at[choice_R // row_TK.shape[1]].get(mode="promise_in_bounds")


def dispatch_backward(row_TK, g_RD):
    """A token's gradient is the sum over its rows."""
    return sum(rows_of(g_RD, row_T) for row_T in row_TK.T), None, None


dispatch.defvjp(lambda *args: (dispatch(*args), args[2]), dispatch_backward)


# o_t = sum over k of w_tk y_r, with r the row of choice k of t: dy_r = w_tk g_t, dw_tk = g_t . y_r.
# y [R, D], w [T, K] float32, o and g [T, D].
@jax.custom_vjp
def combine(
    y_RD: jax.Array, weights_TK: jax.Array, choice_R: jax.Array, row_TK: jax.Array
) -> jax.Array:
    """Weighted sums [T, D] of the rows of each token, in float32."""
    pairs = zip(weights_TK.T, row_TK.T, strict=True)
    return sum(w_T[:, None] * rows_of(y_RD, row_T) for w_T, row_T in pairs).astype(y_RD.dtype)


def combine_backward(saved, g_TD):
    """Gradients of rows and weights."""
    y_RD, weights_TK, choice_R, row_TK = saved
    g_RD = g_TD.at[choice_R // row_TK.shape[1]].get(mode="promise_in_bounds")
    dy_RD = g_RD * weights_TK.reshape(-1)[choice_R][:, None]
    by_choice = [jnp.sum(g_TD * rows_of(y_RD, row_T), -1, dtype=jnp.float32) for row_T in row_TK.T]
    return dy_RD.astype(y_RD.dtype), jnp.stack(by_choice, -1), None, None


combine.defvjp(lambda *args: (combine(*args), args), combine_backward)
