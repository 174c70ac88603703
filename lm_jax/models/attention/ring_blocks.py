"""One block of ring attention: outputs of queries over a part of the keys, and their part of the
gradient, by plain XLA and by the splash kernel.
"""

# Shapes: B batch, L queries, S keys, K key heads, G query heads a key head, H head size.
# queries: (q [B, K, G, L, H], segments [B, L] or None), and in a backward o, the log-sum-exp
# lse [B, K, G, L] and do, all three of the whole sequence; keys: (k, v [B, K, S, H], segments).

import inspect
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.devices.matmul import einsum
from lm_jax.errors import UserError
from lm_jax.models.attention import kernels
from lm_jax.models.attention.kernels import Mask
from lm_jax.models.attention.softmax import MASKED_LOGIT
from lm_jax.models.layers import softcap


def xla(queries, keys, causal: bool, cap: float):
    """(o, lse), float32. For queries without visible keys lse is about MASKED_LOGIT."""
    (q, q_ids), (k, v, k_ids) = queries, keys
    a_BKGLS = scores(q, k, q_ids, k_ids, causal, cap)
    lse = jax.nn.logsumexp(a_BKGLS, -1)
    return weighted_values(a_BKGLS, lse, v)[0], lse


def xla_backward(queries, keys, causal: bool, cap: float):
    """The part of dq from these keys, and of dk and dv from these queries."""
    (q, q_ids, o, lse, do), (k, v, k_ids) = queries, keys

    def recomputed(q, k, v):
        return weighted_values(scores(q, k, q_ids, k_ids, causal, cap), lse, v)

    # ds = p (do v - do o) of a score s with weight p = exp(s - lse): the gradient of
    # p (do v) - p (do o) with lse, that of the whole sequence, held constant.
    do = do.astype(jnp.float32)
    return jax.vjp(recomputed, q, k, v)[1]((do, -(o * do).sum(-1)))


def scores(q, k, q_ids, k_ids, causal: bool, cap: float) -> jax.Array:
    """Masked scores [B, K, G, L, S], float32."""
    a = einsum("bkglh,bksh->bkgls", q, k, jnp.float32)
    L, S = a.shape[-2:]
    allowed = np.tri(L, S, dtype=bool)[None] if causal else np.ones((1, L, S), bool)
    if q_ids is not None:
        allowed = allowed & (q_ids[:, :, None] == k_ids[:, None])
    return jnp.where(allowed[:, None, None], softcap(a, cap), MASKED_LOGIT)


def weighted_values(a_BKGLS, lse_BKGL, v_BKSH) -> tuple[jax.Array, jax.Array]:
    """(weighted sum of the values, sum of the weights), float32."""
    p = jnp.exp(a_BKGLS - lse_BKGL[..., None])
    p_v = p.astype(v_BKSH.dtype)
    o = einsum("bkgls,bksh->bkglh", p_v, v_BKSH, jnp.float32)
    return o, p.sum(-1)


def splash(queries, keys, causal: bool, cap: float):
    """(o in q's dtype, lse in float32). For queries without visible keys lse is about -0.7 times
    the largest float32.
    """
    (q, q_ids), (k, v, k_ids) = queries, keys
    one, ids = splash_kernel(q, k, causal, cap), segment_ids(q_ids, k_ids)
    by_head = jax.vmap(one, (0, 0, 0, None))
    o, (lse,) = jax.vmap(by_head, (0, 0, 0, None if ids is None else 0))(q, k, v, ids)
    return o, lse


def splash_backward(queries, keys, causal: bool, cap: float):
    """`xla_backward` by the backward kernel of splash attention itself, which takes o and lse as
    arguments, as no public function does. Raises UserError where jax has another kernel.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    (q, q_ids, o, lse, do), (k, v, k_ids) = queries, keys
    one, ids = splash_kernel(q, k, causal, cap), segment_ids(q_ids, k_ids)
    pull = getattr(kernel, "_splash_attention_bwd", None)
    takes = set(inspect.signature(pull).parameters) if pull else set()
    kinds = typing.get_args(getattr(kernel, "SplashResidualsType", None))
    if pull is None or takes != {*one.kwargs, "res", "do"} or len(kinds) != 9:
        raise UserError(
            f"config.model.attention='splash': jax {jax.__version__} has another backward kernel "
            "than config.mesh.context needs (that of jax 0.7.2 to 0.12); set "
            "config.model.attention=xla."
        )

    def gradients(q, k, v, ids, o, lse, do):
        saved = q, k, v, ids, None, o, lse, one.dq_mask_info, one.dkv_mask_info
        return pull(**one.kwargs, res=saved, do=do)[3:6]

    by_head = jax.vmap(gradients, (0, 0, 0, None, 0, 0, 0))
    by_row = jax.vmap(by_head, (0, 0, 0, None if ids is None else 0, 0, 0, 0))
    return by_row(q, k, v, ids, o, lse, do)


def segment_ids(q_ids, k_ids) -> Any:
    """Segment ids as an argument of the splash kernel; None without."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel

    return None if q_ids is None else kernel.SegmentIds(q_ids, k_ids)


def splash_kernel(q, k, causal: bool, cap: float) -> Any:
    """The kernel for the query heads [G, L, H] of one key head [S, H], which also gives lse."""
    L, S, G = q.shape[3], k.shape[2], q.shape[2]
    return kernels.splash_kernel(
        Mask(causal), L, S, G, cap, save_residuals=True, residual_checkpoint_name=None
    )


BLOCKS = {"xla": (xla, xla_backward), "splash": (splash, splash_backward)}
