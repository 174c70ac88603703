"""Views of a store for objectives that hide part of a window: masking and infilling.

A view is `Windows` whose rows are noised by a key of (seed, epoch, window): the same bytes on any
host, in any process and after any seek.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from lm_jax.config import Config
from lm_jax.data.tokens.specials import Specials
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.views import layout, noise
from lm_jax.data.views.layout import Batch, join
from lm_jax.data.views.windows import Windows
from lm_jax.errors import UserError


class Pieces(NamedTuple):
    """The parts of documents in windows, ordered by row: arrays [k]."""

    ids: np.ndarray  # flat, of all windows
    row: np.ndarray
    begin: np.ndarray  # into ids
    size: np.ndarray
    opens: np.ndarray  # 1: begins with its document's bos
    closes: np.ndarray  # 1: ends with its document's eos
    key: np.ndarray  # of the row
    number: np.ndarray  # where it begins in its window: the number of its random words

    def only(self, which: np.ndarray) -> "Pieces":
        """Those for which `which` [k] is true."""
        return Pieces(self.ids, *(array[which] for array in self[1:]))


class View(Windows, ABC):
    """Windows of `raw_length` tokens that `noised` makes rows of config.data.sequence_length of.

    needs: names of the specials that the objective uses.
    """

    needs: tuple[str, ...] = ()

    def __init__(self, store: TokenStore, split: str, config: Config, seed: int | None):
        self.row_length = config.data.sequence_length
        self.config, self.loss = config, config.loss
        self.pairs = config.model.architecture == "encoder_decoder"
        self.specials = Specials.from_tokenizer(store.tokenizer, config.model.vocab_size)
        self.specials.need(self.needs)
        length = self.raw_length()
        if length < 2:
            raise UserError(
                f"config.data.sequence_length={self.row_length}: too short for"
                f" config.loss.objective={config.loss.objective!r}."
            )
        super().__init__(store, split, length, seed, config.data.packed)
        tokenizer = store.tokenizer
        self.bos, self.eos, self.pad = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id

    def raw_length(self) -> int:
        """Stored tokens from one window to the next."""
        return self.row_length

    def target_length(self) -> int:
        """Positions of the decoder, or of the only stack."""
        return self.row_length

    def rows(self, position: np.ndarray) -> Batch:
        """The batch at places [n] of the endless stream; each epoch has noise of its own."""
        epoch = position // len(self) if self.seed is not None else np.zeros_like(position)
        return self.keyed(self.example(position), epoch)

    def windows(self, example: np.ndarray) -> Batch:
        """The batch of the windows `example` [n] int64, with the noise of epoch 0."""
        return self.keyed(example, np.zeros_like(example))

    def keyed(self, example: np.ndarray, epoch: np.ndarray) -> Batch:
        """The batch of windows [n] in epochs [n]."""
        key = noise.keys(self.seed or 0, epoch, example)
        return {**self.noised(example, key), "example": example.astype(np.int64)}

    @abstractmethod
    def noised(self, example: np.ndarray, key: np.ndarray) -> Batch:
        """The batch of the windows `example` [n] under `key` [n] uint64."""

    def pieces(self, example: np.ndarray, key: np.ndarray, length: int) -> Pieces:
        """The documents in `length` tokens from the start of each window; when not packed, each
        window is one piece.
        """
        starts, n = example * self.length, len(example)
        ids = self.store.gather(self.split, starts, length).reshape(-1)
        if not self.packed:
            whole, no = np.full(n, length), np.zeros(n, np.int64)
            return Pieces(ids, np.arange(n), np.arange(n) * length, whole, no, no, key, no)
        ends = self.store.ends(self.split)
        low = np.searchsorted(ends, starts, "right")
        count = np.searchsorted(ends, starts + length - 1, "right") - low + 1
        row, document = np.repeat(np.arange(n), count), join(low, count)
        opening, ending = np.where(document > 0, ends[document - 1], 0), ends[document]
        start = starts[row]
        begin = np.maximum(opening, start)
        size = np.minimum(ending, start + length) - begin
        opens, closes = begin == opening, begin + size == ending
        return Pieces(
            ids, row, begin - start + row * length, size, opens.astype(np.int64),
            closes.astype(np.int64), key[row], begin - start,
        )  # fmt: skip


class Masked(View):
    """mlm: tokens whose targets are the originals, weight 1 where they are chosen (BERT,
    arXiv:1810.04805), anew in each epoch, in full windows without pairs (RoBERTa,
    arXiv:1907.11692).
    """

    needs: tuple[str, ...] = ("<mask>",)

    def __init__(self, store: TokenStore, split: str, config: Config, seed: int | None):
        super().__init__(store, split, config, seed)
        self.text = np.zeros(config.model.vocab_size, bool)  # ids that stand for text
        self.text[: self.specials.first] = store.tokenizer.byte_lengths > 0
        self.values = np.flatnonzero(self.text)
        self.word_tables = noise.word_tables(store.tokenizer)

    def noised(self, example: np.ndarray, key: np.ndarray) -> Batch:
        """The batch of the windows `example` [n] under `key` [n] uint64."""
        batch = Windows.windows(self, example)
        return {**batch, **self.masked(batch["tokens"], key)}

    def masked(self, ids: np.ndarray, key: np.ndarray) -> Batch:
        """tokens, targets and weights [n, L] of `ids` [n, L]."""
        text = self.text[ids]
        if self.loss.whole_word:
            starts = noise.word_starts(ids, text, *self.word_tables)
            chosen = noise.pick_words(text, starts, self.loss.mask_rate, key)
        else:
            chosen = noise.pick(text, self.loss.mask_rate, key)
        tokens = noise.mask(ids, chosen, key, self.specials.id("<mask>"), self.values)
        return {"tokens": tokens, "targets": ids, "weights": chosen.astype(np.float32)}


class Infill(View):
    """fim: pieces cut into prefix, middle and suffix at two random tokens, the middle moved to the
    end (arXiv:2207.14255, sections 3 and 4.2, appendix D).

    PSM: <pre> prefix <suf> suffix <mid> middle <eos>. SPM, the paper's second variant: <pre> <suf>
    suffix <mid> prefix middle <eos>. A bos stays in front, and a piece without eos gets one, since
    a middle must end. What that adds is taken from the window's end.
    """

    needs = ("<pre>", "<suf>", "<mid>")

    def noised(self, example: np.ndarray, key: np.ndarray) -> Batch:
        """The batch of the windows `example` [n] under `key` [n] uint64."""
        L = self.row_length
        p = self.pieces(example, key, L + 1)
        cut = noise.uniform(noise.words(p.key, noise.CHOOSE, p.number)) < self.loss.fim_rate
        spm = noise.uniform(noise.words(p.key, noise.ORDER, p.number)) < self.loss.spm_rate
        room = L + 1 - layout.before(p.row, p.size + cut * (4 - p.closes))
        short = p.size + cut * (4 - p.closes) > room
        closes = np.where(short, 0, p.closes)
        text = np.where(short, room - p.opens - 4 * cut, p.size - p.opens - closes)
        cut &= text > 0
        text = np.where(short & ~cut, room - p.opens, text)
        there = room > 0
        p, (cut, spm, closes, text) = p.only(there), (x[there] for x in (cut, spm, closes, text))

        a, b = (
            noise.below(noise.words(p.key, s, p.number), text + 1)
            for s in (noise.CUT_A, noise.CUT_B)
        )
        a, b = np.where(cut, np.minimum(a, b), text), np.where(cut, np.maximum(a, b), text)
        pre, suf, mid = ((np.full(len(text), ~self.specials.id(n)), cut) for n in self.needs)
        bos, eos = (p.begin, p.opens), (np.full(len(text), ~self.eos), cut | closes)
        begin = p.begin + p.opens
        first, middle, last = (begin, a), (begin + a, b - a), (begin + b, text - b)
        orders = ((pre, suf, last, mid, first), (pre, first, suf, last, mid))
        runs = [
            (np.where(spm, x[0], y[0]), np.where(spm, x[1], y[1]))
            for x, y in zip(*orders, strict=True)
        ]
        ids, sizes = layout.weave(p.ids, bos, *runs, middle, eos)
        given = np.zeros(len(text), np.int64)
        shape = (len(example), L)
        batch = layout.decoder_rows(ids, p.row, sizes, given, shape, self.pad)
        del batch["prefix"]
        return batch
