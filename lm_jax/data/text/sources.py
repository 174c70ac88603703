"""Which documents does an input hold? Files, folders, globs, JSON lines, .gz, .zst, `stdlib` and
`tfds:NAME`.

A plain text file is one document, a JSON line is one. What cannot be used is counted and named by
file and line in a Report, and refused as a whole above a threshold: nothing is left out in
silence.
"""

import glob
import gzip
import io
import json
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator

from lm_jax.data.text.documents import Document, Report, usable
from lm_jax.data.text.unpack import binary, unpacked
from lm_jax.errors import DataError, MachineError

MAX_DOCUMENT = (
    64 << 20
)  # bytes: a longer file is cut before a newline, a longer JSON line is refused
JSON_LINES = (".jsonl", ".ndjson")
# Not in the documents of `stdlib`: what is not the library, or is not installed by every
# distribution of Python.
NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def documents(
    spec: str,
    text_field: str = "text",
    report: Report | None = None,
    advance: Callable[[float], None] = lambda n: None,
) -> Iterator[Document]:
    """The documents of `spec` in a fixed order; `advance(bytes)` is told what was read (see
    `total_bytes`).

    spec: a file, a folder (every file below it that is not hidden), a glob, `stdlib` (the sources
    of Python's standard library on this machine and the topics of its reference),
    `tfds:NAME[/CONFIG][:SPLIT]` or `tfds:DIRECTORY[:SPLIT]`. Raises DataError when there is
    nothing, or a compressed file is damaged.
    """
    if report is None:
        strict = Report()
        yield from documents(spec, text_field, strict, advance)
        strict.check(0)
        return
    if spec.startswith("tfds:"):
        from lm_jax.data.text.tfds import tfds_documents

        yield from tfds_documents(spec, text_field, report, advance)
        return
    if spec == "stdlib":
        yield from topics(report)
    for path in files(spec, report):
        try:
            yield from file_documents(path, text_field, report, advance)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: damaged or cut short ({error}).") from None
        except OSError as error:
            raise MachineError(f"{path}: cannot be read ({error.strerror or error}).") from None


def total_bytes(spec: str) -> int | None:
    """Bytes on disk that `documents` will read; None when unknown before."""
    if spec.startswith("tfds:"):
        return None
    return sum(os.path.getsize(path) for path in files(spec, Report()))


def files(spec: str, report: Report) -> list[str]:
    """The files of `spec`, sorted; raises DataError naming the pattern when there are none."""
    if not spec:
        raise DataError(
            "config.data.input: missing. A text file, folder, glob, stdlib or tfds:NAME."
        )
    if "://" in spec:
        raise DataError(f"config.data.input={spec}: copy the text to this machine first.")
    if spec == "stdlib":
        root = sysconfig.get_paths()["stdlib"]
        found = sorted(walk(root, lambda name: name not in NOT_STDLIB))
        found = [p for p in found if p.endswith(".py") and not p.endswith("pydoc_data/topics.py")]
        empty = [p for p in found if os.path.getsize(p) == 0]
        report.skip("empty module of the standard library", len(empty))
        found = [p for p in found if os.path.getsize(p)]
        where = f"the Python standard library has no sources in {root}"
    elif os.path.isfile(spec):
        return [spec]
    elif os.path.isdir(spec):
        found = sorted(walk(spec, lambda name: not name.startswith(".") and name != "__pycache__"))
        shown = [p for p in found if not os.path.basename(p).startswith(".")]
        report.skip("hidden file", len(found) - len(shown))
        found, where = shown, f"config.data.input={spec}: the folder holds no files"
    else:
        found = sorted(p for p in glob.glob(spec, recursive=True) if os.path.isfile(p))
        kind = "no file matches this pattern" if glob.has_magic(spec) else "no such file or folder"
        where = f"config.data.input={spec}: {kind}"
    if not found:
        raise DataError(where + ".")
    return found


