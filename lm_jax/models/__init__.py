"""The models, usable alone: `from lm_jax.models import ModelConfig, Transformer`."""

from lm_jax.config import ModelConfig
from lm_jax.models.transformer import Transformer

__all__ = ["ModelConfig", "Transformer"]
