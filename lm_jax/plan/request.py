"""What is asked for, and can it work at all? Before any compiler is started, and without jax."""

import dataclasses
import math

from lm_jax.config import Config, MeshConfig
from lm_jax.errors import UserError, nearest
from lm_jax.plan.chips import Topology

AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))
SPLIT = ("data", "fsdp", "expert")  # they share the batch: sharding.RULES["batch"]


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


def asked(
    config: Config, topology: Topology, mesh: str = "", batch: int = 0, remat: str = ""
) -> Config:
    """`config` with what the flags change, on all devices of a topology: the mesh has no -1 left.

    Raises UserError at the first field that cannot work there.
    """
    if config.model.architecture in ("ngram", "hmm"):
        raise UserError(
            f"config.model.architecture={config.model.architecture!r}: is not trained in steps; "
            "plan is for networks."
        )
    sizes = dataclasses.asdict(mesh_of(mesh) if mesh else config.mesh)
    known = math.prod(size for size in sizes.values() if size > 0)
    filled = [axis for axis, size in sizes.items() if size == -1]
    if len(filled) == 1:
        sizes[filled[0]] = max(1, topology.devices // known)
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    if len(filled) <= 1 and math.prod(sizes.values()) != topology.devices:
        each = f" ({topology.chip.devices} a chip)" if topology.chip.devices > 1 else ""
        where = f"--mesh={mesh}" if mesh else "config.mesh"
        raise UserError(
            f"{where}: {shown} does not make the {topology.devices} devices{each} of {topology}; "
            f"set one axis to -1, or sizes whose product is {topology.devices}."
        )
    values = config.to_dict() | {"mesh": sizes, "batch_size": batch or config.batch_size}
    values["model"] = values["model"] | ({"remat": remat} if remat else {})
    config = Config.parse(values)
    check_slices(config, topology)
    check_batch(config)
    return config


def anywhere(config: Config, batch: int = 0, remat: str = "") -> Config:
    """`config` with what the flags change, whatever the mesh is. Raises UserError."""
    values = config.to_dict() | {"mesh": {}, "batch_size": batch or config.batch_size}
    values["microbatches"] = 1
    values["model"] = values["model"] | ({"remat": remat} if remat else {})
    return Config.parse(values)


def check_slices(config: Config, topology: Topology) -> None:
    """One axis alone crosses the network between slices, as in sharding.tpu_grid."""
    slices, mesh = topology.slices, config.mesh
    if mesh.data % slices and mesh.fsdp % slices:
        raise UserError(
            f"config.mesh: data {mesh.data}, fsdp {mesh.fsdp}: one of them must be a multiple of "
            f"the {slices} slices of {topology}; e.g. --mesh=data:{slices},fsdp:-1."
        )


def check_batch(config: Config) -> None:
    """The same as sharding.check_batch, before there is a mesh."""
    ways = math.prod(getattr(config.mesh, axis) for axis in SPLIT)
    step = ways * config.microbatches
    if config.batch_size % step:
        down, up = config.batch_size // step * step, -(-config.batch_size // step) * step
        near = f"{down} or {up}" if down else f"{up}"
        raise UserError(
            f"config.batch_size={config.batch_size}: must be divisible by {ways} devices (mesh "
            f"{' x '.join(SPLIT)}) x {config.microbatches} microbatches; nearest: --batch={near}."
        )
