"""Lower bound of the bytes that a device sends in a step, along each axis of the mesh and over each
kind of wire.

It is the least that the layout of the code needs (lm_jax/devices/products.py, lm_jax/models); the
compiler may send more.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from lm_jax.config import ModelConfig
from lm_jax.config.cost import depths
from lm_jax.devices import sharding
from lm_jax.devices.chips import Topology
from lm_jax.devices.sharding import RULES
from lm_jax.plan import roofline, shapes
from lm_jax.plan.part import TABLES, Part
from lm_jax.plan.shapes import Leaf

KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5p",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}  # what JAX calls a device; its mesh_utils lay out some in their own way


def sent_by_axes(part: Part) -> dict[str, float]:
    """Bytes that a device sends in a step, by mesh axes ("fsdp", "data+expert")."""
    config, sizes = part.config, part.sizes
    state, total = shapes.state(config), dict.fromkeys(("fsdp", "expert", "context", "tensor"), 0.0)
    for leaf in state.parameters:
        for axes, size in weight_traffic(leaf, part):
            total[axes] = total.get(axes, 0.0) + config.microbatches * size
    if config.optimizer.shard_state:  # its updates come back in float32, once a step
        size = remote_share(sizes["data"]) * state.bytes("parameters", sizes)
        total["data"] = total.get("data", 0.0) + size
    for axis, states in state_traffic(part):
        total[axis] += config.microbatches * remote_share(sizes[axis]) * states
    return total


def remote_share(n: int) -> float:
    """Share of an array over n devices that a device does not hold: it is received, or sent."""
    return (n - 1) / n


def weight_traffic(leaf: Leaf, part: Part) -> Iterator[tuple[str, float]]:
    """(axes, bytes) that a weight and its gradient cost in a microbatch. A weight that is sharded
    over `fsdp` is gathered in the forward and the backward pass, and its gradient is scattered;
    over the other axes of the tokens the gradient is summed.
    """
    sizes, number = part.sizes, part.number
    cut = {axis for axes in leaf.cut for axis in axes}
    uses = 1
    if leaf.path[-1] in TABLES:
        uses = 1 + tied(part.config.model) if leaf.path[-1] == "tokens" else 1
    if "fsdp" in cut:
        times = 3 if "blocks" in leaf.path else 2  # a table is gathered for its only product
        yield (
            "fsdp",
            uses * times * remote_share(sizes["fsdp"]) * leaf.bytes(sizes | {"fsdp": 1}, number),
        )
    shared = [axis for axis in RULES["tokens"] if axis not in cut and sizes[axis] > 1]
    if shared:
        ways = math.prod(sizes[axis] for axis in shared)
        scattered = part.config.optimizer.shard_state and shared == ["data"]
        size = leaf.bytes(sizes, number)
        yield "+".join(shared), uses * (1 if scattered else 2) * remote_share(ways) * size


def recomputes_products(model: ModelConfig) -> bool:
    """Whether the backward pass recomputes products with weights."""
    return model.remat == "names" or recomputes_attention(model)


def recomputes_attention(model: ModelConfig) -> bool:
    """Whether the backward pass recomputes attention, too."""
    return model.remat in ("full", "offload")


def tied(model: ModelConfig) -> int:
    """Number of uses of the embedding table beside the first lookup."""
    return model.tie_embeddings + bool(depths(model)[0])


def state_traffic(part: Part) -> Iterator[tuple[str, int]]:
    """(axis, bytes of all its devices together) of the states that move in a microbatch."""
    model, states = part.config.model, part.states
    extra = recomputes_products(model)
    for branches, layers in stacks(model):
        # A branch gathers states and scatters its sum; the backward pass gathers states and their
        # gradient, and scatters one. Recomputation needs all sums but the last.
        yield "tensor", layers * states * (5 * branches + extra * (branches - 1))
        if model.num_experts:
            whole = states * part.sizes["expert"]
            yield "expert", layers * whole * (4 + extra)
            yield "tensor", layers * whole * 4  # sums of all that share the experts, not scattered
        yield "context", layers * (branches - 1) * key_value_traffic(part)
    yield "tensor", 4 * states


def key_value_traffic(part: Part) -> int:
    """Bytes of keys and values of an attention layer, forward and backward, between the devices of
    a context axis: gathered (once more where they are not kept), their gradients scattered; in a
    ring they are passed on, the second time with gradients in float32.
    """
    model = part.config.model
    once = 2 * part.sizes["context"] * part.heads(model.kv_heads)
    if not part.ring:
        return once * (2 + (model.remat != "none"))
    return once * (2 + recomputes_attention(model)) + once // part.number * 4


def stacks(model: ModelConfig) -> list[tuple[int, int]]:
    """(branches of a block, blocks) of each stack."""
    encoder, layers, _ = depths(model)
    return [(2, encoder), (3, layers)] if encoder else [(2, layers)]


@functools.lru_cache(maxsize=1024)
def seconds_per_byte(topology: Topology, mesh: tuple[tuple[str, int], ...]) -> dict[str, tuple]:
    """Seconds that a device needs to send a byte, by groups of mesh axes: (inside slices or hosts,
    between them).
    """
    sizes = dict(mesh)
    grid, names, found = device_grid(topology, list(sizes.values())), list(sizes), {}
    large = [axis for axis, size in sizes.items() if size > 1]
    for number in range(1, len(large) + 1):
        for axes in itertools.combinations(large, number):
            at = tuple(slice(None) if name in axes else 0 for name in names)
            places = [roofline.place(device, topology) for device in grid[at].reshape(-1)]
            found["+".join(axes)] = roofline.seconds(topology, 1.0, places)
    return found


def device_grid(topology: Topology, sizes: list[int]) -> np.ndarray:
    """Stand-ins for the devices of a topology, laid out as sharding.make_mesh would."""
    chip, here = topology.chip, list[Any]()
    for each in range(topology.slices):
        for coords in itertools.product(*map(range, reversed(topology.shape))):
            at = (*reversed(coords), 0, 0)[:3]
            here += [
                SimpleNamespace(platform="tpu", device_kind=KINDS.get(chip.name), coords=at,
                                core_on_chip=core, slice_index=each, process_index=0, id=len(here))
                for core in range(chip.devices)
            ]  # fmt: skip
    return sharding.tpu_grid(sizes, here) if chip.is_tpu else np.array(here).reshape(sizes)
