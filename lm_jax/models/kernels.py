"""Which attention kernel runs? Every backend behind one function, none of them ever replaced in
silence.
"""

# Shapes: B batch, L query length, S key length, K key heads, G query heads a key head, H head size.

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.errors import UserError
from lm_jax.sharding import mesh_is_set, spec

NEVER = -1e30  # a score that softmax turns into 0, and whose gradient is finite
BLOCK = 128  # queries that share one product on the xla backend; 2 of 256 were fastest on CPU
MOST_BLOCKS = 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mask:
    """What a query may see: nothing later (causal), its own segment, filled slots of a cache."""

    causal: bool = dataclasses.field(default=True, metadata={"static": True})
    segments: jax.Array | None = (
        None  # [B, L], of queries and keys: the document of each token in the window
    )
    q_slots: jax.Array | None = (
        None  # [B, L]: the queries' places in a cache whose slots are the keys
    )


def attention(
    q_BLKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask, backend: str
) -> jax.Array:
    """softmax(q k / sqrt(H)) v, [B, L, K, G, H], on `backend`: xla, splash or cudnn.

    Raises UserError when the backend cannot do what is asked. One step of decoding is always plain
    XLA: a single query has nothing to tile.
    """
    q_BLKGH = q_BLKGH * np.asarray(q_BLKGH.shape[-1] ** -0.5, q_BLKGH.dtype)
    if mask.q_slots is not None:
        return cached(q_BLKGH, k_BSKH, v_BSKH, mask.q_slots)
    return {"xla": xla, "splash": splash, "cudnn": cudnn}[backend](q_BLKGH, k_BSKH, v_BSKH, mask)


def xla(q_BLKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    """The reference: scores are whole, queries in a few blocks that meet only the keys before their
    end.
    """
    L = q_BLKGH.shape[1]
    q_BKGLH = jnp.transpose(q_BLKGH, (0, 2, 3, 1, 4))
    k_BKSH, v_BKSH = jnp.transpose(k_BSKH, (0, 2, 1, 3)), jnp.transpose(v_BSKH, (0, 2, 1, 3))
    size = max(BLOCK, -(-L // MOST_BLOCKS)) if mask.causal else L
    blocks = []
    for start in range(0, L, size):
        stop = min(start + size, L)
        last = stop if mask.causal else L
        allowed = np.ones((1, stop - start, last), bool)
        if mask.causal:
            allowed = np.tril(allowed, start)
        if mask.segments is not None:
            own, seen = mask.segments[:, start:stop, None], mask.segments[:, None, :last]
            allowed = allowed & (own == seen)
        keys, values = k_BKSH[:, :, :last], v_BKSH[:, :, :last]
        blocks.append(product(q_BKGLH[:, :, :, start:stop], keys, values, allowed))
    o_BKGLH = blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, 3)
    return jnp.transpose(o_BKGLH, (0, 3, 1, 2, 4))


def product(
    q_BKGLH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, allowed_BLS: jax.Array | np.ndarray
) -> jax.Array:
    """softmax(q k) v with float32 scores, [B, K, G, L, H]."""
    a = jnp.einsum("bkglh,bksh->bkgls", q_BKGLH, k_BKSH, preferred_element_type=jnp.float32)
    p = jax.nn.softmax(jnp.where(allowed_BLS[:, None, None], a, NEVER), -1).astype(v_BKSH.dtype)
    return jnp.einsum("bkgls,bksh->bkglh", p, v_BKSH)


def cached(
    q_BLKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, q_slots_BL: jax.Array
) -> jax.Array:
    """Queries at known slots against every slot of a cache up to their own."""
    allowed = jnp.arange(k_BSKH.shape[1])[None, None] <= q_slots_BL[:, :, None]
    q, k, v = q_BLKGH.transpose(0, 2, 3, 1, 4), k_BSKH, v_BSKH
    o = product(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), allowed)
    return o.transpose(0, 3, 1, 2, 4)


def splash(q_BLKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    """Pallas splash attention on TPU: block-sparse, segment ids in the kernel, fused backward."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    L, S, G = q_BLKGH.shape[1], k_BSKH.shape[1], q_BLKGH.shape[3]
    if L % 128 or S % 128:
        raise UserError(
            f"config.model.attention='splash': a window of {L} tokens is not a multiple of 128; "
            "change config.data.sequence_length, or set config.model.attention=xla."
        )
    shape = masks.CausalMask((L, S)) if mask.causal else masks.FullMask((L, S))
    q_block, kv_block = (next(b for b in (1024, 512, 256, 128) if n % b == 0) for n in (L, S))
    blocks = kernel.BlockSizes(
        block_q=q_block, block_kv=kv_block, block_kv_compute=min(kv_block, 512),
        block_q_dkv=q_block, block_kv_dkv=kv_block, block_kv_dkv_compute=min(kv_block, 512),
        use_fused_bwd_kernel=True,
    )  # fmt: skip
    one = kernel.make_splash_mqa_single_device(
        masks.MultiHeadMask([shape] * G), block_sizes=blocks, residual_checkpoint_name="context"
    )

    def local(q_BKGLH, k_BKSH, v_BKSH, segments_BL):
        ids = None if segments_BL is None else kernel.SegmentIds(segments_BL, segments_BL)
        by_head = jax.vmap(one, (0, 0, 0, None))
        return jax.vmap(by_head, (0, 0, 0, None if ids is None else 0))(
            q_BKGLH, k_BKSH, v_BKSH, ids
        )

    q = q_BLKGH.transpose(0, 2, 3, 1, 4)
    k, v = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    if mesh_is_set():
        heads, batch = spec("batch", "heads"), spec("batch")
        ids = None if mask.segments is None else batch
        local = jax.shard_map(
            local, in_specs=(heads, heads, heads, ids), out_specs=heads, check_vma=False
        )
    return local(q, k, v, mask.segments).transpose(0, 3, 1, 2, 4)


def cudnn(q_BLKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: Mask) -> jax.Array:
    """cuDNN's fused attention on NVIDIA GPUs. Packed documents go in as a mask, which it obeys."""
    B, L, K, G, H = q_BLKGH.shape
    if q_BLKGH.dtype not in (jnp.bfloat16, jnp.float16) or H % 8 or H > 256:
        raise UserError(
            "config.model.attention='cudnn': needs bfloat16 and a head size that is a multiple of "
            f"8 up to 256, not {q_BLKGH.dtype} and {H}; set config.model.attention=xla or "
            "config.model.dtype=bfloat16."
        )
    allowed = None
    if mask.segments is not None:
        allowed = (mask.segments[:, :, None] == mask.segments[:, None, :])[:, None]

    def local(q_BLNH, k_BSKH, v_BSKH, allowed):
        return jax.nn.dot_product_attention(
            q_BLNH, k_BSKH, v_BSKH, mask=allowed, scale=1.0, is_causal=mask.causal,
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
