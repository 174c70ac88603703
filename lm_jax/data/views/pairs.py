"""Views with an input and an answer: prefix LM, span corruption, and pairs that the text itself
holds.

For an encoder-decoder the two are separate arrays: inputs and targets. A decoder alone has them in
one row, where the input is the `prefix` and only the answer has weight.
"""

from typing import Any

import numpy as np

from lm_jax.config import Config
from lm_jax.data.tokens.specials import MAX_SENTINELS, decoder_start
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.views import layout, noise
from lm_jax.data.views.denoise import Pieces, View
from lm_jax.data.views.layout import Batch, Ragged, Runs, before, gather_ids, join, weave
from lm_jax.errors import DataError


class PairView(View):
    """Views whose pieces are pairs."""

    def paired(self, n: int, row: np.ndarray, sources: Ragged, targets: Ragged) -> Batch:
        """The batch of `n` rows from pieces in `row` [k]."""
        shape = (n, self.row_length)
        if not self.pairs:
            return layout.prefix_rows(sources, targets, row, shape, self.pad)
        shapes = (shape, (n, self.target_length()))
        start = decoder_start(self.store.tokenizer, self.config.model.decoder_start)
        return layout.encoder_decoder_rows(sources, targets, row, shapes, (start, self.pad))


class Prefix(PairView):
    """prefix_lm: each piece is cut at a random token into its input and its target (T5,
    arXiv:1910.10683, section 3.2.3).

    share: mean share of a piece that is its target: 1 to 2 share n tokens, uniformly. mode: a
    special token in front. Pieces keep their own eos and get no other: a text that the window cuts
    does not end.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        config: Config,
        seed: int | None,
        share: float = 0.5,
        mode: str = "",
    ):
        self.share, self.mode = share, mode
        self.needs = (mode,) if mode else ()
        super().__init__(store, split, config, seed)

    def raw_length(self) -> int:
        """For the encoder, the mode takes a place."""
        return self.row_length - (bool(self.mode) and self.pairs)

    def target_sizes(self, p: Pieces, size: np.ndarray) -> np.ndarray:
        """[k]: how many of the `size` [k] tokens of each piece are targets; not all of them."""
        most = np.maximum(np.rint(2 * self.share * size).astype(np.int64) - 1, 1)
        return np.minimum(
            1 + noise.below(noise.words(p.key, noise.CUT_A, p.number), most), size - 1
        )

    def noised(self, example: np.ndarray, key: np.ndarray) -> Batch:
        """The batch of the windows `example` [n] under `key` [n] uint64."""
        n, mode = len(example), bool(self.mode)
        front = (~self.specials.id(self.mode) if mode else 0, mode)
        if not self.pairs:
            L = self.row_length
            p = self.pieces(example, key, L + 1)
            size = np.minimum(p.size, L + 1 - mode - before(p.row, p.size + mode))
            p, size = p.only(size > 0), size[size > 0]
            ids, sizes = weave(p.ids, front, (p.begin, size))
            given = sizes - self.target_sizes(p, size)
            return layout.decoder_rows(ids, p.row, sizes, given, (n, L), self.pad)
        p = self.pieces(example, key, self.length)
        p = p.only(p.size - p.opens > 1)
        begin, size = p.begin + p.opens, p.size - p.opens
        target = self.target_sizes(p, size)
        sources = weave(p.ids, front, (begin, size - target), (~self.eos, 1))
        return self.paired(n, p.row, sources, weave(p.ids, (begin + size - target, target)))


class Spans(PairView):
    """span_corruption: sentinels replace random spans, which are the targets, each behind its
    sentinel (T5, arXiv:1910.10683, section 3.1.4).

    A piece of n tokens, without its document's bos and eos, gives n - noise + spans + 1 inputs and
    noise + spans + 1 targets, each with an eos; the window is the longest of which one piece fits
    both, so that a window in one document fills its row. Where documents share a window each has
    spans, sentinels and an eos of its own, and the last is cut to what is left.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        config: Config,
        seed: int | None,
        rate: float = 0.0,
        mean: float = 0.0,
        mode: str = "",
    ):
        loss, L, self.mode = config.loss, config.data.sequence_length, mode
        self.needs = (mode,) if mode else ()
        counts = noise.span_counts(
            2 * L + 2, rate or loss.mask_rate, mean or loss.mean_span, MAX_SENTINELS
        )
        self.noise, self.spans = counts
        some = self.noise > 0
        self.inputs = np.where(some, np.arange(2 * L + 3) - self.noise + self.spans + 1, 0)
        self.inputs += some * bool(mode)
        self.targets = np.where(some, self.noise + self.spans + 1, 0)
        super().__init__(store, split, config, seed)
        self.specials.need(self.needs, int(self.spans[self.length]))

    def fitting(self, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Sizes [k] of the longest pieces with at most `inputs` [k] inputs and `targets` [k]
        targets; of a decoder alone, with at most `inputs` of both together.
        """
        if not self.pairs:
            return np.searchsorted(self.inputs + self.targets, inputs, "right") - 1
        longest = np.searchsorted(self.inputs, inputs, "right") - 1
        return np.minimum(longest, np.searchsorted(self.targets, targets, "right") - 1)

    def raw_length(self) -> int:
        """The longest piece that a row holds."""
        L = np.array([self.row_length])
        return int(self.fitting(L if self.pairs else L + 1, L)[0])

    def target_length(self) -> int:
        """Length of such a piece's answer; of a decoder alone, of the row."""
        return int(self.targets[self.length]) if self.pairs else self.row_length

    def noised(self, example: np.ndarray, key: np.ndarray) -> Batch:
        """The batch of the windows `example` [n] under `key` [n] uint64."""
        p = self.pieces(example, key, self.length)
        size = p.size - p.opens - p.closes
        if self.pairs:
            room = self.row_length - before(p.row, self.inputs[size])
        else:
            room = self.row_length + 1 - before(p.row, (self.inputs + self.targets)[size])
        left = self.target_length() - before(p.row, self.targets[size])
        size = np.minimum(size, self.fitting(room, left))
        p, size = p.only(size > 1), size[size > 1]
        count, hidden = self.spans[size], self.noise[size]

        span = noise.segmentation(hidden, count, self.each(p, hidden - 1, noise.SPANS))
        gap = noise.segmentation(size - hidden, count, self.each(p, size - hidden - 1, noise.GAPS))
        piece, number = np.repeat(np.arange(len(size)), count), join(0 * count, count)
        kept = (p.begin + p.opens)[piece] + before(piece, gap + span)
        sentinel = (number - self.specials.last_sentinel - 1, np.ones_like(number))  # ~(last - k)
        source = self.alternate(p, count, (kept, gap), sentinel, self.mode)
        target = self.alternate(p, count, sentinel, (kept + gap, span), "")
        sides = (source, self.inputs[size]), (target, self.targets[size])
        return self.paired(len(example), p.row, *sides)

    def each(self, p: Pieces, count: np.ndarray, stream: int) -> np.ndarray:
        """[sum(count)]: words of a stream, `count` [k] for each piece."""
        return noise.words(np.repeat(p.key, count), stream, join(p.number, count))

    def alternate(self, p: Pieces, count: np.ndarray, a: Runs, b: Runs, mode: str) -> np.ndarray:
        """Flat ids of the pieces: the mode, `count` [k] times a run of `a` and one of `b`, eos."""
        sizes, head = 2 * count + 1 + bool(mode), int(bool(mode))
        begin = np.cumsum(sizes) - sizes
        starts, lengths = np.full(sizes.sum(), ~self.eos), np.ones(sizes.sum(), np.int64)
        if mode:
            starts[begin] = ~self.specials.id(mode)
        inner = join(begin + head, 2 * count)
        starts[inner] = np.stack([a[0], b[0]], 1).reshape(-1)
        lengths[inner] = np.stack([a[1], b[1]], 1).reshape(-1)
        return gather_ids(p.ids, join(starts, lengths))


def without_tab(store: TokenStore, split: str) -> dict[str, Any]:
    """Documents of a split that are no pairs, as `prepare` found them: count, source of the first,
    numbers. {} where there are none, or the store is older.
    """
    return store.metadata.get("without_tab", {}).get(split, {})


class Supervised(PairView):
    """seq2seq: every document is `input<TAB>target`; example i is document i of those that are, one
    a row.

    What does not fit is cut off at the end: of either side for an encoder-decoder; for a decoder
    alone the target has at most half the row. Documents without a tab are left out; raises
    DataError above config.data.max_bad_fraction of them.
    """

    chosen: np.ndarray | None = None  # numbers of the documents that are pairs; None: all are

    def count(self) -> int:
        """Number of pairs in the split: they are not cut into windows."""
        total = self.store.num_documents(self.split)
        if not (found := without_tab(self.store, self.split)):
            return total
        limit, bad = self.config.data.max_bad_fraction, found["documents"]
        if found["count"] > limit * total or len(bad) < found["count"]:
            raise DataError(
                f"{self.store.path}: {found['count']:,} of {total:,} documents of {self.split} have"
                f" no tab ({found['first']}), above config.data.max_bad_fraction={limit};"
                " config.loss.objective=seq2seq reads documents 'input<TAB>target'."
            )
        self.chosen = np.setdiff1d(np.arange(total), bad, assume_unique=True)
        return len(self.chosen)

    def noised(self, example: np.ndarray, key: np.ndarray) -> Batch:
        """The batch of the windows `example` [n] under `key` [n] uint64."""
        del key
        documents = example if self.chosen is None else self.chosen[example]
        texts = [self.text(document) for document in documents.tolist()]
        found = self.store.tokenizer.encode_batch([side for pair in texts for side in pair], 1)
        room = (self.row_length,) * 2
        sources, targets = [], []
        for source, target in zip(found[::2], found[1::2], strict=True):
            if not self.pairs:
                size = min(len(target) + 1, (self.row_length + 1) // 2)
                room = (self.row_length + 1 - size, size)
            sources.append(np.append(source[: room[0] - 1], self.eos))
            targets.append(np.append(target, self.eos)[: room[1]])
        n = len(example)
        sides = ((np.concatenate(x), np.array([len(i) for i in x])) for x in (sources, targets))
        return self.paired(n, np.arange(n), *sides)

    def text(self, document: int) -> tuple[str, str]:
        """(input, target) of a document."""
        text = self.store.tokenizer.decode(self.store.document(self.split, document))
        source, tab, target = text.partition("\t")
        if not tab:
            raise DataError(
                f"{self.store.path}: document {document} of {self.split} has no tab;"
                " config.loss.objective=seq2seq reads documents 'input<TAB>target'."
            )
        return source, target
