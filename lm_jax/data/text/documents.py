"""Documents, and the report of what was read and left out."""

import dataclasses
from collections import Counter

from lm_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it came from (`path` or `path:line`)."""

    text: str
    source: str


@dataclasses.dataclass
class Report:
    """What became of the records of an input."""

    records: int = 0  # files, or lines of JSON files
    bad: Counter = dataclasses.field(default_factory=Counter)  # reason -> records that were refused
    skipped: Counter = dataclasses.field(default_factory=Counter)  # left out as they should be
    examples: list[str] = dataclasses.field(default_factory=list)  # the first 20 refused

    def refuse(self, where: str, reason: str, detail: str = "") -> None:
        """Counts a record that cannot be used."""
        self.bad[reason] += 1
        if len(self.examples) < 20:
            self.examples.append(f"{where}: {reason}{detail}")

    def skip(self, reason: str, count: int) -> None:
        """Counts what is left out as it should be."""
        if count:
            self.skipped[reason] += count

    def check(self, most: float) -> None:
        """Raises DataError when more than the fraction `most` of the records was refused."""
        bad = self.bad.total()
        if bad > most * self.records:
            raise DataError(
                f"{bad} of {self.records} records cannot be used, more than"
                f" config.data.max_bad_fraction={most:g} allows: {'; '.join(self.examples[:3])}"
                + ("; ..." if bad > 3 else ".")
            )


def usable(text: str, where: str, report: Report) -> str:
    """`text`, or "" when it is empty (counted as skipped) or no Unicode text (counted as bad)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        report.refuse(where, "lone surrogate")
        return ""
    if not text:
        report.skip("empty text", 1)
    return text
