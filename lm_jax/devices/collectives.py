"""Functions of each device's own parts of arrays, and the collectives between devices."""

from typing import Any

import jax
from jax.sharding import PartitionSpec

from lm_jax.devices import sharding
from lm_jax.devices.quantized import scaled
from lm_jax.devices.sharding import axes_of, mesh_is_set, spec


def on_each_device(function: Any, inputs: tuple, output: Any, own: bool = True) -> Any:
    """`function` applied to each device's parts (jax.shard_map), by the logical axes of its
    arguments (for a dict: by name, for a list: by index) and of its result or, in a list, results;
    without a mesh, `function` itself. own: arrays that devices share count as each one's own, so
    that their gradients are summed.
    """
    if not mesh_is_set():
        return function
    mesh = jax.sharding.get_abstract_mesh()
    axes = {axis for axis in mesh.axis_names if axis not in mesh.manual_axes}
    shared = sharding.in_use()

    def by_name(names: Any, x: Any) -> Any:
        if isinstance(names, list):
            each = zip(names, x or [None] * len(names), strict=True)
            return [by_name(name, y) for name, y in each]
        if isinstance(x, dict):
            return {n: spec(*names[n]) for n in x}
        if x is None or isinstance(x, jax.Array):
            return spec(*names)
        return jax.tree.map(lambda part: spec(*scaled(names, part)), x)  # in eight bits

    def as_own(x: jax.Array, place: PartitionSpec) -> jax.Array:
        cut = {axis for part in place if part for axis in ((part,) if type(part) is str else part)}
        return vary(x, tuple(axis for axis in shared if axis not in cut))

    def call(*args: Any) -> Any:
        places = tuple(by_name(names, x) for names, x in zip(inputs, args, strict=True))
        args = jax.tree.map(jax.sharding.reshard, args, places)
        local = lambda *parts: function(*(jax.tree.map(as_own, parts, places) if own else parts))
        result = by_name(output, None)
        each = jax.shard_map(local, in_specs=places, out_specs=result, axis_names=axes,
                             check_vma=not mesh.manual_axes)  # fmt: skip
        return each(*args)

    return call


def inside(*names: str | None) -> tuple[str, ...]:
    """The mesh axes of logical names inside `on_each_device`; none elsewhere."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(axis for axis in axes_of(*names) if axis in manual)


def index(name: str) -> jax.Array | int:
    """Index of this device's part along the axis of `name`, inside `on_each_device`."""
    return jax.lax.axis_index(axes) if (axes := inside(name)) else 0


def own_key(key: jax.Array) -> jax.Array:
    """A random key of this device's own, inside `on_each_device` or `jax.shard_map`."""
    axes = jax.sharding.get_abstract_mesh().manual_axes
    return jax.random.fold_in(key, jax.lax.axis_index(axes)) if axes else key


def devices(name: str) -> int:
    """Number of devices along the axis of `name`, inside `on_each_device`."""
    return jax.lax.axis_size(axes) if (axes := inside(name)) else 1


def varying(x: Any, *names: str) -> Any:
    """A tree of constants marked as varying over the devices along these logical axes: the initial
    value of a loop whose later values do.
    """
    return vary(x, inside(*names))


def vary(x: Any, axes: tuple[str, ...]) -> Any:
    """The tree with values marked as each device's own along these mesh axes."""
    if not axes:
        return x
    if (pvary := getattr(jax.lax, "pvary", None)) and not hasattr(jax.lax, "pcast"):
        return pvary(x, axes)  # before jax 0.9
    return jax.tree.map(lambda x: jax.lax.pcast(x, axes, to="varying"), x)


def joined(x: jax.Array, name: str) -> jax.Array:
    """All-gather: the parts of x of the devices along the axis of `name`, one after the other."""
    return jax.lax.all_gather(x, axes, tiled=True) if (axes := inside(name)) else x


def summed(x: jax.Array, name: str) -> jax.Array:
    """The sum of x over the devices along the axis of `name`."""
    return jax.lax.psum(x, axes) if (axes := inside(name)) else x


def maximum(x: jax.Array, name: str) -> jax.Array:
    """The maximum of x over the devices along the axis of `name`; a constant to gradients."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, axes) if (axes := inside(name)) else x


def summed_part(x: jax.Array, name: str, axis: int = 0) -> jax.Array:
    """Reduce-scatter: this device's part of `summed`, along an axis of x."""
    axes = inside(name)
    return jax.lax.psum_scatter(x, axes, scatter_dimension=axis, tiled=True) if axes else x


def summed_gradient(x: jax.Array, *names: str | None) -> jax.Array:
    """The gradient of a weight with these logical axes, summed over the devices that share the
    tokens; each device keeps the part that it holds of the weight. Along other mesh axes `x` is
    such a part already.
    """
    left = inside("tokens")
    for dimension, name in enumerate(names):
        if axes := tuple(axis for axis in inside(name) if axis in left):
            x = jax.lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)
            left = tuple(axis for axis in left if axis not in axes)
    return jax.lax.psum(x, left) if left else x
