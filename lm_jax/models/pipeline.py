"""Pipeline parallelism: parts of a batch pass through the stages one after the other (GPipe, Huang
et al. 2019, arXiv:1811.06965, section 2.3), once or, with fewer layers each time, in several rounds
(the interleaved stages of Narayanan et al. 2021, arXiv:2104.04473, section 2.2, with the forward
pass of all parts before any backward pass).
"""

# Shapes: B batch, L length, D model width, N layers, S stages, M parts, R rounds, G parts in a
# group, which passes through all rounds together, T = M R + S - 1 ticks.

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
PARTS = 4  # default number per stage: S - 1 of 5 S - 1 ticks are then idle


def number_of_parts(rows: int, stages: int, requested: int, rounds: int = 1) -> int:
    """Number of parts of the rows of a device: the largest divisor of them up to `requested`
    (config.model.pipeline_parts) or, where that is 0, PARTS for each stage. In several rounds a
    multiple of the stages, and by default fewer in proportion, for the same share of idle ticks.
    """
    step = stages if rounds > 1 else 1
    limit = min(rows, requested or max(step, PARTS * stages // rounds // step * step))
    fits = (parts for parts in range(limit, 0, -1) if rows % parts == 0 and parts % step == 0)
    return next(fits, step)


def rounds_of(config: ModelConfig, rows: int, layers: int) -> int:
    """Number of rounds through the stages: config.model.pipeline_rounds where rows and layers are
    divisible by it, else 1.
    """
    S, R = sharding.ways("layers"), config.pipeline_rounds
    return R if rows % S == 0 and layers % (S * R * len(config.kinds)) == 0 else 1


def pipelined(
    run_layers: Callable,
    config: ModelConfig,
    x_BLD: jax.Array,
    shared: Any,
    layers: Any,
    by_layer: Any,
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """`run_layers(x_BLD, shared, layers, by_layer)` with the layers cut over the stages.

    In tick t stage s runs its work number t - s, and sends the result to the next stage; the last
    stage, before the last round, to the first. shared: arrays of rows [B, ...], or one row for all
    [1, ...]. layers: [N, ...]. by_layer: (the cache, which is updated, arrays that are not), by
    layer and row [N, B, ...].
    """
    S, B = sharding.ways("layers"), len(x_BLD)
    rows, number = B // sharding.ways("rows"), len(jax.tree.leaves(layers)[0])
    R = rounds_of(config, rows, number) if not jax.tree.leaves(by_layer) else 1
    M = number_of_parts(rows, S, config.pipeline_parts, R)
    G = S if R > 1 else M  # so that results of the last stage reach the first when it needs them
    x_BLD, shared = jax.tree.map(partial(on_all_stages, B=B), (x_BLD, shared))
    types = jax.tree.map(lambda x: x.dtype, (x_BLD, shared))

    def stage(x_BLD, shared, layers, by_layer):
        here = jax.lax.axis_index(AXIS)
        x_BLD, shared = jax.tree.map(lambda x, dtype: x.astype(dtype), (x_BLD, shared), types)
        x_BLD, shared = vary((x_BLD, shared), (AXIS,))
        x, shared = jax.tree.map(lambda x: cut(x, M) if len(x) == B else x[None], (x_BLD, shared))
        cache, constant = jax.tree.map(lambda x: cut(x, M, 1), by_layer)
        layers = jax.tree.map(lambda x: by_round(with_layers(x, 1, R, len(x) // R), S, R), layers)
        run = lambda own, shared, round, *rest: run_layers(own, shared, pick(layers, round), *rest)
        run = remat.layers_taken(run, config.remat) if R > 1 else run

        def tick(carry, t):
            received, cache = carry
            number, part, round = work_at(t - here, M, R, G)
            # An idle stage computes an unused result, from real activations, which cannot overflow.
            own = jnp.where((here == 0) & (round == 0), pick(x, part), received)
            old = pick(cache, part)
            y, new, aux = run(own, pick(shared, part), round, (old, pick(constant, part)), part)
            busy = number == t - here
            new = jax.tree.map(lambda new, old: jnp.where(busy, new, old), new, old)
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
        *jax.tree.map(summable, (x_BLD, shared)), layers, by_layer
    )
    return sharding.shard(y_BLD.astype(x_BLD.dtype), *sharding.stream(x_BLD.shape[2])), *rest


def work_at(number: jax.Array, parts: int, rounds: int, group: int) -> tuple[jax.Array, ...]:
    """(the nearest number of a piece of work that there is, its part, its round)."""
    number = jnp.clip(number, 0, parts * rounds - 1)
    part = number // (group * rounds) * group + number % group
    return number, part, number % (group * rounds) // group


def summable(x: jax.Array) -> jax.Array:
    """x in a type in which it and its gradient can be summed over the stages: on CPU, float32 for
    bfloat16.

    XLA's pass all-reduce-promotion would do the same there, but aborts the process on a sum whose
    reducer has a sharding, as in a shard_map that leaves other axes to the compiler ("Invalid
    binary instruction opcode copy", jaxlib 0.10.2).
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    on_cpu = getattr(device, "device_kind", "") == "cpu"
    return x.astype(jnp.float32) if on_cpu and x.dtype == jnp.bfloat16 else x


def by_part(x: jax.Array, parts: int, rounds: int, group: int) -> jax.Array:
    """Outputs of a stage by part and layer [M, N, ...], from its ticks [M R, N / R, ...]."""
    x = jnp.swapaxes(x.reshape(parts // group, rounds, group, *x.shape[1:]), 0, 1)
    x = x.reshape(rounds, parts, *x.shape[3:])
    x = by_round(jnp.swapaxes(x, 1, 2), jax.lax.axis_size(AXIS), rounds, back=True)
    return jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 0, 1)


def by_round(x: jax.Array, stages: int, rounds: int, back: bool = False) -> jax.Array:
    """Rearranges layers [R, N / R, ...] between the order of the model and the order in which each
    stage runs them, round by round. back: from the latter to the former.

    Done once a step, so that checkpoints keep the order of the model. Chunk c of stage s is number
    s R + c, and runs on stage (s R + c) % S. In each of R turns every stage sends one chunk and
    receives one.
    """
    S, R, result = stages, rounds, x
    if R == 1:
        return x
    run = S // math.gcd(S, R)  # consecutive stages whose chunks c run on different stages
    for turn in range(R):
        chunks = [(turn + s // run) % R for s in range(S)]
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
        result = jax.lax.dynamic_update_index_in_dim(result, sent, jnp.array(put)[here], 0)
    return result


def with_layers(x: jax.Array, first: int, *sizes: int) -> jax.Array:
    """x with its `first` dimensions, which are layers, reshaped to `sizes`; the other dimensions
    keep their sharding (a plain reshape drops that of a dimension of size 1).
    """
    place = sharding.place(x)
    place = place and PartitionSpec(*(None,) * len(sizes), *place[first:])
    return x.reshape(*sizes, *x.shape[first:], out_sharding=place)


def on_stages(function: Callable, inputs: Any, output: Any) -> Callable:
    """`function` applied to the part of each stage (jax.shard_map); arrays stay cut along the other
    mesh axes.

    Without check_vma: jax 0.10 saves residuals of an inner shard_map along an axis too many. Before
    jax 0.12 arguments and results are gathered along the other axes: the result is the same, but a
    device holds and sends the whole layers of its stage.
    """
    each = jax.shard_map(
        function, in_specs=inputs, out_specs=output, axis_names={AXIS}, check_vma=False
    )
    return jax.jit(each)  # such a shard_map cannot run eagerly


def by_stage(function: Callable) -> Callable:
    """`function(layers, rows)` applied on each stage to its own layers, [N, ...] in and out, and
    all rows.
    """
    if sharding.ways("layers") == 1:
        return function
    all, own = PartitionSpec(), PartitionSpec(AXIS)
    each = on_stages(function, (own, all), own)
    return lambda layers, rows: each(layers, on_all_stages(rows, len(rows)))


def on_all_stages(x: jax.Array, B: int) -> jax.Array:
    """Rows x [B, ...] replicated over the stages; other arrays as they are."""
    if len(x) != B:
        return x
    _, *rest = jax.typeof(x).sharding.spec
    return jax.sharding.reshard(x, PartitionSpec(sharding.RULES["rows"], *rest))


def cut(x: jax.Array, parts: int, axis: int = 0) -> jax.Array:
    """Splits rows along an axis into parts [M, ...], each with equally many rows of each device."""
    at, place = axis + 1, jax.typeof(x).sharding.spec
    shape = (*x.shape[:axis], x.shape[axis] // parts, parts, *x.shape[at:])
    x = x.reshape(shape, out_sharding=PartitionSpec(*place[:at], None, *place[at:]))
    return jnp.moveaxis(x, at, 0)


def joined(x: jax.Array, axis: int = 0) -> jax.Array:
    """Joins parts [M, ...] to rows along an axis: the inverse of `cut`."""
    x = jnp.moveaxis(x, 0, axis + 1)
    place = jax.typeof(x).sharding.spec
    shape = (*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return x.reshape(shape, out_sharding=PartitionSpec(*place[: axis + 1], *place[axis + 2 :]))


def pick(tree: Any, part: jax.Array) -> Any:
    """Part number `part` of the arrays [M, ...]; of arrays [1, ...] the only one."""
    take = lambda x: jax.lax.dynamic_index_in_dim(x, part, 0, keepdims=False)
    return jax.tree.map(lambda x: take(x) if len(x) > 1 else x[0], tree)
