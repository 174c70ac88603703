"""Ring attention: a sequence is cut over devices; queries stay, keys and values pass from device to
device, and the partial outputs are merged.
"""

# Shapes: B batch, L query length here, S key length here, K key heads, G query heads a key head,
# H head size; n pieces here, 2 where causal and else 1, h the length of one.

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm_jax.models.attention.ring_blocks import BLOCKS
from lm_jax.models.attention.softmax import MASKED_LOGIT

Arrays = tuple[jax.Array, ...]


class Options(NamedTuple):
    """Static options of ring attention."""

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

    The order along `axis` is that of context.order. Queries are scaled already; scores are capped
    at `cap` unless it is 0; a query attends to keys of its own segment. backend: xla or splash.
    Raises UserError when it cannot compute this attention.
    """
    n = 2 if causal else 1

    def pieces(x):
        """[B, n h, heads, H] -> [n, B, heads, h, H], and [B, n h] -> [n, B, h]."""
        x = jnp.moveaxis(x.reshape(x.shape[0], n, -1, *x.shape[2:]), 1, 0)
        return jnp.moveaxis(x, 2, -2) if x.ndim > 3 else x

    parts = jax.tree.map(pieces, (q_BLKGH, k_BLKH, v_BLKH, q_ids_BL, k_ids_BL))
    o_nBKGhH = ring(Options(axis, causal, cap, backend), *parts)
    o_BnhKGH = jnp.moveaxis(o_nBKGhH, (0, -2), (1, 2))
    return o_BnhKGH.reshape(*q_BLKGH.shape[:-1], -1)


# o = sum over blocks j of exp(lse_j - lse) o_j, lse = log sum over j of exp(lse_j), with (o_j,
# lse_j) of the keys of device i - j. With p = exp(s - lse), s = q k^T: dq = sum over j of ds_j k_j,
# dk_j = ds_j^T q, dv_j = p_j^T do, ds_j = p_j (do v_j^T - sum(do o)) (Dao et al. 2022,
# arXiv:2205.14135, appendix B.2). q, o, do [n, B, K, G, h, H], k, v [n, B, K, h, H].
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring(options: Options, q, k, v, q_ids, k_ids) -> jax.Array:
    """`ring_attention` of pieces: q [n, B, K, G, h, H], k and v [n, B, K, h, H], ids [n, B, h]."""
    return forward(options, q, k, v, q_ids, k_ids)[0]


def forward(options: Options, q, k, v, q_ids, k_ids):
    """(o, the residuals of the gradient)."""
    attend, c = BLOCKS[options.backend][0], jax.lax.axis_size(options.axis)

    def step(j, carry):
        state, kv = carry
        received, pairs = shift(kv, options.axis), products(j, options)
        parts = [attend(at((q, q_ids), i), at(kv, k), past, options.cap) for i, k, past in pairs]
        # Sends overlap with the products: the compiler's scheduler does not know how long a kernel
        # takes, and would start to send after it.
        parts, received = jax.lax.optimization_barrier((parts, received))
        for (query, *_), part in zip(pairs, parts, strict=True):
            state = put(state, query, merge(at(state, query), part))
        return state, received

    empty = (
        jnp.zeros((*q.shape[:-1], v.shape[-1]), jnp.float32),
        jnp.full(q.shape[:-1], MASKED_LOGIT, jnp.float32),
    )
    o, lse = jax.lax.fori_loop(1, c, step, step(0, (empty, (k, v, k_ids))))[0]
    # A policy of jax.checkpoint that saves "context" does not run the ring again.
    o, lse = checkpoint_name(o.astype(q.dtype), "context"), checkpoint_name(lse, "context")
    return o, (q, k, v, q_ids, k_ids, o, lse)


def backward(options: Options, saved, do):
    """The gradients of q, k and v; those of keys and values travel with them, one step behind, and
    are back on their own device after c steps.
    """
    q, k, v, q_ids, k_ids, o, lse = saved
    pull, c = BLOCKS[options.backend][1], jax.lax.axis_size(options.axis)

    def step(j, carry):
        (dq, *dkv), kv = carry
        pairs, queries = products(j, options), (q, q_ids, o, lse, do)
        received = shift(kv, options.axis)
        dkv = shift(dkv, options.axis) if in_loop(j) else dkv
        parts = [pull(at(queries, i), at(kv, k), past, options.cap) for i, k, past in pairs]
        parts, received, dkv = jax.lax.optimization_barrier((parts, received, dkv))
        for (query, key, _), (dq_part, *dkv_part) in zip(pairs, parts, strict=True):
            dq = put(dq, query, at(dq, query) + dq_part)
            dkv = put(dkv, key, jax.tree.map(jnp.add, at(dkv, key), dkv_part))
        return (dq, *dkv), received

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    dq, *dkv = jax.lax.fori_loop(1, c, step, step(0, (zeros, (k, v, k_ids))))[0]
    grads = zip((dq, *shift(dkv, options.axis)), (q, k, v), strict=True)
    return *(grad.astype(x.dtype) for grad, x in grads), None, None


ring.defvjp(forward, backward)


def products(j: Any, options: Options) -> list[tuple[Any, Any, bool]]:
    """(piece of queries, piece of keys, whether the causal mask applies) of each product of step j,
    when device i has the keys of device i - j.

    Device i holds the pieces i and 2c - 1 - i. Its second attends to the first of every device; its
    first to those of the devices before it; its second to the second ones of the devices after it.
    So each step but the 0th is two whole products on every device.
    """
    if not options.causal:
        return [(0, 0, False)]
    if not in_loop(j):
        return [(0, 0, True), (1, 1, True), (1, 0, False)]
    same = jnp.where(j <= jax.lax.axis_index(options.axis), 0, 1)
    return [(1, 0, False), (same, same, False)]


def in_loop(j: Any) -> bool:
    """Whether step j is one of the loop, which traces it: all but the first."""
    return not isinstance(j, int)


def merge(a: Arrays, b: Arrays) -> Arrays:
    """The (o, log-sum-exp) over the keys of both parts. Without visible keys the log-sum-exp is so
    small that the weight is 0.
    """
    lse = jnp.logaddexp(a[1], b[1])
    o, more = (o * jnp.exp(part - lse)[..., None] for o, part in (a, b))
    return o + more, lse


def at(tree: Any, piece: Any) -> Any:
    """Piece number `piece` of each array."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, piece, 0, keepdims=False), tree)


def put(tree: Any, piece: Any, new: Any) -> Any:
    """The arrays with piece number `piece` replaced by `new`."""
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, piece, 0), tree, new)


def shift(tree: Any, axis: str) -> Any:
    """The arrays of the previous device along `axis`; each device sends its own to the next."""
    c = jax.lax.axis_size(axis)
    ring = [(i, (i + 1) % c) for i in range(c)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, ring), tree)
