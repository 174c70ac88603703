"""Errors of a user, one line each; every kind has its exit code."""

import difflib
from collections.abc import Iterable
from typing import Any

EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: saved, start the same command again
EXIT_HUNG = 6  # no step ended for too long: the launchers start the same command again


class UserError(Exception):
    """A mistake that one line explains: what, where, what is allowed. `code` is the exit code."""

    code = 2


class DataError(UserError):
    """The text, the tokenizer or the token store cannot be used."""

    code = 3


class CheckpointError(UserError):
    """No checkpoint, a damaged one, or one of another model."""

    code = 3


class MachineError(UserError):
    """The disk, the devices or the installed packages cannot do what the run needs."""

    code = 4


class AbsentError(MachineError):
    """The other processes of the run did not come; at the next start they may."""

    code = 69  # EX_UNAVAILABLE of sysexits.h


class BusyError(MachineError):
    """Another process has what this one needs; at the next start it may be free."""

    code = 69


class DivergedError(UserError):
    """The loss or the gradients are no longer finite."""

    code = 5


def nearest(name: str, allowed: Iterable[str], otherwise: str = "") -> str:
    """The closest of `allowed` to `name`, as ` Did you mean 'x'?`, else `otherwise`, by default a
    list of them.
    """
    allowed = [str(a) for a in allowed]
    close = difflib.get_close_matches(str(name), allowed, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return otherwise or f" Allowed: {', '.join(allowed)}."


def need(config: Any, ok: Any, field: str, why: str) -> None:
    """Raises UserError about a field and its value unless `ok`."""
    if not ok:
        raise UserError(f"config.{field}={value_of(config, field)!r}: {why}")


def value_of(config: Any, field: str) -> Any:
    """The value of a dotted field."""
    for part in field.split("."):
        config = getattr(config, part)
    return config
