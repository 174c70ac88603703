"""Readers of values of config.json, whose errors name the key."""

import math
from collections.abc import Mapping
from typing import Any

from lm_jax.config.values import typed
from lm_jax.errors import UserError, nearest

GENERATION = "generation_config.json"
MAX_INT = 2**31  # above any size of a model; bounds the work that a hostile config.json can cause
MAX_FLOAT = 1e12  # above any rotary base, the largest number of a model


def sized(value: Any, hint: Any, where: str) -> Any:
    """`value` if it is of the type `hint` and of a size that a model can have."""
    value = typed(value, hint, where)
    limit = {int: MAX_INT, float: MAX_FLOAT}.get(hint)
    if limit is not None and not 0 <= value < limit:
        raise UserError(f"{where}={short(value)}: must be at least 0 and below {limit:.12g}.")
    return value


def chosen(names: Mapping[str, str], value: Any, where: str) -> str:
    """Our word for theirs; raises UserError at an unknown one."""
    if not isinstance(value, str) or value not in names:
        raise UserError(f"{where}={short(value)}: not supported.{nearest(str(value)[:100], names)}")
    return names[value]


def short(value: Any) -> str:
    """`repr(value)`, shortened to fit one line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def same(a: Any, b: Any) -> bool:
    """Whether two options are equal; numbers as far as a model's float32 can tell: sqrt(dim)
    written with eight digits is that root.
    """
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-8)
    return a == b
