"""Time of a step whose collectives run beside the products of a layer, and what of them stays
exposed.

Layer by layer (as in the roofline of FSDP, Zhao et al. 2023, arXiv:2304.11277, section 3.3): while
a layer computes, the weights of the next one are collected and the gradients of the one before are
scattered. What takes longer than the layer does is exposed, and so is what nothing runs beside: the
first layer's weights and the last one's gradients, the tables of words, and the states that a layer
waits for.
"""

import dataclasses

from lm_jax.devices.chips import Topology
from lm_jax.plan import shapes
from lm_jax.plan.memory import Part
from lm_jax.plan.sent import network, of_states, of_weight, others, stacks


@dataclasses.dataclass(frozen=True)
class Phases:
    """Seconds that a device needs for its own part: of a microbatch, and once a step."""

    forward: float  # through the layers
    backward: float  # what is computed again included
    attention: float  # of these two: the products of queries with keys, and with values
    words: float  # the loss and its gradients
    optimizer: float


@dataclasses.dataclass(frozen=True)
class Layered:
    """Seconds of a step, and those of them in which a device only waits for others."""

    seconds: float
    exposed: float

    @property
    def share(self) -> float:
        """Exposed time as a share of the total."""
        return self.exposed / self.seconds


def layered(part: Part, topology: Topology, own: Phases) -> Layered:
    """A step of microbatches one after the other, and the optimizer."""
    config, sizes = part.config, part.sizes
    wires, state = network(topology, tuple(sizes.items())), shapes.state(config)
    cost = lambda axes, size: size * sum(wires[axes]) if size else 0.0
    collected = scattered = waits = 0.0
    for leaf in state.parameters:
        for axes, size in of_weight(leaf, part):
            seconds = cost(axes, size)
            if "blocks" not in leaf.path:
                waits += seconds
            elif axes == "fsdp":  # collected forward and backward, its gradient scattered
                collected += seconds / 3
                scattered += seconds / 3
            else:
                scattered += seconds
    for axis, size in of_states(part):
        seconds = cost(axis, others(sizes[axis]) * size)
        # In a ring keys travel while those that are here are attended to.
        waits += max(0.0, seconds - own.attention) if part.ring and axis == "context" else seconds
    waits += (collected + scattered) / sum(layers for _, layers in stacks(config.model))
    exposed = waits + max(0.0, collected - own.forward)
    exposed += max(0.0, collected + scattered - own.backward)
    once = 0.0
    if config.optimizer.shard_state:
        once = cost("data", others(sizes["data"]) * state.bytes("parameters", sizes))
    computed = own.forward + own.backward + own.words
    total = config.microbatches * (computed + exposed) + own.optimizer + once
    return Layered(total, config.microbatches * exposed + once)
