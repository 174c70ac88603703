"""The terms of a run: prices and deadline, as --price and --deadline say them."""

from lm_jax.devices.chips import CHIPS, NAMES
from lm_jax.errors import UserError


def prices(text: str) -> dict[str, float]:
    """'4.2' or 'v5p:4.2,v6e:2.7', USD for an hour of a chip, by chip; raises UserError."""
    found: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.strip().rpartition(":")
        try:
            chip = NAMES[name].name if name in NAMES else name
            found |= dict.fromkeys((chip,) if name else CHIPS, float(value))
        except ValueError:
            raise UserError(f"--price={text}: {value!r} is not a number of USD.") from None
        if name and name not in NAMES:
            raise UserError(f"--price={text}: no chip {name!r}. Allowed: {', '.join(CHIPS)}.")
    return found


def days(text: str) -> float:
    """'30d' or '12h' in days, 0 for ''; raises UserError."""
    unit = {"d": 1.0, "h": 1 / 24}.get(text[-1:], 0.0)
    try:
        if not text or (unit and float(text[:-1]) > 0):
            return float(text[:-1] or 0) * unit
    except ValueError:
        pass
    raise UserError(f"--deadline={text}: write days or hours, e.g. 30d or 12h.")
