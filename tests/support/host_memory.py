"""Peak host memory of export and import beside the weights."""

import tracemalloc

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax import convert
from lm_jax.models import ModelConfig, Transformer


def zeros(config: ModelConfig) -> Transformer:
    """A model of zeros."""
    shapes = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def peaks(config: ModelConfig, small: ModelConfig, directory) -> tuple[int, int]:
    """(most bytes at once of an export, of an import); `small` goes first, for what Python itself
    allocates once.
    """
    model = zeros(config)
    convert.export_hf(zeros(small), small, directory / "warm")
    convert.import_hf(directory / "warm")
    tracemalloc.start()  # numpy's memory is counted, that of jax's arrays is not
    try:
        convert.export_hf(model, config, directory / "out")
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        convert.import_hf(directory / "out")
        return written, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
