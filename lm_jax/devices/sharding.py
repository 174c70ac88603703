"""Mesh, logical axes and layouts of arrays: the only file that names a mesh axis.

Weights, activations and batches carry logical axis names; `RULES` maps each to mesh axes. The
sharding is part of an array's type (explicit mesh axes), so gradients, optimizer state and
`jax.eval_shape` inherit it. Without a mesh (a notebook) every function here does nothing and the
modules just work.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm_jax.config import MeshConfig
from lm_jax.config.mesh_check import BATCH_AXES, FAR_AXES, ROW_AXES, fill_mesh
from lm_jax.errors import UserError

AXES = tuple(field.name for field in dataclasses.fields(MeshConfig))
RULES: dict[str, str | tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "rows": ROW_AXES,
    "length": "context",
    "tokens": (*BATCH_AXES, "context"),  # of all rows
    "embed": "fsdp",
    "experts": "expert",
    "layers": "stage",
    "heads": "tensor",
    "stream": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "words": ("tensor", "fsdp"),
}
PARTIAL_SHARD_MAP_SINCE = (0, 10)  # jax in which a shard_map over some explicit axes works,
OTHER_AXES_CUT_SINCE = (0, 12)  # and in which arrays stay cut along the others at its border
SHARED = "data"  # the axis whose devices hold the same parameters
ROWS_ARE_WHOLE = contextvars.ContextVar("rows are whole", default=False)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of `config` over all of `devices`; raises UserError when the sizes do not multiply
    to them.
    """
    devices = list(jax.devices() if devices is None else devices)
    filled = fill_mesh(config, len(devices))
    if filled.stage > 1 and jax.__version_info__ < PARTIAL_SHARD_MAP_SINCE:
        needed = ".".join(map(str, PARTIAL_SHARD_MAP_SINCE))
        raise UserError(
            f"config.mesh.stage={filled.stage}: needs jax {needed}, and this is {jax.__version__}; "
            "set it to 1, or upgrade jax."
        )
    sizes = [getattr(filled, axis) for axis in AXES]
    tpu = devices[0].platform == "tpu" and len(devices) > 1
    grid = tpu_grid(sizes, devices) if tpu else np.array(devices).reshape(sizes)
    return Mesh(grid, AXES, axis_types=(AxisType.Explicit,) * len(AXES))


def warning(mesh: Mesh) -> str:
    """Warning about a mesh before a run; "" for none."""
    beside = [axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1]
    if mesh.shape["stage"] == 1 or not beside or jax.__version_info__ >= OTHER_AXES_CUT_SINCE:
        return ""
    return (
        f"WARNING: config.mesh.stage={mesh.shape['stage']}: jax {jax.__version__} collects the "
        f"weights of a whole stage on each device, {' and '.join(beside)} notwithstanding; "
        "use jax 0.12, or stage with data alone."
    )


