"""Bytes that a step needs on a device, from the shapes of the real model, without a compiler.

The state and the saved activations are traced (plan/shapes.py). Temporaries and their lifetimes
follow the buffer assignments of libtpu 0.0.42.1 for the train step: the peak is that of one of the
phases below.
"""

# Shapes: T tokens of a device in a microbatch, D model width, F feed-forward width, V vocabulary.

import dataclasses
import math
from collections.abc import Sequence

from lm_jax.plan import shapes
from lm_jax.plan.part import TABLES, Part
from lm_jax.plan.shapes import Leaf

# The most queries and keys that splash attention reads at a time (models/attention/kernels.py).
BLOCK = 1024
Kinds = dict[str, int]  # bytes by what they are for


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device: the state, and the temporaries of each phase of a step."""

    held: Kinds
    phases: dict[str, Kinds]

    @property
    def arguments(self) -> int:
        """Bytes of the arguments of the step, which are donated: results take their place."""
        return sum(self.held.values())

    @property
    def phase(self) -> str:
        """The phase with the largest temporaries."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def temporaries(self) -> int:
        """Bytes of the largest temporaries."""
        return sum(self.phases[self.phase].values())

    @property
    def total(self) -> int:
        """Peak bytes of a device."""
        return self.arguments + self.temporaries

    @property
    def kinds(self) -> Kinds:
        """Bytes by kind at the peak."""
        return self.held | self.phases[self.phase]


def memory(part: Part) -> Memory:
    """Estimates the memory of the train step."""
    config, sizes = part.config, part.sizes
    state, saved = shapes.state(config), shapes.saved(config)
    total = lambda what, size=0: state.bytes(what, sizes, size, part.lanes)
    held = {"parameters": total("parameters"), "optimizer state": total("optimizer")}
    layer, head = Layer(part, state.blocks), Head(part, state.parameters)
    before = held["parameters"] // (sizes["data"] if config.optimizer.shard_state else 1)
    always = {"gradients of earlier microbatches": before} if config.microbatches > 1 else {}
    # XLA casts the weights of a loop once, before it.
    low = total("blocks", part.number) if part.number < 4 else 0
    saves = always | {"saved activations": activations(part, saved.activations)}
    weights = sum(leaf.bytes(sizes) for leaf in saved.weights)
    copies = {"weights in low precision": max(weights, low)}
    gradients = {"gradients": total("blocks"), "gradient of the table": head.gradient}
    return Memory(held, {
        "forward": saves | {
            "weights in low precision": weights + low,
            "work of a layer": layer.forward(), "random bits": random_bits(part),
        },
        "loss": saves | copies | head.loss(),
        "backward": saves | copies | gradients | {
            "work of a layer": max(layer.feed_forward(), layer.attention()),
        },
        "lookup": always | gradients | {
            "gradient of the embedding table": part.table_bytes(4) + part.table_bytes(part.number),
        },
        "update": always | {"gradients": held["parameters"]},
    })  # fmt: skip


def random_bits(part: Part) -> int:
    """Bytes of dropout's random bits: on each device, twice those of the whole batch's states."""
    config = part.config
    states = config.batch_size // config.microbatches * config.data.sequence_length
    return 2 * 4 * states * config.model.dim if config.model.has_dropout else 0


