"""The models, usable alone: `from lm_jax.models import ModelConfig, Transformer`."""

from typing import Any

import jax
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.config.check import check_alone
from lm_jax.errors import UserError
from lm_jax.models.attention.attention import Attention
from lm_jax.models.attention.multi_head import MultiHeadAttention
from lm_jax.models.classical.counted import NGram
from lm_jax.models.classical.hmm import HMM
from lm_jax.models.protocol import Model
from lm_jax.models.recurrent import Recurrent
from lm_jax.models.transformer import Transformer

__all__ = [
    "HMM",
    "Attention",
    "ModelConfig",
    "MultiHeadAttention",
    "NGram",
    "Recurrent",
    "Transformer",
    "create",
    "num_parameters",
]

CLASSES: dict[str, Any] = {
    **dict.fromkeys(("decoder", "encoder", "encoder_decoder"), Transformer),
    **dict.fromkeys(("rnn", "lstm", "gru"), Recurrent),
    "hmm": HMM,
}


def num_parameters(model: Model) -> int:
    """Number of parameters."""
    if isinstance(model, NGram):
        return model.num_parameters
    return sum(x.size for x in jax.tree.leaves(model))


def create(config: ModelConfig, *, rngs: nnx.Rngs) -> Transformer | Recurrent | HMM:
    """A new network of config.architecture, for training or restoring.

    Raises UserError for options that cannot work and for an ngram, which is counted from text
    (training/counting.py).
    """
    check_alone(config)
    if config.architecture not in CLASSES:
        raise UserError(
            f"config.model.architecture={config.architecture!r}: has no parameters to initialise; "
            "fit a models.classical.ngram.KneserNey, and wrap it: NGram(config, counts)."
        )
    return CLASSES[config.architecture](config, rngs=rngs)
