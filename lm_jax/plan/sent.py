"""Lower bound of the bytes that a device sends in a step, along each axis of the mesh and over each
kind of wire.

The least that the layout of the code needs (lm_jax/devices/products.py, models/*.py); the
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
from lm_jax.devices import sharding
from lm_jax.devices.chips import Topology
from lm_jax.devices.sharding import RULES
from lm_jax.plan import roofline, shapes
from lm_jax.plan.memory import TABLES, Part
from lm_jax.plan.shapes import Leaf

KINDS = {
    "v4": "TPU v4",
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5p",
    "v6e": "TPU v6 lite",
    "tpu7x": "TPU7x",
}  # what JAX calls a device; its mesh_utils lay out some in their own way


def sent_by(part: Part) -> dict[str, float]:
    """Bytes that a device sends in a step, by mesh axes ("fsdp", "data+expert")."""
    config, sizes = part.config, part.sizes
    state, total = shapes.state(config), dict.fromkeys(("fsdp", "expert", "context", "tensor"), 0.0)
    for leaf in state.parameters:
        for axes, size in of_weight(leaf, part):
            total[axes] = total.get(axes, 0.0) + config.microbatches * size
    if config.optimizer.shard_state:  # its updates come back in float32, once a step
        whole = others(sizes["data"]) * state.bytes("parameters", sizes)
        total["data"] = total.get("data", 0.0) + whole
    for axis, states in of_states(part):
        total[axis] += config.microbatches * others(sizes[axis]) * states
    return total


def others(n: int) -> float:
    """The share of a whole that a device does not have itself, or has for others."""
    return (n - 1) / n


def of_weight(leaf: Leaf, part: Part) -> Iterator[tuple[str, float]]:
    """(axes, bytes) of a microbatch: where it is cut over the batch's axes, it is collected forward
    and backward, and its gradient scattered; over the other axes of the tokens that is summed.
    """
    sizes, number = part.sizes, part.number
    cut = {axis for axes in leaf.cut for axis in axes}
    uses = 1
    if leaf.path[-1] in TABLES:
        uses = 1 + tied(part.config.model) if leaf.path[-1] == "tokens" else 1
    if "fsdp" in cut:
        times = 3 if "blocks" in leaf.path else 2  # a table is collected for its only product
        yield "fsdp", uses * times * others(sizes["fsdp"]) * leaf.bytes(sizes | {"fsdp": 1}, number)
    shared = [axis for axis in RULES["tokens"] if axis not in cut and sizes[axis] > 1]
    if shared:
        ways = math.prod(sizes[axis] for axis in shared)
        scattered = part.config.optimizer.shard_state and shared == ["data"]
        size = leaf.bytes(sizes, number)
        yield "+".join(shared), uses * (1 if scattered else 2) * others(ways) * size


def makes_again(model: ModelConfig) -> bool:
    """Whether products with weights are made again for the way back."""
    return model.remat == "names" or forgets(model)


def forgets(model: ModelConfig) -> bool:
    """Whether attention, too, is made again."""
    return model.remat in ("full", "offload")


def tied(model: ModelConfig) -> int:
    """Number of uses of the embedding table beside the first lookup."""
    return model.tie_embeddings + (model.architecture == "encoder_decoder")


def of_states(part: Part) -> Iterator[tuple[str, int]]:
    """(axis, bytes that its devices have together) of a microbatch, which move there."""
    model, states = part.config.model, part.states
    again = makes_again(model)
    for branches, layers in stacks(model):
        # A branch collects states and scatters its sum; backward it collects states and their
        # gradient, and scatters one. What is computed again needs all sums but the last.
        yield "tensor", layers * states * (5 * branches + again * (branches - 1))
        if model.num_experts:
            whole = states * part.sizes["expert"]
            yield "expert", layers * whole * (4 + again)
            yield "tensor", layers * whole * 4  # sums of all that share the experts, not scattered
        yield "context", layers * (branches - 1) * keys(part)
    yield "tensor", 4 * states


def keys(part: Part) -> int:
    """Bytes of keys and values of an attention, forward and backward, between devices that share
    the rows: collected (again, where they are not kept) and their gradients scattered; in a ring
    they go round, again with gradients in float32.
    """
    model = part.config.model
    once = 2 * part.sizes["context"] * part.heads(model.kv_heads)
    if not part.ring:
        return once * (2 + (model.remat != "none"))
    return once * (2 + forgets(model)) + once // part.number * 4


def stacks(model: ModelConfig) -> list[tuple[int, int]]:
    """(branches of a block, blocks) of each."""
    both = model.architecture == "encoder_decoder"
    first = [(2, model.encoder_layers or model.num_layers)] if both else []
    return [*first, (2 + both, model.num_layers)]


@functools.lru_cache(maxsize=1024)
def network(topology: Topology, mesh: tuple[tuple[str, int], ...]) -> dict[str, tuple]:
    """Seconds in which a device sends a byte along groups of mesh axes: inside of slices or hosts,
    and between them.
    """
    sizes = dict(mesh)
    grid, names, found = placed(topology, list(sizes.values())), list(sizes), {}
    large = [axis for axis, size in sizes.items() if size > 1]
    for number in range(1, len(large) + 1):
        for axes in itertools.combinations(large, number):
            at = tuple(slice(None) if name in axes else 0 for name in names)
            places = [roofline.place(device, topology) for device in grid[at].reshape(-1)]
            found["+".join(axes)] = roofline.seconds(topology, 1.0, places)
    return found


def placed(topology: Topology, sizes: list[int]) -> np.ndarray:
    """Devices that are not here, laid out as sharding.make_mesh would."""
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
