"""What does a model see under config.loss.objective? One view of a token store, or a mixture."""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.config import Config
from lm_jax.config_check import PAIRS, mixture
from lm_jax.data import noise
from lm_jax.data.denoise import Infill, Masked
from lm_jax.data.examples import Windows
from lm_jax.data.layout import Batch
from lm_jax.data.pairs import Prefix, Spans, Supervised
from lm_jax.data.sentences import SentenceOrder, SentencePairs
from lm_jax.data.store import TokenStore
from lm_jax.data.tokenizer import Tokenizer
from lm_jax.data.writer import Writer

# UL2's seven denoisers, equally likely (arXiv:2205.05131, table 1): mean span and rate.
UL2 = (
    partial(Spans, mean=3, rate=0.15, mode="[R]"),
    partial(Spans, mean=8, rate=0.15, mode="[R]"),
    partial(Prefix, share=0.25, mode="[S]"),
    partial(Spans, mean=3, rate=0.5, mode="[X]"),
    partial(Spans, mean=8, rate=0.5, mode="[X]"),
    partial(Spans, mean=64, rate=0.15, mode="[X]"),
    partial(Spans, mean=64, rate=0.5, mode="[X]"),
)
VIEWS: dict[str, tuple[Any, ...]] = {
    "causal": (Windows,),
    "prefix_lm": (Prefix,),
    "fim": (Infill,),
    "mlm": (Masked,),
    "bert": (SentencePairs,),
    "sop": (SentenceOrder,),
    "span_corruption": (Spans,),
    "ul2": UL2,
    "seq2seq": (Supervised,),
}


def make(store: TokenStore, split: str, config: Config, seed: int | None) -> Windows:
    """The examples of a split under config.loss.objective; seed None keeps their order.

    Raises UserError when the vocabulary has no room for the specials of the objective, DataError
    when the split is too small.
    """
    members, weights = [], []
    for name, weight in mixture(config.loss.objective):
        for view in VIEWS[name]:
            if view is Windows:
                length, packed = config.data.sequence_length, config.data.packed
                rows = config.batch_size if config.data.carry and split == "train" else 0
                shifted = config.data.shifted and seed is not None
                members.append(
                    Windows(store, split, length, seed, packed, consecutive=rows, shifted=shifted)
                )
            else:
                members.append(view(store, split, config, seed))
            weights.append(weight / len(VIEWS[name]))
    return members[0] if len(members) == 1 else Mixture(members, weights, seed)


def shapes(config: Config) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{name: (shape, dtype)} of an example under config.loss.objective, whatever the text is."""
    length = config.data.sequence_length
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, carry=False))
    with tempfile.TemporaryDirectory() as folder:
        with Writer(Path(folder) / "store", Tokenizer.byte_level()) as writer:
            for text in ("a\t" + length * "b", "c\t" + 2 * length * "d"):
                writer.add("train", writer.tokenizer.encode(text), len(text))
            writer.finish({})
        store = TokenStore.open(Path(folder) / "store")
        batch = make(store, "train", config, 0).rows(np.zeros(1, np.int64))
    return {name: (x.shape[1:], x.dtype) for name, x in batch.items() if name != "example"}


def has_prefix(config: Config) -> bool:
    """Whether rows begin with text that all of the row sees: pairs, of a decoder alone."""
    pairs = any(name in PAIRS for name, _ in mixture(config.loss.objective))
    return pairs and config.model.architecture == "decoder"


class Mixture(Windows):
    """Views by weight: the place of an example in the endless stream decides which one it is of.

    Each view goes through windows and epochs of its own: a place is the same place in all of them,
    so that none sees a window twice before its epoch is over. Rows are as long as the longest
    view's, and have what any view has: 0 where their own has none.
    """

    def __init__(self, members: list[Windows], weights: list[float], seed: int | None):
        self.members, self.seed, self.store = members, seed, members[0].store
        share = np.array(weights) / np.sum(weights)
        self.bounds = np.cumsum(share)
        # An epoch is as many examples as go through the text once, all views together.
        self.size = max(1, round(1 / np.sum(share / [len(member) for member in members])))
        self.arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for member in members:
            for name, array in member.windows(np.zeros(1, np.int64)).items():
                known = self.arrays.get(name, (array.shape[1:],))[0]
                self.arrays[name] = max(known, array.shape[1:]), array.dtype

    def member(self, position: np.ndarray) -> np.ndarray:
        """[n]: the number of the view that each place [n] of the stream is of."""
        zero = np.zeros_like(position)
        key = noise.keys(self.seed or 0, zero, position)
        chance = noise.uniform(noise.words(key, noise.MEMBER, zero))
        return np.minimum(np.searchsorted(self.bounds, chance, "right"), len(self.members) - 1)

    def rows(self, position: np.ndarray) -> Batch:
        """The batch at places [n] of the endless stream of examples."""
        member, batch = self.member(position), {}
        for name, (shape, dtype) in self.arrays.items():
            fill = self.store.tokenizer.pad_id if name in ("tokens", "targets", "inputs") else 0
            batch[name] = np.full((len(position), *shape), fill, dtype)
        for i in np.unique(member).tolist():
            where = np.flatnonzero(member == i)
            for name, array in self.members[i].rows(position[where]).items():
                there: Any = (where, *map(slice, array.shape[1:]))
                batch[name][there] = array
        return batch
