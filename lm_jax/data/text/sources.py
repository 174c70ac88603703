"""The documents of an input: files, folders, globs, plain text and JSON, .gz, .zst, `stdlib` and
`tfds:NAME`.

A plain text file is one document; so is each line of JSON lines, and each object of a JSON array.
What cannot be used is counted, in records and bytes, and named by file and line in a Report, and
refused as a whole above a threshold: nothing is left out in silence.
"""

import glob
import gzip
import io
import os
import sysconfig
import zlib
from collections.abc import Callable, Iterator

from lm_jax.config.values import expand_home
from lm_jax.data.text.documents import MAX_EXAMPLES, Document, Report
from lm_jax.data.text.json_text import json_lines, json_values
from lm_jax.data.text.kinds import ARRAY, HEAD, LINES, OBJECTS, PLAIN, kind_of
from lm_jax.data.text.unpack import Counting, binary, unpacked
from lm_jax.errors import DataError, MachineError

# Bytes: a longer file is cut before a newline, a longer JSON line is refused.
MAX_DOCUMENT = 64 << 20
NEWLINE = b"\n"
# Not in the documents of `stdlib`: what is not the library, or is not installed by every
# distribution of Python.
NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def documents(
    spec: str,
    text_field: str = "text",
    report: Report | None = None,
    advance: Callable[[float], None] = lambda n: None,
) -> Iterator[Document]:
    """The documents of `spec` in a fixed order; `advance` is called with the number of bytes
    read (see `total_bytes`).

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

        yield from tfds_documents(expand_home(spec), text_field, report, advance)
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


def probe(spec: str, text_field: str = "text") -> None:
    """Raises DataError where `spec` holds no text. Reads up to the first document, and nothing of a
    `tfds:` data set, which TFDS may have to download.
    """
    report = Report()
    if spec.startswith("tfds:") or next(documents(spec, text_field, report), None):
        return
    report.check(0)
    raise DataError(f"config.data.input={spec}: holds no text.")


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
    path = expand_home(spec)
    if spec == "stdlib":
        root = sysconfig.get_paths()["stdlib"]
        found = sorted(walk(root, lambda name: name not in NOT_STDLIB, Report()))
        found = [p for p in found if p.endswith(".py") and not p.endswith("pydoc_data/topics.py")]
        empty = [p for p in found if os.path.getsize(p) == 0]
        report.skip("empty module of the standard library", len(empty))
        found = [p for p in found if os.path.getsize(p)]
        where = f"the Python standard library has no sources in {root}"
    elif os.path.isfile(path):
        return [path]
    elif os.path.isdir(path):
        found = sorted(walk(path, shown, report))
        visible = [p for p in found if shown(os.path.basename(p))]
        report.skip("hidden file", len(found) - len(visible))
        found, where = visible, f"config.data.input={spec}: the folder holds no files"
    else:
        matches = glob.glob(path, recursive=True)
        found = sorted(p for p in matches if os.path.isfile(p))
        folders = sum(os.path.isdir(p) for p in matches) if "**" not in path else 0
        report.skip("folder that the pattern matches", folders)
        kind = "no file matches this pattern" if glob.has_magic(path) else absent(path)
        where = f"config.data.input={spec}: {kind}"
    if not found:
        raise DataError(where + ".")
    return found


def absent(path: str) -> str:
    """The reason why there is neither a file nor a folder at `path`."""
    if os.path.exists(path):  # /dev/stdin, a named pipe: the text is read more than once
        return "is no regular file; save its text in one"
    return "no such file or folder"


def shown(name: str) -> bool:
    """Whether a file or folder of this name is read."""
    return not name.startswith(".") and name != "__pycache__"


def walk(root: str, enter: Callable[[str], bool], report: Report) -> Iterator[str]:
    """Regular files below `root`, in folders whose name `enter` accepts, links followed; what is
    passed over is counted.
    """

    def fail(error: OSError) -> None:
        raise MachineError(f"{error.filename}: cannot be read ({error.strerror or error}).")

    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=fail):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # two links to it, or one to a folder above
            folders.clear()
            report.skip("folder that was read under another name", 1)
            continue
        seen.add((status.st_dev, status.st_ino))
        entered = [name for name in folders if enter(name)]
        report.skip("hidden folder", len(folders) - len(entered))
        folders[:] = sorted(entered)
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                yield path
            else:
                broken = os.path.islink(path) and not os.path.exists(path)
                report.skip("broken link" if broken else "no regular file", 1)


def file_documents(
    path: str, text_field: str, report: Report, advance: Callable[[float], None]
) -> Iterator[Document]:
    """The documents of one file."""
    with open(path, "rb") as raw:
        status, counted = os.fstat(raw.fileno()), Counting(raw, advance)
        name, file = unpacked(path, counted)
        head = file.peek(HEAD)[:HEAD]
        packed = binary(head)
        kind = packed or kind_of(name, head)
        if packed:
            refuse_file(path, "not text", f" (it looks like {packed})", report)
        elif kind == LINES:
            yield from json_lines(path, file, text_field, report, MAX_DOCUMENT)
        elif kind in (ARRAY, OBJECTS):
            yield from json_values(path, file, text_field, report, MAX_DOCUMENT)
        elif kind == PLAIN:
            yield from plain_text(path, file, report)
        else:
            advice = f'; write its texts as JSON lines, {{"{text_field}": "..."}} each'
            refuse_file(path, f"{kind} is not read", advice, report)
    digest = counted.digest.hexdigest() if counted.count == status.st_size else ""
    report.opened(path, kind, status.st_size, status.st_mtime_ns, digest)


def refuse_file(path: str, reason: str, detail: str, report: Report) -> None:
    """Counts a file that is not read, by its size on disk."""
    size = os.path.getsize(path)
    report.records += 1
    report.bytes += size
    report.refuse(path, reason, detail, size)


def plain_text(path: str, file: io.BufferedReader, report: Report) -> Iterator[Document]:
    """The one document of a text file; several when it is longer than MAX_DOCUMENT. Lines that
    are not UTF-8 are left out and counted.
    """
    report.records += 1
    rest, part, lines, lost, kept = b"", 0, 0, 0, False
    while True:
        fresh = file.read(MAX_DOCUMENT - len(rest))
        block = rest + fresh
        report.bytes += len(fresh)
        last = len(block) < MAX_DOCUMENT
        end = len(block) if last else cut(block)
        rest = block[end:]
        if not part and not block:
            report.refuse(path, "empty file")
            return
        text, bad = decoded(block[:end])
        for at, size, byte in bad:
            lost += size
            where = f"{path}:{lines + block[:at].count(NEWLINE) + 1}"
            if len(report.examples) < MAX_EXAMPLES:
                report.lose(where, "invalid UTF-8", f" (byte 0x{byte:02x})", size)
            else:
                report.lost["invalid UTF-8"] += size
        if text:
            kept = True
            yield Document(text, f"{path}:{lines + 1}" if part else path)
        if last:
            break
        part, lines = part + 1, lines + block[:end].count(NEWLINE)
        report.skipped["cut of a long file (nothing lost)"] += 1
    if lost and not kept:
        report.bad["invalid UTF-8"] += 1


def decoded(block: bytes) -> tuple[str, list[tuple[int, int, int]]]:
    """(the text of `block` without the lines that are not UTF-8, these lines as (offset, bytes,
    the first wrong byte)).
    """
    try:
        return block.decode("utf-8"), []
    except UnicodeDecodeError:
        pass
    kept, bad, offset = [], [], 0
    for line in block.splitlines(keepends=True):  # at \n, \r and \r\n
        try:
            kept.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            bad.append((offset, len(line), line[error.start]))
        offset += len(line)
    return "".join(kept), bad


def cut(block: bytes) -> int:
    """End of a part of `block`: before its last newline, or at least between two characters."""
    end = block.rfind(NEWLINE)
    if end > 0:
        return end
    end = len(block)
    while block[end - 1] & 0xC0 == 0x80 and end > len(block) - 4:
        end -= 1
    return end - 1


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
