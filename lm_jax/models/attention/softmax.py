"""Attention on plain XLA: softmax(q k) v with float32 scores and custom gradients."""

# Shapes: B batch, L query length, S key length, K key heads, G query heads a key head, H head size.

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lm_jax.devices.matmul import einsum
from lm_jax.devices.products import materialize
from lm_jax.devices.sharding import place
from lm_jax.models.layers import softcap

MASKED_LOGIT = -1e30  # a score that softmax turns into 0, and whose gradient is finite


def product(
    q_BKGLH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    allowed_BLS: jax.Array | np.ndarray,
    cap: float = 0.0,
    bias: jax.Array | None = None,
    rate: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """softmax(q k) v with float32 scores, [B, K, G, L, H]; with a key, dropout of the softmax."""
    a = products_of(q_BKGLH, k_BKSH)
    a = softcap(a, cap) if bias is None else softcap(a, cap) + bias
    a = jnp.where(allowed_BLS[:, None, None], a, MASKED_LOGIT)
    keep = None
    if key is not None:
        keep = jax.random.uniform(key, a.shape, out_sharding=place(a)) >= rate
    return weighted(a, v_BKSH, keep, rate)


# a = q k^T: dq = g k, dk = g^T q, summed over the G query heads of a key head.
# q [B, K, G, L, H], k [B, K, S, H], a and g [B, K, G, L, S] float32.
@jax.custom_vjp
def products_of(q_BKGLH: jax.Array, k_BKSH: jax.Array) -> jax.Array:
    """q k in float32, [B, K, G, L, S]."""
    return einsum("bkglh,bksh->bkgls", q_BKGLH, k_BKSH, jnp.float32)


def products_backward(saved, g_BKGLS):
    """Gradients of q and k."""
    q_BKGLH, k_BKSH = saved
    g_BKGLS = g_BKGLS.astype(q_BKGLH.dtype)
    return einsum("bkgls,bksh->bkglh", g_BKGLS, k_BKSH), summed_queries(q_BKGLH, g_BKGLS)


products_of.defvjp(lambda q, k: (products_of(q, k), (q, k)), products_backward)


# p = softmax(a), d = keep / (1 - rate) or 1, o = (p d) v; dv = (p d)^T g, dp = (g v^T) d and
# da = p (dp - sum(dp p)), where sum(dp p) over all keys is sum(g o) over a head (Dao et al. 2022,
# arXiv:2205.14135, appendix B.2). a, p, d [B, K, G, L, S], v [B, K, S, H], o and g [B, K, G, L, H].
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def weighted(
    a_BKGLS: jax.Array, v_BKSH: jax.Array, keep_BKGLS: jax.Array | None = None, rate: float = 0.0
) -> jax.Array:
    """softmax(a) v, [B, K, G, L, H]; with `keep`, only of the weights where it is true, as dropout
    at `rate` keeps them.
    """
    return weighted_forward(a_BKGLS, v_BKSH, keep_BKGLS, rate)[0]


def kept(x, keep, rate: float):
    """Inverted dropout: x / (1 - rate) where it is kept, else 0."""
    return x if keep is None else jnp.where(keep, x / (1 - rate), 0)


def weighted_forward(a_BKGLS, v_BKSH, keep_BKGLS, rate):
    """The output, and the residuals of the gradient."""
    p_BKGLS = jax.nn.softmax(a_BKGLS, -1).astype(v_BKSH.dtype)
    o_BKGLH = einsum("bkgls,bksh->bkglh", kept(p_BKGLS, keep_BKGLS, rate), v_BKSH)
    o_BKGLH = checkpoint_name(o_BKGLH, "context")
    return o_BKGLH, (p_BKGLS, v_BKSH, keep_BKGLS, o_BKGLH)


def weighted_backward(rate, saved, g_BKGLH):
    """Gradients of the scores, in float32, and of the values."""
    p_BKGLS, v_BKSH, keep_BKGLS, o_BKGLH = saved
    mean_BKGL = materialize(jnp.sum(g_BKGLH.astype(jnp.float32) * o_BKGLH, -1, keepdims=True))
    dp_BKGLS = kept(einsum("bkglh,bksh->bkgls", g_BKGLH, v_BKSH, jnp.float32), keep_BKGLS, rate)
    dv_BKSH = summed_queries(g_BKGLH, kept(p_BKGLS, keep_BKGLS, rate))
    return p_BKGLS * (dp_BKGLS - mean_BKGL), dv_BKSH, None


weighted.defvjp(weighted_forward, weighted_backward)


def summed_queries(x_BKGLH: jax.Array, p_BKGLS: jax.Array) -> jax.Array:
    """p x summed over the queries, [B, K, S, H]: x is transposed and not p, which is larger."""
    return jnp.swapaxes(materialize(einsum("bkglh,bkgls->bkhs", x_BKGLH, p_BKGLS)), 2, 3)
