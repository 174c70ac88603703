"""The train step, one pure function: gradients of summed losses, divided once, clipped, applied."""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lm_jax.config import Config
from lm_jax.models import Recurrent, create
from lm_jax.tasks.objectives import Batch, loss, means, microbatch_weights
from lm_jax.training import optimizers

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """All that a step changes."""

    step: jax.Array
    model: Any
    opt: Any
    carry: Any = None  # the state of a recurrent model between windows (config.data.carry)


def init_state(config: Config) -> TrainState:
    """A new state. Under jax.jit and a mesh every array is created on the devices that will hold
    it.
    """
    model = create(config.model, rngs=nnx.Rngs(config.seed))
    opt = optimizers.make(config.optimizer, config.steps).init(model)
    carry = None
    if config.data.carry and isinstance(model, Recurrent):
        carry = model.init_state(config.batch_size)
    return TrainState(jnp.zeros((), jnp.int32), model, opt, carry)


def make_train_step(config: Config) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The step of `config`: (state, batch [microbatches, B, L]) -> (state, metrics), to be jitted
    and donated.
    """
    tx = optimizers.make(config.optimizer, config.steps)
    rate = optimizers.schedule(config.optimizer, config.steps)
    layout = optimizers.layout(config.optimizer)

    precision = config.model.matmul_precision
    # "default" leaves what the user may have set in jax.config.
    multiplied = (
        contextlib.nullcontext
        if precision == "default"
        else partial(jax.default_matmul_precision, precision)
    )

    def sums(model, batch, key):
        return loss(model, batch, key if config.model.has_dropout else None, config.loss)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        if config.data.carry:
            batch = {**batch, "state": jax.tree.map(lambda x: x[None], state.carry)}
        with multiplied():
            (_, totals), grads = accumulate(sums, state.model, batch, key, layout)
        tokens = jnp.maximum(totals["tokens"], 1.0)
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads))) / tokens
        clip = config.optimizer.clip_norm
        scale = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12)) if clip else 1.0
        grads = jax.tree.map(lambda g: g * (scale / tokens), grads)
        updates, opt = tx.update(grads, state.opt, state.model)
        model, carry = optax.apply_updates(state.model, updates), totals.pop("state", None)
        new = TrainState(state.step + 1, model, opt, carry)
        reported = means(totals)
        metrics = {"loss": reported.pop("nll"), "gnorm": norm, "lr": rate(state.step), **reported}
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        # A step that is not finite changes nothing: the loop stops there, with a good state to
        # save.
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return new, metrics | {"tokens": totals["tokens"]}

    return train_step


def accumulate(sums, model, batch, key, layout):
    """((loss, totals), gradients) summed over the leading axis of `batch`, one microbatch after the
    other; gradients are laid out by `layout`, as the optimizer's state.
    """

    def grad(*args):
        value, grads = jax.value_and_grad(sums, has_aux=True)(*args)
        return value, layout(grads)

    count = batch["tokens"].shape[0]
    keys = jax.random.split(key, count)
    if count > 1:
        batch = {**batch, **microbatch_weights(batch, bool(model.config.num_experts))}
    first = (jax.tree.map(lambda x: x[0], batch), keys[0])
    if count == 1:
        return grad(model, *first)

    def body(total, part):
        # Summed over devices here: where the TPU compiler moves these sums behind the loop, it ends
        # in an error of its own (libtpu 0.0.42.1).
        return jax.tree.map(jnp.add, total, jax.lax.optimization_barrier(grad(model, *part))), None

    scalars = jax.eval_shape(sums, model, *first)
    zeros = (
        jax.tree.map(lambda x: jnp.zeros((), x.dtype), scalars),
        jax.tree.map(jnp.zeros_like, layout(model)),
    )
    return jax.lax.scan(body, zeros, (batch, keys))[0]
