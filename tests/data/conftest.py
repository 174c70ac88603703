"""A small store of text that the tests make up, and one of Python's own sources."""

import argparse
import inspect
import pydoc_data.topics
import textwrap
import typing

import numpy as np
import pytest

from lm_jax.config import Config
from lm_jax.config.check import OF_PAIRS
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.data.tokens.writer import Writer
from lm_jax.data.views import by_objective


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


def functions(module):
    """The source of each function and method of a module."""
    for value in vars(module).values():
        for each in [value, *vars(value).values()] if inspect.isclass(value) else [value]:
            if inspect.isfunction(each) and each.__module__ == module.__name__:
                yield inspect.getsource(each)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """Documents of a few to some thousand tokens: topics of the reference, functions, and some of
    one token or none.
    """
    path = tmp_path_factory.mktemp("library") / "store"
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    short = [text for module in (argparse, inspect, textwrap, typing) for text in functions(module)]
    texts = [text for pair in zip(topics, short, strict=False) for text in pair]
    with Writer(path, train("bpe", texts, 600)) as writer:
        for i, text in enumerate(["", "a", *texts, "b", ""]):
            split = "heldout" if i % 10 == 9 else "train"
            writer.add(split, writer.tokenizer.encode(text), len(text.encode()))
        writer.finish({"input": "the Python library"})
    return TokenStore.open(path)


def configured(objective, length, architecture="decoder", packed=True, vocab_size=768, **loss):
    of_pairs = {"pooler": True, "token_types": 2} if objective in OF_PAIRS else {}
    return Config.parse(
        {
            "model": {
                "architecture": architecture,
                "vocab_size": vocab_size,
                "max_length": max(1024, length),
                **of_pairs,
            },
            "data": {"sequence_length": length, "packed": packed},
            "loss": {"objective": objective, **loss},
        }
    )


def viewed(store, *options, seed=0, split="train", **loss):
    return by_objective.make(store, split, configured(*options, **loss), seed)


@pytest.fixture
def config_of():
    """config_of(objective, length, architecture, packed, vocab_size, **loss)."""
    return configured


@pytest.fixture
def view():
    """view(store, objective, length, architecture, seed=, split=, packed=, **loss)."""
    return viewed


def cut(store, start, length):
    """[ids] of each document's part of the `length` tokens from `start` on."""
    found = [[]]
    for token in store.tokens("train", start, start + length).tolist():
        found[-1].append(token)
        if token == store.tokenizer.eos_id:
            found.append([])
    return [part for part in found if part]


@pytest.fixture
def parts():
    """parts(store, start, length): the documents in a window."""
    return cut
