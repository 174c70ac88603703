"""How well does counting predict? Interpolated modified Kneser-Ney n-gram models, every LM's rival.

S. F. Chen and J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling"
(1998), section 3: three discounts an order, lower orders estimated from the number of distinct
tokens to the left, the unigram interpolated with the uniform distribution, so that no token is
impossible. As in KenLM, one begin symbol precedes each document, no context reaches across it, and
n-grams that start with it keep their plain counts.

An n-gram is known by a number: its rank among the distinct n-grams of its order. The key of a
longer one is (rank of its first n-1 tokens) * base + last token: 64 bits serve any vocabulary.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from lm_jax.errors import DataError, UserError

MAX_ORDER = 6
_FALLBACK = (0.5, 1.0, 1.5)  # KenLM's, where the counts of counts give no usable discount


@dataclasses.dataclass(frozen=True)
class _Level:
    """The k-grams of one order k >= 2, ascending by key; contexts are (k-1)-grams by rank."""

    keys: np.ndarray  # int64 [U_k]: context rank * base + token
    prob: np.ndarray  # float64 [U_k]: discounted share of the context's count
    backoff: (
        np.ndarray
    )  # float64 [U_{k-1}]: weight of the order below; 1 where nothing ever followed


@dataclasses.dataclass(frozen=True)
class _Counts:
    """What the text says about the k-grams of one order, ascending by key."""

    keys: np.ndarray  # int64 [U_k]
    counts: np.ndarray  # int64 [U_k]: how often
    suffix: np.ndarray  # int64 [U_k]: rank of the (k-1)-gram without the first token
    begins: np.ndarray | None  # int64 [U_k]: `counts` of those that start with the begin symbol,
    # else 0; None for the highest order, which does not need it


class KneserNey:
    """Modified Kneser-Ney model over token ids 0..vocab_size-1; `fit` once, then ask.

    order: the n of n-gram, 1..6. Raises UserError for an order or vocabulary that cannot be.
    """

    def __init__(self, order: int = 5, vocab_size: int = 256):
        if not 1 <= order <= MAX_ORDER:
            raise UserError(f"order={order}: n-gram models are of order 1 to {MAX_ORDER}.")
        if not 1 <= vocab_size < 2**31 - 1:
            raise UserError(f"vocab_size={vocab_size}: must be at least 1 and below 2^31-1.")
        self.order, self.vocab_size = order, vocab_size
        self.base = vocab_size + 1  # the begin symbol is the id after the last token
        self.unigram = np.full(vocab_size, 1 / vocab_size)
        self.levels: list[_Level] = []
        # By order, what is taken from counts of 1, 2, and 3 and more.
        self.discounts: list[tuple[float, float, float]] = []

    def fit(
        self, tokens: np.ndarray | Iterable[np.ndarray], ends: np.ndarray | None = None
    ) -> "KneserNey":
        """Counts documents (arrays of ids), or one flat array with its documents' exclusive `ends`.

        Returns self. Raises DataError on an id outside the vocabulary or ends that do not fit.
        """
        stream, depth = self._stream(tokens, ends)
        ranks = stream
        tables: list[_Counts] = []
        for k in range(2, self.order + 1):
            at = np.flatnonzero(depth >= k - 1)  # where a k-gram ends
            keys = ranks[at - 1].astype(np.int64) * self.base + stream[at]
            keys, counts, found = (
                _ranked(keys) if k < self.order else (*_distinct(np.sort(keys)), None)
            )
            context, last = np.divmod(keys, self.base)
            # The suffix of (c, w) is (suffix of c, w), one order below.
            suffix = (
                _find(tables[-1].keys, tables[-1].suffix[context] * self.base + last)
                if tables
                else last
            )
            begins = None
            if found is not None:
                begins = np.bincount(found[depth[at] == k - 1], minlength=len(keys))
                ranks = np.zeros(len(stream), found.dtype)
                ranks[at] = found
            tables.append(_Counts(keys, counts, suffix, begins))
        self.levels, self.discounts = [], []
        # Below the highest order an n-gram counts the different tokens that precede it; none
        # precedes a begin symbol, so the n-grams that start with one keep their plain counts.
        counts = (
            tables[-1].counts if tables else np.bincount(stream[depth > 0], minlength=self.base)
        )
        for i in reversed(range(len(tables))):
            size = len(tables[i - 1].keys) if i else self.base
            self.levels.insert(0, self._level(tables[i].keys, counts, size))
            counts = np.bincount(tables[i].suffix, minlength=size)
            if i and (begins := tables[i - 1].begins) is not None:
                counts += begins
        off = self._discounted(counts[: self.vocab_size])
        if total := counts[: self.vocab_size].sum():
            self.unigram = (counts[: self.vocab_size] - off + off.sum() / self.vocab_size) / total
        return self

    def log_prob(
        self, tokens: np.ndarray | Iterable[np.ndarray], ends: np.ndarray | None = None
    ) -> np.ndarray:
        """log p(token | up to order-1 tokens before it in its document): nats, float64 [tokens]."""
        stream, depth = self._stream(tokens, ends)
        at = np.flatnonzero(depth > 0)
        p = np.zeros(len(stream))
        p[at] = self.unigram[stream[at]]
        ranks = stream.astype(np.int64)  # of the (k-1)-gram that ends here; -1: never seen
        for k, level in enumerate(self.levels, 2):
            at = np.flatnonzero(depth >= k - 1)
            context = ranks[at - 1]
            at, context = at[context >= 0], context[context >= 0]
            ranks = np.full(len(stream), -1)
            ranks[at] = _find(level.keys, context * self.base + stream[at])
            seen = ranks[at] >= 0
            p[at] *= level.backoff[context]
            p[at[seen]] += level.prob[ranks[at[seen]]]
        return np.log(p[depth > 0])

    def next_probabilities(self, context: Iterable[int]) -> np.ndarray:
        """p(token | `context` at the start of a document) for every token, float64 [vocab_size]."""
        context = list(context)
        rows = np.empty((self.vocab_size, len(context) + 1), np.int64)
        rows[:, :-1], rows[:, -1] = context, np.arange(self.vocab_size)
        ends = np.arange(1, self.vocab_size + 1) * rows.shape[1]
        return np.exp(self.log_prob(rows.reshape(-1), ends).reshape(rows.shape)[:, -1])

    def bits_per_byte(
        self, tokens: np.ndarray | Iterable[np.ndarray], ends: np.ndarray | None, num_bytes: int
    ) -> float:
        """Bits that `tokens` cost, over the `num_bytes` of UTF-8 text that they stand for."""
        return float(-self.log_prob(tokens, ends).sum() / np.log(2) / num_bytes)

    def _stream(
        self, tokens: np.ndarray | Iterable[np.ndarray], ends: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Documents with a begin symbol before each, and each place's distance from its symbol."""
        if not isinstance(tokens, np.ndarray) or tokens.dtype == object:
            documents = [np.asarray(document) for document in tokens]
            ends = np.cumsum([len(document) for document in documents], dtype=np.int64)
            tokens = np.concatenate([*documents, np.zeros(0, np.int64)])
        ends = np.asarray([len(tokens)] if ends is None else ends, np.int64)
        begins = np.concatenate([[0], ends[:-1]])
        if tokens.ndim != 1 or (len(ends) and ends[-1] != len(tokens)) or (ends < begins).any():
            raise DataError(f"document ends must rise to the {len(tokens)} tokens that there are.")
        if len(tokens) and not (tokens.min() >= 0 and tokens.max() < self.vocab_size):
            raise DataError(
                f"token ids {tokens.min()}..{tokens.max()}: the n-gram model has "
                f"vocab_size={self.vocab_size}."
            )
        stream = np.insert(tokens.astype(np.int32), begins, self.vocab_size)
        begins = begins + np.arange(len(begins))
        depth = np.arange(len(stream), dtype=np.int64)
        depth -= np.repeat(begins, np.diff(begins, append=len(stream)))
        return stream, np.minimum(depth, MAX_ORDER).astype(np.int8)

    def _level(self, keys: np.ndarray, counts: np.ndarray, size: int) -> _Level:
        """One order from its (adjusted) counts; `size` is the number of possible contexts."""
        off, context = self._discounted(counts), keys // self.base
        total = np.bincount(context, counts, minlength=size)
        freed = np.bincount(context, off, minlength=size)
        backoff = np.where(total > 0, freed / np.maximum(total, 1), 1.0)
        return _Level(keys, (counts - off) / total[context], backoff)

    def _discounted(self, counts: np.ndarray) -> np.ndarray:
        """What is taken from each of `counts`, after noting this order's discounts."""
        self.discounts.insert(0, modified_discounts(counts))
        return np.array([0.0, *self.discounts[0]])[np.minimum(counts, 3)]


