"""A tokenizer is lossless and stable, and refused when it is another one."""

import inspect
import pickle
import re
import string

import numpy as np
import pytest

from lm_jax.data.tokens import tokenizer as tokenizer_module
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.tokenizer import Tokenizer, chunks
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.errors import DataError

TEXTS = [inspect.getsource(m) for m in (inspect, pickle, string, tokenizer_module)]
HARD = [
    "",
    " ",
    "  leading and   repeated  spaces \t\ttabs\t\n\n\nnewlines \r\n CRLF\r\n",
    "nul \0 in the middle, bell \a, delete \x7f",
    "emoji 😀👩‍👩‍👧, 東京, naïve, combining é, RTL שלום, \ufeffBOM, \u2028 line separator",
    "the space sign itself: \u2581 \u2581\u2581x, reserved \u2585\u2582, replacement \ufffd",
    "<s></s><unk><pad><0x41> written out",
    "\n",
    "x" * 200_000,
    "\n\n" * 3000 + "\u2581" * 50,
]


@pytest.fixture(scope="module", params=["bpe", "unigram", "bytes"])
def tokenizer(request):
    return train(request.param, TEXTS, 600)


def test_every_text_comes_back_byte_for_byte(tokenizer):
    for text in HARD + TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_do_not_depend_on_threads_or_company(tokenizer):
    together = tokenizer.encode_batch(HARD + TEXTS, threads=2)
    for text, ids in zip(HARD + TEXTS, together, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == np.int32


def test_cutting_a_text_changes_no_id():
    tokenizer = train("bpe", TEXTS, 600)
    text = TEXTS[0]
    assert len(chunks(text)) > 10
    assert "".join(chunks(text)) == text
    np.testing.assert_array_equal(tokenizer.processor.encode(text), tokenizer.encode(text))


def test_byte_lengths_add_up_to_the_text(tokenizer):
    for text in HARD:
        assert tokenizer.byte_lengths[tokenizer.encode(text)].sum() == len(text.encode())


def test_specials_stand_for_no_text_and_are_distinct(tokenizer):
    specials = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id]
    assert len(set(specials)) == 3
    assert tokenizer.decode(specials) == ""
    assert not np.isin(specials, np.concatenate(tokenizer.encode_batch(HARD))).any()


def test_streaming_never_shows_half_a_character(tokenizer):
    text = "naïve 東京 😀 end"
    stream = tokenizer.decoder()
    parts = [stream.push(i) for i in tokenizer.encode(text)]
    assert "".join(parts) + stream.flush() == text
    assert "\ufffd" not in "".join(parts)
    cut = tokenizer.decoder()
    assert (
        cut.push(Tokenizer.byte_level().encode("é")[:1] if tokenizer.kind == "bytes" else []) == ""
    )


def test_a_saved_tokenizer_is_the_same_one(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.hash == tokenizer.hash == pickle.loads(pickle.dumps(tokenizer)).hash
    np.testing.assert_array_equal(loaded.encode(TEXTS[2]), tokenizer.encode(TEXTS[2]))


def test_training_twice_gives_the_same_hash_and_other_text_another():
    first, again = (train("unigram", TEXTS[1:], 400).hash for _ in range(2))
    assert first == again != train("unigram", TEXTS[:1], 400).hash


def test_golden_byte_ids():
    assert Tokenizer.byte_level().encode("aé\n").tolist() == [97, 195, 169, 10]
    assert Tokenizer.byte_level().vocab_size == 259


def test_damaged_or_exchanged_files_are_refused(tmp_path):
    train("bpe", TEXTS, 400).save(tmp_path)
    other = train("bpe", TEXTS[:2], 400)
    (tmp_path / "tokenizer.model").write_bytes(other.model)
    with pytest.raises(DataError, match="damaged or exchanged"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"rubbish")
    with pytest.raises(DataError, match="damaged tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_vocabulary_that_cannot_be_is_refused_in_words_of_the_config():
    with pytest.raises(DataError, match=r"vocab_size=100: must be at least"):
        train("bpe", TEXTS, 100)
    with pytest.raises(DataError, match=r"vocab_size=50000: this text is too small"):
        train("bpe", ["a few words only, a few words"], 50_000)
    with pytest.raises(DataError, match="no text to train a tokenizer on"):
        train("bpe", [], 400)
    with pytest.raises(DataError, match="Did you mean 'unigram'"):
        train("unigramm", TEXTS, 400)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_below_the_characters_of_a_text_is_told_the_least_that_will_do(kind):
    with pytest.raises(DataError, match=r"vocab_size=270: must be at least \d+ for this") as error:
        train(kind, TEXTS, 270)
    least = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert train(kind, TEXTS, least).vocab_size == least
    with pytest.raises(DataError, match=f"must be at least {least} for this text"):
        train(kind, TEXTS, least - 1)


def test_ids_and_text_that_are_none_are_refused(tokenizer):
    with pytest.raises(DataError, match="token id 70000 is outside"):
        tokenizer.decode([1, 70_000])
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.encode("\ud800")
