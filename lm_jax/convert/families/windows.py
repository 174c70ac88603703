"""Conversion between the layer lists of `transformers` and our window and layer pattern.

A sliding window there is the number of keys that a query sees, itself among them, as here.
"""

from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.convert.pattern import repeated, shortest
from lm_jax.convert.values import short, sized
from lm_jax.errors import UserError, nearest

LETTERS = {"sliding_attention": "l", "full_attention": "g"}


def read_window(values: dict[str, Any], default: int | None, where: str) -> int:
    """`sliding_window`, 0 where it is null, `default` where it is missing."""
    value = values.get("sliding_window", default)
    if value is None:
        return 0
    if sized(value, int, f"{where}: sliding_window") < 1:
        raise UserError(f"{where}: sliding_window={value}: must be at least 1, or null.")
    return int(value)


def read_layers(values: dict[str, Any], window: int, default: str, where: str) -> dict[str, Any]:
    """Window and pattern from `layer_types`; `default`: the letters, a pattern, without them."""
    layers = sized(values.get("num_hidden_layers"), int, f"{where}: num_hidden_layers")
    given = values.get("layer_types")
    if given is None:
        letters = repeated(default, layers)
    else:
        if not isinstance(given, list) or len(given) != layers:
            raise UserError(
                f"{where}: layer_types={short(given)}: expected a list of {layers} (one a layer)."
            )
        odd = next((kind for kind in given if kind not in list(LETTERS)), None)
        if odd is not None:
            raise UserError(
                f"{where}: layer_types: {short(odd)} is not supported."
                f"{nearest(str(odd)[:100], LETTERS)}"
            )
        letters = "".join(LETTERS[kind] for kind in given)
    if "l" not in letters:
        return {}
    if not window:
        raise UserError(f"{where}: layer_types: has sliding_attention, but there is no window.")
    return {"window": window, "layer_pattern": shortest(letters)}


def write_layers(config: ModelConfig) -> dict[str, Any]:
    """`layer_types` and `sliding_window`, which must be a number even where no layer has one."""
    names = {ours: theirs for theirs, ours in LETTERS.items()}
    return {
        "layer_types": [names[letter] for letter in repeated(config.kinds, config.num_layers)],
        "sliding_window": config.window or config.max_length,
    }
