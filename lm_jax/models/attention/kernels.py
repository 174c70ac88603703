"""Attention kernels: every backend behind one function, none of them ever replaced silently."""

# Shapes: B batch, L query length, S key length, K key heads, G query heads a key head, H head size.

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lm_jax.devices.sharding import mesh_is_set, spec
from lm_jax.errors import UserError
from lm_jax.models.attention.softmax import MASKED_LOGIT, product, products_of
from lm_jax.models.layers import softcap

BLOCK = 128  # queries that share one product on the xla backend; 2 of 256 were fastest on CPU
MAX_BLOCKS = 8


static = dataclasses.field


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """Keys that a query attends to: nothing later (causal), near keys (window), its own segment,
    the prefix of it, filled slots of a cache.
    """

    causal: bool = static(default=True, metadata={"static": True})
    window: int = static(default=0, metadata={"static": True})  # keys, itself included; 0: all
    segments: jax.Array | None = None  # [B, L], of the queries: the document of each token
    key_segments: jax.Array | None = None  # [B, S]; those of the queries where not given
    prefix: jax.Array | None = None  # [B, S], 1: a key that all of its segment see
    q_places: jax.Array | None = None  # [1 or B, L] of the queries among the keys, if not 0, 1, ...
    # The tokens of a row are in another order on the devices that share it (context.order).
    balanced: bool = static(default=False, metadata={"static": True})

    def allowed(self, queries: slice, keys: slice) -> jax.Array | np.ndarray:
        """Whether each query may see each key, [1 or B, L, S] bool, of these places of the row."""
        q, k = (np.arange(part.start, part.stop) for part in (queries, keys))
        distance: Any = q[None, :, None] - k[None, None]
        if self.q_places is not None:
            distance = self.q_places[:, queries, None] - k[None, None]
        past = distance >= 0 if self.causal else distance == distance
        if self.prefix is not None:
            past = past | (self.prefix[:, None, keys] > 0)
        if self.window:
            past = past & (abs(distance) < self.window)
        seen = self.segments if self.key_segments is None else self.key_segments
        if self.segments is not None and seen is not None:
            past = past & (self.segments[:, queries, None] == seen[:, None, keys])
        return past


