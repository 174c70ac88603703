"""The interface that every model has, learned by gradients or counted."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from lm_jax.config import ModelConfig

Ids = jax.Array | np.ndarray


class Model(Protocol):
    """A language model: Transformer, Recurrent, HMM or NGram.

    A call takes tokens [B, L] and, by name, the other arrays of a batch in `inputs`; it returns
    logits [B, L, V] float32 (log-probabilities where they are normalised already).
    """

    config: ModelConfig

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names that a batch may have beside tokens."""

    @property
    def generates(self) -> bool:
        """Whether the model continues a text; an encoder fills in masked tokens instead."""

    @property
    def conditional(self) -> bool:
        """Whether each text needs `inputs`, another text (encoder-decoders)."""

    @property
    def on_host(self) -> bool:
        """Whether numpy computes the model on the host, so that jax.jit cannot take it."""

    def __call__(self, *tokens: Any, **more: Any) -> Any:
        """Logits [B, L, V]."""

    def log_probs(self, batch: Mapping[str, Any]) -> Any:
        """log p(target) [B, L] float32 of batch["targets"], in nats."""
