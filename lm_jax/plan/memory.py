"""Bytes that a step needs on a device, from the shapes of the real model, without a compiler.

What is held from step to step and what the forward pass saves is traced (plan/shapes.py). What
lives beside it, and when, follows what libtpu 0.0.42.1 makes of the train step, as its buffer
assignments show it: the step is one of the phases below when it needs most.
"""

# Shapes: T tokens of a device in a microbatch, D model width, F feed-forward width, V vocabulary.

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from lm_jax.config import Config
from lm_jax.devices.sharding import RULES
from lm_jax.models.head import chunk_size
from lm_jax.plan import shapes
from lm_jax.plan.shapes import Leaf

LANES = 128  # the TPU holds the last dimension of what a kernel reads in rows of so many numbers
BLOCK = 1024  # queries and keys that splash attention meets at a time, at most (models/kernels.py)
TABLES = ("tokens", "head")  # parameters [V, D]
Kinds = dict[str, int]  # bytes by what they are for


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device: what is held from step to step, and beside it in each phase."""

    held: Kinds
    phases: dict[str, Kinds]

    @property
    def arguments(self) -> int:
        """Arguments of the step, which it returns in the same place."""
        return sum(self.held.values())

    @property
    def phase(self) -> str:
        """The one that needs most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def temporaries(self) -> int:
        """The most that is needed beside the arguments."""
        return sum(self.phases[self.phase].values())

    @property
    def total(self) -> int:
        """The most that a device holds at one time."""
        return self.arguments + self.temporaries

    @property
    def kinds(self) -> Kinds:
        """Sizes by kind."""
        return self.held | self.phases[self.phase]


