"""Multi-head attention as in "Attention Is All You Need", usable alone."""

# Shapes: B batch, L query length, S key length, D model width, N heads, K size of a key head,
# V size of a value head.

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from lm_jax.models.attention.kernels import boolean_mask
from lm_jax.models.attention.softmax import MASKED_LOGIT
from lm_jax.models.layers import dropout as drop
from lm_jax.models.layers import weight
from lm_jax.models.parameter import hidden


class MultiHeadAttention(nnx.Module):
    """Concat(head_1, ..., head_N) W_o, head_i = softmax(q_i k_i / sqrt(d_k)) v_i, without biases
    (Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2).

    `MultiHeadAttention(num_heads=8, d_model=512)(query, key, value, mask)`.

    Args:
      num_heads: N.
      d_model: width of queries, keys, values and output.
      d_k, d_v: sizes of a key and a value head; d_model / num_heads by default.
      dropout: rate of the attention weights that are set to 0 when a call has a dropout_key.
      rngs: where the weights come from, Glorot uniform's variance; nnx.Rngs(0) by default.
    """

    def __init__(self, num_heads: int, d_model: int, d_k: int = 0, d_v: int = 0,
                 dropout: float = 0.0, *, rngs: nnx.Rngs | None = None):  # fmt: skip
        rngs, N, D = rngs or nnx.Rngs(0), num_heads, d_model
        if N < 1 or D < 1 or ((not d_k or not d_v) and D % N):
            raise ValueError(f"num_heads={N} must divide d_model={D}; or give d_k and d_v.")
        if d_k < 0 or d_v < 0:
            raise ValueError(f"d_k={d_k}, d_v={d_v}: must not be negative.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must be at least 0 and below 1.")
        K, V, self.dropout = d_k or D // N, d_v or D // N, dropout
        std = lambda size: math.sqrt(2 / (D + N * size))
        heads, into, out = (
            ("embed", "heads", None),
            hidden((-3,), (-2, -1)),
            hidden((-3, -2), (-1,)),
        )
        self.wq = weight(rngs, (D, N, K), heads, std(K), into)
        self.wk = weight(rngs, (D, N, K), heads, std(K), into)
        self.wv = weight(rngs, (D, N, V), heads, std(V), into)
        self.wo = weight(rngs, (N, V, D), ("heads", None, "embed"), std(V), out)

    def __call__(
        self,
        query_BLD: jax.Array,
        key_BSD: jax.Array | None = None,
        value_BSD: jax.Array | None = None,
        mask: ArrayLike | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (output [B, L, D], weights [B, N, L, S] that sum to 1 over the keys).

        key: the query by default; value: the key by default. mask: booleans that broadcast to
        [B, N, L, S], true where a query may see a key. dropout_key: a random key turns dropout on.
        """
        key_BSD = query_BLD if key_BSD is None else key_BSD
        value_BSD = key_BSD if value_BSD is None else value_BSD
        q_BLNK = jnp.einsum("bld,dnk->blnk", query_BLD, self.wq[...])
        k_BSNK = jnp.einsum("bsd,dnk->bsnk", key_BSD, self.wk[...])
        v_BSNV = jnp.einsum("bsd,dnv->bsnv", value_BSD, self.wv[...])
        a_BNLS = jnp.einsum("blnk,bsnk->bnls", q_BLNK, k_BSNK) / math.sqrt(q_BLNK.shape[-1])
        if mask is not None:
            a_BNLS = jnp.where(boolean_mask(mask, "BNLS"), a_BNLS, MASKED_LOGIT)
        p_BNLS = jax.nn.softmax(a_BNLS, -1)
        o_BLNV = jnp.einsum("bnls,bsnv->blnv", drop(p_BNLS, self.dropout, dropout_key), v_BSNV)
        return jnp.einsum("blnv,nvd->bld", o_BLNV, self.wo[...]), p_BNLS
