"""Small models of random numbers, and the same ones under other options."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lm_jax.models import ModelConfig, Transformer


def abstract(config: ModelConfig) -> Transformer:
    """The shapes of a model alone."""
    return jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))


@functools.cache
def make(config: ModelConfig) -> Transformer:
    """A model whose every parameter is random, by numpy: there is nothing to compile."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape) + 0.1, jnp.float32)
    return jax.tree.map(draw, abstract(config))


def rebuilt(model: Transformer, **changes) -> Transformer:
    """The same parameters under options that do not change them."""
    other = abstract(dataclasses.replace(model.config, **changes))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(model))
