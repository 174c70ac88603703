"""The kind of text in a file, by its name and its first bytes."""

import json
import os
import re

HEAD = 8192  # bytes that are looked at
LINES, ARRAY, OBJECTS, PLAIN = "JSON lines", "JSON array", "JSON objects", "plain text"
READ = (LINES, ARRAY, OBJECTS, PLAIN)
JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
# Text for programs, with the texts for people somewhere inside. As one plain text the model would
# learn the markup.
MARKED_UP = {
    ".csv": "a CSV table", ".tsv": "a TSV table", ".tab": "a TSV table", ".html": "HTML",
    ".htm": "HTML", ".xhtml": "HTML", ".warc": "a WARC archive", ".wet": "a WARC archive",
    ".wat": "a WARC archive", ".ipynb": "a notebook", ".rtf": "RTF",
}  # fmt: skip
SIGNATURES = (
    (re.compile(rb"WARC/[01]\."), "a WARC archive"),
    (re.compile(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<(!doctype\s+html|html)\b", re.I | re.S),
     "HTML"),
    (re.compile(rb"\{\\rtf"), "RTF"),
    (re.compile(rb'\{\s*"(cells|nbformat|metadata)"\s*:.*"(cell_type|nbformat|cells)"', re.S),
     "a notebook"),
)  # fmt: skip


def kind_of(name: str, head: bytes) -> str:
    """The kind of a file called `name` (without .gz or .zst) that begins with `head`, its first
    HEAD bytes, or all of it: one of READ, or what it is instead ("a CSV table").
    """
    extension = os.path.splitext(name)[1].lower()
    if extension in MARKED_UP:
        return MARKED_UP[extension]
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for signature, kind in SIGNATURES:
        if signature.match(text):
            return kind
    if extension in JSON_LINES:
        return ARRAY if text[:1] == b"[" and not first_line_is_json(text, head) else LINES
    if extension == ".json":
        if text[:1] == b"[":
            return ARRAY
        return LINES if first_line_is_json(text, head) else OBJECTS
    # Under any other name only what can hardly be anything else.
    if re.match(rb'\[\s*\{\s*"', text):
        return ARRAY
    if re.match(rb'\{\s*"', text):
        if first_line_is_json(text, head):
            return LINES
        if re.match(rb'\{\s*"[^"\n]*"\s*:', text):
            return OBJECTS
    return PLAIN


def first_line_is_json(text: bytes, head: bytes) -> bool:
    """Whether the first line of `text` is a whole JSON value, or so long that its end is not in
    `head`.
    """
    line, newline, _ = text.partition(b"\n")
    if not newline and len(head) >= HEAD:
        return True
    try:
        json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return False
    return True
