"""How do layers on different devices work at once? Parts of a batch follow each other through the
stages (GPipe, Huang et al. 2019, arXiv:1811.06965, section 2.3).
"""

# Shapes: B batch, L length, D model width, N layers, S stages, M parts, T = M + S - 1 ticks.

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm_jax import sharding
from lm_jax.config import ModelConfig
from lm_jax.models import moe
from lm_jax.parallel import vary

AXIS = "stage"  # RULES["layers"]
PARTS = 4  # a stage, where no number is asked for: S - 1 of 5 S - 1 ticks are then waits


def parts_of(rows: int, stages: int, asked: int) -> int:
    """How many parts so many rows of a device make: a divisor, near what is asked or 4 a stage."""
    most = min(rows, asked or PARTS * stages)
    return next(parts for parts in range(most, 0, -1) if rows % parts == 0)


def pipelined(
    through: Callable, config: ModelConfig, x_BLD: jax.Array, seen: Any, layers: Any, kept: Any
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """`through(x_BLD, seen, layers, kept)` of layers that are cut over the stages.

    In tick t stage s computes part t - s of the batch, and hands it to the next stage. seen: rows
    [B, ...], or what all rows share [1, ...]. layers: [N, ...]. kept: (what is renewed, what is
    not), by layer and row [N, B, ...].
    """
    S, B = sharding.ways("layers"), len(x_BLD)
    M = parts_of(B // sharding.ways("rows"), S, config.pipeline_parts)
    x_BLD, seen = jax.tree.map(partial(of_all, B=B), (x_BLD, seen))

    def stage(x_BLD, seen, layers, kept):
        here = jax.lax.axis_index(AXIS)
        x_BLD, seen = vary((x_BLD, seen), (AXIS,))
        x, seen = jax.tree.map(lambda x: cut(x, M) if len(x) == B else x[None], (x_BLD, seen))
        cache, keyed = jax.tree.map(lambda x: cut(x, M, 1), kept)

        def tick(carry, t):
            came, cache = carry
            part = jnp.clip(t - here, 0, M - 1)
            # Where a stage has nothing to do it computes what nobody reads, of real numbers: they
            # cannot overflow.
            own = jnp.where(here == 0, pick(x, part), came)
            old = pick(cache, part)
            y, new, aux = through(own, pick(seen, part), layers, (old, pick(keyed, part)), part)
            live = part == t - here
            new = jax.tree.map(lambda new, old: jnp.where(live, new, old), new, old)
            put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, part, 0)
            cache = jax.tree.map(put, cache, new)
            came = jax.lax.ppermute(y, AXIS, [(s, s + 1) for s in range(S - 1)])
            return (came, cache), (y, aux)

        (_, cache), (y, aux) = jax.lax.scan(tick, (x[0], cache), jnp.arange(M + S - 1))
        y_BLD = joined(jnp.where(here == S - 1, y[S - 1 :], 0))
        aux = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, here, M), aux)
        cache = jax.tree.map(lambda x: joined(x, 1), cache)
        return jax.lax.psum(y_BLD, AXIS), cache, moe.together(aux) if aux else aux

    all, own = PartitionSpec(), PartitionSpec(AXIS)
    x_BLD, *rest = on_stages(stage, (all, all, own, own), (all, own, own))(
        x_BLD, seen, layers, kept
    )
    return sharding.shard(x_BLD, *sharding.stream(x_BLD.shape[2])), *rest


def on_stages(function: Callable, inputs: Any, output: Any) -> Callable:
    """`function` of the part of each stage; other mesh axes go on being cut as before.

    Unchecked: jax 0.10 saves what a shard_map inside needs for its gradient along an axis too many.
    Before jax 0.12 what goes in and out here is first collected along the other axes: the result is
    the same, but a device holds and sends the whole layers of its stage.
    """
    each = jax.shard_map(
        function, in_specs=inputs, out_specs=output, axis_names={AXIS}, check_vma=False
    )
    return jax.jit(each)  # it cannot run step by step


def by_stage(function: Callable) -> Callable:
    """`function(layers, rows)` of the layers of each stage, [N, ...] in and out, and all rows."""
    if sharding.ways("layers") == 1:
        return function
    all, own = PartitionSpec(), PartitionSpec(AXIS)
    each = on_stages(function, (own, all), own)
    return lambda layers, rows: each(layers, of_all(rows, len(rows)))


def of_all(x: jax.Array, B: int) -> jax.Array:
    """Rows x [B, ...] that all stages have; what is not of rows as it is."""
    if len(x) != B:
        return x
    _, *rest = jax.typeof(x).sharding.spec
    return jax.sharding.reshard(x, PartitionSpec(sharding.RULES["rows"], *rest))


def cut(x: jax.Array, parts: int, axis: int = 0) -> jax.Array:
    """Rows along an axis, as parts [M, ...] of as many rows of each device."""
    at, place = axis + 1, jax.typeof(x).sharding.spec
    shape = (*x.shape[:axis], x.shape[axis] // parts, parts, *x.shape[at:])
    x = x.reshape(shape, out_sharding=PartitionSpec(*place[:at], None, *place[at:]))
    return jnp.moveaxis(x, at, 0)


def joined(x: jax.Array, axis: int = 0) -> jax.Array:
    """The rows of the parts, as they were before `cut`."""
    x = jnp.moveaxis(x, 0, axis + 1)
    place = jax.typeof(x).sharding.spec
    shape = (*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return x.reshape(shape, out_sharding=PartitionSpec(*place[: axis + 1], *place[axis + 2 :]))


def pick(tree: Any, part: jax.Array) -> Any:
    """Part number `part` of the arrays [M, ...]; of one [1, ...], what there is."""
    take = lambda x: jax.lax.dynamic_index_in_dim(x, part, 0, keepdims=False)
    return jax.tree.map(lambda x: take(x) if len(x) > 1 else x[0], tree)
