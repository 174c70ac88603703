"""Masked pairs of spans of a document: BERT's next sentence prediction, ALBERT's sentence order."""

import functools
from typing import NamedTuple

import numpy as np

from lm_jax.config import Config
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.views import noise
from lm_jax.data.views.denoise import Masked
from lm_jax.data.views.layout import Batch, Packing, weave
from lm_jax.errors import DataError

SHORT = 0.1  # of the pairs are of a random length: finetuning's texts are (BERT's data code)


class Span(NamedTuple):
    """Text of one document a row, cut in two: arrays [n]."""

    document: np.ndarray  # its number among those that are long enough
    label: np.ndarray  # whether the pair is not as it stands there
    start: np.ndarray
    size: np.ndarray
    cut: np.ndarray  # tokens of the first part
    most: np.ndarray  # tokens that the row has room for


class SentencePairs(Masked):
    """bert: [CLS] A [SEP] B [SEP], masked; in half of the rows B is of another document, and
    pair_label 1 (BERT, arXiv:1810.04805, appendix A.2).

    Example w is of the document of a random token of window w: a span of it that begins there, or
    earlier where its end is near, cut at a random token into A and B. A "sentence" is any span, as
    there. A document shorter than a row leaves the rest of it to padding; one of less than two
    tokens gives way to the next.
    """

    needs = ("<mask>", "<cls>", "<sep>")

    def __init__(self, store: TokenStore, split: str, config: Config, seed: int | None):
        super().__init__(store, split, config, seed)
        if len(self.usable) < self.documents_needed():
            raise DataError(
                f"{store.path}: {split} has {len(self.usable)} documents of two tokens or more,"
                f" {self.documents_needed()} are needed; set config.loss.objective=mlm."
            )

    def documents_needed(self) -> int:
        """For a B that does not follow, there must be another document."""
        return 2

    def raw_length(self) -> int:
        """Three places are those of the specials."""
        return self.row_length - 3

    @functools.cached_property
    def usable(self) -> np.ndarray:
        """Documents that can be cut in two."""
        ends = self.store.ends(self.split)
        return np.flatnonzero(np.diff(ends, prepend=0) > 3)  # two tokens, bos and eos

    def text_of(self, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(first token, one past the last) [n] of the text of the documents `usable[n]`."""
        ends, document = self.store.ends(self.split), self.usable[usable]
        return np.where(document > 0, ends[document - 1], 0) + 1, ends[document] - 1

    def noised(self, example: np.ndarray, key: np.ndarray) -> Batch:
        """The batch of the windows `example` [n] under `key` [n] uint64."""
        n, width, zero = len(example), self.length, np.zeros(len(example), np.int64)
        draw = lambda stream, limit: noise.below(noise.words(key, stream, zero), limit)
        start = example * width
        document = np.searchsorted(
            self.store.ends(self.split), start + draw(noise.PLACE, width), "right"
        )
        chosen = np.searchsorted(self.usable, document) % len(self.usable)
        begin, end = self.text_of(chosen)
        short = noise.uniform(noise.words(key, noise.SHORT, zero)) < SHORT
        most = np.where(short, 2 + draw(noise.CUT_B, width - 1), width)
        start = np.clip(start, begin, np.maximum(begin, end - most))
        size = np.minimum(most, end - start)
        a = 1 + draw(noise.CUT_A, size - 1)
        label = noise.uniform(noise.words(key, noise.ORDER, zero)) < 0.5
        ids, first, second = self.spans(key, Span(chosen, label, start, size, a, most))
        cls, sep = ((~self.specials.id(name), 1) for name in ("<cls>", "<sep>"))
        pairs, sizes = weave(ids, cls, first, sep, second, sep)
        return self.pair_rows(n, key, pairs, sizes, first[1], label)

    def spans(self, key: np.ndarray, span: Span) -> tuple[np.ndarray, tuple, tuple]:
        """(flat ids, run of A, run of B): B is the rest of the span, or where `label` as many
        tokens as A leaves, of another document.
        """
        zero = np.zeros(len(key), np.int64)
        step = 1 + noise.below(noise.words(key, noise.OTHER, zero), len(self.usable) - 1)
        begin, end = self.text_of((span.document + step) % len(self.usable))
        length = np.minimum(span.most - span.cut, end - begin)
        place = noise.below(noise.words(key, noise.OTHER_PLACE, zero), end - begin - length + 1)
        own, own_ids = self.fetch(span.start)
        other, other_ids = self.fetch(begin + place)
        other += own_ids.size
        b = (
            np.where(span.label, other, own + span.cut),
            np.where(span.label, length, span.size - span.cut),
        )
        return np.concatenate([own_ids, other_ids]), (own, span.cut), b

    def fetch(self, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(where, flat ids): tokens `start` [n] and what follows them, from `where` [n] on."""
        n, width = len(start), self.length
        first = np.minimum(start, self.num_tokens - width)
        ids = self.store.gather(self.split, first, width)
        return np.arange(n) * width + start - first, ids.reshape(-1)

    def pair_rows(
        self,
        n: int,
        key: np.ndarray,
        pairs: np.ndarray,
        sizes: np.ndarray,
        first: np.ndarray,
        label: np.ndarray,
    ) -> Batch:
        """The batch of `pairs` of `sizes` [n], whose A have `first` [n] tokens."""
        packing = Packing(np.arange(n), sizes, n, self.row_length)
        return {
            **self.masked(packing.put(pairs, self.pad), key),
            "segment_ids": packing.segments(),
            "positions": packing.put(packing.place),
            "token_types": packing.put(packing.place > np.repeat(first + 1, sizes)),
            "pair_label": label.astype(np.int32),
        }


class SentenceOrder(SentencePairs):
    """sop: A and B follow each other, and are swapped in half of the rows, pair_label 1 (ALBERT,
    arXiv:1909.11942, section 3.1).
    """

    def documents_needed(self) -> int:
        """One is enough."""
        return 1

    def spans(self, key: np.ndarray, span: Span) -> tuple[np.ndarray, tuple, tuple]:
        """(flat ids, run of A, run of B), both of one span."""
        begin, ids = self.fetch(span.start)
        head, tail = (begin, span.cut), (begin + span.cut, span.size - span.cut)
        swap = lambda x, y: tuple(np.where(span.label, v, u) for u, v in zip(x, y, strict=True))
        return ids, swap(head, tail), swap(tail, head)
