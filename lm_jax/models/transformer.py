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
from lm_jax.models.stack import AttentionInputs, Stack

Batch = dict[str, jax.Array]
# Of an encoder: the mask of cross-attention, and its states [B, S, D] or their keys and values.
Memory = tuple[Mask, jax.Array | Cache]


class Inside(NamedTuple):
    """Activations of all layers, in lists: states [B, L, D] before the first layer and after each
    (the last one normalised, as the head reads it), attention weights [B, heads, L, S] float32, and
    those of cross-attention. encoder: the same for the encoder of an encoder_decoder.
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
        types = ("token_types",) * (self.config.token_types > 0)
        prefix = ("prefix",) * self.generates
        pairs = ("inputs", "input_segment_ids", "input_positions") * self.conditional
        return ("segment_ids", "positions", *pairs, *prefix, *types)

    @property
    def generates(self) -> bool:
        """Whether the model continues a text: it has a decoder."""
        return self.config.architecture != "encoder"

    @property
    def conditional(self) -> bool:
        """Whether each text needs `inputs`: an encoder_decoder."""
        return self.config.architecture == "encoder_decoder"

    def forward(
        self, batch: Batch, key: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(last hidden states [B, L, D], expert losses by layer).

        batch: tokens [B, L]; optional segment_ids and positions of packed documents, which then do
        not see each other (segment 0: padding), prefix (1: seen by all of its segment) and
        token_types, all [B, L] ints; for an encoder_decoder inputs, and optional
        input_segment_ids and input_positions, all [B, S].
        """
        keys = (None, None) if key is None else jax.random.split(key)
        if not self.generates:
            return self.encode(batch, keys[1])
        memory: Any = None
        aux: dict[str, jax.Array] = {}
        if self.conditional:
            memory, aux = self.memory(batch, keys[0])
        mask = Mask(causal=True, segments=batch.get("segment_ids"), prefix=batch.get("prefix"))
        x_BLD, _, own = self.run(self.decoder, batch, mask, memory, None, keys[1])
        return x_BLD, {n: jnp.concatenate([aux[n], x]) if n in aux else x for n, x in own.items()}

    def encode(self, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, dict]:
        """States [B, L, D] of tokens that all see each other within their segment."""
        mask = Mask(causal=False, segments=batch.get("segment_ids"))
        return self.run(self.encoder, batch, mask, None, None, key)[::2]

    def memory(
        self, batch: Batch, key: jax.Array | None = None
    ) -> tuple[Memory, dict[str, jax.Array]]:
        """Runs the encoder for the decoder: ((mask, states [B, S, D]), expert losses)."""
        side = encoder_batch(batch)
        y_BSD, aux = self.encode(side, key)
        return (cross_mask(batch, side), y_BSD), aux

    @sharding.whole_rows()
    def init_cache(
        self,
        batch: int,
        length: int,
        inputs: jax.Array | None = None,
        input_segment_ids: jax.Array | None = None,
        input_positions: jax.Array | None = None,
    ) -> Cache:
        """An empty cache of `length` slots for `batch` rows: k and v [N, B, S, K, H], and the
        number of filled slots `length` [B].

        inputs, input_segment_ids, input_positions: [B, S], of an encoder_decoder, whose encoder is
        run here, once. Raises TypeError for a model without one, UserError for one without inputs.
        """
        config = self.config
        optional = {"inputs": inputs, "input_segment_ids": input_segment_ids,
                    "input_positions": input_positions}  # fmt: skip
        arrays = {name: x for name, x in optional.items() if x is not None}
        if arrays and not self.conditional:
            raise TypeError(f"{config.architecture}: has no encoder, which {[*arrays]} are for.")
        rows = (config.num_layers, batch, length, config.kv_heads)
        layers, batch_of = ("layers", "rows") if ways("layers") > 1 else (None, "batch")
        axes = (layers, batch_of, None, "heads", None)
        sizes = {"k": config.head_size, "v": config.value_size}
        cache = {n: shard(jnp.zeros((*rows, H), config.dtype), *axes) for n, H in sizes.items()}
        cache["length"] = shard(jnp.zeros(batch, jnp.int32), "batch")
        if self.conditional:
            (mask, y_BSD), _ = self.memory({"tokens": jnp.zeros((batch, 1), jnp.int32), **arrays})
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

        count_B: number of real tokens in each row; the slots of the others are overwritten before
        any query reads them.
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
        """Embeds the tokens and runs a stack: (hidden states, cache, expert losses)."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x_BLD, inputs, balanced = self.embedded(stack, batch, mask, cache, keys[0])
        x_BLD, *rest = stack(x_BLD, inputs, memory, cache, keys[1])
        x_BLD = dropout(x_BLD, self.config.output_dropout, keys[2])
        return context.text_order(x_BLD, balanced), *rest

    def embedded(
        self, stack: Stack, batch: Batch, mask: Mask, cache: Cache | None, key: jax.Array | None
    ):
        """(embeddings [B, L, D], attention inputs of each kind of layer, whether rows are balanced
        over the devices that share them).
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
        inputs = {
            kind: AttentionInputs(
                dataclasses.replace(mask, window=config.window if kind == "l" else 0),
                rotations(config, positions_BL, kind) if config.positions == "rope" else None,
                bias,
            )
            for kind in dict.fromkeys(config.kinds)
        }
        return x_BLD, inputs, mask.balanced

    @sharding.whole_rows()
    def inspect(self, tokens_BL: jax.Array, **more: jax.Array) -> Inside:
        """Hidden states and attention weights of all layers, computed one layer after the other.

        Arguments as in a call, without dropout. Memory grows with layers x heads x length^2.
        """
        check_inputs(self, tokens_BL, more)
        batch, encoder, memory = {"tokens": tokens_BL, **more}, None, None
        if self.conditional or not self.generates:
            side = encoder_batch(batch) if self.conditional else batch
            mask = Mask(causal=False, segments=side.get("segment_ids"))
            x_BLD, inputs, _ = self.embedded(self.encoder, side, mask, None, None)
            encoder = Inside(*self.encoder.inspect(x_BLD, inputs))
            if not self.generates:
                return encoder
            memory = cross_mask(batch, side), encoder.states[-1]
        mask = Mask(causal=True, segments=batch.get("segment_ids"), prefix=batch.get("prefix"))
        x_BLD, inputs, _ = self.embedded(self.decoder, batch, mask, None, None)
        return Inside(*self.decoder.inspect(x_BLD, inputs, memory), encoder=encoder)


def encoder_batch(batch: Batch) -> Batch:
    """The encoder's part of a batch of pairs: `inputs` as tokens, and the arrays input_*.

    Raises UserError without `inputs`.
    """
    if "inputs" not in batch:
        raise UserError("an encoder_decoder needs `inputs`, the text of its encoder.")
    own = {name.removeprefix("input_"): x for name, x in batch.items() if name[:6] == "input_"}
    return {"tokens": batch["inputs"], **own}


def cross_mask(batch: Batch, side: Batch) -> Mask:
    """The mask of cross-attention: the keys of the encoder's batch `side` that queries attend to.

    Of packed rows those of the same segment; of rows that are not packed all but padding.
    """
    segments, key_segments = batch.get("segment_ids"), side.get("segment_ids")
    if key_segments is not None and segments is None:
        segments = jnp.ones_like(batch["tokens"])
        key_segments = (key_segments > 0).astype(segments.dtype)
    segments = None if segments is None else context.parts_of(segments, balanced=True)
    return Mask(causal=False, segments=segments, key_segments=key_segments)
