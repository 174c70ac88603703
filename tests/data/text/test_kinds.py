"""A file is read as what it is, under any name, or refused by name."""

import gzip
import io
import json

import pytest
import zstandard

from lm_jax.data.text import json_text
from lm_jax.data.text.documents import Report
from lm_jax.data.text.kinds import ARRAY, LINES, OBJECTS, PLAIN, kind_of
from lm_jax.data.text.sources import documents
from lm_jax.errors import DataError

TWO = b'{"text": "x1"}\n{"text": "x2"}\n'


def texts(path, report=None):
    return [d.text for d in documents(str(path), "text", report)]


NAMES = ("a.json", "a.json.gz", "a.txt", "a", "a.JSONL", "a.JSONL.GZ")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        *((name, TWO, LINES) for name in NAMES),
        *((name, b"\xef\xbb\xbf" + TWO, LINES) for name in NAMES),
        *((name, b'[{"text": "x1"}, {"text":\n "x2"}]', ARRAY) for name in NAMES),
        # Of JSON lines by name a line is a record.
        *((name, b'{\n  "text": "x1"\n}\n{\n  "text": "x2"\n}\n', OBJECTS) for name in NAMES[:4]),
    ],
)
def test_json_is_read_by_its_content_under_any_name(tmp_path, name, content, kind):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
    report = Report()
    assert texts(path, report) == ["x1", "x2"]
    assert report.kinds == {kind: 1}
    assert (report.records, report.bytes, report.lost) == (2, len(content), {})


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_the_kind_is_seen_over_the_borders_of_small_frames(tmp_path, pack):
    path = tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt.zst")
    path.write_bytes(b"".join(pack(TWO[i : i + 4]) for i in range(0, len(TWO), 4)))
    assert texts(path) == ["x1", "x2"]


def test_the_wrong_byte_behind_a_byte_order_mark_is_the_one_that_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\xffb"}\n' + TWO)
    report = Report()
    assert texts(tmp_path / "a.jsonl", report) == ["x1", "x2"]
    assert report.examples == [f"{tmp_path}/a.jsonl:1: invalid UTF-8 (byte 0xff)"]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"text\nx\n", "a CSV table"),
        ("a.TSV", b"text\tlabel\n", "a TSV table"),
        ("a.html", b"<p>x", "HTML"),
        ("a.txt", b"\n<!DOCTYPE html>\n<html><p>x", "HTML"),
        ("a.warc.gz", gzip.compress(b"WARC/1.0\r\n", mtime=0), "a WARC archive"),
        ("a.dat", b"WARC/1.1\r\nWARC-Type: warcinfo", "a WARC archive"),
        ("a.ipynb", b"{}", "a notebook"),
        ("a.json", b'{\n "cells": [\n  {"cell_type": "code"}]}', "a notebook"),
    ],
)
def test_markup_is_refused_by_name_and_never_taken_as_text(tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {kind} is not read; write its texts as JSON"):
        texts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.c", b"{ int x; }\n"),
        ("a.md", b"[a link](http://x) and text"),
        ("a.txt", b'{"quoted", he said, is no JSON}\n'),
        ("a.txt", b"['python', 'list']\n"),
        ("a.py", b'"""<html> in a docstring"""\n'),
        ("a.txt", b""),
    ],
)
def test_text_that_only_begins_like_json_or_html_is_text(name, head):
    assert kind_of(name, head) == PLAIN


def test_a_single_object_with_a_text_is_a_document_and_one_without_is_named(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": "one", "id": 3}, indent=2))
    assert texts(tmp_path / "a.json") == ["one"]
    (tmp_path / "b.json").write_text(json.dumps({"data": [{"text": "one"}]}, indent=2))
    with pytest.raises(DataError, match=r"b\.json:1: no field 'text' \(it has data;"):
        texts(tmp_path / "b.json")


def test_elements_of_an_array_are_read_across_chunks(monkeypatch):
    monkeypatch.setattr(json_text, "CHUNK", 7)
    wanted = ["", "é" * 40, 'a\n"b\\', "東京", "plain"]
    content = json.dumps(
        [{"n": [1, {"x": 2}], "text": t} for t in wanted[:4]] + wanted[4:]
    ).encode()
    report = Report()
    found = json_text.json_values("a", io.BufferedReader(io.BytesIO(content)), "text", report, 999)
    assert [d.text for d in found] == wanted[1:]
    assert (report.bytes, report.skipped) == (len(content), {"empty text": 1})


def test_a_wrong_byte_costs_its_element_and_broken_json_the_rest(tmp_path):
    good, bad = b'{"text": "x1"}', b'{"text": "\xff"}'
    (tmp_path / "a.json").write_bytes(b"[" + good + b"," + bad + b"," + good + b"]")
    report = Report()
    assert texts(tmp_path / "a.json", report) == ["x1", "x1"]
    assert (report.bad, report.lost) == ({"invalid UTF-8": 1}, {"invalid UTF-8": len(bad)})
    rest = b'{"text" "x2"}, {"text": "x3"}]'
    (tmp_path / "b.json").write_bytes(b"[" + good + b", " + rest)
    report = Report()
    assert texts(tmp_path / "b.json", report) == ["x1"]
    assert report.lost == {"not JSON": len(rest)}
    (tmp_path / "c.json").write_bytes(b"[" + good)
    with pytest.raises(DataError, match="the array has no end"):
        texts(tmp_path / "c.json")
