"""Pipeline parallelism: parts of a batch follow each other through the stages (GPipe, Huang et al.
2019, arXiv:1811.06965, section 2.3), once or, with fewer layers each time, in several rounds (the
interleaved stages of Narayanan et al. 2021, arXiv:2104.04473, section 2.2, with all parts forward
before any goes back).
"""

# Shapes: B batch, L length, D model width, N layers, S stages, M parts, R rounds, G parts that
# follow each other through all rounds, T = M R + S - 1 ticks.

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from lm_jax.config import ModelConfig
from lm_jax.devices import sharding
from lm_jax.devices.collectives import vary
from lm_jax.models import moe, remat

AXIS = "stage"  # RULES["layers"]
PARTS = 4  # a stage, where no number is asked for: S - 1 of 5 S - 1 ticks are then waits


def parts_of(rows: int, stages: int, asked: int, rounds: int = 1) -> int:
    """Number of parts that the rows of a device make: a divisor, near config.model.pipeline_parts
    or 4 a stage; in rounds, a multiple of the stages, which then need that many fewer to wait as
    little.
    """
    step = stages if rounds > 1 else 1
    most = min(rows, asked or max(step, PARTS * stages // rounds // step * step))
    fits = (parts for parts in range(most, 0, -1) if rows % parts == 0 and parts % step == 0)
    return next(fits, step)


def rounds_of(config: ModelConfig, rows: int, layers: int) -> int:
    """Number of rounds through the stages, where rows and layers divide so."""
    S, R = sharding.ways("layers"), config.pipeline_rounds
    return R if rows % S == 0 and layers % (S * R * len(config.kinds)) == 0 else 1


def pipelined(
    through: Callable, config: ModelConfig, x_BLD: jax.Array, seen: Any, layers: Any, kept: Any
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """`through(x_BLD, seen, layers, kept)` of layers that are cut over the stages.

    In tick t stage s does what is due as number t - s, and hands the part to the next stage; the
    last one, of another round, to the first. seen: rows [B, ...], or what all rows share [1, ...].
    layers: [N, ...]. kept: (what is renewed, what is not), by layer and row [N, B, ...].
    """
    S, B = sharding.ways("layers"), len(x_BLD)
    rows, number = B // sharding.ways("rows"), len(jax.tree.leaves(layers)[0])
    R = rounds_of(config, rows, number) if not jax.tree.leaves(kept) else 1
    M = parts_of(rows, S, config.pipeline_parts, R)
    G = S if R > 1 else M  # what comes back from the last stage is due on the first in that tick
    x_BLD, seen = jax.tree.map(partial(of_all, B=B), (x_BLD, seen))
    types = jax.tree.map(lambda x: x.dtype, (x_BLD, seen))

    def stage(x_BLD, seen, layers, kept):
        here = jax.lax.axis_index(AXIS)
        x_BLD, seen = jax.tree.map(lambda x, dtype: x.astype(dtype), (x_BLD, seen), types)
        x_BLD, seen = vary((x_BLD, seen), (AXIS,))
        x, seen = jax.tree.map(lambda x: cut(x, M) if len(x) == B else x[None], (x_BLD, seen))
        cache, keyed = jax.tree.map(lambda x: cut(x, M, 1), kept)
        layers = jax.tree.map(lambda x: by_round(with_layers(x, 1, R, len(x) // R), S, R), layers)
        run = lambda own, seen, round, *rest: through(own, seen, pick(layers, round), *rest)
        run = remat.layers_taken(run, config.remat) if R > 1 else run

        def tick(carry, t):
            came, cache = carry
            due = jnp.clip(t - here, 0, M * R - 1)
            part = due // (G * R) * G + due % G
            round = due % (G * R) // G
            # Where a stage has nothing to do it computes what nobody reads, of real numbers: they
            # cannot overflow.
            own = jnp.where((here == 0) & (round == 0), pick(x, part), came)
            old = pick(cache, part)
            y, new, aux = run(own, pick(seen, part), round, (old, pick(keyed, part)), part)
            live = due == t - here
            new = jax.tree.map(lambda new, old: jnp.where(live, new, old), new, old)
            put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, part, 0)
            cache = jax.tree.map(put, cache, new)
            to = [(s, (s + 1) % S) for s in range(S - (R == 1))]
            return (jax.lax.ppermute(y, AXIS, to), cache), (y, aux)

        (_, cache), (y, aux) = jax.lax.scan(tick, (x[0], cache), jnp.arange(M * R + S - 1))
        last = [y[t : t + G] for t in range(S - 1 + (R - 1) * G, len(y), R * G)]
        y_BLD = joined(jnp.where(here == S - 1, jnp.concatenate(last), 0))
        aux = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, here, M * R), aux)
        aux = jax.tree.map(lambda x: by_part(x, M, R, G), aux)
        cache = jax.tree.map(lambda x: joined(x, 1), cache)
        return jax.lax.psum(summable(y_BLD), AXIS), cache, moe.merge_parts(aux) if aux else aux

    all, own = PartitionSpec(), PartitionSpec(AXIS)
    y_BLD, *rest = on_stages(stage, (all, all, own, own), (all, own, own))(
        *jax.tree.map(summable, (x_BLD, seen)), layers, kept
    )
    return sharding.shard(y_BLD.astype(x_BLD.dtype), *sharding.stream(x_BLD.shape[2])), *rest


def summable(x: jax.Array) -> jax.Array:
    """x as it can be summed over the stages, and its gradient: on CPU, bfloat16 as float32.

    XLA's pass all-reduce-promotion makes the same of it there, and aborts the process on a sum
    whose reducer has a sharding, as JAX gives it where a shard_map leaves other axes to the
    compiler ("Invalid binary instruction opcode copy", jaxlib 0.10.2).
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    on_cpu = getattr(device, "device_kind", "") == "cpu"
    return x.astype(jnp.float32) if on_cpu and x.dtype == jnp.bfloat16 else x


def by_part(x: jax.Array, parts: int, rounds: int, group: int) -> jax.Array:
    """[M, N, ...] in the order of the layers, of what a stage says one tick after the other, [M R,
    N / R, ...].
    """
    x = jnp.swapaxes(x.reshape(parts // group, rounds, group, *x.shape[1:]), 0, 1)
    x = x.reshape(rounds, parts, *x.shape[3:])
    x = by_round(jnp.swapaxes(x, 1, 2), jax.lax.axis_size(AXIS), rounds, back=True)
    return jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 0, 1)


def by_round(x: jax.Array, stages: int, rounds: int, back: bool = False) -> jax.Array:
    """Rearranges layers [R, N / R, ...] between the order of the model and the order in which each
    stage runs them, round by round. back: from the latter to the former.

    Once a step, and nothing is stored in another order. Chunk c of stage s is number s R + c, and
    belongs to stage (s R + c) % S. Sent in R turns, in each by every stage one chunk, and one to
    every stage.
    """
    S, R, found = stages, rounds, x
    if R == 1:
        return x
    alike = S // math.gcd(S, R)  # stages in a row, whose chunks belong to unlike stages
    for turn in range(R):
        chunks = [(turn + s // alike) % R for s in range(S)]
        numbers = [s * R + c for s, c in enumerate(chunks)]
        to = [(s, number % S) for s, number in enumerate(numbers)]
        rounds_in = [0] * S
        for number in numbers:
            rounds_in[number % S] = number // S
        take, put = (rounds_in, chunks) if back else (chunks, rounds_in)
        to = [(b, a) for a, b in to] if back else to
        here = jax.lax.axis_index(AXIS)
        sent = pick(x, jnp.array(take)[here])
        if any(a != b for a, b in to):
            sent = jax.lax.ppermute(sent, AXIS, to)
        found = jax.lax.dynamic_update_index_in_dim(found, sent, jnp.array(put)[here], 0)
    return found


def with_layers(x: jax.Array, first: int, *sizes: int) -> jax.Array:
    """x with its `first` dimensions, which are layers, in these sizes; the others lie as they do
    (where one has size 1, a plain reshape would forget it).
    """
    place = sharding.place(x)
    place = place and PartitionSpec(*(None,) * len(sizes), *place[first:])
    return x.reshape(*sizes, *x.shape[first:], out_sharding=place)


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
