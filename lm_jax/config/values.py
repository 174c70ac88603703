"""Conversion of plain values into the dataclasses of a config; differences between two configs."""

import contextlib
import dataclasses
import json
import math
import numbers
import os
import typing
from typing import Any

from lm_jax.errors import UserError, nearest


def from_dict(cls: Any, values: dict[str, Any], prefix: str = "config") -> Any:
    """A dataclass of `cls` from plain values; raises UserError on an unknown name or wrong type."""
    if not isinstance(values, dict):
        names = ", ".join(typing.get_type_hints(cls))
        raise UserError(f"{prefix}={values!r}: expected a group of fields: {names}.")
    hints, found = typing.get_type_hints(cls), {}
    for name, value in values.items():
        where = f"{prefix}.{name}"
        if name not in hints:
            raise UserError(f"{where}: no such field.{nearest(name, hints)}")
        found[name] = (
            from_dict(hints[name], value, where)
            if dataclasses.is_dataclass(hints[name])
            else typed(value, hints[name], where)
        )
    return cls(**found)


def typed(value: Any, hint: type, where: str) -> Any:
    """`value` as `hint` (whole numbers and '1e-4' pass as float); raises UserError."""
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = as_float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where}={value!r}: expected {hint.__name__}, got {type(value).__name__}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}={value}: must be finite.")
    return value


def as_float(value: Any) -> float:
    """`value` as a float, infinity where it is too large for one; raises ValueError."""
    try:
        return float(value)
    except OverflowError:  # 10 ** 400, where '1e400' is infinity
        return math.inf if value > 0 else -math.inf


def number(name: str, value: Any, whole: bool = False) -> Any:
    """The argument `name` of a call as a number, of Python, numpy or jax, and as an int where it is
    to be whole; raises UserError at anything else.
    """
    plain = value.item() if getattr(value, "shape", None) == () else value
    fits = isinstance(plain, numbers.Real) and not isinstance(plain, bool)
    if not fits or (whole and plain % 1 != 0):  # infinity % 1 is not a number
        expected = "a whole number" if whole else "a number"
        raise UserError(f"{name}={str(value)[:60]!r}: expected {expected}.")
    return int(plain) if whole else plain


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError where it is none, or is nested too deeply to be
    read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def differences(config: Any, other: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """[(field, value in config, value in other)] of two configs of one class, in order."""
    rows = []
    for field in dataclasses.fields(config):
        a, b = getattr(config, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(a):
            rows += differences(a, b, f"{prefix}{field.name}.")
        elif a != b:
            rows.append((prefix + field.name, a, b))
    return rows


def expand_home(path: str | os.PathLike[str]) -> str:
    """`path` with a leading ~ replaced by the home folder, also behind `tfds:` or `hf:`."""
    path = os.fspath(path)
    scheme = next((s for s in ("tfds:", "hf:") if path.startswith(s)), "")
    return scheme + os.path.expanduser(path.removeprefix(scheme))
