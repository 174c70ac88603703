"""The interface that every model has, learned by gradients or counted."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from lm_jax.config import ModelConfig

Ids = jax.Array | np.ndarray


class Model(Protocol):
    """A language model: Transformer, Recurrent, HMM or NGram.

    A call takes tokens [B, L] and, by name, the other arrays of a batch that the model has; it
    returns logits [B, L, V] float32 (log-probabilities where they are normalised already).
    """

    config: ModelConfig

    def __call__(self, *tokens: Any, **more: Any) -> Any:
        """Logits [B, L, V]."""

    def log_probs(self, batch: Mapping[str, Any]) -> Any:
        """log p(target) [B, L] float32 of batch["targets"], in nats."""
