"""The Transformer: stacks of blocks between embeddings and a head. A decoder, an encoder, or both
from the same parts.
"""

# Shapes: B batch, L length, S length of the encoder's input or cache slots, D model width, V
# vocabulary, N layers, K key heads, H head size.

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.devices import sharding
from lm_jax.devices.sharding import shard, ways
from lm_jax.errors import UserError
from lm_jax.models.arguments import check_inputs
from lm_jax.models.attention.attention import Cache, context
from lm_jax.models.attention.kernels import Mask
from lm_jax.models.attention.positions import rotations
from lm_jax.models.head import Network
from lm_jax.models.layers import Embed, Pooler, dropout
from lm_jax.models.pipeline import by_stage
from lm_jax.models.stack import Sight, Stack

Batch = dict[str, jax.Array]
Memory = tuple[Mask, jax.Array | Cache]  # of an encoder: its states [B, S, D], or their keys


class Inside(NamedTuple):
    """Activations of every layer, in lists: states [B, L, D] before the first layer and after each
    (the last one normalised, as the head reads it), attention weights [B, heads, L, S] float32, and
    those of cross-attention. encoder: the same of the encoder of an encoder_decoder.
    """

    states: list[jax.Array]
    attention: list[jax.Array]
    cross_attention: list[jax.Array]
    encoder: "Inside | None" = None


