"""Optimizers by their name in the config, as optax chains, and learning rate schedules."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm_jax.config import OptimizerConfig
from lm_jax.devices.sharding import as_in, mesh_is_set, spread
from lm_jax.models.parameter import by_role
from lm_jax.training.adafactor import scale_by_adafactor
from lm_jax.training.muon import scale_by_muon

GROWN = 10.0  # times larger than the others: weights that grew because of their own rate


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
        decay = config.decay_steps or max(1, min(steps // 5, steps - warmup))
        parts += [optax.constant_schedule(peak), optax.linear_schedule(peak, end, decay)]
        bounds.append(max(warmup, steps - decay))
    elif config.schedule == "rsqrt":
        held = max(0, config.decay_steps - warmup)
        first = max(1, warmup + held)  # a part counts from 0, and is evaluated before its steps too
        parts.append(lambda step: peak * (first / (first + jnp.maximum(step - held, 0))) ** 0.5)
    else:
        parts.append(optax.constant_schedule(peak))
    return optax.join_schedules(parts, bounds)


def decayed(tree: Any) -> Any:
    """Mask of the leaves that weight decay applies to, by their roles (models.parameter.Role)."""
    return by_role(tree, lambda role: role.decays)


def matrices(tree: Any) -> Any:
    """(rows, columns) of the matrices in each leaf, as axes; vectors have columns alone. Axes in
    neither count matrices, or vectors.
    """
    return by_role(tree, lambda role: (role.rows, role.columns))


def largest_rate(config: OptimizerConfig, model: Any) -> str:
    """The learning rate to lower after a loss that is not finite, as "config.optimizer.FIELD (now
    VALUE)": with Muon, that of the weights which have grown by far the most, or both.
    """
    fields = {"learning_rate": config.learning_rate}
    if config.name == "muon":
        fields["muon_learning_rate"] = config.muon_learning_rate
        sizes = dict.fromkeys(fields, 0.0)
        roles = jax.tree.leaves(by_role(model, lambda role: role))
        for x, role in zip(jax.tree.leaves(model), roles, strict=True):
            name = "muon_learning_rate" if role.hidden else "learning_rate"
            # A matrix counts by what it makes of an input of size 1.
            inputs = math.prod(x.shape[axis] for axis in role.rows) if role.hidden else 1
            sizes[name] = max(sizes[name], float(jnp.max(jnp.abs(x))) * inputs**0.5)
        largest = max(sizes.values())
        fields = {n: rate for n, rate in fields.items() if sizes[n] * GROWN >= largest}
    named = [f"config.optimizer.{name} (now {rate:g})" for name, rate in fields.items()]
    return " or ".join(named[::-1])


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
    """Muon (Jordan et al. 2024) on the matrices between activations, AdamW on all other weights.

    Both follow `rate`; Muon's is scaled to peak at config.muon_learning_rate. Both decay alike:
    matrices and embeddings, by their own rate.
    """
    share = config.muon_learning_rate / max(config.learning_rate, 1e-30)
    on_matrices = optax.chain(
        scale_by_muon(matrices),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(lambda step: share * rate(step)),
    )
    of = lambda tree: by_role(tree, lambda role: "muon" if role.hidden else "adamw")
    tx = optax.partition({"muon": on_matrices, "adamw": adamw(config, rate)}, of)

    def update(grads, state, params=None):
        if not mesh_is_set():
            return tx.update(grads, state, params)
        # Orthogonalization mixes whole matrices: here the compiler decides what moves where.
        places = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (grads, state))
        return jax.sharding.auto_axes(tx.update, out_sharding=places)(grads, state, params)

    return optax.GradientTransformation(tx.init, update)
