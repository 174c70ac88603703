"""A tokenizer.json has the interface of any other tokenizer. A small program replaces the library;
tests/parity/test_tokenizers.py has the library.
"""

import json
import pickle
import sys
import types

import numpy as np
import pytest
from word_tokenizer import BERT, Words, write_tokenizer

from lm_jax import convert
from lm_jax import prepare as prepare_module
from lm_jax.config import DataConfig
from lm_jax.data import inspect as store_inspect
from lm_jax.data.tokens.hf_folder import ABOUT
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.pieces import decoder_steps, piece_bytes, prefix_of
from lm_jax.data.tokens.store import TokenStore
from lm_jax.errors import DataError, UserError
from lm_jax.inference.load import tokenizer_of
from lm_jax.run.rundir import tokenizer_files


@pytest.fixture
def library(monkeypatch):
    module = types.SimpleNamespace(Tokenizer=Words, __version__="0")
    monkeypatch.setitem(sys.modules, "tokenizers", module)


@pytest.fixture
def bert(tmp_path, library):
    """A directory as transformers writes it."""
    return write_tokenizer(tmp_path / "bert", BERT)


def test_the_interface_is_that_of_every_tokenizer(bert):
    tokenizer = load_tokenizer(bert)
    ids = tokenizer.encode("The cat sat .")
    assert ids.tolist() == [5, 6, 7, 9]
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == "the cat sat ."
    assert tokenizer.decode_bytes([6, 8, 3, 1]) == b" cats"
    assert tokenizer.byte_lengths.tolist() == [0] * 5 + [4, 4, 4, 1, 2, 5]
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.lossless) == ("hf", 11, False)
    stream = tokenizer.decoder()
    assert [stream.push(i) for i in ids] == [" the", " cat", " sat", " ."]
    with pytest.raises(DataError, match="token id 11 is outside"):
        tokenizer.decode([11])
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("\ud800")


def test_a_text_begins_and_ends_with_what_there_is(bert, library, tmp_path):
    tokenizer = load_tokenizer(bert)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (2, 3, 0)
    assert tokenizer.specials["mask"] == tokenizer.specials["[MASK]"] == 4
    assert "eos" not in tokenizer.specials
    # Config before map before config.json before the usual name; what the vocabulary has not is
    # as if it were not said.
    path = write_tokenizer(
        tmp_path / "said",
        tokenizer_config={"bos_token": {"content": "the"}, "pad_token": "<none>", "x": 1},
        special_tokens_map={"bos_token": "cat", "eos_token": "cat"},
        config={"eos_token_id": 7, "mask_token_id": [9], "decoder_start_token_id": 99},
    )
    said = load_tokenizer(path)
    assert (said.bos_id, said.eos_id, said.pad_id) == (5, 6, 6)
    assert said.specials["mask"] == 9
    assert not {"pad", "decoder_start"} & said.specials.keys()
    assert said.hash != tokenizer.hash
    nothing = write_tokenizer(tmp_path / "nothing", BERT | {"added_tokens": []})
    with pytest.raises(DataError, match="names no special token that begins or ends a text"):
        load_tokenizer(nothing)


def test_a_saved_one_is_the_same_and_another_is_refused(bert, tmp_path):
    tokenizer = load_tokenizer(bert)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.hash == tokenizer.hash == pickle.loads(pickle.dumps(tokenizer)).hash
    assert again.specials == tokenizer.specials
    other = BERT | {"decoder": None}
    (tmp_path / "saved" / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="damaged or exchanged"):
        load_tokenizer(tmp_path / "saved")
    (tmp_path / "saved" / ABOUT).write_text("[]")
    with pytest.raises(DataError, match=f"{ABOUT}: expected a JSON object"):
        load_tokenizer(tmp_path / "saved")


def test_prepare_counts_what_is_lost_and_says_it_once(bert, tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    documents = ["the cat sat .", "The cat sat .", "the dog sat .", "cat the cat"]
    text.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    data = DataConfig(input=str(text), heldout_fraction=0.3)
    path = prepare_module.prepare(data, str(tmp_path / "store"), tokenizer=load_tokenizer(bert))
    said = capsys.readouterr().err
    assert said.count("WARNING") == 1
    assert "not lossless: 2 of 4 documents" in said
    store = TokenStore.open(path)
    assert store.metadata["round_trips_failed"] == 2
    assert "2 of 4 texts" in store_inspect.table(store)
    assert store.document("train", 0)[[0, -1]].tolist() == [2, 3]
    # The store and a checkpoint carry the tokenizer whole.
    files = tokenizer_files(store.tokenizer)
    assert files.keys() == {ABOUT, "tokenizer.json"}
    about = {"tokenizer_hash": store.tokenizer_hash}
    assert tokenizer_of("there", files, about).hash == store.tokenizer.hash


def test_an_imported_one_is_written_as_it_was(bert, tmp_path):
    convert.export_tokenizer(convert.import_tokenizer(bert), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == json.dumps(BERT)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (config["mask_token"], config["cls_token"]) == ("[MASK]", "[CLS]")


def test_the_library_is_asked_for_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install lm_jax\[hf\]$") as error:
        load_tokenizer(write_tokenizer(tmp_path / "bert"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("definition", "message"),
    [
        ({"model": []}, "damaged|tokenizers|list"),
        (BERT | {"added_tokens": [7]}, "int"),
        (BERT | {"decoder": {"type": "Bytelevel"}}, "Did you mean 'ByteLevel'"),
        (BERT | {"decoder": {"type": "Replace", "pattern": {"Regex": "a+"}}}, "by a regex"),
    ],
)
def test_what_is_not_understood_is_refused_in_one_line(definition, message, library, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        load_tokenizer(write_tokenizer(tmp_path / "bad", definition))
    assert "\n" not in str(error.value)


LLAMA = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


@pytest.mark.parametrize(
    ("decoder", "piece", "expected", "prefix"),
    [
        ({"type": "ByteLevel"}, "\u0120caf\u00c3\u00a9\u010a", " caf\u00e9\n".encode(), b""),
        ({"type": "ByteLevel"}, "\u00c3", b"\xc3", b""),
        ({"type": "ByteLevel"}, "a\u6771", "a\u6771".encode(), b""),
        (LLAMA, "\u2581\u2581the", b"  the", b" "),
        (LLAMA, "<0xE6>", b"\xe6", b" "),
        ({"type": "Metaspace", "replacement": "\u2581"}, "\u2581the", b" the", b" "),
        ({"type": "Metaspace", "replacement": "_", "prepend_scheme": "never"}, "_a", b" a", b""),
        ({"type": "WordPiece", "prefix": "##"}, "##ing", b"ing", b" "),
        ({"type": "WordPiece", "prefix": "##"}, "the", b" the", b" "),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "the</w>", b"the ", b""),
        (None, "the", b" the", b" "),
    ],
)
def test_the_bytes_of_a_piece_follow_from_the_decoder(decoder, piece, expected, prefix):
    assert piece_bytes(piece, decoder_steps(decoder)) == expected
    assert prefix_of(decoder_steps(decoder)) == prefix
