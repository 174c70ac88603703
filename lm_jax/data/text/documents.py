"""Documents, and the report of what was read and what was left out."""

import dataclasses
from collections import Counter

from lm_jax.errors import DataError

MAX_EXAMPLES = 20
MAX_FILES = 1000  # whose size, time and digest are kept


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it came from (`path` or `path:line`)."""

    text: str
    source: str


@dataclasses.dataclass
class Report:
    """Statistics of an input: records and bytes read, refused and left out."""

    records: int = 0  # plain text files, and texts in JSON files
    bytes: int = 0  # of text inside the files; of a file that is refused unread, its size
    kinds: Counter = dataclasses.field(default_factory=Counter)  # kind -> files
    bad: Counter = dataclasses.field(default_factory=Counter)  # reason -> records refused
    lost: Counter = dataclasses.field(default_factory=Counter)  # reason -> bytes refused
    skipped: Counter = dataclasses.field(default_factory=Counter)  # left out as they should be
    examples: list[str] = dataclasses.field(default_factory=list)  # the first refused
    # Of the first files: size in bytes, time of the last change in ns, digest ("": not all read).
    files: dict[str, tuple[int, int, str]] = dataclasses.field(default_factory=dict)

    def opened(self, path: str, kind: str, size: int, time: int, digest: str) -> None:
        """Counts a file."""
        self.kinds[kind] += 1
        if len(self.files) < MAX_FILES:
            self.files[path] = (size, time, digest)

    def refuse(self, where: str, reason: str, detail: str = "", size: int = 0) -> None:
        """Counts a record of `size` bytes that cannot be used."""
        self.bad[reason] += 1
        self.lose(where, reason, detail, size)

    def lose(self, where: str, reason: str, detail: str, size: int) -> None:
        """Counts `size` bytes of a record whose rest is used."""
        self.lost[reason] += size
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(f"{where}: {reason}{detail}")

    def skip(self, reason: str, count: int) -> None:
        """Counts what is left out as it should be."""
        if count:
            self.skipped[reason] += count

    def check(self, max_fraction: float, setting: str = "config.data.max_bad_fraction") -> None:
        """Raises DataError where more than `max_fraction` of the records, or of the bytes,
        was refused. `setting`: what the error calls this threshold.
        """
        bad, lost = self.bad.total(), self.lost.total()
        for number, total, unit in ((bad, self.records, "records"), (lost, self.bytes, "bytes")):
            if number > max_fraction * total:
                raise DataError(
                    f"{number} of {total} {unit} cannot be used, more than"
                    f" {setting}={max_fraction:g} allows: {'; '.join(self.examples[:3])}"
                    + ("; ..." if len(self.examples) > 3 else ".")
                )


def usable(text: str, where: str, report: Report, size: int = 0) -> str:
    """`text`, or "" when it is empty (counted as skipped) or no Unicode text (counted as bad)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        report.refuse(where, "lone surrogate", size=size)
        return ""
    if not text:
        report.skip("empty text", 1)
    return text
