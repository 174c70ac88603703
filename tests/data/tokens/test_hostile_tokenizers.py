"""Tokenizers that would hang, fill the memory or lie are refused in one line, in bounded time;
tests/parity/test_hostile_live.py has the library itself.
"""

import base64
import json
import re
import sys
import types

import pytest
from word_tokenizer import BERT, Words, write_tokenizer

from lm_jax.data.tokens import definition, probe
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import DataError

REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}


@pytest.fixture(autouse=True)
def library(monkeypatch):
    module = types.SimpleNamespace(Tokenizer=Words, __version__="0")
    monkeypatch.setitem(sys.modules, "tokenizers", module)


def model(**changes):
    return BERT | {"model": BERT["model"] | changes}


def added(content, i):
    return BERT | {"added_tokens": [*BERT["added_tokens"], {"content": content, "id": i}]}


def charsmap(replacement):
    blob = (4).to_bytes(4, "little") + bytes(4) + b"x\0" + replacement + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(blob).decode()}


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (model(vocab={"the": 500_000_000}), "'the' has id 500000000; allowed: 0 to 4194303"),
        (added("<x>", 500_000_000), "'<x>' has id 500000000"),
        (model(vocab={"the": -1}), "'the' has id -1"),
        (model(vocab=BERT["model"]["vocab"] | {"dog": 6}), "id 6 is two tokens: 'cat' and 'dog'"),
        (added("<x>", 6), "id 6 is two tokens: 'cat' and '<x>'"),
        (model(vocab={}), "holds no token"),
        (model(dropout=0.1), "dropout=0.1: it encodes a text otherwise each time; set it to null"),
        (BERT | {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 2}}, r"1e\+06 char"),
        (BERT | {"normalizer": {"type": "Prepend", "prepend": "a" * 2000}}, r"2e\+03 char"),
        (BERT | {"normalizer": charsmap(b"y" * 2000)}, r"2e\+03 characters of one; at most 1024"),
        (BERT | {"normalizer": charsmap(b"") | {"precompiled_charsmap": "?"}}, "not base64"),
        (BERT | {"decoder": REPLACE | {"content": "a" * 10**6}}, "writes 1000000 characters"),
        (BERT | {"decoder": {"type": "Strip", "content": " ", "start": 10**6}}, "writes 1000000"),
        (BERT | {"decoder": {"type": "Sequence", "decoders": [REPLACE] * 9}}, "at most 65536"),
        (BERT | {"post_processor": {"type": "BertProcessing", "cls": ["x", 99], "sep": ["y", 1]}},
         "id 99 is outside the vocabulary of 11"),
        (BERT | {"post_processor": {"type": "Nothing"}}, "post_processor 'Nothing'"),
        (model(vocab={"the": "x"}), "damaged"),
    ],
)  # fmt: skip
def test_what_no_tokenizer_needs_is_refused_by_name(made, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        load_tokenizer(write_tokenizer(tmp_path / "bad", made))
    assert "\n" not in str(error.value)
    assert str(tmp_path / "bad") in str(error.value)


def test_what_published_tokenizers_have_passes(tmp_path):
    steps = [charsmap(b"fi"), {"type": "Prepend", "prepend": "_"}, {"type": "NFKD"},
             {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
             {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]  # fmt: skip
    sequence = {"type": "Sequence", "normalizers": steps}
    made = model(dropout=None) | {"normalizer": sequence}
    definition.check(made)
    assert definition.patterns_of(made) == [" {2,}"]
    assert not definition.is_linear(made)
    assert definition.is_linear(BERT)


@pytest.mark.parametrize("fault", [ValueError, type("PanicException", (BaseException,), {})])
def test_what_the_library_raises_is_a_line_and_no_traceback(fault, tmp_path, monkeypatch):
    def fail(self, texts, add_special_tokens):
        raise fault("Unk token `<unk>` not found in the vocabulary")

    monkeypatch.setattr(Words, "encode_batch_fast", fail)
    with pytest.raises(DataError, match="cannot encode this text: Unk token `<unk>` not found"):
        load_tokenizer(write_tokenizer(tmp_path / "bad"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("while True: pass", "over 1 s"),
        ("import time; time.sleep(60)", "over 1 s"),
        ("x = bytearray(1 << 33)", "over 1 GiB"),
        ("import os; os.abort()", "over 1 GiB"),
        ("raise SystemExit('no such thing')", "no such thing"),
        ("print('failed: Onig')", "Onig"),
        ("print('fine')", "^fine$"),
    ],
)
def test_a_trial_ends_in_bounded_time_and_memory(code, message, monkeypatch):
    monkeypatch.setattr(probe, "SECONDS", 1)
    monkeypatch.setattr(probe, "WAIT", 2)
    monkeypatch.setattr(probe, "MEMORY", 1 << 30)
    found = probe.limited(probe.LIMITS + code, "{}", [])
    assert re.search(message, found), found


def test_a_regular_expression_is_tried_on_long_runs_before_it_is_used(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(probe, "limited", lambda *given: asked.append(given) or "it takes over 1 s")
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    with pytest.raises(DataError, match=r"pattern '\(a\+\)\+\$'\) does not work .* over 1 s"):
        load_tokenizer(write_tokenizer(tmp_path / "bad", BERT | {"pre_tokenizer": split}))
    ((_, small, texts),) = asked
    assert json.loads(small)["pre_tokenizer"] == split
    assert {"a" * 40 + "\0", "a" * 5000}.issubset(texts)
    load_tokenizer(write_tokenizer(tmp_path / "good"))
    assert len(asked) == 1


def test_an_empty_or_foreign_sentencepiece_model_is_one_line(tmp_path):
    about = {"kind": "bpe", "vocab_size": 300, "hash": "0"}
    for content in (b"", b"\x12\x00", b"\x0a\x00", b"rubbish"):
        path = write_tokenizer(tmp_path / f"x{content.hex()}", about)
        (path / "tokenizer.model").write_bytes(content)
        with pytest.raises(DataError, match=f"{path}: ") as error:
            load_tokenizer(path)
        assert "\n" not in str(error.value)


def test_deeply_nested_json_is_one_line(tmp_path):
    path = write_tokenizer(tmp_path / "deep")
    (path / "tokenizer.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match="damaged tokenizer"):
        load_tokenizer(path)


def test_plain_bytes_need_no_file(tmp_path):
    Tokenizer.byte_level().save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == 259
