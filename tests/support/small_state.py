"""A state of 100 kB with the types and shardings of a real one, for tests of checkpoints."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType

from lm_jax.devices.sharding import shard
from lm_jax.run import manifest
from lm_jax.run.checkpoint import Checkpoints, flatten

SHAPES = {"data": (8, 1, 1), "all": (2, 2, 2), "tensor": (1, 2, 4), "one": (1, 1, 1)}


class Layer(nnx.Module):
    def __init__(self, first, dim):
        values = jnp.sin(first + jnp.arange(256.0 * dim)).reshape(dim, 256)
        self.w = nnx.Param(shard(values, "embed", "mlp"))
        self.scale = nnx.Param(jnp.ones(dim))


class Model(nnx.Module):
    def __init__(self, dim=16):
        self.blocks = jax.vmap(lambda first: Layer(first, dim))(jnp.arange(2.0))
        self.head = nnx.Param(jnp.cos(jnp.arange(4.0 * dim)).reshape(dim, 4).astype(jnp.bfloat16))
        self.dim = dim


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    model: Model
    opt: Any


def mesh_of(name):
    shape = SHAPES[name]
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(
        shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 3, devices=devices
    )


def make(dim=16, seed=0):
    model = jax.tree.map(lambda x: x + x.dtype.type(seed), Model(dim))
    return State(jnp.full((), seed, jnp.int32), model, optax.adam(1e-3).init(model))


def bits(tree):
    return {name: np.asarray(manifest.storable(x)).tobytes() for name, x in flatten(tree).items()}


def saved(tmp_path, steps=(1, 2, 3), **options):
    """A run directory with these steps, and the bits of each."""
    with Checkpoints(tmp_path, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, make(seed=step), {"step_was": step}, {"t.model": b"\x00\xff"})
    return {step: bits(make(seed=step)) for step in steps}


def collected(tmp_path, **options):
    lines = []
    return Checkpoints(tmp_path, report=lines.append, **options), lines


ABSTRACT = jax.eval_shape(make)
