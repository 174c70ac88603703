"""Facts about each option, stated once, at its definition: what it changes, its bounds, its
choices, whether it may change on resume. Every list of options is derived from them.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from lm_jax.errors import UserError, nearest

INT_MAX = 2**31 - 1  # of a whole number that sets no other bound: it becomes an int32


Condition = Callable[[Any], bool]  # on a config, or on a group of it


@dataclasses.dataclass(frozen=True)
class Facts:
    """Properties of one option.

    role: what the option changes.
      logits: the function that a model computes; another format must have it to hold the model.
      training: what is learned, but not the function of given weights.
      execution: how the same is computed; results differ by rounding at most.
      record: what is shown, evaluated, saved or kept.
    resume: whether it may differ between the start of a run and a resume, or a condition on the
      whole config.
    choices: the values that a string may have; empty: any. or_path: or it is a path, which has a
      slash in it (so that a mistyped choice is none, on any machine).
    low, high: inclusive bounds; above, below: exclusive ones.
    of: the architectures in which the option has an effect; empty: all.
    when: whether the option has an effect, given the group (the dataclass) that it is in.
    """

    role: str
    resume: bool | Condition
    choices: tuple[str, ...] = ()
    or_path: bool = False
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    of: tuple[str, ...] = ()
    when: Condition | None = None

    def acts(self, group: Any, architecture: str) -> bool:
        """Whether the option has an effect in `group`, of a model of this architecture."""
        return (not self.of or architecture in self.of) and (self.when is None or self.when(group))

    def may_change(self, config: Any) -> bool:
        """Whether the option may differ between the start of a run with `config` and a resume."""
        return self.resume(config) if callable(self.resume) else self.resume

    def fault(self, value: Any) -> str:
        """The complaint about `value`, as the end of a sentence; "" for an allowed value."""
        if self.choices:
            if value in self.choices or (self.or_path and "/" in str(value)):
                return ""
            path = " A directory is written with a slash: ./NAME." if self.or_path else ""
            return f"not known.{nearest(value, self.choices)}{path}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return ""
        high = self.high
        if high is None and self.below is None and isinstance(value, int):
            high = INT_MAX
        under = (self.low is not None and value < self.low) or (
            self.above is not None and value <= self.above
        )
        over = (high is not None and value > high) or (
            self.below is not None and value >= self.below
        )
        if not (under or over):
            return ""
        if self.low is not None and self.below is not None:
            return f"must be at least {self.low:g} and below {self.below:g}."
        if self.low is not None and self.high is not None and self.high <= 10:
            return f"must be {self.low:g} to {self.high:g}."
        if under and self.above is not None:
            return f"must be above {self.above:g}."
        if under:
            return "must not be negative." if self.low == 0 else f"must be at least {self.low:g}."
        return f"must be at most {high}." if self.below is None else f"must be below {self.below}."


def option(default: Any, role: str, *, resume: bool | Condition, **facts: Any) -> Any:
    """A dataclass field with its facts."""
    return dataclasses.field(default=default, metadata={"facts": Facts(role, resume, **facts)})


def logits(default: Any, **facts: Any) -> Any:
    """An option that changes the function that a model computes."""
    return option(default, "logits", resume=False, **facts)


def training(default: Any, *, resume: bool | Condition = False, **facts: Any) -> Any:
    """An option of training alone, which changes what is learned."""
    return option(default, "training", resume=resume, **facts)


def execution(default: Any, *, resume: bool = True, **facts: Any) -> Any:
    """An option of how the same is computed."""
    return option(default, "execution", resume=resume, **facts)


def record(default: Any, **facts: Any) -> Any:
    """An option of what is shown, evaluated, saved or kept."""
    return option(default, "record", resume=True, **facts)


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(dotted name, field, value) of every option of a config, or of its class (value: default)."""
    for field in dataclasses.fields(config):
        value = field.default if isinstance(config, type) else getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def facts_of(config: Any) -> dict[str, Facts]:
    """{dotted name: facts} of every option of a config or of its class."""
    return {name: field.metadata["facts"] for name, field, _ in walk(config)}


def with_role(config: Any, role: str) -> list[str]:
    """Dotted names of the options of a config, or of its class, that have this role."""
    return [name for name, facts in facts_of(config).items() if facts.role == role]


def idle(group: Any, architecture: str) -> list[str]:
    """Names of the options of one group that have no effect as the others stand."""
    return [
        field.name
        for field in dataclasses.fields(group)
        if not field.metadata["facts"].acts(group, architecture)
    ]


def check_values(config: Any, prefix: str = "config.") -> None:
    """Raises UserError at the first option whose value is of the wrong type, out of its bounds or
    none of its choices.
    """
    for name, field, value in walk(config):
        wanted: Any = field.type
        fits = (int, float) if wanted is float else wanted
        if not isinstance(value, fits) or (isinstance(value, bool) and wanted is not bool):
            raise UserError(f"{prefix}{name}={value!r}: expected {wanted.__name__}, "
                            f"got {type(value).__name__}.")  # fmt: skip
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{prefix}{name}={value}: must be finite.")
        fault = field.metadata["facts"].fault(value)
        if fault:
            raise UserError(f"{prefix}{name}={value!r}: {fault}")
