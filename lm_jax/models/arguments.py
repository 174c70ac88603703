"""Checks of what a module is made from and called with: the errors of the command line, raised by
modules that are used alone.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lm_jax.config import ModelConfig
from lm_jax.config.check import check_alone
from lm_jax.devices.resolve import resolved

# What other libraries call an argument, and where it is here.
HINTS = {
    "attention_mask": "padding is 0 in segment_ids, which also keep packed documents apart.",
    "token_type_ids": "did you mean 'token_types'?",
    "position_ids": "did you mean 'positions'?",
    "input_ids": "tokens are the first argument.",
    "labels": "lm_jax.load(...).loss(text) has the loss of a text.",
    "output_hidden_states": "inspect(tokens) has hidden states and attention weights.",
    "output_attentions": "inspect(tokens) has hidden states and attention weights.",
}


def ready(config: ModelConfig) -> ModelConfig:
    """The options that a module is made from: checked, with "auto" settled for this machine.

    Raises UserError, as the command line does.
    """
    check_alone(config)
    # Else a run has decided already, maybe for another machine.
    auto = "auto" in (config.attention, config.dtype)
    return resolved(config, jax.default_backend()) if auto else config


def check_inputs(model: Any, tokens_BL: Any, more: Mapping[str, Any]) -> None:
    """Raises TypeError for an argument that `model` does not have, ValueError for ids outside its
    vocabulary and positions outside its table where values are known, which under jax.jit they are
    not.
    """
    for name in more:
        if name not in model.inputs:
            close = difflib.get_close_matches(name, model.inputs, 1, 0.7)
            hint = (
                f"did you mean {close[0]!r}?" if close else f"allowed: {', '.join(model.inputs)}."
            )
            raise TypeError(
                f"{type(model).__name__} ({model.config.architecture}) has no argument {name!r}; "
                f"{HINTS.get(name, hint)}"
            )
    config = model.config
    for name, ids in (("tokens", tokens_BL), ("inputs", more.get("inputs"))):
        within(name, ids, config.vocab_size, "vocab_size")
    within("token_types", more.get("token_types"), config.token_types, "token_types")
    if config.positions == "learned" and config.architecture not in ("rnn", "lstm", "gru"):
        for ids, places in (("tokens", "positions"), ("inputs", "input_positions")):
            rows = tokens_BL if ids == "tokens" else more.get(ids)
            given = more.get(places)
            if given is None and rows is not None:
                given = np.arange(rows.shape[-1])
            within(places, given, config.max_length, "max_length")


def within(name: str, values: Any, size: int, field: str) -> None:
    """Raises ValueError unless all known `values` are 0 to size - 1."""
    if values is None or isinstance(values, jax.core.Tracer) or not np.size(values):
        return
    if not getattr(values, "is_fully_addressable", True):
        return
    low, high = int(np.min(values)), int(np.max(values))
    if low < 0 or high >= size:
        raise ValueError(
            f"{name}: {low if low < 0 else high} is not one of 0 to {size - 1} "
            f"(config.model.{field}={size})."
        )
