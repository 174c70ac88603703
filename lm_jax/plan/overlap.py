"""Time of a step whose collectives overlap with the products of a layer, and their exposed part.

Layer by layer (as in the roofline of FSDP, Zhao et al. 2023, arXiv:2304.11277, section 3.3): while
a layer computes, the weights of the next one are gathered and the gradients of the one before are
scattered. Exposed is what takes longer than the layer, and what nothing overlaps with: the first
layer's weights and the last one's gradients, the tables [V, D], and the states that a layer waits
for.
"""

import dataclasses

from lm_jax.devices.chips import Topology
from lm_jax.plan import shapes
from lm_jax.plan.communication import (
    remote_share,
    seconds_per_byte,
    stacks,
    state_traffic,
    weight_traffic,
)
from lm_jax.plan.part import Part


@dataclasses.dataclass(frozen=True)
class Phases:
    """Seconds that a device computes: in a microbatch, and once a step (optimizer)."""

    forward: float  # of the layers
    backward: float  # of the layers, with recomputation
    attention: float  # of these two: the products of queries with keys, and with values
    head: float  # embeddings, head and loss, with their gradients
    optimizer: float


@dataclasses.dataclass(frozen=True)
class Layered:
    """Seconds of a step, and those of them in which a device only waits for communication."""

    seconds: float
    exposed: float

    @property
    def share(self) -> float:
        """Exposed time as a share of the total."""
        return self.exposed / self.seconds


def layered(part: Part, topology: Topology, own: Phases) -> Layered:
    """Time of a step: its microbatches one after the other, then the optimizer."""
    config, sizes = part.config, part.sizes
    rates, state = seconds_per_byte(topology, tuple(sizes.items())), shapes.state(config)
    cost = lambda axes, size: size * sum(rates[axes]) if size else 0.0
    gathered = scattered = waits = 0.0
    for leaf in state.parameters:
        for axes, size in weight_traffic(leaf, part):
            seconds = cost(axes, size)
            if "blocks" not in leaf.path:
                waits += seconds
            elif axes == "fsdp":  # gathered forward and backward, its gradient scattered
                gathered += seconds / 3
                scattered += seconds / 3
            else:
                scattered += seconds
    for axis, size in state_traffic(part):
        seconds = cost(axis, remote_share(sizes[axis]) * size)
        # In a ring the next keys are sent while attention reads those that have arrived.
        waits += max(0.0, seconds - own.attention) if part.ring and axis == "context" else seconds
    waits += (gathered + scattered) / sum(layers for _, layers in stacks(config.model))
    exposed = waits + max(0.0, gathered - own.forward)
    exposed += max(0.0, gathered + scattered - own.backward)
    once = 0.0
    if config.optimizer.shard_state:
        once = cost("data", remote_share(sizes["data"]) * state.bytes("parameters", sizes))
    computed = own.forward + own.backward + own.head
    total = config.microbatches * (computed + exposed) + own.optimizer + once
    return Layered(total, config.microbatches * exposed + once)
