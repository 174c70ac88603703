"""What is the model? A stack of identical blocks, stored stacked and scanned, between embeddings
and a head.
"""

# Shapes: B batch, L length, S cache slots, D model width, V vocabulary, N layers, K key heads, H
# head size.

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.config import ModelConfig, resolved
from lm_jax.models import kernels
from lm_jax.models.attention import Attention, Cache
from lm_jax.models.layers import MLP, Embed, Norm, dropout, std_of, weight
from lm_jax.models.positions import rotations
from lm_jax.sharding import einsum

POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "names": jax.checkpoint_policies.save_only_these_names("qkv", "context", "mlp"),
}


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.attn_norm, self.attn = Norm(config, rngs=rngs), Attention(config, rngs=rngs)
        self.mlp_norm, self.mlp = Norm(config, rngs=rngs), MLP(config, rngs=rngs)

    def __call__(self, x_BLD, mask, rotation, cache=None, key=None):
        rate, keys = self.config.dropout, (None, None) if key is None else jax.random.split(key)
        with jax.named_scope("attention"):
            y_BLD, cache = self.attn(self.attn_norm(x_BLD), mask, rotation, cache)
        x_BLD += dropout(y_BLD, rate, keys[0])
        with jax.named_scope("mlp"):
            return x_BLD + dropout(self.mlp(self.mlp_norm(x_BLD)), rate, keys[1]), cache


class Stack(nnx.Module):
    """`num_layers` blocks in one loop, and the last norm."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        keys = jax.random.split(rngs.params(), config.num_layers)
        self.blocks = jax.vmap(lambda key: Block(config, rngs=nnx.Rngs(key)))(keys)
        self.norm = Norm(config, rngs=rngs)

    def __call__(self, x_BLD, mask, rotation, cache=None, key=None):
        config = self.config
        keys = None if key is None else jax.random.split(key, config.num_layers)

        def body(x_BLD, layer):
            block, cache, key = layer
            return block(x_BLD, mask, rotation, cache, key)

        if config.remat != "none":
            body = jax.checkpoint(body, policy=POLICIES[config.remat], prevent_cse=False)
        unroll = min(config.scan_unroll, config.num_layers)
        x_BLD, cache = jax.lax.scan(body, x_BLD, (self.blocks, cache, keys), unroll=unroll)
        return self.norm(x_BLD), cache


class Transformer(nnx.Module):
    """Decoder-only language model: `Transformer(ModelConfig(...), rngs=nnx.Rngs(0))(tokens)` gives
    logits.

    Parameters are float32 and hold nothing but weights: the module is a pytree for jax.jit, grad
    and scan.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        if "auto" in (
            config.attention,
            config.dtype,
        ):  # a run has decided already, maybe for another machine
            config = resolved(config, jax.default_backend())
        self.config = config
        self.embed = Embed(config, rngs=rngs)
        self.decoder = Stack(config, rngs=rngs)
        if not config.tie_embeddings:
            std = std_of(config, config.dim)
            self.head = weight(rngs, (config.vocab_size, config.dim), ("vocab", "embed"), std)

    def __call__(self, tokens_BL: jax.Array, **kwargs: Any) -> jax.Array:
        """Logits [B, L, V] float32 of the token after each; `kwargs` as in `hidden`."""
        return self.logits(self.hidden(tokens_BL, **kwargs))

    def hidden(
        self,
        tokens_BL: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Last hidden states [B, L, D].

        segment_ids, positions: [B, L] ints of packed documents, which then do not see each other.
        key: a random key turns dropout on.
        """
        if positions is None:
            positions = jnp.arange(tokens_BL.shape[1])[None]
        mask = kernels.Mask(causal=True, segments=segment_ids)
        return self.run(tokens_BL, positions, mask, None, key)[0]

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        """Logits [B, L, V] float32 of hidden states."""
        table_VD = self.output_table().astype(x_BLD.dtype)
        logits_BLV = einsum("bld,vd->blv", x_BLD, table_VD, "batch", None, "vocab")
        return logits_BLV.astype(jnp.float32)

    def output_table(self) -> jax.Array:
        """The head's weights [V, D]; the token embeddings when tied."""
        return (self.embed.tokens if self.config.tie_embeddings else self.head)[...]

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache of `length` slots for `batch` rows: k and v [N, B, S, K, H], and how many
        are filled.
        """
        config = self.config
        shape = (config.num_layers, batch, length, config.kv_heads, config.head_size)
        kv = {name: jnp.zeros(shape, config.dtype) for name in ("k", "v")}
        return {**kv, "length": jnp.zeros(batch, jnp.int32)}

    def decode(self, tokens_BL: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden states [B, L, D] of tokens after those in the cache, and the longer cache."""
        length_B = cache["length"]
        slots_BL = length_B[:, None] + jnp.arange(tokens_BL.shape[1])[None]
        kv = {"k": cache["k"], "v": cache["v"]}
        x_BLD, kv = self.run(tokens_BL, slots_BL, kernels.Mask(q_slots=slots_BL), kv, None)
        return x_BLD, {**kv, "length": length_B + tokens_BL.shape[1]}

    def run(self, tokens_BL, positions_BL, mask, cache, key):
        """Embeddings through the stack: (hidden states, cache)."""
        config, keys = self.config, (None, None) if key is None else jax.random.split(key)
        x_BLD = self.embed(tokens_BL, positions_BL, jnp.dtype(config.dtype))
        x_BLD = dropout(x_BLD, config.dropout, keys[0])
        rotation = rotations(config, positions_BL) if config.positions == "rope" else None
        return self.decoder(x_BLD, mask, rotation, cache, keys[1])
