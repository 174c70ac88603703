"""Training losses: sums over the target tokens of a batch, which the caller divides once, by their
global number.

One loss serves every objective: inputs, targets and masks are in the batch (data/views/).
"""

# Shapes: B batch, L length, D model width, V vocabulary.

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm_jax.config import LossConfig
from lm_jax.devices import collectives, sharding
from lm_jax.devices.collectives import on_each_device
from lm_jax.devices.matmul import einsum
from lm_jax.devices.sharding import shard
from lm_jax.models.head import AXES, all_logits, as_logits, chunk_size, split, target_log_probs

TOKENS = ("batch", "length")
INPUTS = ((*TOKENS, None), AXES, TOKENS, TOKENS)  # logical axes of the arguments of `chunked`

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]
COUNTS = {"pair_nll": "pairs", "pairs_right": "pairs"}  # the divisor of a sum, if not tokens


def loss(
    model: Any, batch: Batch, key: jax.Array | None, config: LossConfig
) -> tuple[jax.Array, Sums]:
    """(the sum to minimise, the sums to report): cross-entropy of the targets, plus the losses of
    pairs and experts.

    batch: tokens, targets, segment_ids, positions [B, L] int32 and weights [B, L] float32, and
    other inputs of `model.forward`; pair_label [B] adds the cross-entropy of the pairs (BERT,
    ALBERT), with the weight of all tokens of the batch, so that two means are summed. key: a random
    key turns dropout on. A microbatch also has `microbatch_weights`.
    """
    tokens = jnp.sum(batch["weights"])
    if not hasattr(model, "readout"):  # an HMM, which has a likelihood and no head
        nll = model.nll(batch)
        return nll, {"nll": nll, "tokens": tokens}
    x_BLD, aux = model.forward(batch, key)
    targets, cap = (batch["targets"], batch["weights"]), model.config.logit_softcap
    total, nll = cross_entropy(model.head_states(x_BLD), model.readout(), *targets, config, cap)
    sums = {"nll": nll, "tokens": tokens} | {n: aux[n] for n in ("state",) if n in aux}
    for name, weight in (("balance", config.balance_loss), ("router_z", config.router_z_loss)):
        if name in aux:  # one number a layer, each a mean over tokens
            sums[name] = jnp.mean(aux[name]) * batch.get("expert_weight", tokens)
            total += weight * sums[name]
    if "load" in aux:  # [N, E] shares of the choices; reported: the largest over the mean
        load_NE = aux["load"]
        fullest = jnp.mean(jnp.max(load_NE, -1)) * load_NE.shape[-1]
        sums["load"] = fullest * batch.get("expert_weight", tokens)
    if "pair_label" in batch:
        label_B = batch["pair_label"]
        logits_B2 = model.pooler(x_BLD)
        pair_nll_B = jax.nn.logsumexp(logits_B2, -1) - jnp.where(
            label_B == 1, logits_B2[:, 1], logits_B2[:, 0]
        )
        total += jnp.mean(pair_nll_B) * batch.get("pair_weight", tokens)
        right_B = (logits_B2[:, 1] > logits_B2[:, 0]) == (label_B == 1)
        sums["pair_nll"], sums["pairs"] = jnp.sum(pair_nll_B), jnp.float32(len(label_B))
        sums["pairs_right"] = jnp.sum(right_B.astype(jnp.float32))
    return total, sums


def microbatch_weights(batch: Batch, experts: bool) -> Batch:
    """Weights [M] of the means of each microbatch of `batch` [M, B, L], in target tokens of the
    whole batch: `pair_weight` by its pairs, `expert_weight` by its tokens that are not padding.
    Weighed by its own target tokens, a microbatch with fewer masked tokens would count less.
    """
    tokens, count = jnp.sum(batch["weights"]), len(batch["weights"])
    weights = {}
    if experts:
        segments = batch.get("segment_ids", jnp.ones_like(batch["tokens"]))
        real_M = jnp.sum((segments > 0).astype(jnp.float32), (1, 2))
        weights["expert_weight"] = tokens * real_M / jnp.maximum(jnp.sum(real_M), 1.0)
    if "pair_label" in batch:
        weights["pair_weight"] = jnp.full(count, tokens / count)
    return weights


