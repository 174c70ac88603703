"""How does one token look at others? Grouped-query attention (Ainslie et al. 2023), with a
key/value cache.
"""

# Shapes: B batch, L query length, S key length, D model width, K key heads, G query heads a key
# head, H head size.

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm_jax.config import ModelConfig
from lm_jax.models import kernels
from lm_jax.models.layers import constant, std_of, weight
from lm_jax.models.positions import rotate
from lm_jax.sharding import einsum

Cache = dict[str, jax.Array]  # keys and values so far, [B, S, K, H] each


class Attention(nnx.Module):
    """softmax(q k / sqrt(H)) v over the keys that `mask` allows."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        D, K, H = config.dim, config.kv_heads, config.head_size
        G = config.num_heads // K
        std = std_of(config, D)
        self.wq = weight(rngs, (D, K, G, H), ("embed", "heads", None, None), std)
        self.wk = weight(rngs, (D, K, H), ("embed", "heads", None), std)
        self.wv = weight(rngs, (D, K, H), ("embed", "heads", None), std)
        self.wo = weight(rngs, (K, G, H, D), ("heads", None, None, "embed"),
                         std_of(config, K * G * H, ends_branch=True))  # fmt: skip
        if config.bias or config.qkv_bias:
            self.bq = constant((K, G, H), ("heads", None, None), 0.0)
            self.bk = constant((K, H), ("heads", None), 0.0)
            self.bv = constant((K, H), ("heads", None), 0.0)
        if config.bias:
            self.bo = constant((D,), (None,), 0.0)

    def __call__(
        self,
        x_BLD: jax.Array,
        mask: kernels.Mask,
        rotation: tuple[jax.Array, jax.Array] | None = None,
        cache: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        dtype = x_BLD.dtype
        heads = ("batch", None, "heads")
        q_BLKGH = einsum("bld,dkgh->blkgh", x_BLD, self.wq[...].astype(dtype), *heads, None, None)
        k_BSKH = einsum("bld,dkh->blkh", x_BLD, self.wk[...].astype(dtype), *heads, None)
        v_BSKH = einsum("bld,dkh->blkh", x_BLD, self.wv[...].astype(dtype), *heads, None)
        if hasattr(self, "bq"):
            q_BLKGH += self.bq[...].astype(dtype)[None, None]
            k_BSKH += self.bk[...].astype(dtype)[None, None]
            v_BSKH += self.bv[...].astype(dtype)[None, None]
        if rotation is not None:
            q_BLKGH, k_BSKH = rotate(q_BLKGH, rotation), rotate(k_BSKH, rotation)
        if cache is not None:
            assert mask.q_slots is not None
            k_BSKH = cache["k"] = append(cache["k"], k_BSKH, mask.q_slots[:, 0])
            v_BSKH = cache["v"] = append(cache["v"], v_BSKH, mask.q_slots[:, 0])
        q_BLKGH, k_BSKH, v_BSKH = (checkpoint_name(x, "qkv") for x in (q_BLKGH, k_BSKH, v_BSKH))
        o_BLKGH = kernels.attention(q_BLKGH, k_BSKH, v_BSKH, mask, self.config.attention)
        o_BLKGH = checkpoint_name(o_BLKGH, "context")
        y_BLD = einsum("blkgh,kghd->bld", o_BLKGH, self.wo[...].astype(dtype), "batch", None, None)
        if self.config.bias:
            y_BLD += self.bo[...].astype(dtype)[None, None]
        return y_BLD, cache


def append(cache_BSKH: jax.Array, new_BLKH: jax.Array, start_B: jax.Array) -> jax.Array:
    """The cache with `new` written from slot `start` of each row on."""
    write = lambda row, new, start: jax.lax.dynamic_update_slice(row, new, (start, 0, 0))
    return jax.vmap(write)(cache_BSKH, new_BLKH.astype(cache_BSKH.dtype), start_B)
