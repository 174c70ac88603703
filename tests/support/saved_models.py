"""A small model with random weights, and checkpoints of it as a run leaves them."""

import shutil

import jax
import numpy as np
from flax import nnx

from lm_jax.config import Config, DataConfig, ModelConfig
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.models import Transformer
from lm_jax.run.checkpoint import Checkpoints

CONFIG = Config(
    model=ModelConfig(vocab_size=384, num_layers=1, dim=16, num_heads=2, max_length=64),
    data=DataConfig(tokenizer="bytes", vocab_size=259, sequence_length=32),
)


def make_model(seed=0, config=CONFIG.model):
    """A model with large random weights, made without compiling."""
    draw = np.random.default_rng(seed).normal
    abstract = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return jax.tree.map(lambda x: jax.numpy.asarray(draw(0, 0.5, x.shape), x.dtype), abstract)


def save_run(directory, tokenizer=None, steps=(10, 20), **metadata):
    """A run's checkpoints, as the train loop saves them."""
    tokenizer = tokenizer or Tokenizer("bytes")
    tokenizer.save(directory / "tokenizer")
    files = {path.name: path.read_bytes() for path in (directory / "tokenizer").iterdir()}
    shutil.rmtree(directory / "tokenizer")
    metadata = {"config": CONFIG.to_dict(), "tokenizer_hash": tokenizer.hash} | metadata
    with Checkpoints(directory) as checkpoints:
        for step in steps:
            state = {"model": make_model(step), "opt": {"count": np.zeros(3, np.float32)}}
            checkpoints.save(step, state, {"step": step} | metadata, files)
    return directory
