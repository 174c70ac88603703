"""The request of a plan: flags and config, checked before any compiler starts, without jax."""

import dataclasses

from lm_jax.config import Config, MeshConfig
from lm_jax.config.check import check_ring
from lm_jax.config.mesh_check import FAR_AXES, check_batch, check_mesh, fill_mesh, large_axes
from lm_jax.config.model import NEURAL
from lm_jax.devices.chips import Topology
from lm_jax.errors import UserError, nearest

AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))


def mesh_of(text: str) -> MeshConfig:
    """'fsdp:16,tensor:4' -> the mesh with these sizes, all others 1; raises UserError."""
    sizes = dict.fromkeys(AXES, 1)
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if name not in AXES:
            raise UserError(f"--mesh={text}: no axis {name!r}.{nearest(name, AXES)}")
        if not size.removeprefix("-").isdigit() or int(size) < -1 or int(size) == 0:
            raise UserError(
                f"--mesh={text}: the size of {name} is {size!r}; write a whole number from 1 on, "
                "or -1 for what is left."
            )
        sizes[name] = int(size)
    return MeshConfig(**sizes)


def for_topology(
    config: Config, topology: Topology, mesh: str = "", batch: int = 0, remat: str = ""
) -> Config:
    """`config` with what the flags change, on all devices of a topology: the mesh has no -1 left.

    Raises UserError at the first field that cannot work there.
    """
    config = with_flags(config, mesh_of(mesh) if mesh else config.mesh, batch, remat)
    each = f" ({topology.chip.devices} a chip)" if topology.chip.devices > 1 else ""
    filled = fill_mesh(config.mesh, topology.devices, f"{each} of {topology}")
    config = dataclasses.replace(config, mesh=filled)
    check_on(config, topology)
    return config


def for_search(config: Config, batch: int = 0, remat: str = "") -> Config:
    """`config` with what the flags change, whatever the mesh is. Raises UserError."""
    return with_flags(dataclasses.replace(config, microbatches=1), MeshConfig(), batch, remat)


def with_flags(config: Config, mesh: MeshConfig, batch: int, remat: str) -> Config:
    """`config` with this mesh and, where they are given, this batch and policy; checked."""
    if (kind := config.model.architecture) not in NEURAL:
        raise UserError(
            f"config.model.architecture={kind!r}: is no network of matrix products; plan is for "
            f"those: {', '.join(NEURAL)}."
        )
    values = config.to_dict() | {"mesh": dataclasses.asdict(mesh)}
    values |= {"batch_size": batch} if batch else {}
    values["model"] |= {"remat": remat} if remat else {}
    return Config.parse(values)


def check_on(config: Config, topology: Topology) -> None:
    """Raises UserError unless model and batch divide over the mesh of `config`, and the mesh over
    the slices. One axis alone crosses the network between them, as in sharding.tpu_grid.
    """
    check_mesh(config)
    check_ring(config)
    slices, mesh = topology.slices, config.mesh
    if all(getattr(mesh, axis) % slices for axis in FAR_AXES):
        raise UserError(
            f"config.mesh: {large_axes(dataclasses.asdict(mesh))}: one of {', '.join(FAR_AXES)} "
            f"must be a multiple of the {slices} slices of {topology}; "
            f"e.g. --mesh=slice:{slices},fsdp:-1."
        )
    check_batch(config.batch_size, config.microbatches, dataclasses.asdict(mesh))
