"""The loss of a model on text: every token once, in windows that move over each document."""

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.config.values import number
from lm_jax.data.text.clean import tidy
from lm_jax.data.tokens.frame import Frame
from lm_jax.data.tokens.specials import Specials
from lm_jax.devices.sharding import shard, ways
from lm_jax.errors import DataError, UserError
from lm_jax.progress import Progress

BATCH_TOKENS = 8192  # of a batch whose size is not given
TEXTS = 64  # documents that are tokenized together

Batch = dict[str, np.ndarray]
Piece = tuple[np.ndarray, np.ndarray, int]  # inputs [n], targets [n], how many of the last count


@dataclasses.dataclass(frozen=True)
class Masking:
    """Masks of an encoder's evaluation: each token once, while every `passes`-th of its window is
    masked.

    As many passes as the window has tokens mask one at a time (pseudo-likelihood, Salazar et al.
    2020, arXiv:1910.14659).
    """

    mask_id: int
    passes: int = 8


def masking_of(model: Any, tokenizer: Any) -> Masking | None:
    """Masking of this model: None unless it is an encoder."""
    if model.generates:
        return None
    return Masking(Specials.from_tokenizer(tokenizer, model.config.vocab_size).id("<mask>"))


@dataclasses.dataclass(frozen=True)
class Result:
    """Loss, perplexity, bits per byte and counts of a text."""

    nats: float  # summed over the tokens
    tokens: int  # predicted, the end of each document included
    bytes: int  # of UTF-8 text
    documents: int
    seconds: float
    pseudo: bool = False  # an encoder's: each token given those after it too, no code of the text

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits that the text costs, over its bytes: comparable between tokenizers. NaN where the
        loss is not of the text alone.
        """
        return math.nan if self.pseudo or not self.bytes else self.nats / math.log(2) / self.bytes

    def __str__(self) -> str:
        bits = "" if math.isnan(self.bits_per_byte) else f"bits per byte {self.bits_per_byte:.4f}  "
        return (
            f"loss {self.loss:.4f}  {'pseudo-' * self.pseudo}perplexity {self.perplexity:.4g}  "
            f"{bits}{self.tokens:,} tokens  {self.seconds:.1f} s"
        )


def evaluate(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    window: int = 0,
    stride: int = 0,
    batch_size: int = 0,
    frame: Frame | None = None,
    progress: bool = True,
) -> Result:
    """`evaluate_tokens` of texts, tidied as training text is; raises DataError when there is none.

    frame: special tokens around each text, by default bos and eos as in training here. Where none
    stands before it, its first token is given and not predicted, and its bytes do not count.
    """
    masking = masking_of(model, tokenizer)
    window, stride = check(model, masking, window, stride, batch_size)  # before the text is read
    documents, size = [], 0
    frame = frame or tokenizer.document_frame
    for group in grouped(map(tidy, texts), TEXTS):
        for text, ids in zip(group, tokenizer.encode_batch(group), strict=True):
            documents.append(frame.around(ids))
            size += len(text.encode())
            if not frame.before and len(ids):
                given = int(tokenizer.byte_lengths[ids[0]]) - len(tokenizer.prefix)
                size -= min(len(text.encode()), max(0, given))
    total = sum(max(0, len(document) - 1) for document in documents)
    return evaluate_tokens(
        model, documents, size, window, stride, batch_size, total, masking, progress
    )


def evaluate_heldout(
    model: Any, store: Any, window: int = 0, stride: int = 0, batch_size: int = 0
) -> Result:
    """`evaluate_tokens` of all held-out documents of a token store."""
    count = store.num_documents("heldout")
    documents = (store.document("heldout", i) for i in range(count))
    size, total = store.num_bytes("heldout"), store.num_tokens("heldout") - count
    masking = masking_of(model, store.tokenizer)
    return evaluate_tokens(model, documents, size, window, stride, batch_size, total, masking)


def evaluate_tokens(
    model: Any,
    documents: Iterable[np.ndarray],
    num_bytes: int,
    window: int = 0,
    stride: int = 0,
    batch_size: int = 0,
    total: int | None = None,
    masking: Masking | None = None,
    progress: bool = True,
) -> Result:
    """The loss of `model` on documents of ids, [bos] ... [eos], that stand for `num_bytes` of text.

    window: tokens that the model sees at once, at most model.config.max_length (0: that). stride:
    targets by which the window moves on (0: window); each is counted once, with at least
    window - stride tokens before it where the document has them. batch_size: rows of windows
    (0: BATCH_TOKENS tokens). total: targets of all documents, for the time left. masking: of an
    encoder, whose figure is a pseudo-likelihood. progress: shows lines of it. Raises DataError
    without documents, UserError for an encoder_decoder, which gives a text no likelihood without
    an input.
    """
    window, stride = check(model, masking, window, stride, batch_size)
    batch_size = batch_size or max(1, BATCH_TOKENS // window)
    started, count, nats, tokens = time.perf_counter(), 0, 0.0, 0
    pending: Any = 0.0

    def pieces() -> Iterator[Piece]:
        nonlocal count
        for document in documents:
            count += 1
            document = np.asarray(document, np.int32)
            if masking is None:
                yield from cut(document, window, stride)
            else:  # targets are the inputs, but for bos, which nobody predicts
                shifted = np.concatenate([document[:1], document])
                for index, (_, targets, counted) in enumerate(cut(shifted, window, stride)):
                    yield targets, targets, counted - (index == 0)

    with Progress("evaluating", total, "k tokens", 1e3, quiet=not progress) as shown:
        batches = packed(pieces(), window, batch_size)
        for batch in batches if masking is None else masked(batches, masking):
            batch_nats, counted = nats_of(model, batch), int(batch["weights"].sum(dtype=np.float64))
            # The device computes this batch while the host waits for the one before.
            nats, pending = nats + float(pending), batch_nats
            tokens += counted
            shown.add(counted)
    if not tokens:
        raise DataError("no text to evaluate: there is no document, or none has a token.")
    nats += float(pending)
    seconds = time.perf_counter() - started
    return Result(nats, tokens, num_bytes, count, seconds, masking is not None)


def check(
    model: Any, masking: Masking | None, window: int, stride: int, batch_size: int
) -> tuple[int, int]:
    """Window and stride with their defaults; raises UserError where the arguments of
    `evaluate_tokens` do not fit the model.
    """
    kind = model.config.architecture
    if model.conditional or model.generates != (masking is None):
        needs = "pairs of texts" if model.conditional else "`masking`"
        raise UserError(f"config.model.architecture={kind!r}: is scored on {needs}, not on this.")
    if batch_size < 0:
        raise UserError(
            f"batch_size={batch_size}: must be 0 (about {BATCH_TOKENS} tokens) or more."
        )
    return checked(window, stride, model.config.max_length)


def checked(window: int, stride: int, max_length: int) -> tuple[int, int]:
    """Window and stride with their defaults; raises UserError."""
    window = number("window", window or max_length, whole=True)
    if not 1 <= window <= max_length:
        raise UserError(f"window={window}: must be 1 to model.max_length={max_length}.")
    stride = number("stride", stride or window, whole=True)
    if not 1 <= stride <= window:
        raise UserError(f"stride={stride}: must be 1 to the window of {window} tokens.")
    return window, stride


def nats_of(model: Any, batch: Batch) -> Any:
    """Negative log-likelihood of a batch, summed; a model that counts (n-grams) does it here."""
    if model.on_host:
        return -np.sum(model.log_probs(batch) * batch["weights"])
    return network_nats(model, batch)


@jax.jit
def network_nats(model, batch):
    """Negative log-likelihood of a batch under a network."""
    batch = {name: shard(x, "batch", None) for name, x in batch.items()}
    return -jnp.sum(model.log_probs(batch) * batch["weights"])


def masked(batches: Iterable[Batch], masking: Masking) -> Iterator[Batch]:
    """Each batch once a pass, with other tokens masked; these are the targets that count."""
    for batch in batches:
        column = np.arange(batch["tokens"].shape[1])[None]
        for turn in range(masking.passes):
            chosen = (column % masking.passes == turn) & (batch["weights"] > 0)
            tokens = np.where(chosen, masking.mask_id, batch["tokens"]).astype(np.int32)
            yield {**batch, "tokens": tokens, "weights": chosen.astype(np.float32)}


def cut(document: np.ndarray, window: int, stride: int) -> Iterator[Piece]:
    """Windows at 0, stride, 2 stride ... of a document [n + 1]; each target counts in the first."""
    n, counted = len(document) - 1, 0
    for start in range(0, n, stride):
        stop = min(start + window, n)
        yield document[start:stop], document[start + 1 : stop + 1], stop - counted
        if stop == n:
            return
        counted = stop


def packed(pieces: Iterable[Piece], window: int, batch_size: int) -> Iterator[Batch]:
    """Batches [rows, window] of pieces; short ones share a row as segments, unseen by each other.

    A text that does not fill the first batch gets one of fewer rows, a power of two.
    """
    rows, first = new_rows(batch_size), True
    for piece in pieces:
        length = len(piece[0])
        row = next((r for r in rows if sum(len(p[0]) for p in r) + length <= window), None)
        if row is None:
            yield arrays(rows, window)
            rows, first = new_rows(batch_size), False
            row = rows[0]
        row.append(piece)
    used = sum(bool(row) for row in rows)
    if used:
        small = first and ways("batch") == 1
        yield arrays(rows[: 1 << (used - 1).bit_length()] if small else rows, window)


def new_rows(batch_size: int) -> list[list[Piece]]:
    """Empty rows, as many as divide over the devices."""
    return [[] for _ in range(-(-batch_size // ways("batch")) * ways("batch"))]


def arrays(rows: Sequence[Sequence[Piece]], window: int) -> Batch:
    """The batch of these rows; what is not filled has segment 0 and weight 0."""
    shape = (len(rows), window)
    names = ("tokens", "targets", "segment_ids", "positions")
    batch: Batch = {name: np.zeros(shape, np.int32) for name in names}
    batch["weights"] = np.zeros(shape, np.float32)
    for row, pieces in enumerate(rows):
        at = 0
        for segment, (inputs, targets, count) in enumerate(pieces, 1):
            here = slice(at, at + len(inputs))
            batch["tokens"][row, here], batch["targets"][row, here] = inputs, targets
            batch["segment_ids"][row, here] = segment
            batch["positions"][row, here] = np.arange(len(inputs))
            batch["weights"][row, here.stop - count : here.stop] = 1
            at = here.stop
    return batch


def grouped(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` texts, the last one shorter."""
    group: list[str] = []
    for text in texts:
        group.append(text)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
