"""What is minimised? A batch becomes sums over its target tokens; the caller divides once, by their
global number.
"""

# Shapes: B batch, L length, D model width, V vocabulary.

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from lm_jax.config import LossConfig
from lm_jax.sharding import einsum, shard, ways

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]

WHOLE = 256 * 2**20  # bytes of float32 logits on one device, when loss.chunk_size is 0


def causal(
    model, batch: Batch, key: jax.Array | None, config: LossConfig
) -> tuple[jax.Array, Sums]:
    """Next-token prediction: (sum of what is minimised, sums of what is reported).

    batch: tokens, targets, segment_ids, positions [B, L] int32 and weights [B, L] float32; without
    segment_ids the windows are plain text. key: dropout is on.
    """
    x_BLD = model.hidden(batch["tokens"], batch.get("segment_ids"), batch.get("positions"), key)
    table_VD = model.output_table()
    loss, nll = cross_entropy(x_BLD, table_VD, batch["targets"], batch["weights"], config)
    return loss, {"nll": nll, "tokens": jnp.sum(batch["weights"])}


OBJECTIVES: dict[str, Callable] = {"causal": causal}


def cross_entropy(
    x_BLD: jax.Array,
    table_VD: jax.Array,
    targets_BL: jax.Array,
    weights_BL: jax.Array,
    config: LossConfig,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums (negative log-likelihood with z-loss, without it) in nats, over float32 logits.

    The logits of `chunk_size` positions exist at a time. z-loss: z log(Z)^2 (PaLM,
    arXiv:2204.02311, section 5).
    """
    L = x_BLD.shape[1]
    size = chunk_size(x_BLD.shape, table_VD.shape[0], config.chunk_size)
    part = partial(chunk, z_loss=config.z_loss)
    if size >= L:
        return part(x_BLD, table_VD, targets_BL, weights_BL)
    return chunked(part, size, x_BLD, table_VD, targets_BL, weights_BL)


def chunk_size(shape: tuple[int, ...], vocab_size: int, asked: int) -> int:
    """Positions of each row whose logits exist at once: a divisor of the length, near what is asked
    or fits.
    """
    B, L, _ = shape
    position = 4 * B * vocab_size // ways("batch", "vocab")
    most = asked or max(1, WHOLE // position)
    return next(size for size in range(min(most, L), 0, -1) if L % size == 0)


def chunk(x_BLD, table_VD, targets_BL, weights_BL, z_loss):
    """The sums of one chunk. A target is found by comparison: a gather would move a sharded
    vocabulary.
    """
    table_VD = table_VD.astype(x_BLD.dtype)
    logits_BLV = einsum("bld,vd->blv", x_BLD, table_VD, "batch", None, "vocab").astype(jnp.float32)
    log_z_BL = jax.nn.logsumexp(logits_BLV, -1)
    ids = jax.lax.broadcasted_iota(targets_BL.dtype, (1, 1, logits_BLV.shape[-1]), 2)
    hit_BLV = shard(ids, None, None, "vocab") == targets_BL[..., None]
    nll_BL = log_z_BL - jnp.sum(jnp.where(hit_BLV, logits_BLV, 0.0), -1)
    nll = jnp.sum(nll_BL * weights_BL)
    return nll + z_loss * jnp.sum(jnp.square(log_z_BL) * weights_BL) if z_loss else nll, nll


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def chunked(part, size, x_BLD, table_VD, targets_BL, weights_BL):
    """Sums of `part` over chunks of `size` positions, one after the other."""
    chunks = split(size, x_BLD, targets_BL, weights_BL)

    def body(sums, xs):
        x, targets, weights = xs
        return jax.tree.map(jnp.add, sums, part(x, table_VD, targets, weights)), None

    return jax.lax.scan(body, (jnp.zeros(()), jnp.zeros(())), chunks)[0]


def chunked_forward(part, size, x_BLD, table_VD, targets_BL, weights_BL):
    """The gradients are made with the loss, while a chunk's logits are there: they are never
    computed twice.
    """
    gradient = jax.value_and_grad(part, argnums=(0, 1), has_aux=True)

    def body(carry, xs):
        loss, nll, table_grad = carry
        x, targets, weights = xs
        (loss_i, nll_i), (x_grad, table_grad_i) = gradient(x, table_VD, targets, weights)
        return (loss + loss_i, nll + nll_i, table_grad + table_grad_i), x_grad

    start = (jnp.zeros(()), jnp.zeros(()), jnp.zeros_like(table_VD))
    (loss, nll, table_grad), x_grads = jax.lax.scan(
        body, start, split(size, x_BLD, targets_BL, weights_BL)
    )
    return (loss, nll), (jnp.moveaxis(x_grads, 0, 1).reshape(x_BLD.shape), table_grad)


def chunked_backward(part, size, gradients, cotangents):
    """Scales the stored gradients; the second sum, which is only reported, has none."""
    del part, size
    scale = cotangents[0]
    x_grad, table_grad = (g * scale.astype(g.dtype) for g in gradients)
    return x_grad, table_grad, None, None


chunked.defvjp(chunked_forward, chunked_backward)


def split(size, *arrays):
    """[B, L, ...] as [L / size, B, size, ...]."""
    return tuple(jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0) for x in arrays)
