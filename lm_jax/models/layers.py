"""Layers: weights with logical axes, norms, the feed-forward layer, embeddings, heads, dropout."""

# Shapes: B batch, L length, D model width, C 2 when gated else 1, F feed-forward width, V
# vocabulary.

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm_jax.config import ModelConfig
from lm_jax.devices.products import contract, einsum, expand, first_token, lookup
from lm_jax.devices.sharding import gather, place, shard, stream, table
from lm_jax.models.parameter import TABLE, Role, hidden, parameter, vector


def gelu(x: jax.Array) -> jax.Array:
    """x P(X <= x) for a standard normal X (Hendrycks and Gimpel 2016), exact, in float32.

    By erf and not, as in jax.nn.gelu, by erfc: that saves 4 to 12 % of a small model's step on CPU.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def weight(
    rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float, role: Role
) -> nnx.Param:
    """A float32 parameter ~ N(0, std^2), laid out by its logical `axes`."""
    return parameter(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes, role)


def constant(
    shape: tuple[int, ...], axes: tuple[str | None, ...], value: float, role: Role
) -> nnx.Param:
    """A float32 parameter of one value, laid out by `axes`."""
    return parameter(jnp.full(shape, value, jnp.float32), axes, role)


def add(x: jax.Array, *others: jax.Array) -> jax.Array:
    """The sum of x and biases or rows that many tokens share, in the type of x. Added in float32:
    in a lower precision, the gradients of shared terms would be summed in it, token by token.
    """
    y = x.astype(jnp.float32)
    for other in others:
        y = y + other.astype(jnp.float32)[(None,) * (x.ndim - other.ndim)]
    return y.astype(x.dtype)


def std_of(config: ModelConfig, fan_in: int, fan_out: int, ends_branch: bool = False) -> float:
    """Initial standard deviation of a projection from `fan_in` to `fan_out` features.

    config.init_std; where that is 0, fan_in ** -0.5 (LeCun et al. 1998) or, with init_fan
    "average", sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio 2010). A projection that ends a
    residual branch is 0 under config.zero_init, and 1 / sqrt(2 layers) of it under
    config.init_depth_scaling (Radford et al. 2019, section 2.3). docs/recipes.md has these
    numbers for every config, beside those of its reference.
    """
    fan = {"in": fan_in, "average": (fan_in + fan_out) / 2}[config.init_fan]
    std = 0.0 if ends_branch and config.zero_init else config.init_std or fan**-0.5
    scaled = ends_branch and config.init_depth_scaling
    return std / math.sqrt(2 * config.num_layers) if scaled else std


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axes, of
    `shape` features, in float32.
    """

    def __init__(self, config: ModelConfig, shape: tuple[int, ...] = (), kind: str = "", *,
                 axes: tuple[str | None, ...] = (None,), rngs: nnx.Rngs):  # fmt: skip
        del rngs
        self.config, self.kind, shape = config, kind or config.norm, shape or (config.dim,)
        self.scale = constant(shape, axes, 1.0 - config.norm_offset, vector(len(shape)))
        if self.kind == "layernorm" and config.bias:
            self.bias = constant(shape, axes, 0.0, vector(len(shape)))

    def __call__(self, x: jax.Array) -> jax.Array:
        n = self.scale.ndim
        y, ones, over = x.astype(jnp.float32), (None,) * (x.ndim - n), tuple(range(-n, 0))
        if self.kind == "layernorm":
            y = y - jnp.mean(y, over, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, over, keepdims=True) + self.config.norm_eps)
        y = y * (self.scale[...] + self.config.norm_offset)[ones]
        if hasattr(self, "bias"):
            y = y + self.bias[...][ones]
        return y.astype(x.dtype)


