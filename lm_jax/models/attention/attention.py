"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245), self or cross, with a key/value
cache.
"""

# Shapes: B batch, L query length, S key length, D model width, K key heads, G query heads a key
# head, H head size (of values too).

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import ArrayLike

from lm_jax.config import ModelConfig
from lm_jax.devices.products import contract, expand
from lm_jax.devices.sharding import beside
from lm_jax.models.arguments import ready
from lm_jax.models.attention import context, kernels
from lm_jax.models.attention.positions import Rotation, rotate
from lm_jax.models.attention.softmax import MASKED_LOGIT
from lm_jax.models.layers import Norm, add, constant, std_of, weight
from lm_jax.models.parameter import hidden, vector

Cache = dict[str, jax.Array]  # keys "k" and values "v" so far, [B, S, K, H] each


class Attention(nnx.Module):
    """softmax(q k / sqrt(H)) v over the keys that a mask allows.

    `Attention(ModelConfig())(x)` works alone: rngs is nnx.Rngs(0) by default.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs | None = None):
        rngs, self.choose_backend = rngs or nnx.Rngs(0), config.attention == "auto"
        self.config = config = ready(config)
        D, K, H, W = config.dim, config.kv_heads, config.head_size, config.value_size
        G = config.num_heads // K
        # Where scores are not divided by sqrt(H), the initial queries are smaller instead (T5).
        folded = 1.0 if config.init_std else self.scale / H**-0.5
        q_std = std_of(config, D, K * G * H) / folded
        k_std, v_std = std_of(config, D, K * H), std_of(config, D, K * W)
        kv = hidden((-3,), (-2, -1))
        self.wq = weight(rngs, (D, K, G, H), ("embed", "heads", None, None), q_std,
                         hidden((-4,), (-3, -2, -1)))  # fmt: skip
        self.wk = weight(rngs, (D, K, H), ("embed", "heads", None), k_std, kv)
        self.wv = weight(rngs, (D, K, W), ("embed", "heads", None), v_std, kv)
        self.wo = weight(rngs, (K, G, W, D), ("heads", None, None, "embed"),
                         std_of(config, K * G * W, D, ends_branch=True),
                         hidden((-4, -3, -2), (-1,)))  # fmt: skip
        if config.bias or config.attn_bias or config.qkv_bias:
            self.bq = constant((K, G, H), ("heads", None, None), 0.0, vector(3))
            self.bk = constant((K, H), ("heads", None), 0.0, vector(2))
            self.bv = constant((K, W), ("heads", None), 0.0, vector(2))
        if config.bias or config.attn_bias:
            self.bo = constant((D,), (None,), 0.0, vector())
        if config.qk_norm:
            self.q_norm = Norm(config, (H,), "rmsnorm", rngs=rngs)
            self.k_norm = Norm(config, (H,), "rmsnorm", rngs=rngs)
        if config.qk_norm_all:
            heads = ("heads", None, None)
            self.q_norm = Norm(config, (K, G, H), "rmsnorm", axes=heads, rngs=rngs)
            self.k_norm = Norm(config, (K, H), "rmsnorm", axes=heads[:2], rngs=rngs)

    @property
    def scale(self) -> float:
        """Factor of the scores q k."""
        return self.config.attn_scale or self.config.head_size**-0.5

    def __call__(
        self,
        x_BLD: jax.Array,
        mask: kernels.Mask | ArrayLike | None = None,
        rotation: Rotation | None = None,
        cache: Cache | None = None,
        bias: jax.Array | None = None,
        memory: Cache | None = None,
        key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Attends from the states [B, L, D]; returns (output [B, L, D], the longer cache).

        mask: a Mask; or booleans, true where a query may see a key, that broadcast to [B, L, S]; by
        default causal in a decoder, everything elsewhere.
        memory: `keys` of an encoder's states, in place of keys and values of its own.
        key: a random key turns on the dropout of the probabilities.
        """
        config, dtype = self.config, x_BLD.dtype
        mask, bias = self.as_mask(mask, bias)
        q_BLKGH, k_BSKH, v_BSKH = self.projections(x_BLD, rotation, memory)
        if cache is not None:
            if mask.q_places is None:
                raise TypeError(
                    "cache: needs a kernels.Mask with q_places, the slots of the queries."
                )
            k_BSKH = append(cache["k"], k_BSKH, mask.q_places[:, 0])
            v_BSKH = append(cache["v"], v_BSKH, mask.q_places[:, 0])
            cache = {"k": k_BSKH, "v": v_BSKH}
        q_BLKGH, k_BSKH, v_BSKH = (checkpoint_name(x, "qkv") for x in (q_BLKGH, k_BSKH, v_BSKH))
        scores = kernels.Scores(self.scale, config.attn_softcap, bias)
        if key is not None and config.attention_dropout:
            scores = dataclasses.replace(scores, dropout=config.attention_dropout, key=key)
        # What "auto" stands for on this machine need not fit the arguments of a module used alone.
        arrays, backend = (q_BLKGH, k_BSKH, v_BSKH), config.attention
        if self.choose_backend and kernels.refusal(backend, *arrays, mask, scores):
            backend = "xla"
        o_BLKGH = context.attention(*arrays, mask, backend, scores, config.context_attention)
        o_BLKGH = checkpoint_name(o_BLKGH, "context")
        axes = ("batch", "length", "heads", None, None)
        w_KGHD, bits = self.wo[...].astype(dtype), config.bits("attn")
        y_BLD = contract("blkgh,kghd->bld", o_BLKGH, w_KGHD, *axes, bits=bits)
        if config.bias or config.attn_bias:
            y_BLD = add(y_BLD, self.bo[...])
        return y_BLD, cache

    def weights(
        self,
        x_BLD: jax.Array,
        mask: kernels.Mask | ArrayLike | None = None,
        rotation: Rotation | None = None,
        bias: jax.Array | None = None,
        memory: Cache | None = None,
    ) -> jax.Array:
        """Attention weights [B, heads, L, S] float32 of the same arguments; rows sum to 1."""
        mask, bias = self.as_mask(mask, bias)
        q_BLKGH, k_BSKH, _ = self.projections(x_BLD, rotation, memory)
        scores = kernels.Scores(self.scale, self.config.attn_softcap, bias)
        p_BKGLS = kernels.probabilities(q_BLKGH, k_BSKH, mask, scores)
        return p_BKGLS.reshape(len(p_BKGLS), -1, *p_BKGLS.shape[3:])

    def as_mask(
        self, mask: kernels.Mask | ArrayLike | None, bias: jax.Array | None
    ) -> tuple[kernels.Mask, jax.Array | None]:
        """(the mask as a Mask, the bias of the scores): booleans become a part of the bias."""
        if isinstance(mask, kernels.Mask):
            return mask, bias
        if mask is None:
            return kernels.Mask(causal=self.config.architecture == "decoder"), bias
        mask_BLS = kernels.boolean_mask(mask, "BLS")
        masked = jnp.where(mask_BLS, 0.0, MASKED_LOGIT)[:, None, None]
        return kernels.Mask(causal=False), masked if bias is None else bias + masked

    def projections(
        self, x_BLD: jax.Array, rotation: Rotation | None, memory: Cache | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, L, K, G, H], keys and values [B, S, K, H], rotated."""
        projected = self.project(x_BLD, "qkv" if memory is None else "q") | (memory or {})
        q_BLKGH, k_BSKH, v_BSKH = (projected[name] for name in "qkv")
        if rotation is not None:
            q_BLKGH, k_BSKH = rotate(q_BLKGH, rotation), rotate(k_BSKH, rotation)
        return q_BLKGH, k_BSKH, v_BSKH

    def keys(self, y_BSD: jax.Array) -> Cache:
        """Keys and values [B, S, K, H] of the states of an encoder."""
        return self.project(y_BSD, "kv")

    def project(self, x_BLD: jax.Array, names: str) -> Cache:
        """Queries [B, L, K, G, H], keys and values [B, L, K, H] of tokens: those in `names`."""
        dtype, products = x_BLD.dtype, []
        for name in names:
            heads = ("heads", None, None) if name == "q" else ("heads", None)
            equation = "bld,dkgh->blkgh" if name == "q" else "bld,dkh->blkh"
            w = getattr(self, f"w{name}")[...].astype(dtype)
            products.append((equation, w, ("batch", "length", *heads)))
        arrays = expand(x_BLD, *products, bits=self.config.bits("attn"))
        projected = dict(zip(names, arrays, strict=True))
        for name in names:
            if hasattr(self, "bq"):
                projected[name] = add(projected[name], getattr(self, f"b{name}")[...])
            if hasattr(self, f"{name}_norm"):
                projected[name] = getattr(self, f"{name}_norm")(projected[name])
        return projected


def append(cache_BSKH: jax.Array, new_BLKH: jax.Array, start_B: jax.Array) -> jax.Array:
    """The cache with `new` written from slot `start` of each row on."""
    write = lambda row, new, start: jax.lax.dynamic_update_slice(row, new, (start, 0, 0))
    new_BLKH, start_B = new_BLKH.astype(cache_BSKH.dtype), beside(start_B, cache_BSKH)
    return jax.vmap(write)(cache_BSKH, new_BLKH, start_B)
