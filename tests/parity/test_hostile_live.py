"""Tokenizers that make the library hang, panic or fill the memory are refused in one line."""

import json

import pytest

from lm_jax.data.tokens import probe
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.errors import DataError

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
pytest.importorskip("tokenizers", reason="the extra parity has tokenizers")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")  # fmt: skip
END = {"id": 3, "content": "</s>", "special": True, "single_word": False, "lstrip": False,
       "rstrip": False, "normalized": False}  # fmt: skip


def written(folder, **changes):
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    made = {"version": "1.0", "added_tokens": [END], "model": model, **changes}
    (folder / "tokenizer.json").write_text(json.dumps(made))
    return folder


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def model(kind, **fields):
    return {"type": kind, "vocab": {"a": 0, "b": 1, "c": 2}, **fields}


@pytest.mark.parametrize("pattern", [GPT2, CL100K, r"\d", " ?[^\\s]+|\\s+"])
def test_usual_patterns_are_tried_and_pass(pattern, tmp_path):
    assert load_tokenizer(written(tmp_path, pre_tokenizer=split(pattern))).vocab_size == 4


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|a)*$", "(a|aa)+$", "(x+x+)+y", "(.*)*x", "a*a*a*a*a*c", "(ab|a|b)*#", "("],
)
def test_catastrophic_patterns_are_refused(pattern, tmp_path):
    replace = {"type": "Replace", "pattern": {"Regex": pattern}, "content": "x"}
    for changes in ({"pre_tokenizer": split(pattern)}, {"normalizer": replace}):
        with pytest.raises(DataError, match="does not work on every text: ") as error:
            load_tokenizer(written(tmp_path, **changes))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size must be non-zero"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "Precompiled"),
        ({"model": model("BPE", merges=[], unk_token="<unk>")}, "Unk token `<unk>` not found"),
        ({"model": model("WordPiece", unk_token="[UNK]", continuing_subword_prefix="##",
                         max_input_chars_per_word=100)}, "Missing .UNK. token"),
        ({"model": model("WordLevel", unk_token="[UNK]")}, "Missing .UNK. token"),
        ({"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]}}, "UnkIdNotInVocab"),
        ({"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}}, "unk_id. is miss"),
    ],
)  # fmt: skip
def test_panics_and_missing_unknown_tokens_are_one_line(changes, message, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        load_tokenizer(written(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_what_slips_through_the_trial_is_still_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "check", lambda definition: None)
    tokenizer = load_tokenizer(written(tmp_path, pre_tokenizer=split("(a+)+$")))
    with pytest.raises(DataError, match="cannot encode this text: Onig"):
        tokenizer.encode("a" * 60 + "!")