@dataclasses.dataclass(frozen=True)
class Part:
    """A device's share of a microbatch and of a layer. All sizes are bytes."""

    config: Config  # its model resolved, its mesh without -1
    lanes: int = LANES  # 1 on a GPU

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """The mesh."""
        return shapes.sizes_of(self.config.mesh)

    @property
    def rows(self) -> int:
        """Windows."""
        ways = math.prod(self.sizes[axis] for axis in RULES["batch"])
        return self.config.batch_size // (ways * self.config.microbatches)

    @property
    def tokens(self) -> int:
        """That it has of these windows; of an encoder_decoder, of one of its two texts."""
        return self.rows * self.length

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.config.data.sequence_length // self.sizes["context"]

    @property
    def number(self) -> int:
        """One that is computed with."""
        return np.dtype(self.config.model.dtype).itemsize

    @property
    def states(self) -> int:
        """States of all tokens, whole, [T, D]."""
        return self.tokens * self.config.model.dim * self.number

    @property
    def hidden(self) -> int:
        """Hidden activations of the feed-forward layer, [T, F]; of all rows of the experts."""
        model = self.config.model
        choices = self.sizes["expert"] * model.experts_per_token if model.num_experts else 1
        return self.tokens * choices * model.mlp_size // self.sizes["tensor"] * self.number

    def heads(self, count: int) -> int:
        """Queries, keys or values of so many heads, [T, heads, H]."""
        size = self.config.model.head_size
        size = max(size, self.lanes) if self.kernel else size
        return self.tokens * -(-count // self.sizes["tensor"]) * size * self.number

    @property
    def keys(self) -> int:
        """Keys, or values, that a device has at once: of whole windows where they are collected."""
        config = self.config
        return (1 if self.ring else self.sizes["context"]) * self.heads(config.model.kv_heads)

    @property
    def ring(self) -> bool:
        """Whether keys and values go from device to device."""
        return self.sizes["context"] > 1 and self.config.model.context_attention == "ring"

    @property
    def kernel(self) -> bool:
        """Whether attention is splash, whose operands lie in rows of LANES."""
        return self.config.model.attention == "splash"

    @functools.cached_property
    def chunk(self) -> int:
        """Positions of each window whose logits exist at once."""
        config = self.config
        rows = config.batch_size // config.microbatches
        shape = rows, config.data.sequence_length, config.model.dim
        with shapes.abstract(self.sizes):
            return min(
                self.length, chunk_size(shape, config.model.vocab_size, config.loss.chunk_size)
            )

    def words(self, size: int) -> int:
        """A table of all words that a device has between collections, of numbers of this size."""
        model = self.config.model
        return model.vocab_size // self.sizes["tensor"] * model.dim * size


def memory(part: Part) -> Memory:
    """Estimates the memory of the train step."""
    config, sizes = part.config, part.sizes
    state, saved = shapes.state(config), shapes.saved(config)
    total = lambda what, size=0: state.bytes(what, sizes, size, part.lanes)
    held = {"parameters": total("parameters"), "optimizer state": total("optimizer")}
    layer, words = Layer(part, state.blocks), Words(part, state.parameters)
    before = held["parameters"] // (sizes["data"] if config.optimizer.shard_state else 1)
    always = {"gradients of microbatches before": before} if config.microbatches > 1 else {}
    # XLA casts the weights of a loop once, before it.
    low = total("blocks", part.number) if part.number < 4 else 0
    saves = always | {"saved activations": activations(part, saved.activations)}
    weights = sum(leaf.bytes(sizes) for leaf in saved.weights)
    copies = {"weights in low precision": max(weights, low)}
    gradients = {"gradients": total("blocks"), "gradient of the words": words.gradient}
    return Memory(held, {
        "forward": saves | {
            "weights in low precision": weights + low,
            "a layer's work": layer.forward(), "random bits": random_bits(part),
        },
        "loss": saves | copies | words.loss(),
        "backward": saves | copies | gradients | {
            "a layer's work": max(layer.feed_forward(), layer.attention()),
        },
        "lookup": always | gradients | {
            "gradient of the table looked up in": part.words(4) + part.words(part.number),
        },
        "update": always | {"gradients": held["parameters"]},
    })  # fmt: skip


def random_bits(part: Part) -> int:
    """Random bits of dropout: for the states of the whole batch on each device, twice."""
    config = part.config
    states = config.batch_size // config.microbatches * config.data.sequence_length
    return 2 * 4 * states * config.model.dim if config.model.has_dropout else 0


def activations(part: Part, saved: Sequence[Leaf]) -> int:
    """Activations that the forward pass keeps. Of float32 outside of the layers (the last norm),
    the compiler keeps what it was made of.
    """
    model, most = part.config.model, 0
    layers = {model.num_layers, model.encoder_layers or model.num_layers}
    layers |= {count // len(model.kinds) for count in layers}
    for leaf in saved:
        inner = leaf.shape[0] in layers and len(leaf.shape) > 3
        size = leaf.dtype.itemsize if inner else min(part.number, leaf.dtype.itemsize)
        narrow = part.kernel and leaf.shape[-1] == model.head_size < part.lanes
        most += (
            math.prod(leaf.shape)
            * size
            * (part.lanes if narrow else 1)
            // (model.head_size if narrow else 1)
        )
    return part.rows * most


@dataclasses.dataclass(frozen=True)
class Words:
    """The head: logits, the table of words and its gradient."""

    part: Part
    parameters: Sequence[Leaf]

    @property
    def table(self) -> Leaf:
        """The parameter."""
        return [leaf for leaf in self.parameters if leaf.path[-1] in TABLES][-1]

    @property
    def chunked(self) -> bool:
        """Whether the logits exist in parts (objectives.chunked)."""
        return self.part.chunk < self.part.length

    @property
    def gradient(self) -> int:
        """The part of the head's gradient that stays until the step ends. By chunks it is summed
        over devices before the layers' gradients begin (the barrier in objectives.chunked_forward).
        """
        return self.table.bytes(self.part.sizes, 4) if self.chunked else self.part.words(4)

    def loss(self) -> Kinds:
        """Temporary memory of the loss, beside what is saved."""
        part = self.part
        vocabulary = part.config.model.vocab_size // part.sizes["tensor"]
        logits = part.rows * part.chunk * vocabulary
        words = part.words(part.number)
        # Parts of words are put in order in a second copy, whole words come together in one.
        second = words if part.sizes["fsdp"] > 1 and self.table.cut[1] else 0
        found = {"gradient of the words": part.words(4)}
        if not self.chunked:  # kept in float32 for the backward pass
            return found | {"words": words + second, "logits": logits * (part.number + 2 * 4)}
        # The second copy is gone when the first chunk comes.
        return found | {
            "words": words + max(second, logits * (part.number + 4)),
            "states and their gradient": 3 * part.states,
        }


@dataclasses.dataclass(frozen=True)
class Layer:
    """Temporary memory of one block while it is computed, beside what is saved."""

    part: Part
    blocks: Sequence[Leaf]

    def weight(self, *names: str) -> int:
        """The weights of these names, each of one layer, as they are when `fsdp` is collected."""
        sizes = self.part.sizes | {"fsdp": 1}
        found = [leaf for leaf in self.blocks if leaf.path[-1] in names]
        number = self.part.number
        return sum({x.path[-1]: x.bytes(sizes, number) // x.shape[0] for x in found}.values())

    def collected(self, *names: str) -> int:
        """Weights that a device has of others only while it needs them."""
        return self.weight(*names) if self.part.sizes["fsdp"] > 1 else 0

    @property
    def expanded(self) -> int:
        """Output of the first product of the feed-forward layer; its gradient is as large."""
        return self.part.hidden * (1 + self.part.config.model.gated)

    @property
    def rows(self) -> int:
        """The states that come to the experts of a device."""
        model = self.part.config.model
        if not model.num_experts:
            return 0
        return self.part.states * self.part.sizes["expert"] * model.experts_per_token

    def forward(self) -> int:
        """Inputs and outputs of the feed-forward layer."""
        return self.expanded + 2 * self.rows + 3 * self.part.states + self.collected("up", "down")

    def feed_forward(self) -> int:
        """The layer is computed again, and the gradients of its inner states are made."""
        part, model = self.part, self.part.config.model
        queries = part.heads(model.num_heads)
        heads = -(-model.num_heads // part.sizes["tensor"])
        sums = part.tokens * heads * part.lanes * 4  # of each softmax
        return (
            2 * self.expanded + self.rows + 3 * part.states + self.collected("up", "wo")
            + self.collected("down") * (not model.num_experts) + self.weight("down")
            + 2 * queries + sums * part.kernel
        )  # fmt: skip

    def attention(self) -> int:
        """The gradients inside of the feed-forward layer wait for that of its weight, while the
        kernel makes those of queries, keys and values: of the queries, one for each block of keys.
        """
        part, model = self.part, self.part.config.model
        length = part.config.data.sequence_length
        queries, keys = part.heads(model.num_heads), part.keys
        travelling = 0
        if part.ring:  # a piece of the queries at a time; what travels is there twice, in float32
            travelling = (queries + 4 * keys) // part.number * 4
            length, queries = part.length // 2, queries // 2
        waiting = (self.expanded if not model.num_experts else 0) + self.weight("down")
        both = travelling + waiting + 3 * part.states + self.collected("wq", "wk", "wv")
        if not part.kernel:  # scores, and their gradient, in float32; random numbers for each
            heads = -(-model.num_heads // part.sizes["tensor"])
            each = 4 if model.attention_dropout else 3
            return both + 2 * queries + 2 * keys + each * part.tokens * length * heads * 4
        block = min(BLOCK, length)
        scratch = 3 * keys // part.number * 4 // length * block
        return both + queries * (2 + length // block) + 3 * keys + scratch
