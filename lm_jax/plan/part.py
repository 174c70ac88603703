"""A device's share of a train step: how much it has of the batch, of a layer and of the tables."""

# Shapes: T tokens of a device in a microbatch, D model width, F feed-forward width.

import dataclasses
import functools
import math

import numpy as np

from lm_jax.config import Config
from lm_jax.devices.sharding import RULES
from lm_jax.models.head import chunk_size
from lm_jax.plan import shapes

LANES = 128  # a TPU stores the last dimension of a kernel's operands in rows of so many numbers
TABLES = ("tokens", "head")  # names of the parameters [V, D]


@dataclasses.dataclass(frozen=True)
class Part:
    """A device's share of a microbatch and of a layer. All sizes are bytes, counts aside."""

    config: Config  # its model resolved, its mesh without -1
    lanes: int = LANES  # 1 on a GPU

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Number of devices along each axis of the mesh."""
        return shapes.sizes_of(self.config.mesh)

    @property
    def rows(self) -> int:
        """Number of windows."""
        ways = math.prod(self.sizes[axis] for axis in RULES["batch"])
        return self.config.batch_size // (ways * self.config.microbatches)

    @property
    def tokens(self) -> int:
        """Number of tokens of these windows; of an encoder_decoder, of one of its two texts."""
        return self.rows * self.length

    @property
    def length(self) -> int:
        """Number of tokens of a window."""
        return self.config.data.sequence_length // self.sizes["context"]

    @property
    def number(self) -> int:
        """One number in the compute type."""
        return np.dtype(self.config.model.dtype).itemsize

    @property
    def states(self) -> int:
        """Hidden states of all tokens, [T, D]."""
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
        """Keys, or values, that a device holds at once: those of whole windows if gathered."""
        config = self.config
        return (1 if self.ring else self.sizes["context"]) * self.heads(config.model.kv_heads)

    @property
    def ring(self) -> bool:
        """Whether keys and values are passed from device to device (ring attention)."""
        return self.sizes["context"] > 1 and self.config.model.context_attention == "ring"

    @property
    def kernel(self) -> bool:
        """Whether attention is the splash kernel, whose operands are stored in rows of LANES."""
        return self.config.model.attention == "splash"

    @functools.cached_property
    def chunk(self) -> int:
        """Number of positions of each window whose logits exist at once."""
        config = self.config
        rows = config.batch_size // config.microbatches
        shape = rows, config.data.sequence_length, config.model.dim
        with shapes.abstract(self.sizes):
            return min(
                self.length, chunk_size(shape, config.model.vocab_size, config.loss.chunk_size)
            )

    def table_bytes(self, size: int) -> int:
        """A device's part of a table [V, D] in numbers of `size` bytes, gathered over `fsdp`."""
        model = self.config.model
        return model.vocab_size // self.sizes["tensor"] * model.dim * size
