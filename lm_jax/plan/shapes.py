"""State and saved activations of a run, traced from the real model on a mesh that needs no devices,
so that no formula can disagree with the code.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from lm_jax.config import CheckpointConfig, Config, EvalConfig, MeshConfig, OptimizerConfig
from lm_jax.devices import sharding
from lm_jax.models import create
from lm_jax.training.ahead_of_time import abstract_batch
from lm_jax.training.train_step import init_state


class Leaf(NamedTuple):
    """An array: its path in the tree, and the mesh axes that shard each dimension."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    cut: tuple[tuple[str, ...], ...]

    def bytes(self, sizes: dict[str, int], size: int = 0, lanes: int = 1) -> int:
        """Bytes on a device of a mesh of these sizes, in numbers of `size` bytes (0: its dtype's).
        A TPU pads one dimension, that which wastes least, to a multiple of `lanes`.
        """
        own = self.own(sizes)
        waste = min((-(-n // lanes) * lanes / n for n in own if n), default=1.0)
        return int(math.prod(own) * waste) * (size or self.dtype.itemsize)

    def own(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Shape of a device's part."""
        parts = (math.prod(sizes[axis] for axis in axes) for axes in self.cut)
        return tuple(-(-n // p) for n, p in zip(self.shape, parts, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    """Arrays that a device holds from step to step."""

    parameters: tuple[Leaf, ...]
    optimizer: tuple[Leaf, ...]

    @functools.cached_property
    def blocks(self) -> tuple[Leaf, ...]:
        """The parameters of the layers, which are stacked."""
        return tuple(leaf for leaf in self.parameters if "blocks" in leaf.path)

    def bytes(self, what: str, sizes: dict[str, int], size: int = 0, lanes: int = 1) -> int:
        """Bytes of all `what` (parameters, optimizer, blocks), as Leaf.bytes."""
        return summed(self, what, tuple(sizes.items()), size, lanes)


@functools.lru_cache(maxsize=2**16)
def summed(state: State, what: str, sizes: tuple, size: int, lanes: int) -> int:
    """`State.bytes`, cached: plans with the same mesh share it."""
    return sum(leaf.bytes(dict(sizes), size, lanes) for leaf in getattr(state, what))


class Saved(NamedTuple):
    """Activations that the forward pass keeps for the backward pass, parameters aside: of one
    window, in the shapes of a device, and copies of weights, which do not grow with the batch.
    """

    activations: tuple[Leaf, ...]
    weights: tuple[Leaf, ...]


def sizes_of(mesh: MeshConfig) -> dict[str, int]:
    """Number of devices along each axis of a mesh without -1."""
    return {axis: getattr(mesh, axis) for axis in sharding.AXES}


def abstract(sizes: dict[str, int]) -> Any:
    """The context of a mesh of these sizes without devices."""
    kinds = (AxisType.Explicit,) * len(sizes)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)
    return jax.sharding.use_abstract_mesh(mesh)


def leaves(tree: Any) -> Iterable[Leaf]:
    """The arrays of a tree of jax.ShapeDtypeStruct."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        names = (str(getattr(part, "name", getattr(part, "key", part))) for part in path)
        yield leaf(tuple(name for name in names if name != "value"), x)


def leaf(path: tuple[str, ...], x: Any) -> Leaf:
    """Shape, type and layout of an abstract array."""
    places = tuple(x.sharding.spec) if getattr(x, "sharding", None) else ()
    places += (None,) * (len(x.shape) - len(places))
    cut = tuple(() if p is None else (p,) if isinstance(p, str) else tuple(p) for p in places)
    return Leaf(path, x.shape, np.dtype(x.dtype), cut)


def state(config: Config) -> State:
    """Parameters and optimizer state of `config`, whose mesh has no -1.

    A layout depends on the sizes of a mesh only where a dimension may not divide: the vocabulary,
    or what ZeRO shards. Elsewhere a mesh of ones has the same layout.
    """
    mesh = config.mesh
    if not config.optimizer.shard_state or mesh.data == 1:
        words = config.model.vocab_size % (mesh.fsdp * mesh.tensor) == 0
        own = {} if words else {"fsdp": mesh.fsdp, "tensor": mesh.tensor}
        mesh = MeshConfig(data=1, **own)
    return traced_state(dataclasses.replace(essence(config), optimizer=config.optimizer, mesh=mesh))


@functools.lru_cache(maxsize=4096)
def traced_state(config: Config) -> State:
    """`state`, traced on the mesh of `config`."""
    with abstract(sizes_of(config.mesh)):
        found = jax.eval_shape(lambda: init_state(config))
    return State(tuple(leaves(found.model)), tuple(leaves(found.opt)))


def essence(config: Config) -> Config:
    """A config of one window with the same model and loss: the key by which traces are shared."""
    return dataclasses.replace(
        config, name="", steps=1, batch_size=1, microbatches=1, mesh=MeshConfig(data=1),
        optimizer=OptimizerConfig(warmup_steps=0), eval=EvalConfig(), checkpoint=CheckpointConfig(),
    )  # fmt: skip


def saved(config: Config) -> Saved:
    """Activations saved under the model's remat policy, without the head and the loss."""
    tensor = config.mesh.tensor
    few = next((n for n in range(2, tensor + 1) if tensor % n == 0), 1)
    mesh = MeshConfig(data=1, tensor=few, context=config.mesh.context)
    found = traced_saved(dataclasses.replace(essence(config), mesh=mesh))
    if few == tensor:
        return found
    return Saved(tuple(narrowed(x, tensor // few) for x in found.activations), found.weights)


def narrowed(leaf: Leaf, times: int) -> Leaf:
    """The part of an array where so many times more devices share the heads. Only its size is used,
    so any dimension may be divided.
    """
    dims = [i for i, n in enumerate(leaf.shape) if i and n % times == 0]
    if not dims or not any(leaf.cut):
        return leaf
    shape = list(leaf.shape)
    shape[dims[0]] //= times
    return leaf._replace(shape=tuple(shape))


@functools.lru_cache(maxsize=256)
def traced_saved(config: Config) -> Saved:
    """`saved`, traced on the mesh of `config`, which shards the heads or the rows."""
    sizes = sizes_of(config.mesh)
    with abstract(sizes):
        forward = lambda net, batch: jax.vjp(lambda net: net.forward(batch)[0], net)[1]
        jaxpr = jax.make_jaxpr(forward)(*one_window(config)).jaxpr
    given, found = set(jaxpr.invars), []
    for var in dict.fromkeys(v for v in jaxpr.outvars if not hasattr(v, "val")):
        here = "host" not in str(getattr(var.aval, "memory_space", "")).lower()
        found += [leaf((), var.aval)] if here and var not in given else []
    rows = [x for x in found if any(sharding.SHARED in axes for axes in x.cut)]
    return Saved(tuple(local(x, sizes) for x in rows), tuple(x for x in found if x not in rows))


def local(leaf: Leaf, sizes: dict[str, int]) -> Leaf:
    """A device's part of a saved activation, sharded over the heads only."""
    heads = tuple(tuple(axis for axis in axes if axis == "tensor") for axes in leaf.cut)
    return leaf._replace(shape=leaf.own(sizes), cut=heads)


def one_window(config: Config) -> tuple[Any, dict[str, Any]]:
    """The abstract model and batch of `config`, which has one window; inside of `abstract`."""
    net = jax.eval_shape(lambda: create(config.model, rngs=nnx.Rngs(0)))
    batch = abstract_batch(config, jax.sharding.get_abstract_mesh())
    return net, {name: first_row(x) for name, x in batch.items()}


def first_row(x: Any) -> Any:
    """The abstract x[0] of an array whose first dimension is not sharded."""
    place = NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[1:]))
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=place)
