"""Parameters and their roles for optimizers: whether a parameter decays, and which of its axes make
a matrix. The role is set where the parameter is created, as metadata of nnx.Param.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from lm_jax.devices.sharding import shard
from lm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Role:
    """Properties of a parameter that optimizers read. Axes count from the end, so that a stack of
    layers, with one more axis in front, has the same role.

    decays: weight decay applies to it. rows, columns: the axes of the matrix W in y = x W, those of
    x and those of y; without rows it is a vector along its columns. Other axes (layers, experts,
    gate and up) index separate matrices or vectors. hidden: a matrix between two layers of
    activations, which Muon orthogonalizes; embeddings, heads and routers are not.
    """

    decays: bool
    columns: tuple[int, ...]
    rows: tuple[int, ...] = ()
    hidden: bool = False


# Embeddings, heads and routers: a matrix in the last two axes, which under Muon AdamW updates.
TABLE = Role(decays=True, columns=(-1,), rows=(-2,))


def hidden(rows: tuple[int, ...], columns: tuple[int, ...]) -> Role:
    """The role of a matrix between layers of activations."""
    return Role(decays=True, columns=columns, rows=rows, hidden=True)


def vector(axes: int = 1) -> Role:
    """The role of a bias or of a norm's scale along its last `axes` axes: it does not decay."""
    return Role(decays=False, columns=tuple(range(-axes, 0)))


def parameter(value: jax.Array, axes: tuple[str | None, ...], role: Role) -> nnx.Param:
    """A parameter with a role, laid out by its logical `axes`."""
    return nnx.Param(shard(value, *axes), role=role)


def by_role(tree: Any, function: Callable[[Role], Any]) -> Any:
    """The tree with `function(role)` at each leaf. Raises UserError for a parameter without a role,
    by name.
    """

    def at(path: tuple, param: Any) -> Any:
        role = getattr(param, "role", None) if isinstance(param, nnx.Variable) else None
        if not isinstance(role, Role):
            name = "/".join(str(getattr(part, "name", getattr(part, "key", part))) for part in path)
            raise UserError(
                f"parameter {name or '(the tree itself)'}: has no role (whether it decays, and "
                "which of its axes make a matrix); create it with lm_jax.models.parameter."
                "parameter(value, axes, role), role one of hidden(rows, columns), TABLE, "
                "vector(axes)."
            )
        return jax.tree.map(lambda _: function(role), param)

    return jax.tree_util.tree_map_with_path(at, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
