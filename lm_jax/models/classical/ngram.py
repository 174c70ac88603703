"""Interpolated modified Kneser-Ney n-gram models.

S. F. Chen and J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling"
(1998), section 3: three discounts an order, lower orders estimated from the number of distinct
tokens to the left, the unigram interpolated with the uniform distribution, so that no token is
impossible. As in KenLM, one begin symbol precedes each document, no context reaches across it, and
n-grams that start with it keep their plain counts.

An n-gram is identified by its rank among the distinct n-grams of its order. The key of a longer one
is (rank of its first n-1 tokens) * base + last token: 64 bits suffice for any vocabulary.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from lm_jax.errors import DataError, UserError

MAX_ORDER = 6
_FALLBACK = (0.5, 1.0, 1.5)  # KenLM's discounts where the counts of counts give no valid ones


@dataclasses.dataclass(frozen=True)
class Level:
    """The k-grams of one order k >= 2, ascending by key; contexts are (k-1)-grams by rank.

    The rank of a 1-gram is its token; the begin symbol's is the vocabulary size.
    """

    keys: np.ndarray  # int64 [U_k]: context rank * base + token
    prob: np.ndarray  # float64 [U_k]: p(token | context), all orders below included
    backoff: np.ndarray  # float64 [U_{k-1}]: weight of the order below, for unseen continuations


@dataclasses.dataclass(frozen=True)
class _Counts:
    """Statistics of the k-grams of one order, ascending by key."""

    keys: np.ndarray  # int64 [U_k]
    counts: np.ndarray  # int64 [U_k]: occurrences
    suffix: np.ndarray  # int64 [U_k]: rank of the (k-1)-gram without the first token
    begins: np.ndarray  # int64 [U_k]: `counts` of those that start with the begin symbol, else 0


class KneserNey:
    """Modified Kneser-Ney model over token ids 0..vocab_size-1; `fit` before any other method.

    order: the n of n-gram, 1..6. bos_id: the token that means the begin symbol at the start of a
    segment or context (`fit` and `log_prob` take documents without it). Raises UserError for an
    order, vocabulary or bos_id out of range.
    """

    def __init__(self, order: int = 5, vocab_size: int = 256, bos_id: int | None = None):
        if not 1 <= order <= MAX_ORDER:
            raise UserError(f"order={order}: n-gram models are of order 1 to {MAX_ORDER}.")
        if not 1 <= vocab_size < 2**31 - 1:
            raise UserError(f"vocab_size={vocab_size}: must be at least 1 and below 2^31-1.")
        if bos_id is not None and not 0 <= bos_id < vocab_size:
            raise UserError(f"bos_id={bos_id}: must be 0 to {vocab_size - 1}, an id like others.")
        self.order, self.vocab_size, self.bos_id = order, vocab_size, bos_id
        self.base = vocab_size + 1  # the begin symbol is the id after the last token
        self.unigram = np.full(vocab_size, 1 / vocab_size)
        self.levels: list[Level] = []
        # By order, the discounts of counts of 1, 2, and 3 or more.
        self.discounts: list[tuple[float, float, float]] = []

    def fit(
        self, tokens: np.ndarray | Iterable[np.ndarray], ends: np.ndarray | None = None
    ) -> "KneserNey":
        """Counts documents (arrays of ids), or one flat array with its documents' exclusive `ends`.

        Returns self. Raises DataError on an id outside the vocabulary or ends that do not fit.
        """
        stream, depth = self._stream(tokens, ends)
        seen = np.bincount(stream[depth > 0], minlength=self.base)
        zeros = np.zeros_like(seen)
        tables, ranks = [_Counts(np.arange(self.base), seen, zeros, zeros)], stream
        for k in range(2, self.order + 1):
            at = np.flatnonzero(depth >= k - 1)  # where a k-gram ends
            keys = ranks[at - 1].astype(np.int64) * self.base + stream[at]
            keys, counts, found, first = _ranked(keys)
            begins = np.bincount(found[depth[at] == k - 1], minlength=len(keys))
            tables.append(_Counts(keys, counts, ranks[at[first]], begins))
            ranks = np.zeros(len(stream), found.dtype)
            ranks[at] = found
        self.levels, self.discounts = [], []
        prob = np.full(1, 1 / self.vocab_size)  # of order 0: one context, no tokens
        for i, table in enumerate(tables):
            counts = table.counts
            if i < len(tables) - 1:
                # Below the highest order an n-gram counts the different tokens that precede it;
                # none precedes a begin symbol: n-grams that start with one keep their own counts.
                counts = np.bincount(tables[i + 1].suffix, minlength=len(counts)) + table.begins
            self.discounts.append(modified_discounts(counts))
            off = np.array([0.0, *self.discounts[-1]])[np.minimum(counts, 3)]
            context = table.keys // self.base
            total = np.bincount(context, counts, minlength=len(prob))
            freed = np.bincount(context, off, minlength=len(prob))
            backoff = np.where(total > 0, freed, 1.0) / np.maximum(total, 1)
            share = (counts - off) / np.maximum(total, 1)[context]
            prob = share + backoff[context] * prob[table.suffix]
            self.levels.append(Level(table.keys, prob, backoff))
        self.unigram = self.levels.pop(0).prob[:-1]
        return self

    def log_prob(
        self, tokens: np.ndarray | Iterable[np.ndarray], ends: np.ndarray | None = None
    ) -> np.ndarray:
        """log p(token | up to order-1 tokens before it in its document): nats, float64 [tokens]."""
        stream, depth = self._stream(tokens, ends)
        return np.log(self._probabilities(stream, depth)[depth > 0])

    def log_probs(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """log p(target | tokens of its segment so far): nats, float32 [B, L], 0 on padding.

        batch: tokens, targets (the next tokens) and segment_ids [B, L] int, as the data gives them.
        A segment that starts with bos_id starts a document, any other continues one; without a
        bos_id each segment starts a document.
        """
        segments = np.asarray(batch["segment_ids"])
        real = segments > 0
        first = (np.diff(segments, axis=1, prepend=0) != 0) & real
        # The targets, and before those of each segment the context of the first one.
        lead = self._start(self._checked(np.asarray(batch["tokens"])[first])[:, None])
        targets = self._checked(np.asarray(batch["targets"])[real])
        stream, depth, inserted = _joined(targets, np.flatnonzero(first[real]), lead)
        log_p = np.zeros(segments.shape, np.float32)
        log_p[real] = np.log(np.delete(self._probabilities(stream, depth), inserted))
        return log_p

    def next_probabilities(self, context: Iterable[int]) -> np.ndarray:
        """p(token | context) for every token, float64 [vocab_size].

        The context is that of a segment: see `log_probs`.
        """
        seen = self._start(self._checked(np.array([*context], np.int32))[None])[0]
        seen = seen[max(0, len(seen) - self.order + 1) :]
        rows = np.empty((self.vocab_size, len(seen) + 1), np.int32)
        rows[:, :-1], rows[:, -1] = seen, np.arange(self.vocab_size)
        depth = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
        return self._probabilities(rows.reshape(-1), depth.reshape(-1))[len(seen) :: len(seen) + 1]

    def bits_per_byte(
        self, tokens: np.ndarray | Iterable[np.ndarray], ends: np.ndarray | None, num_bytes: int
    ) -> float:
        """Bits of `tokens` under the model, per byte of their `num_bytes` of UTF-8 text."""
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
            raise DataError(f"document ends must rise up to the {len(tokens)} tokens.")
        if self.bos_id is not None and (tokens == self.bos_id).any():
            raise DataError(f"bos_id={self.bos_id}: documents are given without the begin symbol.")
        begin = np.full((len(begins), 1), self.vocab_size, np.int32)
        return _joined(self._checked(tokens), begins, begin)[:2]

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        """`tokens` as int32; raises DataError when one is outside the vocabulary."""
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < self.vocab_size):
            raise DataError(
                f"token ids {tokens.min()}..{tokens.max()}: the n-gram model has "
                f"vocab_size={self.vocab_size}."
            )
        return tokens.astype(np.int32)

    def _start(self, context: np.ndarray) -> np.ndarray:
        """Contexts [n, m] with the begin symbol: in place of a leading bos_id, or in front."""
        if self.bos_id is None:
            return np.pad(context, ((0, 0), (1, 0)), constant_values=self.vocab_size)
        context[:, :1] = np.where(context[:, :1] == self.bos_id, self.vocab_size, context[:, :1])
        return context

    def _probabilities(self, stream: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """p(symbol | the `depth` symbols before it), float64; 0 for the begin symbol."""
        p = np.append(self.unigram, 0.0)[stream]
        ranks = stream.astype(np.int64)  # of the (k-1)-gram that ends here; -1: never seen
        for k, level in enumerate(self.levels, 2):
            at = np.flatnonzero(depth >= k - 1)
            context = ranks[at - 1]
            at, context = at[context >= 0], context[context >= 0]
            rank = find(level.keys, context * self.base + stream[at])
            ranks = np.full(len(stream), -1)
            ranks[at] = rank
            p[at] *= level.backoff[context]
            p[at[rank >= 0]] = level.prob[rank[rank >= 0]]
        return p


def modified_discounts(counts: np.ndarray) -> tuple[float, float, float]:
    """Discounts of counts of 1, 2, and 3 or more (Chen and Goodman 1998, equation 17).

    KenLM's (0.5, 1, 1.5) where the counts of counts give one that is not above 0, or above the
    count.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == r)) for r in (1, 2, 3, 4))
    if not (n1 and n2 and n3):
        return _FALLBACK
    y = n1 / (n1 + 2 * n2)
    discounts = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
    return discounts if all(0 < d <= r for r, d in enumerate(discounts, 1)) else _FALLBACK


