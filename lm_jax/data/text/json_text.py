"""Documents in JSON: one a line, one an element of an array, or objects one after the other."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from typing import Any

from lm_jax.data.text.documents import Document, Report, usable

CHUNK = 1 << 20  # bytes
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of wrong bytes


def json_lines(
    path: str, file: io.BufferedReader, text_field: str, report: Report, longest: int
) -> Iterator[Document]:
    """A document for each line {text_field: text} of at most `longest` bytes; blank lines are
    nothing.
    """
    number, seen = 0, report.records
    while line := file.readline(longest):
        number += 1
        where = f"{path}:{number}"
        size = len(line)
        report.bytes += size
        if size == longest and not line.endswith(b"\n"):
            report.records += 1
            while (more := file.readline(longest)) and not more.endswith(b"\n"):
                size += len(more)
            size += len(more)
            report.bytes += size - longest
            report.refuse(where, f"line over {longest >> 20} MiB", size=size)
            continue
        if not line.strip():
            continue
        report.records += 1
        text = text_of_line(line, text_field, where, report)
        if text:
            yield Document(text, where)
    if report.records == seen:
        report.records += 1
        report.refuse(path, "empty file")


def text_of_line(line: bytes, text_field: str, where: str, report: Report) -> str:
    """The text of one JSON line, or "" when it has none (which is counted)."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]  # of what follows a byte order mark
        report.refuse(where, "invalid UTF-8", f" (byte 0x{wrong:02x})", len(line))
        return ""
    except (ValueError, RecursionError):
        report.refuse(where, "not JSON", size=len(line))
        return ""
    return text_of(record, text_field, where, report, len(line))


def text_of(record: Any, text_field: str, where: str, report: Report, size: int) -> str:
    """The text of a JSON object of `size` bytes, or "" when it has none (which is counted)."""
    if not isinstance(record, dict):
        report.refuse(where, "not a JSON object", size=size)
    elif text_field not in record:
        known = f" (it has {', '.join(map(str, list(record)[:5]))}; config.data.text_field)"
        report.refuse(where, f"no field '{text_field}'", known, size)
    elif not isinstance(record[text_field], str):
        report.refuse(where, f"field '{text_field}' is not a string", size=size)
    else:
        return usable(record[text_field], where, report, size)
    return ""


def json_values(
    path: str, file: io.BufferedReader, text_field: str, report: Report, longest: int
) -> Iterator[Document]:
    """A document for each object {text_field: text}, or string, of an array or of a sequence.

    What follows the first value that is no JSON, or is longer than `longest` characters, is lost.
    """
    number, seen, values = 0, report.records, Values(file, report)
    for value, source in values.read(longest):
        number += 1
        report.records += 1
        where, size = f"{path}:{number}", len(source.encode("utf-8", "surrogateescape"))
        text = ""
        if NOT_UTF8.search(source):
            report.refuse(where, "invalid UTF-8", size=size)
        elif isinstance(value, str) and values.array:
            text = usable(value, where, report, size)
        else:
            text = text_of(value, text_field, where, report, size)
        if text:
            yield Document(text, where)
    if values.wrong:
        report.records += 1
        report.refuse(f"{path}:{number + 1}", values.wrong, size=values.lost)
    elif report.records == seen:
        report.records += 1
        report.refuse(path, "empty file")


class Values:
    """The elements of a JSON array, or JSON values one after the other, read as a stream.

    Attributes, once read: array; wrong, why the rest cannot be read, or ""; lost, its bytes.
    """

    def __init__(self, file: io.BufferedReader, report: Report):
        self.file, self.report = file, report
        # A wrong byte becomes a lone surrogate, so that it costs the value that it is in alone.
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.ended, self.array, self.wrong, self.lost = "", False, False, "", 0

    def more(self, size: int) -> None:
        """Appends about `size` bytes to the text."""
        chunk = self.file.read(max(CHUNK, size))
        self.report.bytes += len(chunk)
        self.ended = not chunk
        self.text += self.decoder.decode(chunk, final=self.ended)

    def skip(self, at: int, characters: str) -> int:
        """The place of the first character from `at` on that is not one of `characters`."""
        while True:
            while at < len(self.text) and self.text[at] in characters:
                at += 1
            if at < len(self.text) or self.ended:
                return at
            self.text, at = "", 0
            self.more(CHUNK)

    def read(self, longest: int) -> Iterator[tuple[Any, str]]:
        """(value, its source text) of each."""
        blank, decode = " \t\r\n\x1e", json.JSONDecoder().raw_decode
        at = self.skip(0, blank)
        self.array = self.text[at : at + 1] == "["
        at, between = at + self.array, blank + "," * self.array
        while True:
            at = self.skip(at, between)
            if at == len(self.text):
                self.wrong = "the array has no end" * self.array
                return
            if self.array and self.text[at] == "]":
                at = self.skip(at + 1, blank)
                if at < len(self.text):
                    self.give_up("text after the array", at)
                return
            try:
                value, end = decode(self.text, at)
            except (ValueError, RecursionError):
                if self.ended or len(self.text) - at > longest:
                    self.give_up("not JSON", at)
                    return
                self.text, at = self.text[at:], 0
                self.more(len(self.text))
                continue
            yield value, self.text[at:end]
            at = end

    def give_up(self, why: str, at: int) -> None:
        """Counts all from `at` on as lost."""
        self.wrong, self.lost = why, len(self.text[at:].encode("utf-8", "surrogateescape"))
        while chunk := self.file.read(CHUNK):
            self.lost += len(chunk)
            self.report.bytes += len(chunk)