def modified_discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """What is taken from counts of 1, 2, and 3 or more (Chen and Goodman 1998, equation 17).

    KenLM's (0.5, 1, 1.5) where the counts of counts give none strictly between 0 and the count.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == r)) for r in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return _FALLBACK
    y = n1 / (n1 + 2 * n2)
    found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return found if all(0 < d < r for r, d in enumerate(found, 1)) else _FALLBACK


def _ranked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct keys ascending, how often each comes, and the rank of each of `keys`."""
    # The place rides in the low bits of the key: one plain sort is 10 times faster than an argsort.
    bits = len(keys).bit_length()
    if len(keys) and int(keys.max()).bit_length() + bits < 64:
        both = keys << bits
        both |= np.arange(len(keys))
        both.sort()
        place = both & ((1 << bits) - 1)
        both >>= bits
    else:
        place = np.argsort(keys, kind="stable")
        both = keys[place]
    distinct, counts = _distinct(both)
    ranks = np.empty(len(keys), np.int32 if len(distinct) < 2**31 else np.int64)
    ranks[place] = np.repeat(np.arange(len(distinct), dtype=ranks.dtype), counts)
    return distinct, counts, ranks


def _distinct(ordered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different values of an ascending array, and how often each comes."""
    first = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    first = np.concatenate([np.zeros(min(1, len(ordered)), np.int64), first])
    return ordered[first], np.diff(first, append=len(ordered))


def _find(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The place of each query in the ascending `keys`, or -1."""
    if not len(keys):
        return np.full(len(queries), -1)
    order = np.argsort(queries)  # in order, a search walks through memory instead of jumping
    place = np.empty(len(queries), np.int64)
    place[order] = np.minimum(np.searchsorted(keys, queries[order]), len(keys) - 1)
    return np.where(keys[place] == queries, place, -1)