def activations(part: Part, saved: Sequence[Leaf]) -> int:
    """Bytes of the activations that the forward pass keeps. In place of float32 outside the layers
    (the last norm), the compiler keeps its input in the compute type.
    """
    model, total = part.config.model, 0
    layers = {model.num_layers, model.encoder_layers or model.num_layers}
    layers |= {count // len(model.kinds) for count in layers}
    for leaf in saved:
        inner = leaf.shape[0] in layers and len(leaf.shape) > 3
        size = leaf.dtype.itemsize if inner else min(part.number, leaf.dtype.itemsize)
        narrow = part.kernel and leaf.shape[-1] == model.head_size < part.lanes
        total += (
            math.prod(leaf.shape)
            * size
            * (part.lanes if narrow else 1)
            // (model.head_size if narrow else 1)
        )
    return part.rows * total


@dataclasses.dataclass(frozen=True)
class Head:
    """Memory of the head: logits, the table [V, D] and its gradient."""

    part: Part
    parameters: Sequence[Leaf]

    @property
    def table(self) -> Leaf:
        """The parameter."""
        return [leaf for leaf in self.parameters if leaf.path[-1] in TABLES][-1]

    @property
    def chunked(self) -> bool:
        """Whether the logits are computed in chunks."""
        return self.part.chunk < self.part.length

    @property
    def gradient(self) -> int:
        """The part of the head's gradient that lives until the step ends. In chunks, it is summed
        over devices before the layers' gradients begin (the barrier in the chunked loss).
        """
        return self.table.bytes(self.part.sizes, 4) if self.chunked else self.part.table_bytes(4)

    def loss(self) -> Kinds:
        """Temporary memory of the loss, without saved activations."""
        part = self.part
        vocabulary = part.config.model.vocab_size // part.sizes["tensor"]
        logits = part.rows * part.chunk * vocabulary
        words = part.table_bytes(part.number)
        # A table that is cut along D is reordered in a second copy; one cut along V is not.
        second = words if part.sizes["fsdp"] > 1 and self.table.cut[1] else 0
        found = {"gradient of the table": part.table_bytes(4)}
        if not self.chunked:  # kept in float32 for the backward pass
            return found | {"table": words + second, "logits": logits * (part.number + 2 * 4)}
        # The second copy is freed before the first chunk.
        return found | {
            "table": words + max(second, logits * (part.number + 4)),
            "states and their gradient": 3 * part.states,
        }


@dataclasses.dataclass(frozen=True)
class Layer:
    """Temporary memory of one block while it is computed, without saved activations."""

    part: Part
    blocks: Sequence[Leaf]

    def weight(self, *names: str) -> int:
        """Bytes of these weights of one layer, gathered over `fsdp`."""
        sizes = self.part.sizes | {"fsdp": 1}
        found = [leaf for leaf in self.blocks if leaf.path[-1] in names]
        number = self.part.number
        return sum({x.path[-1]: x.bytes(sizes, number) // x.shape[0] for x in found}.values())

    def gathered(self, *names: str) -> int:
        """Bytes of gathered weights, which live only while they are used; 0 without `fsdp`."""
        return self.weight(*names) if self.part.sizes["fsdp"] > 1 else 0

    @property
    def expanded(self) -> int:
        """Bytes of the output of the first feed-forward product; its gradient is as large."""
        return self.part.hidden * (1 + self.part.config.model.gated)

    @property
    def rows(self) -> int:
        """Bytes of the states that are sent to the experts of a device."""
        model = self.part.config.model
        if not model.num_experts:
            return 0
        return self.part.states * self.part.sizes["expert"] * model.experts_per_token

    def forward(self) -> int:
        """Temporaries of the forward pass: inputs and outputs of the feed-forward layer."""
        return self.expanded + 2 * self.rows + 3 * self.part.states + self.gathered("up", "down")

    def feed_forward(self) -> int:
        """Temporaries of the backward pass of the feed-forward layer, which is recomputed first."""
        part, model = self.part, self.part.config.model
        queries = part.heads(model.num_heads)
        heads = -(-model.num_heads // part.sizes["tensor"])
        sums = part.tokens * heads * part.lanes * 4  # of each softmax
        return (
            2 * self.expanded + self.rows + 3 * part.states + self.gathered("up", "wo")
            + self.gathered("down") * (not model.num_experts) + self.weight("down")
            + 2 * queries + sums * part.kernel
        )  # fmt: skip

    def attention(self) -> int:
        """Temporaries of the backward pass of attention. Gradients within the feed-forward layer
        still wait for that of its weight while the kernel computes those of queries, keys and
        values; of the queries there is one for each block of keys.
        """
        part, model = self.part, self.part.config.model
        length = part.config.data.sequence_length
        queries, keys = part.heads(model.num_heads), part.keys
        buffers = 0
        # One piece of the queries at a time; what is sent has two buffers, in float32.
        if part.ring:
            buffers = (queries + 4 * keys) // part.number * 4
            length, queries = part.length // 2, queries // 2
        waiting = (self.expanded if not model.num_experts else 0) + self.weight("down")
        both = buffers + waiting + 3 * part.states + self.gathered("wq", "wk", "wv")
        if not part.kernel:  # scores, and their gradient, in float32; random numbers for each
            heads = -(-model.num_heads // part.sizes["tensor"])
            each = 4 if model.attention_dropout else 3
            return both + 2 * queries + 2 * keys + each * part.tokens * length * heads * 4
        block = min(BLOCK, length)
        scratch = 3 * keys // part.number * 4 // length * block
        return both + queries * (2 + length // block) + 3 * keys + scratch
