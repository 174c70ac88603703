"""Damage to a store that is too large to be read at open is found as it is read."""

import numpy as np
import pytest
from small_stores import without_sums

from lm_jax.data.tokens import store as store_module
from lm_jax.data.tokens import writer as writer_module
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.writer import Writer
from lm_jax.errors import DataError

BLOCK = 64  # bytes: 32 tokens


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A store of blocks of 64 bytes, none of which is read at open; its path."""
    monkeypatch.setattr(store_module, "CHECKED_AT_OPEN", 0)
    monkeypatch.setattr(writer_module, "BLOCK", BLOCK)
    with Writer(tmp_path / "store", Tokenizer.byte_level()) as writer:
        for split, documents in (("train", 20), ("heldout", 3)):
            for i in range(documents):
                writer.add(split, np.arange(100, dtype=np.int32) + i, 100)
        writer.keep_text("held out", "source")
        writer.finish({})
    return tmp_path / "store"


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1  # 1 -> 0 or 0 -> 1 in an id: still an id
    path.write_bytes(data)


@pytest.mark.parametrize("place", ["local", "url"])
def test_a_changed_bit_is_found_by_the_first_window_that_has_its_block(large, place):
    flip(large / "train.tokens", 3 * BLOCK + 7)
    store = TokenStore.open(large if place == "local" else f"file://{large}")
    store.gather("train", np.array([0, 40, 128]), 32)
    for start in (95, 96, 127, 64):  # tokens 96 to 127 are the block
        with pytest.raises(DataError, match=r"train\.tokens: bytes 192 to 256 have changed on"):
            store.gather("train", np.array([0, start]), 40 if start == 64 else 33)
    assert sum(store.blocks["train"].read) == 4  # the others, once each


@pytest.mark.parametrize("place", ["local", "url"])
def test_every_window_of_an_undamaged_store_is_what_was_written(large, place):
    store = TokenStore.open(large if place == "local" else f"file://{large}")
    whole = np.frombuffer((large / "train.tokens").read_bytes(), "<u2")
    starts = np.random.default_rng(0).permutation(len(whole) - 50)
    for part in np.array_split(starts, 40):
        np.testing.assert_array_equal(
            store.gather("train", part, 51), [whole[start : start + 51] for start in part]
        )
    assert store.blocks["train"].left == 0  # from now on nothing is looked up
    assert store.tokens("heldout").size == store.num_tokens("heldout") == 306
    assert store.gather("train", np.array([0]), 0).shape == (1, 0)


@pytest.mark.parametrize("name", ["train.ends", "train.sums", "heldout.jsonl"])
def test_files_that_are_read_whole_are_verified_whole(large, name):
    flip(large / name, 1)
    store = TokenStore.open(large)
    read = {"train.ends": lambda: store.ends("train"), "train.sums": lambda: store.tokens("train"),
            "heldout.jsonl": lambda: list(store.heldout())}  # fmt: skip
    with pytest.raises(DataError, match=f"{name}: its checksum is wrong"):
        read[name]()


def test_a_store_without_sums_opens_with_a_line(large, capsys):
    fingerprint = TokenStore.open(large).fingerprint
    assert capsys.readouterr().err == ""
    without_sums(large)
    old = TokenStore.open(large)
    assert "warning" in capsys.readouterr().err
    assert old.fingerprint == fingerprint, "the same tokens are the same data"
    assert old.tokens("train").size == 20 * 102


def test_a_small_local_store_is_verified_at_open_and_no_more(large, monkeypatch):
    monkeypatch.setattr(store_module, "CHECKED_AT_OPEN", 1 << 20)
    store = TokenStore.open(large)
    assert store.blocks == {"train": None, "heldout": None}
    flip(large / "train.tokens", 100)
    with pytest.raises(DataError, match="its checksum is wrong"):
        TokenStore.open(large)
