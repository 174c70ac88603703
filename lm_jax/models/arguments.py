"""Checks of a module's options and of the arguments of a call: modules that are used alone raise
the errors of the command line.
"""

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lm_jax.config import ModelConfig
from lm_jax.config.check import check_alone
from lm_jax.devices.resolve import resolved

# Names of arguments in other libraries, and their equivalents here.
HINTS = {
    "attention_mask": "padding is 0 in segment_ids, which also separate packed documents.",
    "token_type_ids": "did you mean 'token_types'?",
    "position_ids": "did you mean 'positions'?",
    "input_ids": "tokens are the first argument.",
    "labels": "lm_jax.load(...).loss(text) has the loss of a text.",
    "output_hidden_states": "inspect(tokens) has hidden states and attention weights.",
    "output_attentions": "inspect(tokens) has hidden states and attention weights.",
}


# Arrays with one value for each token.
BY_TOKEN = ("segment_ids", "positions", "prefix", "token_types")


def ready(config: ModelConfig) -> ModelConfig:
    """Checks the options of a module and resolves "auto" for this machine.

    Raises UserError, as the command line does.
    """
    check_alone(config)
    # Without "auto" a run has resolved them already, maybe for another machine.
    auto = "auto" in (config.attention, config.dtype)
    return resolved(config, jax.default_backend()) if auto else config


def check_inputs(model: Any, tokens_BL: Any, more: Mapping[str, Any]) -> None:
    """Checks the arguments of a call of `model`.

    Raises TypeError for an argument that the model does not have; ValueError for an array of
    another shape than its tokens, and, where values are known, which under jax.jit they are not,
    for ids outside the vocabulary and positions outside the table.
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
    config, embed = model.config, getattr(model, "embed", None)
    has_table = getattr(embed, "positions", None) is not None
    for prefix, tokens in (("", "tokens"), ("input_", "inputs")):
        ids = tokens_BL if tokens == "tokens" else more.get(tokens)
        if ids is None:
            continue
        if ids.ndim != 2:
            raise ValueError(f"{tokens}: shape {list(ids.shape)}; expected [B, L].")
        check_range(tokens, ids, config.vocab_size, "vocab_size")
        positions = more.get(f"{prefix}positions")
        if has_table:
            given = np.arange(ids.shape[1]) if positions is None else positions
            check_range(f"{prefix}positions", given, config.max_length, "max_length")
        for name in BY_TOKEN:
            check_shape(f"{prefix}{name}", more.get(f"{prefix}{name}"), ids.shape)
    check_range("token_types", more.get("token_types"), config.token_types, "token_types")


def check_shape(name: str, values: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `values`, if there are any, have `shape`, or one row for all."""
    if values is not None and tuple(values.shape) not in (shape, (1, shape[1])):
        raise ValueError(f"{name}: shape {list(values.shape)}; expected {list(shape)}.")


def check_range(name: str, values: Any, size: int, field: str) -> None:
    """Raises ValueError unless all known `values` are 0 to size - 1."""
    if values is None or isinstance(values, jax.core.Tracer) or not np.size(values):
        return
    if not getattr(values, "is_fully_addressable", True):
        return
    known = np.asarray(values)  # on the host: under jax.jit, jax would trace the minimum
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"{name}: {low if low < 0 else high} is not one of 0 to {size - 1} "
            f"(config.model.{field}={size})."
        )
