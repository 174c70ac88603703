"""Are the baselines what they are called, and over the same text as the model's figure?"""

import lzma

import numpy as np
import pytest

from lm_jax.data.tokens.store import TokenStore, token_documents
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.writer import Writer
from lm_jax.evaluation.baselines import baselines, byte_documents
from lm_jax.models.classical.ngram import KneserNey

TRAIN = ["the cat sat on the mat\n" * 9, "", "the dog sät on the log\n" * 7]
HELD = ["the cat sat on the log\n" * 3, "a dög\n"]


@pytest.fixture
def store(tmp_path):
    tokenizer = Tokenizer.byte_level()
    with Writer(tmp_path / "store", tokenizer) as writer:
        for split, texts in (("train", TRAIN), ("heldout", HELD)):
            for text in texts:
                writer.add(split, tokenizer.encode(text), len(text.encode()))
        for text in HELD:
            writer.keep_text(text, "here")
        writer.finish({})
    return TokenStore.open(tmp_path / "store")


def test_xz_is_over_the_heldout_text_as_one_stream(store):
    text = "".join(HELD).encode()
    expected = 8 * len(lzma.compress(text, preset=9)) / len(text)
    assert baselines(store)["xz"] == pytest.approx(expected)


def test_documents_of_bytes_and_tokens_are_those_of_the_store(store):
    text, ends = byte_documents(store, "train")
    parts = np.split(text, ends[:-1])
    assert [part[-1] for part in parts] == [256] * 3
    assert [bytes(part[:-1].astype(np.uint8)).decode() for part in parts] == TRAIN
    tokens, ends = token_documents(store, "train")
    parts = np.split(tokens, ends[:-1])
    assert [part[-1] for part in parts] == [store.tokenizer.eos_id] * 3
    assert [store.tokenizer.decode(part) for part in parts] == TRAIN


def test_ngrams_pay_for_every_heldout_byte_and_document_end(store):
    found = baselines(store)

    def documents(texts):
        return [np.array([*text.encode(), 256]) for text in texts]

    size = sum(len(text.encode()) for text in HELD)
    model = KneserNey(5, 257).fit(documents(TRAIN))
    assert found["byte_5gram"] == pytest.approx(model.bits_per_byte(documents(HELD), None, size))
    # Over the byte tokenizer's ids the same model, with three more symbols in the vocabulary.
    assert found["token_5gram"] == pytest.approx(found["byte_5gram"], rel=1e-2)


def test_ngrams_are_left_out_of_a_text_that_is_too_large(store):
    assert list(baselines(store, max_bytes=10)) == ["xz"]