def boolean_mask(mask: ArrayLike, axes: str) -> jax.Array:
    """`mask` with leading dimensions of size 1, one for each of the letters in `axes`.

    Raises TypeError unless it is of booleans with at most so many dimensions.
    """
    array = jnp.asarray(mask)
    if array.dtype != bool or array.ndim > len(axes):
        raise TypeError(
            f"mask: {array.dtype}{list(array.shape)}; expected booleans that broadcast to "
            f"[{', '.join(axes)}], true where a query may see a key."
        )
    return array.reshape((1,) * (len(axes) - array.ndim) + array.shape)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Options of the scores: softcap(scale q k) + bias [1 or B, K, G, L, S], and the rate and
    random key of the dropout of their softmax.
    """

    scale: float
    softcap: float = 0.0
    bias: jax.Array | None = None
    dropout: float = 0.0
    key: jax.Array | None = None

    def dropped(self, block: int) -> dict[str, Any]:
        """Dropout arguments of `product` for one block of queries."""
        if self.key is None or not self.dropout:
            return {}
        return {"rate": self.dropout, "key": jax.random.fold_in(self.key, block)}


def attention(
    q_BLKGH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: Mask,
    backend: str,
    scores: Scores | None = None,
) -> jax.Array:
    """softmax(q k / sqrt(H)) v, [B, L, K, G, H], on `backend`: xla, splash or cudnn.

    Raises UserError when the backend cannot compute it. A step of decoding always runs on plain
    XLA: a single query has nothing to tile.
    """
    scores = scores or Scores(q_BLKGH.shape[-1] ** -0.5)
    backend = "xla" if mask.q_places is not None else backend
    return RUN[backend](scaled(q_BLKGH, scores), k_BSKH, v_BSKH, mask, scores)


def probabilities(q_BLKGH: jax.Array, k_BSKH: jax.Array, mask: Mask, scores: Scores) -> jax.Array:
    """softmax(q k / sqrt(H)) [B, K, G, L, S] float32, the attention weights of the xla backend."""
    L, S = q_BLKGH.shape[1], k_BSKH.shape[1]
    q_BKGLH = jnp.transpose(scaled(q_BLKGH, scores), (0, 2, 3, 1, 4))
    a_BKGLS = softcap(products_of(q_BKGLH, jnp.transpose(k_BSKH, (0, 2, 1, 3))), scores.softcap)
    a_BKGLS = a_BKGLS if scores.bias is None else a_BKGLS + scores.bias
    allowed_BLS = mask.allowed(slice(0, L), slice(0, S))
    return jax.nn.softmax(jnp.where(allowed_BLS[:, None, None], a_BKGLS, MASKED_LOGIT), -1)


def scaled(q_BLKGH: jax.Array, scores: Scores) -> jax.Array:
    """The queries times the scale of the scores."""
    return q_BLKGH if scores.scale == 1.0 else q_BLKGH * np.asarray(scores.scale, q_BLKGH.dtype)


def check_backend(backend: str, q_BLKGH, k_BSKH, v_BSKH, mask: Mask, scores: Scores) -> None:
    """Raises UserError when `backend` cannot compute this attention."""
    if why := refusal(backend, q_BLKGH, k_BSKH, v_BSKH, mask, scores):
        raise UserError(f"config.model.attention={backend!r}: {why}")


def refusal(backend: str, q_BLKGH, k_BSKH, v_BSKH, mask: Mask, scores: Scores) -> str:
    """Reason why `backend` cannot compute this attention, and what to set; "" when it can."""
    if backend == "xla":
        return ""
    splash, H = backend == "splash", q_BLKGH.shape[-1]
    lacks = {
        "dropout of its probabilities (model.attention_dropout)": scores.key is not None,
        "a bias of the scores (relative, alibi, a mask of booleans)": scores.bias is not None,
        "capped scores (model.attn_softcap)": not splash and scores.softcap,
        "a prefix": splash and mask.prefix is not None,
        "values of another size than queries": v_BSKH.shape[-1] != H,
    }
    if what := next((what for what, is_so in lacks.items() if is_so), ""):
        return f"cannot have {what}; set config.model.attention=xla."
    if splash:
        return unequal_blocks(q_BLKGH.shape[1], k_BSKH.shape[1])
    if q_BLKGH.dtype not in (jnp.bfloat16, jnp.float16) or H % 8 or H > 256:
        return (
            "needs bfloat16 and a head size that is a multiple of 8 up to 256, not "
            f"{q_BLKGH.dtype} and {H}; set config.model.attention=xla or "
            "config.model.dtype=bfloat16."
        )
    return ""


def unequal_blocks(L: int, S: int) -> str:
    """Reason why the splash kernel cannot take L queries and S keys; "" when it can."""
    if L % 128 == 0 and S % 128 == 0:
        return ""
    return (
        f"{L} tokens, a window or a device's piece of it, are not a multiple of 128; change "
        "config.data.sequence_length, or set config.model.attention=xla."
    )


def xla(q_BLKGH, k_BSKH, v_BSKH, mask: Mask, scores: Scores) -> jax.Array:
    """The reference: all scores in memory; queries in a few blocks, each with the range of keys
    that the mask allows.
    """
    L, S = q_BLKGH.shape[1], k_BSKH.shape[1]
    q_BKGLH = jnp.transpose(q_BLKGH, (0, 2, 3, 1, 4))
    k_BKSH, v_BKSH = jnp.transpose(k_BSKH, (0, 2, 1, 3)), jnp.transpose(v_BSKH, (0, 2, 1, 3))
    ordered = mask.causal and mask.prefix is None and mask.q_places is None
    size = max(BLOCK, -(-L // MAX_BLOCKS)) if ordered else L
    blocks: list[jax.Array] = []
    for start in range(0, L, size):
        stop = min(start + size, L)
        first_key = max(0, start - mask.window + 1) if ordered and mask.window else 0
        queries, keys = slice(start, stop), slice(first_key, stop if ordered else S)
        bias = None if scores.bias is None else scores.bias[..., queries, keys]
        part = q_BKGLH[:, :, :, queries], k_BKSH[:, :, keys], v_BKSH[:, :, keys]
        drop = scores.dropped(len(blocks))
        blocks.append(product(*part, mask.allowed(queries, keys), scores.softcap, bias, **drop))
    o_BKGLH = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, 3)
    return jnp.transpose(o_BKGLH, (0, 3, 1, 2, 4))


def splash_kernel(
    mask: Mask, L: int, S: int, G: int, cap: float = 0.0, places: np.ndarray | None = None,
    parts: int = 1, **more: Any,
) -> Any:  # fmt: skip
    """The splash kernel of G query heads and their key head.

    places: of the queries [L] among the keys, if not 0, 1, ...; parts: number of parts of the
    queries, one for each device that shares the rows; more: arguments of make_splash_mqa. Raises
    UserError where a part is not a multiple of 128.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    own = L // parts
    if why := unequal_blocks(own, S):
        raise UserError(f"config.model.attention='splash': {why}")
    shape: Any = masks.CausalMask((L, S)) if mask.causal else masks.FullMask((L, S))
    if mask.window:
        behind, ahead = mask.window - 1, 0 if mask.causal else mask.window - 1
        shape = masks.LocalMask((L, S), (behind, ahead), 0)
    if places is not None and hasattr(shape, "q_sequence"):
        shape.q_sequence = places.astype(np.int32)
    q_block, kv_block = (next(b for b in (1024, 512, 256, 128) if n % b == 0) for n in (own, S))
    blocks = kernel.BlockSizes(
        block_q=q_block, block_kv=kv_block, block_kv_compute=min(kv_block, 512),
        block_q_dkv=q_block, block_kv_dkv=kv_block, block_kv_dkv_compute=min(kv_block, 512),
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    return kernel.make_splash_mqa(
        masks.MultiHeadMask([shape] * G),
        head_shards=1,
        q_seq_shards=parts,
        block_sizes=blocks,
        attn_logits_soft_cap=cap or None,
        **({"residual_checkpoint_name": "context"} | more),
    )


def splash(q_BLKGH, k_BSKH, v_BSKH, mask: Mask, scores: Scores, one: Any = None) -> jax.Array:
    """Pallas splash attention on TPU: block-sparse, segment ids in the kernel, fused backward.

    one: the kernel of this device's part, where several share the rows.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    check_backend("splash", q_BLKGH, k_BSKH, v_BSKH, mask, scores)
    if one is None:
        L, S, G = q_BLKGH.shape[1], k_BSKH.shape[1], q_BLKGH.shape[3]
        one = splash_kernel(mask, L, S, G, scores.softcap)

    def local(q_BKGLH, k_BKSH, v_BKSH, ids):
        ids = None if ids is None else kernel.SegmentIds(*ids)
        by_head = jax.vmap(one, (0, 0, 0, None))
        return jax.vmap(by_head, (0, 0, 0, None if ids is None else 0))(
            q_BKGLH, k_BKSH, v_BKSH, ids
        )

    q = q_BLKGH.transpose(0, 2, 3, 1, 4)
    k, v = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    seen = mask.segments if mask.key_segments is None else mask.key_segments
    ids = None if mask.segments is None else (mask.segments, seen)
    if mesh_is_set():
        heads, batch = spec("batch", "heads"), spec("batch")
        local = jax.shard_map(
            local, in_specs=(heads, heads, heads, None if ids is None else (batch, batch)),
            out_specs=heads, check_vma=False,
        )  # fmt: skip
    return local(q, k, v, ids).transpose(0, 3, 1, 2, 4)


def cudnn(q_BLKGH, k_BSKH, v_BSKH, mask: Mask, scores: Scores) -> jax.Array:
    """cuDNN's fused attention on NVIDIA GPUs. Packed documents go in as a mask, which it obeys."""
    B, L, K, G, H = q_BLKGH.shape
    check_backend("cudnn", q_BLKGH, k_BSKH, v_BSKH, mask, scores)
    plain = mask.prefix is None and not mask.window and mask.q_places is None
    allowed = None
    if mask.segments is not None or not plain:
        rows = mask.allowed(slice(0, L), slice(0, k_BSKH.shape[1]))
        allowed = jnp.broadcast_to(rows, (B, *rows.shape[1:]))[:, None]

    def local(q_BLNH, k_BSKH, v_BSKH, allowed):
        return jax.nn.dot_product_attention(
            q_BLNH, k_BSKH, v_BSKH, mask=allowed, scale=1.0, is_causal=mask.causal and plain,
            implementation="cudnn",
        )  # fmt: skip

    if mesh_is_set():
        heads, batch = spec("batch", None, "heads"), spec("batch")
        ids = None if allowed is None else batch
        local = jax.shard_map(
            local, in_specs=(heads, heads, heads, ids), out_specs=heads, check_vma=False
        )
    q_BLNH = q_BLKGH.reshape(B, L, K * G, H, out_sharding=spec("batch", None, "heads", None))
    o = local(q_BLNH, k_BSKH, v_BSKH, allowed)
    return o.reshape(B, L, K, G, H, out_sharding=spec("batch", None, "heads", None, None))


RUN = {"xla": xla, "splash": splash, "cudnn": cudnn}
