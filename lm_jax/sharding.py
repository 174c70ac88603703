"""Who holds which part of an array? The only file that names a mesh axis.

Weights, activations and batches carry logical axis names; `RULES` maps each to mesh axes. The
sharding is part of an array's type (explicit mesh axes), so gradients, optimizer state and
`jax.eval_shape` inherit it. Without a mesh (a notebook) every function here does nothing and the
modules just work.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm_jax.config import MeshConfig
from lm_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `config` over all of `devices`; raises UserError when the sizes do not multiply
    to them.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size > 0)
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // known)
    if math.prod(sizes) != len(devices):
        asked = " x ".join(f"{axis}={getattr(config, axis)}" for axis in AXES)
        raise UserError(
            f"config.mesh: {asked} does not make {len(devices)} devices; "
            f"set one axis to -1, or sizes whose product is {len(devices)}."
        )
    if devices[0].platform == "tpu" and len(devices) > 1:
        from jax.experimental import mesh_utils

        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def check_batch(mesh: Mesh, batch_size: int, microbatches: int) -> None:
    """Raises UserError when a microbatch does not divide over the devices that share the batch."""
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    if batch_size % (ways * microbatches):
        step = ways * microbatches
        down, up = batch_size // step * step, -(-batch_size // step) * step
        near = f"{down} or {up}" if down else f"{up}"
        raise UserError(
            f"config.batch_size={batch_size}: must be divisible by {ways} devices "
            f"(mesh data x fsdp) x {microbatches} microbatches; nearest: {near}."
        )


def no_mesh() -> Any:
    """A context in which no mesh is set, also inside one that has one."""
    return jax.set_mesh(Mesh(np.array(jax.devices()[0]), ()))


def automatic(tree: Any) -> Any:
    """The same arrays on the same devices, laid out the same, with axes that the compiler shards as
    it likes.

    For programs that no rule was written for, like decoding: run them on this tree outside of any
    mesh.
    """

    def convert(x: Any) -> Any:
        place = x.sharding
        if not isinstance(place, NamedSharding) or place.mesh.empty:
            return x
        mesh = Mesh(place.mesh.devices, place.mesh.axis_names)
        return jax.device_put(x, NamedSharding(mesh, place.spec))

    return jax.tree.map(convert, tree)


def mesh_is_set() -> bool:
    """Whether a mesh with explicit axes is in use (jax.set_mesh), as opposed to a notebook or a
    shard_map.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and all(kind == AxisType.Explicit for kind in mesh.axis_types)


def spec(*names: str | None) -> PartitionSpec | None:
    """Mesh axes of an array whose axes have these logical names (None: not sharded)."""
    if not mesh_is_set():
        return None
    parts = [None if name is None else RULES[name] for name in names]
    used = [axis for part in parts if part for axis in ((part,) if isinstance(part, str) else part)]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {names} use a mesh axis twice: {used}")
    return PartitionSpec(*parts)


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """`x` laid out by the logical names of its axes."""
    return x if (axes := spec(*names)) is None else jax.sharding.reshard(x, axes)


def einsum(equation: str, x: jax.Array, w: jax.Array, *names: str | None) -> jax.Array:
    """jnp.einsum whose result is laid out by `names`."""
    return jnp.einsum(equation, x, w, out_sharding=spec(*names))


def gather(table: jax.Array, ids: jax.Array, *names: str | None) -> jax.Array:
    """table[ids], laid out by `names`."""
    return table.at[ids].get(out_sharding=spec(*names))


def put(batch: dict[str, np.ndarray], mesh: Mesh, leading: int = 0) -> dict[str, jax.Array]:
    """Host arrays [*leading, batch, ...] onto the devices of `mesh`; each process gives the rows
    that are its own.
    """
    axes = PartitionSpec(*(None,) * leading, RULES["batch"])
    place = NamedSharding(mesh, axes)
    if jax.process_count() == 1:
        return jax.device_put(batch, place)
    return {
        name: jax.make_array_from_process_local_data(place, value) for name, value in batch.items()
    }
