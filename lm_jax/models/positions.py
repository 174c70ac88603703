"""Where in the text is a token? Rotary positions (Su et al. 2021, arXiv:2104.09864) and their
scalings.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.config import ModelConfig


def frequencies(config: ModelConfig) -> np.ndarray:
    """Radians per position of each pair of a head's features, [head_size / 2], float32.

    `linear` divides all by rope_factor (Chen et al. 2023); `llama3` only the slow ones, with a ramp
    between rope_low_frequency and rope_high_frequency turns per original context (Llama 3, section
    3.2).
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
    return theta


def rotations(config: ModelConfig, positions_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [B, L, head_size / 2] float32, computed once and shared by all layers."""
    angles = positions_BL[..., None].astype(jnp.float32) * frequencies(config)[None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns feature pairs (i, i + half) of x [B, L, ..., head_size] by their position's angle, in
    float32.
    """
    cos, sin = (r.reshape(r.shape[:2] + (1,) * (x.ndim - 3) + r.shape[2:]) for r in rotation)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