def cross_entropy(
    x_BLD: jax.Array,
    readout: dict[str, jax.Array],
    targets_BL: jax.Array,
    weights_BL: jax.Array,
    config: LossConfig,
    cap: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums (negative log-likelihood with z-loss, without it) in nats, over float32 logits
    (models.head.all_logits).

    Computed in chunks of `chunk_size` positions. z-loss: z log(Z)^2 (PaLM,
    arXiv:2204.02311, section 5). label_smoothing e: targets are 1 - e of the token and e of the
    uniform distribution (Szegedy et al. 2016, arXiv:1512.00567, section 7).
    """
    size = chunk_size(x_BLD.shape, len(readout["table"]), config.chunk_size)
    if size >= x_BLD.shape[1] // sharding.ways("length"):
        targets_BL, weights_BL = (shard(x, *TOKENS) for x in (targets_BL, weights_BL))
        return sums_of(all_logits(x_BLD, readout, cap), targets_BL, weights_BL, config)
    part = partial(chunk_of, config=config, cap=cap)
    return chunked(part, size, x_BLD, readout, targets_BL, weights_BL)


def chunk_of(products_BLV, bias_V, targets_BL, weights_BL, config, cap):
    """`sums_of` one chunk, from the products [B, L, V] of its states and the table."""
    return sums_of(as_logits(products_BLV, bias_V, cap), targets_BL, weights_BL, config)


def sums_of(logits_BLV, targets_BL, weights_BL, config):
    """(the loss with z-loss and smoothing, the negative log-likelihood), summed over tokens."""
    log_p_BL, log_z_BL = target_log_probs(logits_BLV, targets_BL)
    total = nll = -jnp.sum(log_p_BL * weights_BL)
    if config.z_loss:
        total += config.z_loss * jnp.sum(jnp.square(log_z_BL) * weights_BL)
    if config.label_smoothing:
        share_BL = jnp.sum(logits_BLV, -1) / (logits_BLV.shape[-1] * collectives.devices("vocab"))
        uniform_BL = log_z_BL - collectives.summed(share_BL, "vocab")  # cross-entropy of 1 / V
        total += config.label_smoothing * jnp.sum((uniform_BL + log_p_BL) * weights_BL)
    return total, nll


# With a_c = x_c E^T of the states x_c of chunk c [B, size, D] and the table E [V, D], and the loss
# sum over c of part(a_c, b): g_c = d part / d a_c [B, size, V], dx_c = g_c E, dE = sum over c of
# g_c^T x_c, db = sum over c of d part / d b [V]. All are computed with the loss, in its scan.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def chunked(part, size, x_BLD, readout, targets_BL, weights_BL):
    """Sums of `part` over chunks of `size` positions, one after the other."""

    def local(x_BLD, readout, targets_BL, weights_BL):
        def body(sums, xs):
            x, *target = xs
            products = einsum("bld,vd->blv", x, readout["table"])
            return jax.tree.map(jnp.add, sums, part(products, readout.get("bias"), *target)), None

        start = collectives.varying((jnp.zeros(()), jnp.zeros(())), "tokens")
        sums, _ = jax.lax.scan(body, start, split(size, x_BLD, targets_BL, weights_BL))
        return [collectives.summed(x, "tokens") for x in sums]

    low = readout | {"table": readout["table"].astype(x_BLD.dtype)}
    sums = on_each_device(local, INPUTS, [(), ()], own=False)
    return tuple(sums(x_BLD, low, targets_BL, weights_BL))


def chunked_forward(part, size, x_BLD, readout, targets_BL, weights_BL):
    """The sums and the gradients, which are computed with the loss, while the logits of a chunk
    exist: no logits are computed twice.
    """
    gradient = jax.value_and_grad(part, argnums=(0, 1), has_aux=True)

    def local(x_BLD, readout, targets_BL, weights_BL):
        # Of a device's own tokens and words: the table's gradient is summed once, at the end.
        x_BLD, readout = collectives.varying(x_BLD, "vocab"), collectives.varying(readout, "tokens")
        table, bias = readout["table"], readout.get("bias")

        def body(carry, xs):
            *sums, grads = carry
            x, *target = xs
            products = einsum("bld,vd->blv", x, table)
            own, (g, bias_grad) = gradient(products, bias, *target)
            # In float32, and added in place: the table of a large vocabulary is large.
            new = {"table": einsum("bld,blv->vd", x, g, jnp.float32)}
            new |= {} if bias is None else {"bias": bias_grad}
            sums = [total + one for total, one in zip(sums, own, strict=True)]
            return (*sums, jax.tree.map(jnp.add, grads, new)), einsum("blv,vd->bld", g, table)

        # Allocated after the table is gathered: during that, two copies of it may exist.
        zero = collectives.varying(jnp.float32(0), "tokens", "vocab")
        table, zero = jax.lax.optimization_barrier((table, zero))
        zeros = {name: jnp.full(w.shape, zero) for name, w in readout.items()}
        start = (*collectives.varying((jnp.zeros(()), jnp.zeros(())), "tokens"), zeros)
        chunks = split(size, x_BLD, targets_BL, weights_BL)
        (loss, nll, grads), x_grads = jax.lax.scan(body, start, chunks)
        x_grad = jnp.moveaxis(x_grads, 0, 1).reshape(x_BLD.shape)
        sums = [collectives.summed(x, "tokens") for x in (loss, nll)]
        # Summed over devices in the compute type, as the gradients of the other weights.
        grads |= {"table": grads["table"].astype(x_BLD.dtype)}
        grads = [collectives.summed_gradient(g, *names[name]) for name, g in grads.items()]
        # The gradient of x is laid out as the residual stream.
        sum_of = (
            collectives.summed if stream[2] is None else partial(collectives.summed_part, axis=2)
        )
        return [*sums, sum_of(x_grad, "vocab"), *grads]

    low = readout | {"table": readout["table"].astype(x_BLD.dtype)}
    names = AXES | {"table": sharding.table(len(low["table"]))}
    stream = sharding.stream(x_BLD.shape[2])
    outputs = [(), (), stream, *(names[name] for name in low)]
    loss, nll, x_grad, *grads = on_each_device(local, INPUTS, outputs, own=False)(
        x_BLD, low, targets_BL, weights_BL
    )
    # Summed before the layers' gradients begin: a device's own share is as large as the table.
    x_grad, grads = jax.lax.optimization_barrier((x_grad, grads))
    grads = {name: g.astype(readout[name].dtype) for name, g in zip(low, grads, strict=True)}
    return (loss, nll), (x_grad, grads)


def chunked_backward(part, size, gradients, cotangents):
    """Scales the saved gradients; the second sum is only reported and has no gradient."""
    del part, size
    scale = cotangents[0]
    x_grad, grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), gradients)
    return sharding.whole(x_grad), grads, None, None


chunked.defvjp(chunked_forward, chunked_backward)


def means(sums: Sums) -> dict[str, jax.Array]:
    """Reported means of `sums`, each divided by its count. A batch without targets has loss 0."""
    over = lambda name: jnp.maximum(sums[COUNTS.get(name, "tokens")], 1.0)
    return {name: x / over(name) for name, x in sums.items() if name not in ("tokens", "pairs")}
