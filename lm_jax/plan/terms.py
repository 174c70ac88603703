"""Parsers of the flags --price and --deadline."""

import math

from lm_jax.devices.chips import CHIPS, NAMES
from lm_jax.errors import UserError, nearest


def prices(text: str) -> dict[str, float]:
    """'4.2' or 'v5p:4.2,v6e:2.7', USD for an hour of a chip, by chip; raises UserError."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().rpartition(":")
        if name and name not in NAMES:
            raise UserError(f"--price={text}: no chip {name!r}.{nearest(name, CHIPS)}")
        try:
            price = float(value)
        except ValueError:
            price = math.nan
        if not 0 <= price < math.inf:
            raise UserError(f"--price={text}: {value!r} is not a number of USD, at least 0.")
        found |= dict.fromkeys((NAMES[name].name,) if name else CHIPS, price)
    return found


def days(text: str) -> float:
    """'30d' or '12h' in days, 0 for ''; raises UserError."""
    if not text:
        return 0.0
    try:
        found = float(text[:-1]) * {"d": 1.0, "h": 1 / 24}[text[-1]]
    except (ValueError, KeyError):
        found = math.nan
    if not 0 < found < math.inf:
        raise UserError(f"--deadline={text}: write days or hours, e.g. 30d or 12h.")
    return found
