"""Versions of installed packages and their requirements, read from metadata alone."""

import importlib.metadata
import re
import sys
from collections.abc import Iterator


def requirements(package: str) -> Iterator[tuple[str, str, str]]:
    """Requirements of a package, (name, bounds, extra or ""); none when it is not installed."""
    if installed(package) is None:
        return
    for line in importlib.metadata.requires(package) or []:
        spec, _, marker = line.partition(";")
        found = re.match(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^)]*)\)?", spec)
        extra = re.search(r"extra == ['\"]([^'\"]+)", marker)
        if found and not ("sys_platform" in marker and sys.platform == "win32"):
            yield found[1], found[2].strip(), extra[1] if extra else ""


def installed(package: str) -> str | None:
    """Version of an installed distribution; None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def satisfies(version: str, bounds: str) -> bool:
    """Whether '0.10.2' satisfies '<=0.10.2,>=0.10.1' or '==0.0.42.*'; unknown operators pass."""

    def numbers(text: str) -> tuple[int, ...]:
        release = re.match(r"[0-9.]*", text)
        return tuple(int(part) for part in (release[0] if release else "").split(".") if part)

    have = numbers(version)
    for bound in filter(None, bounds.replace(" ", "").split(",")):
        operator, want = re.match(r"([<>=!~]*)(.*)", bound).groups()  # type: ignore[union-attr]
        limit = numbers(want)
        size = max(len(have), len(limit))
        a = have[: len(limit)] if want.endswith("*") else have + (0,) * (size - len(have))
        b = limit if want.endswith("*") else limit + (0,) * (size - len(limit))
        results = {">=": a >= b, "<=": a <= b, "==": a == b, "<": a < b, ">": a > b, "!=": a != b}
        if not results.get(operator, True):
            return False
    return True