def walk(root: str, enter: Callable[[str], bool]) -> Iterator[str]:
    """Regular files below `root`, in folders whose name `enter` accepts."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if enter(name)]
        yield from (p for n in names if os.path.isfile(p := os.path.join(folder, n)))


def file_documents(
    path: str, text_field: str, report: Report, advance: Callable[[float], None]
) -> Iterator[Document]:
    """The documents of one file."""
    with open(path, "rb") as raw:
        name, file = unpacked(path, raw, advance)
        if kind := binary(file.peek(8192)[:8192]):
            report.records += 1
            report.refuse(path, "not text", f" (it looks like {kind})")
        elif name.endswith(JSON_LINES):
            yield from json_lines(path, file, text_field, report)
        else:
            yield from plain_text(path, file, report)


def plain_text(path: str, file: io.BufferedReader, report: Report) -> Iterator[Document]:
    """The one document of a text file; several when it is longer than MAX_DOCUMENT."""
    report.records += 1
    rest, part, lines = b"", 0, 0
    while True:
        block = rest + file.read(MAX_DOCUMENT - len(rest))
        last = len(block) < MAX_DOCUMENT
        end = len(block) if last else cut(block)
        rest = block[end:]
        if not part and not block:
            report.refuse(path, "empty file")
            return
        try:
            text = block[:end].decode("utf-8")
        except UnicodeDecodeError as error:
            line = lines + block[: error.start].count(b"\n") + 1
            report.refuse(f"{path}:{line}", "invalid UTF-8", f" (byte 0x{block[error.start]:02x})")
            return
        if text:
            yield Document(text, f"{path}:{lines + 1}" if part else path)
        if last:
            return
        part, lines = part + 1, lines + block[:end].count(b"\n")
        report.skipped["cut of a long file (nothing lost)"] += 1


def cut(block: bytes) -> int:
    """Where to end a part of `block`: before its last newline, or at least between two
    characters.
    """
    end = block.rfind(b"\n")
    if end > 0:
        return end
    end = len(block)
    while block[end - 1] & 0xC0 == 0x80 and end > len(block) - 4:
        end -= 1
    return end - 1


def json_lines(
    path: str, file: io.BufferedReader, text_field: str, report: Report
) -> Iterator[Document]:
    """A document for each line {text_field: text}; blank lines are nothing."""
    number, seen = 0, report.records
    while line := file.readline(MAX_DOCUMENT):
        number += 1
        where = f"{path}:{number}"
        if len(line) == MAX_DOCUMENT and not line.endswith(b"\n"):
            report.records += 1
            report.refuse(where, f"line over {MAX_DOCUMENT >> 20} MiB")
            while (more := file.readline(MAX_DOCUMENT)) and not more.endswith(b"\n"):
                pass
            continue
        if not line.strip():
            continue
        report.records += 1
        text = field_of(line, text_field, where, report)
        if text:
            yield Document(text, where)
    if report.records == seen:
        report.records += 1
        report.refuse(path, "empty file")


def field_of(line: bytes, text_field: str, where: str, report: Report) -> str:
    """The text of one JSON line, or "" when it has none (which is counted)."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        report.refuse(where, "invalid UTF-8", f" (byte 0x{line[error.start]:02x})")
        return ""
    except (ValueError, RecursionError):
        report.refuse(where, "not JSON")
        return ""
    if not isinstance(record, dict):
        report.refuse(where, "not a JSON object")
    elif text_field not in record:
        known = f" (it has {', '.join(map(str, list(record)[:5]))}; config.data.text_field)"
        report.refuse(where, f"no field '{text_field}'", known)
    elif not isinstance(record[text_field], str):
        report.refuse(where, f"field '{text_field}' is not a string")
    else:
        return usable(record[text_field], where, report)
    return ""


def topics(report: Report) -> Iterator[Document]:
    """The topics of Python's reference (`help("for")`), each a document."""
    try:
        from pydoc_data.topics import topics as texts
    except ImportError:
        report.skipped["pydoc_data is not installed"] += 1
        return
    for name in sorted(texts):
        report.records += 1
        yield Document(texts[name], f"pydoc_data/topics:{name}")