class Transformer(Network):
    """`Transformer(ModelConfig(...), rngs=nnx.Rngs(0))(tokens)` gives logits.

    config.architecture: decoder (GPT, Llama), encoder (BERT) or encoder_decoder (T5; Vaswani et al.
    2017). Parameters are float32 and hold nothing but weights: the module is a pytree for jax.jit,
    grad and scan.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        config = self.config
        self.embed = Embed(config, rngs=rngs)
        kind = config.architecture
        if kind != "decoder":
            layers = config.encoder_layers if kind == "encoder_decoder" else 0
            self.encoder = Stack(config, layers, causal=False, rngs=rngs)
        if kind != "encoder":
            self.decoder = Stack(config, cross=kind == "encoder_decoder", rngs=rngs)
        self.make_head(rngs)
        if config.pooler:
            self.pooler = Pooler(config, rngs=rngs)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names that a batch may have beside tokens."""
        kind, types = self.config.architecture, ("token_types",) * (self.config.token_types > 0)
        own: tuple[str, ...] = ("prefix",) if kind == "decoder" else ()
        if kind == "encoder_decoder":
            own = ("inputs", "input_segment_ids", "input_positions", "prefix")
        return ("segment_ids", "positions", *own, *types)

    def forward(
        self, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(last hidden states [B, L, D], sums of the experts by layer).

        batch: tokens [B, L]; optional segment_ids and positions of packed documents, which then do
        not see each other (segment 0: padding), prefix (1: seen by all of its segment) and
        token_types, all [B, L] ints; for an encoder_decoder inputs, and optional
        input_segment_ids and input_positions, all [B, S].
        """
        segments = batch.get("segment_ids")
        keys = (None, None) if key is None else jax.random.split(key)
        if self.config.architecture == "encoder":
            return self.encode(batch, keys[1])
        memory: Any = None
        aux: dict[str, jax.Array] = {}
        if self.config.architecture == "encoder_decoder":
            if "inputs" not in batch:
                raise UserError("an encoder_decoder reads `inputs` beside its tokens.")
            memory, aux = self.memory(batch, segments, keys[0])
        mask = Mask(causal=True, segments=segments, prefix=batch.get("prefix"))
        x_BLD, _, own = self.run(self.decoder, batch, mask, memory, None, keys[1])
        return x_BLD, {n: jnp.concatenate([aux[n], x]) if n in aux else x for n, x in own.items()}

    def encode(self, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, dict]:
        """States [B, L, D] of tokens that all see each other within their segment."""
        mask = Mask(causal=False, segments=batch.get("segment_ids"))
        return self.run(self.encoder, batch, mask, None, None, key)[::2]

    def memory(
        self, batch: Batch, segments: jax.Array | None, key: jax.Array | None = None
    ) -> tuple[Memory, dict[str, jax.Array]]:
        """Runs the encoder for the decoder: ((mask, states [B, S, D]), sums of the experts)."""
        side = {name.removeprefix("input_"): x for name, x in batch.items() if name[:6] == "input_"}
        y_BSD, aux = self.encode({"tokens": batch["inputs"], **side}, key)
        seen = side.get("segment_ids")
        if seen is not None and segments is None:  # nothing is packed: 0 is padding, 1 the text
            segments = jnp.ones_like(batch["tokens"])
            seen = (seen > 0).astype(segments.dtype)
        segments = None if segments is None else context.parts_of(segments, balanced=True)
        return (Mask(causal=False, segments=segments, key_segments=seen), y_BSD), aux

    @sharding.whole_rows()
    def init_cache(self, batch: int, length: int, **inputs: jax.Array) -> Cache:
        """An empty cache of `length` slots for `batch` rows: k and v [N, B, S, K, H], and how many
        are filled.

        inputs: those of an encoder_decoder, which is run here once.
        """
        config = self.config
        rows = (config.num_layers, batch, length, config.kv_heads)
        layers, batch_of = ("layers", "rows") if ways("layers") > 1 else (None, "batch")
        axes = (layers, batch_of, None, "heads", None)
        sizes = {"k": config.head_size, "v": config.value_size}
        cache = {n: shard(jnp.zeros((*rows, H), config.dtype), *axes) for n, H in sizes.items()}
        cache["length"] = shard(jnp.zeros(batch, jnp.int32), "batch")
        if config.architecture == "encoder_decoder":
            if "inputs" not in inputs:
                raise UserError("an encoder_decoder continues from `inputs`.")
            (mask, y_BSD), _ = self.memory({"tokens": inputs["inputs"][:, :1], **inputs}, None)
            # Kept by layer: the keys of the input are the same at every step.
            keys = lambda blocks, y_BSD: jax.vmap(lambda block: block.cross.keys(y_BSD))(blocks)
            over = by_stage(keys)(self.decoder.blocks, y_BSD)
            cache |= {"cross_k": over["k"], "cross_v": over["v"]}
            if mask.key_segments is not None:
                cache["cross_segments"] = mask.key_segments
        return cache

    @sharding.whole_rows()
    def decode(
        self, tokens_BL: jax.Array, cache: Cache, count_B: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Hidden states [B, L, D] of tokens after those in the cache, and the longer cache.

        count_B: how many of the tokens of a row are real; the slots of the others are written
        again before anything sees them.
        """
        del count_B
        length_B = cache["length"]
        slots_BL = length_B[:, None] + jnp.arange(tokens_BL.shape[1])[None]
        memory = None
        if "cross_k" in cache:
            seen = cache.get("cross_segments")
            segments = None if seen is None else jnp.ones_like(tokens_BL)
            mask = Mask(causal=False, segments=segments, key_segments=seen)
            memory = mask, {"k": cache["cross_k"], "v": cache["cross_v"]}
        kv = {"k": cache["k"], "v": cache["v"]}
        batch = {"tokens": tokens_BL, "positions": slots_BL}
        x_BLD, kv, _ = self.run(self.decoder, batch, Mask(q_places=slots_BL), memory, kv, None)
        return x_BLD, {**cache, **kv, "length": length_B + tokens_BL.shape[1]}

    def run(
        self,
        stack: Stack,
        batch: Batch,
        mask: Mask,
        memory: Memory | None,
        cache: Cache | None,
        key: jax.Array | None,
    ):
        """Embeddings through a stack: (hidden states, cache, sums of the experts)."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x_BLD, sights, balanced = self.enter(stack, batch, mask, cache, keys[0])
        x_BLD, *rest = stack(x_BLD, sights, memory, cache, keys[1])
        x_BLD = dropout(x_BLD, self.config.output_dropout, keys[2])
        return context.back(x_BLD, balanced), *rest

    def enter(
        self, stack: Stack, batch: Batch, mask: Mask, cache: Cache | None, key: jax.Array | None
    ):
        """(embeddings [B, L, D], what each kind of layer may see, whether rows are balanced over
        the devices that share them).
        """
        config = self.config
        places_BL = jnp.arange(batch["tokens"].shape[1])[None]
        places_BL = places_BL if mask.q_places is None else mask.q_places
        mask, rows, places_BL = context.shared(mask, {"positions": places_BL, **batch}, places_BL)
        positions_BL, types_BL = rows["positions"], rows.get("token_types")
        x_BLD = self.embed(rows["tokens"], positions_BL, jnp.dtype(config.dtype), types_BL)
        x_BLD = dropout(x_BLD, config.dropout, key)
        slots = x_BLD.shape[1] if cache is None else cache["k"].shape[2]
        bias = stack.bias(places_BL, jnp.arange(slots))
        sights = {
            kind: Sight(
                dataclasses.replace(mask, window=config.window if kind == "l" else 0),
                rotations(config, positions_BL, kind) if config.positions == "rope" else None,
                bias,
            )
            for kind in dict.fromkeys(config.kinds)
        }
        return x_BLD, sights, mask.balanced

    @sharding.whole_rows()
    def inspect(self, tokens_BL: jax.Array, **more: jax.Array) -> "Inside":
        """Hidden states and attention weights of all layers, computed one layer after the other.

        Arguments as in a call, without dropout. Memory grows with layers x heads x length^2.
        """
        check_inputs(self, tokens_BL, more)
        batch = {"tokens": tokens_BL, **more}
        segments, encoder, memory = batch.get("segment_ids"), None, None
        if self.config.architecture != "decoder":
            side = batch
            if self.config.architecture == "encoder_decoder":
                side = {n.removeprefix("input_"): x for n, x in more.items() if n[:6] == "input_"}
                side["tokens"] = more["inputs"]
            mask = Mask(causal=False, segments=side.get("segment_ids"))
            x_BLD, sights, _ = self.enter(self.encoder, side, mask, None, None)
            encoder = Inside(*self.encoder.inspect(x_BLD, sights))
        if self.config.architecture == "encoder":
            assert encoder is not None
            return encoder
        if encoder is not None:
            memory = self.memory(batch, segments)[0]
        mask = Mask(causal=True, segments=segments, prefix=batch.get("prefix"))
        x_BLD, sights, _ = self.enter(self.decoder, batch, mask, None, None)
        return Inside(*self.decoder.inspect(x_BLD, sights, memory), encoder=encoder)
