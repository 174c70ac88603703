"""The time loop of a recurrent layer: the products with the state inside the scan, all others
outside of it.
"""

# Shapes: L length, B batch, D width of the input, G gates, H and K width of the state (after and
# before a step). The batch comes last: on CPU every product then reads contiguous operands.

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.devices.products import einsum
from lm_jax.devices.sharding import shard

State = tuple[jax.Array, ...]  # (h,), of an LSTM (h, c), each float32


@dataclasses.dataclass(frozen=True)
class Cell:
    """One step of a layer: step(state, *gates) -> state, all in float32.

    The arguments `gates` of a step are the contributions of the input and of h to the gates, biases
    included: their sum [G, H, B] or, with `split_gates`, the two of them.
    """

    gates: int
    states: int
    split_gates: bool
    step: Callable[..., State]


def rnn(state: State, a_GHB: jax.Array) -> State:
    """Elman (1990), with tanh."""
    del state
    return (jnp.tanh(a_GHB)[0],)


def lstm(state: State, a_GHB: jax.Array) -> State:
    """Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000)."""
    # sigmoid(x) is (1 + tanh(x / 2)) / 2: one tanh for all gates, twice as fast on CPU.
    half = np.array([0.5, 0.5, 1.0, 0.5], np.float32)[:, None, None]
    i, f, g, o = jnp.tanh(a_GHB * half)
    i, f, o = ((1 + gate) / 2 for gate in (i, f, o))
    c = f * state[1] + i * g
    return o * jnp.tanh(c), c


def gru(state: State, x_GHB: jax.Array, u_GHB: jax.Array) -> State:
    """Cho et al. (2014, arXiv:1406.1078v1): the reset gate after the product, as in torch."""
    r, z = jax.nn.sigmoid(x_GHB[:2] + u_GHB[:2])
    n = jnp.tanh(x_GHB[2] + r * u_GHB[2])
    return (n + z * (state[0] - n),)


CELLS = {
    "rnn": Cell(1, 1, False, rnn),
    "lstm": Cell(4, 2, False, lstm),
    "gru": Cell(3, 1, True, gru),
}


# a_t = Wx x_t + bx + Wh (k_t h_{t-1}) + bh; h_t, c_t = step(k_t h_{t-1}, k_t c_{t-1}, a_t).
# With s the state (h, c), gs_t its gradient and (ps_t, da_t) = pull of step(gs_t + cotangent_t):
# gs_{t-1} = k_t (ps_t + (Wh^T da_t, 0)), dx_t = Wx^T da_t, dWx = sum over t of da_t x_t^T,
# dWh = sum over t of da_t (k_t h_{t-1})^T, dbx = dbh = sum over t of da_t. With split_gates, da of
# the input and of h differ.
# x [L, D, B], k [L, B], a_t [G, H, B], s_t [H, B], Wx [G, H, D], Wh [G, H, K], b [G, H].
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrence(
    cell: Cell,
    x_LDB: jax.Array,
    keep_LB: jax.Array,
    start: State,
    wx_GHD: jax.Array,
    wh_GHK: jax.Array,
    bx_GH: jax.Array,
    bh_GH: jax.Array,
) -> State:
    """The states [L, H, B] float32 after each step, from `start` [H, B] (reverse mode only).

    keep: 0 where the state is reset before the step, else 1. The products with the input and all
    gradients of weights are one product each over all steps (Appleyard et al., arXiv:1604.01946).
    """
    return forward(cell, x_LDB, keep_LB, start, wx_GHD, wh_GHK, bx_GH, bh_GH)[0]