def tpu_grid(sizes: list[int], devices: list[Any]) -> np.ndarray:
    """TPUs in the order of the torus. The network between slices is slow: a single axis crosses it,
    the first of FAR_AXES whose size is a multiple of the slices.
    """
    from jax.experimental import mesh_utils

    slices = len({getattr(device, "slice_index", None) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    for axis in map(AXES.index, FAR_AXES):
        if sizes[axis] % slices == 0:
            within, across = list(sizes), [1] * len(sizes)
            within[axis], across[axis] = sizes[axis] // slices, slices
            return mesh_utils.create_hybrid_device_mesh(
                within, across, devices, allow_split_physical_axes=True
            )
    raise UserError(
        f"config.mesh: {slices} TPU slices; one of {', '.join(FAR_AXES)} must be a multiple of "
        f"{slices}, e.g. config.mesh.slice={slices}."
    )


def no_mesh() -> Any:
    """A context in which no mesh is set, also inside one that has one."""
    return jax.set_mesh(Mesh(np.array(jax.local_devices()[0]), ()))


def mesh_is_set() -> bool:
    """Whether a mesh with explicit axes is in use (jax.set_mesh), as opposed to a notebook or a
    shard_map over all of them.
    """
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def ways(*names: str) -> int:
    """Number of parts into which the mesh in use cuts an array along these logical axes."""
    if not mesh_is_set():
        return 1
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in free(*names))


def spec(*names: str | None) -> PartitionSpec | None:
    """Mesh axes of an array whose axes have these logical names (None: not sharded)."""
    if not mesh_is_set():
        return None
    used = axes_of(*names)
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {names} use a mesh axis twice: {list(used)}")
    return PartitionSpec(*(None if name is None else within(rule(name)) for name in names))


@contextlib.contextmanager
def whole_rows() -> Iterator[None]:
    """A context in which the "context" axis cuts no rows: each of its devices has whole rows.

    For decoding: a single token cannot be shared.
    """
    token = ROWS_ARE_WHOLE.set(True)
    try:
        yield
    finally:
        ROWS_ARE_WHOLE.reset(token)


def rule(name: str) -> str | tuple[str, ...] | None:
    """The mesh axes of a logical name in the mesh in use."""
    axes, mesh = RULES[name], jax.sharding.get_abstract_mesh()
    need_axes(*((axes,) if isinstance(axes, str) else axes))
    if name not in ("length", "tokens"):
        return axes
    # An axis of one device is left out of types: else keys and values would be resharded.
    alone = mesh.shape.get(RULES["length"], 1) == 1
    if alone or ROWS_ARE_WHOLE.get():
        return None if name == "length" else RULES["batch"]
    return axes


def need_axes(*axes: str) -> None:
    """Raises UserError when the mesh in use lacks one of `axes`: it is another program's."""
    names = jax.sharding.get_abstract_mesh().axis_names
    if mesh_is_set() and not set(axes) <= set(names):
        raise UserError(
            f"the mesh in use (jax.set_mesh) has the axes {', '.join(names)}, lm_jax's has "
            f"{', '.join(AXES)}; set none, or one of lm_jax.devices.sharding.make_mesh."
        )


def shard(x: jax.Array, *names: str | None) -> jax.Array:
    """`x` laid out by the logical names of its axes."""
    return x if (axes := spec(*names)) is None else jax.sharding.reshard(x, axes)


def spread(tree: Any, first: bool = False) -> Any:
    """The arrays of `tree`, also cut along the data axis (ZeRO, Rajbhandari et al. 2020,
    arXiv:1910.02054, section 5): of the dimensions that divide, along the longest on a device or,
    with `first`, the first one (the layers). An array without one stays as it is.
    """
    if not mesh_is_set() or jax.sharding.get_abstract_mesh().shape[SHARED] == 1:
        return tree
    return jax.tree.map(lambda x: jax.sharding.reshard(x, spread_spec(x, first)), tree)


def spread_spec(x: jax.Array, first: bool) -> PartitionSpec:
    """Mesh axes of x after `spread`. The new one comes last in its dimension: a device keeps a part
    of what it held, so the inverse moves data along this axis only.
    """
    sizes, old = jax.sharding.get_abstract_mesh().shape, jax.typeof(x).sharding.spec
    parts = [() if p is None else (p,) if isinstance(p, str) else tuple(p) for p in old]
    local = [n // math.prod(sizes[a] for a in p) for n, p in zip(x.shape, parts, strict=True)]
    fits = [dim for dim, size in enumerate(local) if size and size % sizes[SHARED] == 0]
    if not fits or any(SHARED in part for part in parts):
        return old
    dim = fits[0] if first else max(fits, key=lambda dim: local[dim])
    return PartitionSpec(*old[:dim], (*parts[dim], SHARED), *old[dim + 1 :])


def as_in(tree: Any, other: Any) -> Any:
    """The arrays of `tree`, laid out as those of `other`."""
    if not mesh_is_set():
        return tree
    return jax.tree.map(lambda x, y: jax.sharding.reshard(x, place(y)), tree, other)


def beside(x: jax.Array, other: jax.Array) -> jax.Array:
    """`x` [B] laid out as the first axis of `other` [B, ...]: jax.vmap over both needs it."""
    if not mesh_is_set() or (axes := place(other)) is None:
        return x
    return jax.sharding.reshard(x, PartitionSpec(axes[0]))


def in_use() -> tuple[str, ...]:
    """The mesh axes along which arrays may be cut here."""
    mesh, length = jax.sharding.get_abstract_mesh(), RULES["length"]
    names = (axis for axis in mesh.axis_names if axis not in mesh.manual_axes)
    return tuple(axis for axis in names if axis != length or rule("length"))


def axes_of(*names: str | None) -> tuple[str, ...]:
    """The mesh axes of logical names, in order."""
    parts = [rule(name) or () for name in names if name is not None]
    return tuple(axis for part in parts for axis in ((part,) if isinstance(part, str) else part))


def free(*names: str | None) -> tuple[str, ...]:
    """The mesh axes of logical names along which arrays can still be cut: not the manual ones of a
    shard_map (the stages of a pipeline).
    """
    own = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in axes_of(*names) if axis not in own)


def within(axes: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
    """The free mesh axes of a rule (see `free`), as an entry of a PartitionSpec."""
    own = jax.sharding.get_abstract_mesh().manual_axes
    if axes is None or isinstance(axes, str):
        return None if axes in own else axes
    return tuple(axis for axis in axes if axis not in own)


def stream(dim: int) -> tuple[str | None, ...]:
    """Logical axes of the residual stream [B, L, D] between branches: devices that share the heads
    keep a part of each state, where D divides, so that no branch ends in an all-reduce. Along D and
    not L, as in sequence parallelism (arXiv:2205.05198): the TPU compiler sends half the bytes.
    """
    parts = ways("stream")
    return "batch", "length", "stream" if parts > 1 and dim % parts == 0 else None


def table(rows: int) -> tuple[str | None, ...]:
    """Logical axes of a table of words [rows, D]: cut along the words where they divide. Whole rows
    are gathered in one piece; parts of rows would need a second copy to be put in order.
    """
    return ("words", None) if rows % ways("words") == 0 else ("vocab", "embed")


def whole(x_BLD: jax.Array) -> jax.Array:
    """The residual stream with whole states on each device."""
    return shard(x_BLD, "batch", "length", None)


def is_cut(x: jax.Array, axis: int) -> bool:
    """Whether x is cut along an axis."""
    return mesh_is_set() and jax.typeof(x).sharding.spec[axis] is not None


def place(x: jax.Array) -> PartitionSpec | None:
    """Sharding of x."""
    return jax.typeof(x).sharding.spec if mesh_is_set() else None


def gather(table: jax.Array, ids: jax.Array, *names: str | None) -> jax.Array:
    """table[ids], laid out by `names`."""
    return table.at[ids].get(out_sharding=spec(*names))


def put(batch: dict[str, np.ndarray], mesh: Mesh, leading: int = 0) -> dict[str, jax.Array]:
    """Puts host arrays [*leading, batch, ...] onto the devices of `mesh`; each process has the rows
    of its own devices.
    """
    axes = PartitionSpec(*(None,) * leading, RULES["batch"])
    place = NamedSharding(mesh, axes)
    if jax.process_count() == 1:
        return jax.device_put(batch, place)
    return {
        name: jax.make_array_from_process_local_data(place, value) for name, value in batch.items()
    }


def bytes_per_device(leaf: Any) -> int:
    """Bytes of an array that one device holds."""
    shape = leaf.sharding.shard_shape(leaf.shape) if getattr(leaf, "sharding", None) else leaf.shape
    return math.prod(shape) * leaf.dtype.itemsize


def memory_limit(device: Any) -> int | None:
    """Bytes of memory of an accelerator; None where it does not report them."""
    if not hasattr(device, "memory_stats"):  # a device of a topology, without hardware
        return None
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except RuntimeError:  # a backend that does not implement it
        return None