class MLP(nnx.Module):
    """Position-wise feed-forward layer, gated (Shazeer 2020) or not."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        D, C, F = config.dim, 1 + config.gated, config.mlp_size
        # Gate and up are two matrices to an optimizer, as if they were two arrays.
        self.up = weight(rngs, (D, C, F), ("embed", None, "mlp"), std_of(config, D, F),
                         hidden((-3,), (-1,)))  # fmt: skip
        self.down = weight(rngs, (F, D), ("mlp", "embed"), std_of(config, F, D, ends_branch=True),
                           hidden((-2,), (-1,)))  # fmt: skip
        if config.bias:
            self.up_bias = constant((C, F), (None, "mlp"), 0.0, vector())
            self.down_bias = constant((D,), (None,), 0.0, vector())

    def __call__(self, x_BLD: jax.Array, key: jax.Array | None = None) -> jax.Array:
        dtype = x_BLD.dtype
        axes, bits = ("batch", "length", None, "mlp"), self.config.bits("mlp")
        (h_BLCF,) = expand(x_BLD, ("bld,dcf->blcf", self.up[...].astype(dtype), axes), bits=bits)
        if self.config.bias:
            h_BLCF = add(h_BLCF, self.up_bias[...])
        h_BLF = ACTIVATIONS[self.config.activation](h_BLCF[:, :, 0])
        if self.config.gated:
            h_BLF *= h_BLCF[:, :, 1]
        h_BLF = checkpoint_name(h_BLF, "mlp")
        h_BLF = dropout(h_BLF, self.config.activation_dropout, key)
        down_FD = self.down[...].astype(dtype)
        y_BLD = contract("blf,fd->bld", h_BLF, down_FD, *axes[:2], "mlp", bits=bits)
        return add(y_BLD, self.down_bias[...]) if self.config.bias else y_BLD


class Embed(nnx.Module):
    """Token embeddings plus, where config has them, those of positions and token types; a norm."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        V, D, std = config.vocab_size, config.dim, config.init_std or 0.02
        self.tokens = weight(rngs, (V, D), table(V), config.embed_init_std or std, TABLE)
        if config.positions == "learned":
            rows = config.max_length + config.position_offset
            self.positions = weight(rngs, (rows, D), (None, "embed"), std, TABLE)
        if config.token_types:
            self.types = weight(rngs, (config.token_types, D), (None, "embed"), std, TABLE)
        if config.embed_norm:
            self.norm = Norm(config, rngs=rngs)

    def __call__(
        self,
        tokens_BL: jax.Array,
        positions_BL: jax.Array,
        dtype: jnp.dtype,
        types_BL: jax.Array | None = None,
    ) -> jax.Array:
        config = self.config
        axes, rows = stream(config.dim), []
        row = (None, *axes[1:])
        x_BLD = lookup(self.tokens[...], tokens_BL, dtype)
        if config.embed_scale != 1.0:
            x_BLD *= jnp.asarray(config.embed_scale, dtype)
        if config.positions in ("learned", "sinusoidal"):
            # One row of positions serves the whole batch, replicated over its devices.
            by_row = axes if len(positions_BL) == len(tokens_BL) else row
            if config.positions == "learned":
                table = shard(self.positions[...], None, None)
                rows.append(gather(table, positions_BL + config.position_offset, *by_row))
            else:
                rows.append(shard(sinusoids(positions_BL, config.dim), *by_row))
        if config.token_types:
            table = shard(self.types[...], None, None)
            if types_BL is None:  # all tokens are of the first type
                rows.append(shard(table[:1][None], None, None, axes[2]))
            else:
                by_row = axes if len(types_BL) == len(tokens_BL) else row
                rows.append(gather(table, types_BL, *by_row))
        x_BLD = add(x_BLD, *rows)
        return self.norm(x_BLD) if config.embed_norm else x_BLD


class HeadTransform(nnx.Module):
    """BERT's transform before the output embeddings: a dense layer, the activation and a norm."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config, D = config, config.dim
        self.kernel = weight(rngs, (D, D), ("embed", None), std_of(config, D, D), TABLE)
        self.bias = constant((D,), (None,), 0.0, vector())
        self.norm = Norm(config, rngs=rngs)

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x_BLD.dtype)
        y_BLD = einsum("bld,de->ble", x_BLD, kernel, "batch", "length", None)
        y_BLD = add(y_BLD, self.bias[...])
        return self.norm(ACTIVATIONS[self.config.activation](y_BLD))


class Pooler(nnx.Module):
    """Two logits [B, 2] for a pair of texts, from the first token (BERT, section 3.1)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D = config.dim
        self.kernel = weight(rngs, (D, D), ("embed", None), std_of(config, D, D), TABLE)
        self.bias = constant((D,), (None,), 0.0, vector())
        self.pair = weight(rngs, (D, 2), ("embed", None), std_of(config, D, 2), TABLE)
        self.pair_bias = constant((2,), (None,), 0.0, vector())

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return self.logits(self.pooled(x_BLD))

    def pooled(self, x_BLD: jax.Array) -> jax.Array:
        """tanh of a dense layer on the first token, [B, D]."""
        x_BD = first_token(x_BLD)
        y_BD = einsum("bd,de->be", x_BD, self.kernel[...].astype(x_BD.dtype), "batch", None)
        return jnp.tanh(add(y_BD, self.bias[...]))

    def logits(self, y_BD: jax.Array) -> jax.Array:
        """Logits of 'follows' and 'does not', float32."""
        logits = einsum("bd,dt->bt", y_BD, self.pair[...].astype(y_BD.dtype), "batch", None)
        return logits.astype(jnp.float32) + self.pair_bias[...][None]


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap tanh(x / cap) (Gemma 2, arXiv:2408.00118, section 2); x when cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def sinusoids(positions_BL: jax.Array, size: int) -> jax.Array:
    """Sinusoidal positions [B, L, size]: sines and cosines in turn, of wavelengths 2 pi to
    10,000 2 pi (Vaswani et al. 2017, section 3.5).
    """
    rates = 10_000.0 ** (-np.arange(0, size, 2, dtype=np.float32) / size)
    angles = positions_BL[..., None].astype(jnp.float32) * rates[None, None]
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1)
    return both.reshape(*positions_BL.shape, -1)[..., :size]


def dropout(x_BLD: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Inverted dropout (Srivastava et al. 2014); does nothing without a key."""
    if key is None or rate == 0.0:
        return x_BLD
    # Each device draws the mask of its own part, the same values as a single device would.
    keep = jax.random.uniform(key, x_BLD.shape, out_sharding=place(x_BLD)) < 1 - rate
    return jnp.where(keep, x_BLD / (1 - rate), 0)