def forward(cell, x_LDB, keep_LB, start, wx_GHD, wh_GHK, bx_GH, bh_GH):
    """The states, and the residuals of their gradients."""
    x_GHLB = einsum("ldb,ghd->ghlb", x_LDB, wx_GHD, None, "mlp", None, "batch")
    bias = (bx_GH, bh_GH) if cell.split_gates else (bx_GH + bh_GH,)

    def step(state, at):
        index, keep_B = at
        state = tuple(s_HB * keep_B[None] for s_HB in state)
        h_KB = shard(state[0].astype(x_LDB.dtype), None, "batch")
        u_GHB = einsum("kb,ghk->ghb", h_KB, wh_GHK, None, "mlp", "batch")
        x_GHB = jax.lax.dynamic_index_in_dim(x_GHLB, index, 2, keepdims=False)
        x_GHB, u_GHB = x_GHB.astype(jnp.float32), u_GHB.astype(jnp.float32)
        parts = (x_GHB, u_GHB) if cell.split_gates else (x_GHB + u_GHB,)
        gates = [a_GHB + b_GH[..., None] for a_GHB, b_GH in zip(parts, bias, strict=True)]
        state = cell.step(state, *gates)
        return state, (state, [a_GHB.astype(x_LDB.dtype) for a_GHB in gates])

    steps = (jnp.arange(len(keep_LB)), keep_LB)
    _, (states, gates) = jax.lax.scan(step, start, steps)
    return states, (x_LDB, keep_LB, start, wx_GHD, wh_GHK, gates, states)


def backward(cell, saved, cotangents):
    """Gradients: the loop collects those of the gates, from which those of the weights follow."""
    x_LDB, keep_LB, start, wx_GHD, wh_GHK, gates, states = saved
    before = tuple(
        jnp.concatenate([s_HB[None], s_LHB[:-1]]) * keep_LB[:, None]
        for s_HB, s_LHB in zip(start, states, strict=True)
    )
    wh_KGH = jnp.transpose(wh_GHK, (2, 0, 1))

    def step(carry, at):
        grads, gate_grads = carry
        index, keep_B, state, gates, cotangent = at
        gates = [a_GHB.astype(jnp.float32) for a_GHB in gates]
        _, pull = jax.vjp(cell.step, state, *gates)
        grads, *new = pull(tuple(map(jnp.add, grads, cotangent)))
        new = [g_GHB.astype(x_LDB.dtype) for g_GHB in new]
        gate_grads = [
            jax.lax.dynamic_update_index_in_dim(g_GHLB, g_GHB, index, 2)
            for g_GHLB, g_GHB in zip(gate_grads, new, strict=True)
        ]
        h_HB = einsum("ghb,kgh->kb", new[-1], wh_KGH, "mlp", "batch")
        grads = tuple(s_HB * keep_B[None] for s_HB in (grads[0] + h_HB, *grads[1:]))
        return (grads, gate_grads), None

    zeros = tuple(jnp.zeros_like(s_HB) for s_HB in start)
    gate_zeros = [jnp.zeros_like(jnp.moveaxis(a_LGHB, 0, 2)) for a_LGHB in gates]
    steps = (jnp.arange(len(keep_LB)), keep_LB, before, gates, cotangents)
    (grads, gate_grads), _ = jax.lax.scan(step, (zeros, gate_zeros), steps, reverse=True)
    dx_GHLB, dh_GHLB = gate_grads[0], gate_grads[-1]

    def weight_gradient(g_GHLB, x_LDB):
        # Steps are "a" and rows "b": jnp.einsum sums in alphabetical order, and theirs needs no
        # transposed copy of the gates.
        x_LDB = shard(x_LDB.astype(g_GHLB.dtype), None, None, "batch")
        return einsum("ghab,adb->ghd", g_GHLB, x_LDB, None, "mlp", "embed")

    return (
        einsum("ghlb,ghd->ldb", dx_GHLB, wx_GHD, None, None, "batch"),
        None,
        grads,
        weight_gradient(dx_GHLB, x_LDB),
        shard(weight_gradient(dh_GHLB, before[0]), None, "mlp", None),
        jnp.sum(dx_GHLB, (2, 3), jnp.float32),
        jnp.sum(dh_GHLB, (2, 3), jnp.float32),
    )


recurrence.defvjp(forward, backward)
