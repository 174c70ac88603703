"""How are weights moved? A name in the config becomes an optax chain, and a step becomes a learning
rate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from lm_jax.config import OptimizerConfig
from lm_jax.devices.sharding import as_in, mesh_is_set, shard, spread
from lm_jax.training.adafactor import scale_by_adafactor

# Stacked matrices by name and number of axes: which are summed over, and which are the result's.
# Axis 0: layers; those that are in neither (experts) count matrices, each of which is its own.
MATRICES = {
    (name, max(inputs + outputs) + 1): contrib.MuonDimensionNumbers(inputs, outputs)
    for name, inputs, outputs in (
        ("wq", (1,), (2, 3, 4)), ("wk", (1,), (2, 3)), ("wv", (1,), (2, 3)),
        ("wo", (1, 2, 3), (4,)), ("up", (1,), (2, 3)), ("down", (1,), (2,)),
        ("up", (2,), (3, 4)), ("down", (2,), (3,)),
        ("wx", (3,), (2,)), ("wh", (3,), (2,)),
    )
}  # fmt: skip
NOT_DECAYED = ("scale", "bias", "up_bias", "down_bias", "bq", "bk", "bv", "bo", "bx", "bh",
               "head_bias", "pair_bias", "table")  # fmt: skip
STACKED = {"blocks", "layers"}  # whose parameters have a first axis of layers


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """step -> learning rate: linear warm-up, then cosine or linear decay, warm-up-stable-decay
    (arXiv:2404.06395), the inverse square root of the step (arXiv:1706.03762, equation 3) or
    constant.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    end = peak * config.end_fraction
    warm = optax.linear_schedule(peak / (warmup + 1), peak, warmup) if warmup else None
    parts: list[optax.Schedule] = [warm or optax.constant_schedule(peak)]
    bounds = [warmup]
    if config.schedule == "cosine":
        decay = config.decay_steps or steps - warmup
        parts.append(optax.cosine_decay_schedule(peak, max(1, decay), config.end_fraction))
    elif config.schedule == "linear":
        parts.append(optax.linear_schedule(peak, end, max(1, config.decay_steps or steps - warmup)))
    elif config.schedule == "wsd":
        decay = config.decay_steps or max(1, steps // 5)
        parts += [optax.constant_schedule(peak), optax.linear_schedule(peak, end, decay)]
        bounds.append(max(warmup, steps - decay))
    elif config.schedule == "rsqrt":
        held = max(0, config.decay_steps - warmup)
        first = max(1, warmup + held)  # a part counts from 0, and is asked before its steps too
        parts.append(lambda step: peak * (first / (first + jnp.maximum(step - held, 0))) ** 0.5)
    else:
        parts.append(optax.constant_schedule(peak))
    return optax.join_schedules(parts, bounds)


def names(tree, name_of):
    """The tree with `name_of(path, axes)` at each leaf: ("decoder", "blocks", "attn", "wq"), 5."""

    def leaf(path, x):
        parts = [part.name for part in path if hasattr(part, "name") and part.name != "value"]
        return name_of(parts or [""], x.ndim)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def decayed(tree):
    """Which leaves weight decay applies to, by name: all but norms and biases.

    Layers are stacked, so a bias has two axes and counting them would not tell.
    """
    return names(tree, lambda path, _: path[-1] not in NOT_DECAYED)


def matrices(tree):
    """(rows, columns) of the matrices in each leaf, as axes; vectors have columns alone.

    Axes in neither count matrices, or vectors. What is not in MATRICES (embeddings, heads, routers)
    has its matrix in the last two.
    """

    def axes(path, count):
        every = tuple(range(count))
        if known := MATRICES.get((path[-1], count)):
            return known.reduction_axis, known.output_axis
        if path[-1] not in NOT_DECAYED and count > 1:
            return every[-2:-1], every[-1:]
        return (), every[1:] if STACKED & set(path) else every

    return names(tree, axes)


def layout(config: OptimizerConfig) -> Callable[[Any], Any]:
    """Lays out gradients as the state of the optimizer is.

    Where Muon can, it has the whole matrices of some of the layers on a device: orthogonalization
    then moves nothing.
    """
    if not config.shard_state:
        return lambda tree: tree
    return partial(spread, first=config.name == "muon")


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer by its name, without clipping: the train step has the norm anyway.

    The state and the updates are computed in `layout`; updates come back laid out as parameters.
    """
    makers = {"adamw": adamw, "adafactor": adafactor, "lion": lion, "muon": muon}
    tx, lay_out = makers[config.name](config, schedule(config, steps)), layout(config)

    def update(grads, state, params):
        updates, state = tx.update(lay_out(grads), state, lay_out(params))
        return as_in(updates, params), state

    return optax.GradientTransformation(lambda params: tx.init(lay_out(params)), update)


def adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    return optax.chain(
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


def lion(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023, arXiv:2302.06675, algorithm 2): the sign of a momentum."""
    return optax.chain(
        optax.scale_by_lion(config.b1, config.b2),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


def adafactor(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor without momentum, as T5 was trained (arXiv:1910.10683, section 3.1.2); `rate` is
    relative to the size of a parameter.
    """
    return optax.chain(
        scale_by_adafactor(matrices),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(rate),
    )


def muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) on the matrices inside the blocks, AdamW on all other weights; here
    optax has norms and biases decay as well.

    Both follow `rate`; Muon's is scaled to peak at config.muon_learning_rate.
    """
    share = config.muon_learning_rate / max(config.learning_rate, 1e-30)
    tx = contrib.muon(
        lambda step: share * rate(step),
        eps=config.eps,
        weight_decay=config.weight_decay,
        weight_decay_mask=decayed,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_weight_decay=config.weight_decay,
        adam_learning_rate=rate,
        muon_weight_dimension_numbers=lambda tree: names(
            tree, lambda path, count: MATRICES.get((path[-1], count))
        ),
    )

    def update(grads, state, params=None):
        if not mesh_is_set():
            return tx.update(grads, state, params)
        # Orthogonalization mixes whole matrices: here the compiler decides what moves where.
        places = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (grads, state))
        return jax.sharding.auto_axes(tx.update, out_sharding=places)(grads, state, params)

    def init(params):
        # A constant that no device owns: it would be restored onto one device alone, and the step
        # be compiled twice.
        here = lambda path, x: shard(x, None) if getattr(path[-1], "name", "") == "ns_coeffs" else x
        return jax.tree_util.tree_map_with_path(here, tx.init(params))

    return optax.GradientTransformation(init, update)