def _joined(
    tokens: np.ndarray, at: np.ndarray, lead: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`tokens` with row i of `lead` [n, m] inserted before place at[i], each symbol's distance from
    the first of the row before it (MAX_ORDER at most), and the places of the inserted symbols.
    """
    n, m = lead.shape
    stream = np.insert(tokens, np.repeat(at, m), lead.reshape(-1))
    begins = at + m * np.arange(n)
    depth = np.arange(len(stream)) - np.repeat(begins, np.diff(begins, append=len(stream)))
    inserted = (begins[:, None] + np.arange(m)).reshape(-1)
    return stream, np.minimum(depth, MAX_ORDER).astype(np.int8), inserted


def _ranked(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(distinct keys ascending, the number of each, the rank of each of `keys`, the index of the
    first of each distinct one).
    """
    ordered, place = _sorted(keys)
    first = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    first = np.concatenate([np.zeros(min(1, len(ordered)), np.int64), first])
    counts = np.diff(first, append=len(ordered))
    ranks = np.empty(len(keys), np.int32 if len(first) < 2**31 else np.int64)
    ranks[place] = np.repeat(np.arange(len(first), dtype=ranks.dtype), counts)
    return ordered[first], counts, ranks, place[first]


def _sorted(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(keys >= 0 ascending, the index of each in `keys`)."""
    # The index is packed into the low bits of the key: one plain sort is faster than an argsort.
    bits = len(keys).bit_length()
    if len(keys) and int(keys.max()).bit_length() + bits < 64:
        both = keys << bits
        both |= np.arange(len(keys))
        both.sort()
        place = both & ((1 << bits) - 1)
        both >>= bits
        return both, place
    place = np.argsort(keys, kind="stable")
    return keys[place], place


def find(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The rank of each query in the ascending `keys`, or -1."""
    if not len(keys):
        return np.full(len(queries), -1)
    ordered, place = _sorted(queries)  # so that the search accesses memory in order
    rank = np.minimum(np.searchsorted(keys, ordered), len(keys) - 1)
    ranks = np.empty(len(queries), np.int64)
    ranks[place] = np.where(keys[rank] == ordered, rank, -1)
    return ranks
