"""Baselines without a network: bits per byte of held-out text under xz and Kneser-Ney n-grams.

Like the model's, each figure is over the bytes of the text and pays for the end of each document.
"""

import lzma
from typing import Any

import numpy as np

from lm_jax.data.tokens.store import token_documents
from lm_jax.models.classical.ngram import KneserNey
from lm_jax.progress import Progress

ORDER = 5
MAX_BYTES = 128 << 20  # of training text that the n-grams count: about 70 bytes of memory for each


def baselines(store: Any, max_bytes: int = MAX_BYTES) -> dict[str, float]:
    """Held-out bits per byte of `xz -9` and of Kneser-Ney 5-grams over bytes and over tokens.

    store: a TokenStore. The n-grams are trained on all of its training text, and left out when that
    is more than `max_bytes`, or when there is none. {} without held-out text.
    """
    text = b"".join(document["text"].encode() for document in store.heldout())
    if not text:
        return {}
    size = store.num_bytes("train")
    ngrams = {"byte_5gram": byte_ngram, "token_5gram": token_ngram}
    ngrams = ngrams if 0 < size <= max_bytes else {}
    with Progress("baselines", len(text) + size * len(ngrams)) as progress:
        figures = {"xz": xz(text)}
        progress.add(len(text))
        for name, ngram in ngrams.items():
            figures[name] = ngram(store)
            progress.add(size)
    return figures


def xz(text: bytes) -> float:
    """Bits per byte of `text` under `xz -9`."""
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def byte_ngram(store: Any, order: int = ORDER) -> float:
    """Held-out bits per byte of an n-gram model over bytes and an end-of-document symbol."""
    train, held = byte_documents(store, "train"), byte_documents(store, "heldout")
    model = KneserNey(order, 257).fit(*train)
    return model.bits_per_byte(*held, store.num_bytes("heldout"))


def byte_documents(store: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The text of `split` as bytes, 256 after each document, and where each document ends."""
    tokens = store.tokens(split)
    text = np.frombuffer(store.tokenizer.decode_bytes(tokens), np.uint8).astype(np.int16)
    before = np.cumsum(store.tokenizer.byte_lengths[tokens])
    ends = before[store.ends(split) - 1]
    return np.insert(text, ends, 256), ends + 1 + np.arange(len(ends))


def token_ngram(store: Any, order: int = ORDER) -> float:
    """Held-out bits per byte of an n-gram model over the tokenizer's tokens and eos."""
    train, held = token_documents(store, "train"), token_documents(store, "heldout")
    model = KneserNey(order, store.tokenizer.vocab_size).fit(*train)
    return model.bits_per_byte(*held, store.num_bytes("heldout"))
