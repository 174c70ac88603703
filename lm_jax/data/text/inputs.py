"""The files that a token store was made from, and whether they have changed since."""

import hashlib
import os
from typing import Any

from lm_jax.data.text import sources
from lm_jax.data.text.documents import Report
from lm_jax.errors import DataError, MachineError


def recorded(report: Report) -> dict[str, Any]:
    """Record of an input for its store: {"count": number of files, "files": {path: [bytes, time of
    the last change in ns, digest]}}, of the first MAX_FILES.
    """
    return {"count": report.kinds.total(), "files": report.files}


def changes(spec: str, known: dict[str, Any]) -> str:
    """Differences between the files of `spec` and those `known` (see `recorded`), in words; ""
    where there are none, or they are not on this machine. A file of another time is read and
    compared by content.
    """
    if spec == "stdlib":  # another Python has other paths
        return ""
    try:
        now = sources.files(spec, Report())
    except (DataError, MachineError):
        return ""
    there = set(now)
    gone = [path for path in known["files"] if path not in there]
    changed = [path for path, of in known["files"].items() if path in there and differs(path, *of)]
    found = [f"{path} has changed" for path in changed] + [f"{path} is gone" for path in gone]
    if len(now) != known["count"]:
        found.append(f"{len(now):,} files, {known['count']:,} then")
    return "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")


def differs(path: str, size: int, time: int, digest: str) -> bool:
    """Whether the file has other content than it had."""
    status = os.stat(path)
    if status.st_size != size:
        return True
    if status.st_mtime_ns == time or not digest:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, new_digest).hexdigest() != digest


def new_digest() -> Any:
    """The hash of a file's content."""
    return hashlib.blake2b(digest_size=16)
