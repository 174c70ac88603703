"""Positions: rotary embeddings and their scalings, relative and linear biases of the scores."""

# Shapes: B batch, L query length, S key length, K key heads, G query heads a key head.

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.models.layers import weight
from lm_jax.models.parameter import vector

Rotation = tuple[jax.Array, jax.Array]


def frequencies(config: ModelConfig) -> np.ndarray:
    """Radians per position of each pair of a head's features, [head_size / 2], float32 (Su et al.
    2021, arXiv:2104.09864).

    `linear` divides all by rope_factor (Chen et al. 2023). `llama3` (Llama 3, section 3.2) and
    `yarn` (Peng et al. 2023, arXiv:2309.00071) divide only the slow ones, with a ramp between two
    numbers of turns per original context: of the turns, or of the pair's index.
    """
    half = np.arange(0, config.head_size, 2, dtype=np.float32) / config.head_size
    theta = (1.0 / config.rope_theta**half).astype(np.float32)
    if config.rope_scaling == "linear":
        return theta / np.float32(config.rope_factor)
    if config.rope_scaling == "llama3":
        turns = config.rope_original_length * theta / (2 * np.pi)
        low, high = config.rope_low_frequency, config.rope_high_frequency
        keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (keep * theta + (1 - keep) * theta / config.rope_factor).astype(np.float32)
    if config.rope_scaling == "yarn":
        last = config.head_size - 1
        low = max(math.floor(pair_of(config, config.rope_beta_fast)), 0)
        high = min(math.ceil(pair_of(config, config.rope_beta_slow)), last)
        ramp = (np.arange(len(theta)) - low) / max(high - low, 0.001)
        keep = 1 - np.clip(ramp.astype(np.float32), 0.0, 1.0)
        return (keep * theta + (1 - keep) * theta / config.rope_factor).astype(np.float32)
    return theta


def pair_of(config: ModelConfig, turns: float) -> float:
    """Index of the pair of features that makes `turns` full turns within the original context."""
    length = config.rope_original_length / (turns * 2 * math.pi)
    return config.head_size * math.log(length) / (2 * math.log(config.rope_theta))


def rotations(config: ModelConfig, positions_BL: jax.Array, kind: str = "g") -> Rotation:
    """cos and sin, [B, L, head_size / 2] float32, shared by all layers of a kind: local (l) ones
    may have their own base, and then no scaling.

    yarn multiplies both by its attention factor, 0.1 ln(rope_factor) + 1 by default.
    """
    if kind == "l" and config.rope_local_theta:
        theta = config.rope_local_theta
        config = dataclasses.replace(config, rope_theta=theta, rope_scaling="none")
    angles = positions_BL[..., None].astype(jnp.float32) * frequencies(config)[None, None]
    if config.rope_scaling != "yarn":
        return jnp.cos(angles), jnp.sin(angles)
    factor = config.rope_attention_factor
    factor = factor or (0.1 * math.log(config.rope_factor) + 1 if config.rope_factor > 1 else 1.0)
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotates the feature pairs (i, i + half) of x [B, L, ..., head_size] by the angles of their
    positions, in float32.
    """
    cos, sin = (r.reshape(r.shape[:2] + (1,) * (x.ndim - 3) + r.shape[2:]) for r in rotation)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class RelativeBias(nnx.Module):
    """A learned bias for each head and bucket of distances, shared by the layers of a stack (Raffel
    et al. 2020, arXiv:1910.10683, section 2.1).
    """

    def __init__(self, config: ModelConfig, causal: bool, *, rngs: nnx.Rngs):
        self.config, self.causal = config, causal
        K, G = config.kv_heads, config.num_heads // config.kv_heads
        R = config.relative_buckets
        # Without init_std Glorot's, of the table, as in Mesh-TensorFlow, which trained T5.
        std = config.init_std or math.sqrt(2 / (R + K * G))
        self.table = weight(rngs, (R, K, G), (None, "heads", None), std, vector(3))

    def __call__(self, distance_BLS: jax.Array) -> jax.Array:
        """Biases [B, K, G, L, S] of distances key - query [B, L, S]."""
        config = self.config
        ids_BLS = bucket(distance_BLS, self.causal, config.relative_buckets,
                         config.relative_distance)  # fmt: skip
        # A product with one-hot vectors, whose gradient is a product; a gather's is a scatter.
        hot_BLSN = jax.nn.one_hot(ids_BLS, config.relative_buckets, dtype=jnp.float32)
        return jnp.einsum("blsn,nkg->bkgls", hot_BLSN, self.table[...])


def bucket(distance: jax.Array, causal: bool, buckets: int, furthest: int) -> jax.Array:
    """The bucket of each distance: half of them exact, the others on a log scale up to `furthest`.

    Without `causal` each direction has half of the buckets.
    """
    offset = jnp.zeros_like(distance)
    if causal:
        distance = jnp.maximum(-distance, 0)
    else:
        buckets //= 2
        offset, distance = jnp.where(distance > 0, buckets, 0), jnp.abs(distance)
    # Bounds are computed on the host: on a device their logarithms may round differently.
    exact, far = buckets // 2, np.arange(1, furthest + 1, dtype=np.float32)
    log_scale = np.log(far / exact) / np.float32(math.log(furthest / exact)) * (buckets - exact)
    bounds = [int(np.argmax(log_scale >= k)) + 1 for k in range(1, buckets - exact)]
    beyond = sum((distance >= bound).astype(distance.dtype) for bound in bounds)
    return offset + jnp.where(distance < exact, distance, exact + beyond)


def alibi(config: ModelConfig, distance_BLS: jax.Array) -> jax.Array:
    """Biases [B, K, G, L, S]: minus a head's slope times the distance (Press et al. 2022, section
    3).
    """
    N, K = config.num_heads, config.kv_heads
    slopes = np.array(slopes_of(N), np.float32).reshape(1, K, N // K, 1, 1)
    return jnp.abs(distance_BLS)[:, None, None].astype(jnp.float32) * -slopes


def slopes_of(heads: int) -> list[float]:
    """ALiBi's slopes 2^(-8/n), 2^(-16/n) ... of n heads; where n is not a power of two, those of
    the next lower power and every second one of the next higher.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    return slopes + [2 ** (-4 * i / power) for i in range(1, 2 * (heads - power), 2)]
