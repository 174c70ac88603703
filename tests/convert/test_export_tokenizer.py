"""The rules in an exported tokenizer.json give our ids, by the plainest program for them; that
the libraries agree is tested live, in tests/parity/test_tokenizers.py.
"""

import inspect
import json
import random
import string
import textwrap

import numpy as np
import pytest
from tokenizer_rules import ids_of

from lm_jax.convert import export_tokenizer
from lm_jax.convert.tokenizer import splits
from lm_jax.data.tokens import tokenizer_training
from lm_jax.data.tokens.pieces import decoder_steps, piece_bytes, prefix_of
from lm_jax.data.tokens.tokenizer import KINDS, Tokenizer
from lm_jax.data.tokens.tokenizer_training import SCORE_STEPS, train
from lm_jax.errors import MachineError, UserError

TEXTS = [inspect.getsource(module) for module in (inspect, string, textwrap, tokenizer_training)]
LINES = [line for text in TEXTS for line in text.split("\n")][::9] + [
    "", " ", "  two  and\ttab ", "\r\n\n", "<s></s><unk><pad><0x41>", "<", "\u2581 a\u2581", "\0",
    "na\u00efve \u6771 \U0001f600 e\u0301", "=" * 79, " " * 33 + "x", "-=-==-===",
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """(tokenizer, tokenizer.json, tokenizer_config.json)."""
    path = tmp_path_factory.mktemp(request.param)
    tokenizer = train(request.param, TEXTS, 600)
    export_tokenizer(tokenizer, path)
    files = ("tokenizer.json", "tokenizer_config.json")
    return tokenizer, *(json.loads((path / name).read_text("utf-8")) for name in files)


def test_the_rules_that_are_written_give_our_ids(exported):
    tokenizer, definition, _ = exported
    for line in LINES:
        assert ids_of(definition, line) == tokenizer.encode(line).tolist(), line


def test_the_decoder_that_is_written_gives_the_bytes_of_every_id(exported):
    tokenizer, definition, _ = exported
    steps = decoder_steps(definition["decoder"])
    vocab = definition["model"]["vocab"]
    names = list(vocab) if isinstance(vocab, dict) else [piece for piece, _ in vocab]
    ids = vocab if isinstance(vocab, dict) else {piece: i for i, piece in enumerate(names)}
    assert sorted(ids.values()) == list(range(tokenizer.vocab_size))
    specials = set(tokenizer.specials.values())
    for piece, i in ids.items():
        assert i in specials or piece_bytes(piece, steps) == tokenizer.pieces[i], piece
    assert prefix_of(steps) == b""


def test_specials_keep_their_ids_and_text_never_becomes_one(exported):
    tokenizer, definition, config = exported
    ids = {token["content"]: token["id"] for token in definition["added_tokens"]}
    assert {role: ids[config[f"{role}_token"]] for role in tokenizer.specials} == tokenizer.specials
    assert config["split_special_tokens"] is True
    assert config["clean_up_tokenization_spaces"] is False


def test_overlapping_merges_are_tried_from_the_left():
    # [a b][a][b a]: "aba" is made of the first two.
    assert splits("aba", {"a", "b", "ab", "ba"}) == [2, 1]
    # [ab][aba][ba]..: it begins as it ends with "aba", and "ab" + "aba" is the left one.
    assert splits("ababa", {"ab", "aba", "ba"}) == [2, 3]
    assert splits("abc", {"a", "bc"}) == [1]


def test_overlapping_merges_go_the_way_of_sentencepiece(tmp_path):
    draw = random.Random(0)
    word = lambda letters, n: "".join(draw.choice(letters) for _ in range(n))
    tokenizer = train("bpe", [word(letters, 3000) for letters in ("ab ", "a \n", "-=")], 500)
    export_tokenizer(tokenizer, tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    for _ in range(300):
        text = word(draw.choice(["ab", "a ", "ab \n", "-=", "ab-"]), 40)
        assert ids_of(definition, text) == tokenizer.encode(text).tolist(), text


def test_unigram_scores_have_exact_sums(monkeypatch):
    tokenizer = train("unigram", TEXTS, 600)
    monkeypatch.setattr(tokenizer_training, "rounded", lambda model: model)
    raw = train("unigram", TEXTS, 600)
    assert raw.pieces == tokenizer.pieces
    scores = [tokenizer.processor.get_score(i) for i in range(tokenizer.vocab_size)]
    assert all((score * SCORE_STEPS).is_integer() for score in scores)
    before = [raw.processor.get_score(i) for i in range(raw.vocab_size)]
    assert 0 < np.abs(np.subtract(scores, before)).max() <= 0.5 / SCORE_STEPS
    total = np.cumsum(np.resize(np.float32(scores), 2**14), dtype=np.float32)[-1]
    assert total == np.sum(np.resize(np.float64(scores), 2**14))


def test_a_model_may_be_there_already_but_no_tokenizer(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    export_tokenizer(Tokenizer.byte_level(), tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.json: exists; name another"):
        export_tokenizer(Tokenizer.byte_level(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="Not a directory"):
        export_tokenizer(Tokenizer.byte_level(), tmp_path / "file" / "out")
