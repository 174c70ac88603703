"""Ring attention: a sequence is cut over devices; queries stay, keys and values go from device to
device, and the partial results are merged.
"""

# Shapes: B batch, L query length here, S key length here, K key heads, G query heads a key head,
# H head size; n pieces here, 2 where causal and else 1, h the length of one.

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm_jax.models.attention.ring_blocks import BLOCKS, MASKED_LOGIT

Arrays = tuple[jax.Array, ...]


class How(NamedTuple):
    """Static options of one attention."""

    axis: str
    causal: bool
    cap: float
    backend: str


def ring_attention(
    q_BLKGH: jax.Array,
    k_BLKH: jax.Array,
    v_BLKH: jax.Array,
    q_ids_BL: jax.Array | None,
    k_ids_BL: jax.Array | None,
    axis: str,
    causal: bool,
    cap: float,
    backend: str,
) -> jax.Array:
    """softmax(q k) v of the whole sequence, [B, L, K, G, H], from each device's part of it (in a
    shard_map with check_vma=False; ring attention, arXiv:2310.01889).

    The order along `axis` is that of context.order. Queries are
    scaled; scores capped at `cap` unless it is 0; a query sees keys of its own segment. Raises
    UserError when `backend`, xla or splash, cannot do it.
    """
    n = 2 if causal else 1

    def pieces(x):
        """[B, n h, heads, H] -> [n, B, heads, h, H], and [B, n h] -> [n, B, h]."""
        x = jnp.moveaxis(x.reshape(x.shape[0], n, -1, *x.shape[2:]), 1, 0)
        return jnp.moveaxis(x, 2, -2) if x.ndim > 3 else x

    parts = jax.tree.map(pieces, (q_BLKGH, k_BLKH, v_BLKH, q_ids_BL, k_ids_BL))
    o_nBKGhH = ring(How(axis, causal, cap, backend), *parts)
    o_BnhKGH = jnp.moveaxis(o_nBKGhH, (0, -2), (1, 2))
    return o_BnhKGH.reshape(*q_BLKGH.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring(how: How, q, k, v, q_ids, k_ids) -> jax.Array:
    """The same of pieces."""
    return forward(how, q, k, v, q_ids, k_ids)[0]


def forward(how: How, q, k, v, q_ids, k_ids):
    """(o, what the gradient needs)."""
    attend, c = BLOCKS[how.backend][0], jax.lax.axis_size(how.axis)

    def step(j, carry):
        state, seen = carry
        coming, pairs = onward(seen, how.axis), products(j, how)
        found = [attend(at((q, q_ids), i), at(seen, k), past, how.cap) for i, k, past in pairs]
        # What is sent here and read below has the time of the products to arrive: the compiler's
        # scheduler does not know how long a kernel takes, and would begin to send after them.
        found, coming = jax.lax.optimization_barrier((found, coming))
        for (query, *_), part in zip(pairs, found, strict=True):
            state = put(state, query, merge(at(state, query), part))
        return state, coming

    nothing = (
        jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32),
        jnp.full(q.shape[:-1], MASKED_LOGIT, jnp.float32),
    )
    o, lse = jax.lax.fori_loop(1, c, step, step(0, (nothing, (k, v, k_ids))))[0]
    # A policy of jax.checkpoint that keeps "context" does not go round again.
    o, lse = checkpoint_name(o.astype(q.dtype), "context"), checkpoint_name(lse, "context")
    return o, (q, k, v, q_ids, k_ids, o, lse)


def backward(how: How, kept, do):
    """The gradients of q, k and v; those of keys and values travel with them, one step behind, and
    come home with the c-th.
    """
    q, k, v, q_ids, k_ids, o, lse = kept
    pull, c = BLOCKS[how.backend][1], jax.lax.axis_size(how.axis)

    def step(j, carry):
        (dq, *dkv), seen = carry
        pairs, queries = products(j, how), (q, q_ids, o, lse, do)
        coming = onward(seen, how.axis)
        dkv = onward(dkv, how.axis) if traced(j) else dkv
        found = [pull(at(queries, i), at(seen, k), past, how.cap) for i, k, past in pairs]
        found, coming, dkv = jax.lax.optimization_barrier((found, coming, dkv))
        for (query, key, _), (more, *others) in zip(pairs, found, strict=True):
            dq = put(dq, query, at(dq, query) + more)
            dkv = put(dkv, key, jax.tree.map(jnp.add, at(dkv, key), others))
        return (dq, *dkv), coming

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    dq, *dkv = jax.lax.fori_loop(1, c, step, step(0, (zeros, (k, v, k_ids))))[0]
    grads = zip((dq, *onward(dkv, how.axis)), (q, k, v), strict=True)
    return *(grad.astype(x.dtype) for grad, x in grads), None, None


ring.defvjp(forward, backward)


def products(j: Any, how: How) -> list[tuple[Any, Any, bool]]:
    """(Piece of queries, piece of keys, whether only its past is seen) of each product of step j,
    when the keys of device i - j are with device i.

    It holds the pieces i and 2c - 1 - i. Its second sees the first of every device; its first sees
    that of a device before it; its second sees the second of a device after it. So each step but
    the 0th is two whole products on every device.
    """
    if not how.causal:
        return [(0, 0, False)]
    if not traced(j):
        return [(0, 0, True), (1, 1, True), (1, 0, False)]
    same = jnp.where(j <= jax.lax.axis_index(how.axis), 0, 1)
    return [(1, 0, False), (same, same, False)]


def traced(j: Any) -> bool:
    """Not the first step, which is no part of the loop."""
    return not isinstance(j, int)


def merge(a: Arrays, b: Arrays) -> Arrays:
    """The (o, log-sum-exp) of queries that see the keys of both. Where nothing was seen it is so
    small that the weight is 0.
    """
    lse = jnp.logaddexp(a[1], b[1])
    o, more = (o * jnp.exp(part - lse)[..., None] for o, part in (a, b))
    return o + more, lse


def at(tree: Any, piece: Any) -> Any:
    """The piece of that index of each array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, piece, 0, keepdims=False), tree)


def put(tree: Any, piece: Any, new: Any) -> Any:
    """The arrays with other contents at that index."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, piece, 0), tree, new)


def onward(tree: Any, axis: str) -> Any:
    """The arrays of the device before; its own go to the next."""
    c = jax.lax.axis_size(axis)
    ring = [(i, (i + 1) % c) for i in range(c)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, ring), tree)
