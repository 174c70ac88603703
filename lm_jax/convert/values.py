"""Readers of values of config.json, whose errors name the key."""

from collections.abc import Mapping
from typing import Any

from lm_jax.config.values import typed
from lm_jax.errors import UserError, nearest

GENERATION = "generation_config.json"
MAX_INT = 2**31  # no size of a model is larger; also keeps a hostile config.json from long loops
MAX_FLOAT = 1e12  # nor a rotary base, the largest number of a model


def sized(value: Any, hint: Any, where: str) -> Any:
    """`value` if it is of the type `hint` and of a size that a model can have."""
    value = typed(value, hint, where)
    most = {int: MAX_INT, float: MAX_FLOAT}.get(hint)
    if most is not None and not 0 <= value < most:
        raise UserError(f"{where}={short(value)}: must be at least 0 and below {most:.12g}.")
    return value


def chosen(names: Mapping[str, str], value: Any, where: str) -> str:
    """Our word for theirs."""
    if not isinstance(value, str) or value not in names:
        raise UserError(f"{where}={short(value)}: not supported.{nearest(str(value)[:100], names)}")
    return names[value]


def short(value: Any) -> str:
    """`value` as it fits one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
