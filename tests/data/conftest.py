"""A small store of text that the tests make up."""

import numpy as np
import pytest

from lm_jax.data.store import TokenStore
from lm_jax.data.tokenizer import Tokenizer
from lm_jax.data.writer import Writer


def written(path, sizes=(40, 1, 300, 7, 0, 95), heldout=(20, 30), tokenizer=None):
    """A store of bytes whose documents have `sizes` random letters."""
    random = np.random.default_rng(0)
    with Writer(path, tokenizer or Tokenizer.byte_level()) as writer:
        for split, lengths in (("train", sizes), ("heldout", heldout)):
            for i, n in enumerate(lengths):
                text = random.integers(97, 123, n).astype(np.uint8).tobytes().decode()
                writer.add(split, writer.tokenizer.encode(text), n)
                if split == "heldout":
                    writer.keep_text(text, f"made up {i}")
        writer.finish({"input": "made up"})
    return TokenStore.open(path)


@pytest.fixture
def write_store():
    return written


@pytest.fixture
def store(tmp_path):
    return written(tmp_path / "store")
