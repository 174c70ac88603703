"""Raw text to a token store: clean, split, train a tokenizer, encode."""

import dataclasses
import errno
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from lm_jax.config import DataConfig
from lm_jax.config.values import expand_home
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import DataError, MachineError


def prepare(data: DataConfig, output: str, seed: int = 0, tokenizer: Any = None) -> str:
    """Makes the token store `output` from the text `data.input` and returns its path.

    `tokenizer`: an existing one; by default `data.tokenizer`, trained with `data.vocab_size` pieces
    unless it names a directory.
    The store is the same for any number of cores. Raises DataError (unusable text; something is at
    `output`) or MachineError (disk), and then leaves nothing behind. `seed` is kept in the
    metadata only: the split follows the text.
    """
    from lm_jax.data.text.corpus import Corpus
    from lm_jax.data.tokens.scripts import advice
    from lm_jax.data.tokens.tokenizer_training import SAMPLE_BYTES, train
    from lm_jax.data.tokens.writer import Writer, discard, refuse_existing, unfinished

    started, output = time.monotonic(), expand_home(output)
    refuse_existing(output)
    tokenizer = tokenizer or given_tokenizer(data)
    try:
        with Corpus(data, unfinished(output)) as corpus:
            corpus.read()
            parts = corpus.split()
            if tokenizer is None:
                size = sum(p.end - p.begin for p in parts if p.split == "train")
                announce_training(data, min(size, SAMPLE_BYTES))
                sample = [*corpus.sample(parts, SAMPLE_BYTES)]
                if data.tokenizer != "bytes" and (line := advice(sample, data.vocab_size)):
                    print(line, file=sys.stderr, flush=True)
                tokenizer = train(data.tokenizer, sample, data.vocab_size)
            with Writer(output, tokenizer) as writer:
                tabs = Tabs()
                lost = encode_parts(corpus, parts, tokenizer, writer, tabs)
                writer.finish(
                    {
                        "data": dataclasses.asdict(data),
                        "seed": seed,
                        "round_trips_checked": len(parts),
                        "round_trips_failed": lost,
                        "without_tab": tabs.lacking(),
                        "seconds": round(time.monotonic() - started, 1),
                        **corpus.about(),
                    }
                )
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else f"cannot write here ({error.strerror or error})"
        raise MachineError(f"{output}: {why}; name another place.") from None
    finally:
        discard(output)
    return output


def given_tokenizer(data: DataConfig) -> Tokenizer | None:
    """The tokenizer of the directory `data.tokenizer`; None where one is trained. Raises
    DataError.
    """
    from lm_jax.data.tokens.load import load_tokenizer
    from lm_jax.data.tokens.tokenizer import KINDS

    return None if data.tokenizer in KINDS else load_tokenizer(data.tokenizer)


def check_vocabulary(data: DataConfig, vocab_size: int) -> None:
    """Raises DataError when the tokenizer of `data` has more ids than a model of `vocab_size`;
    reads no text.
    """
    given = given_tokenizer(data)
    if data.tokenizer == "bytes":
        given = Tokenizer.byte_level()
    ids = given.vocab_size if given else data.vocab_size
    if ids > vocab_size:
        what = "ids of" if given else "pieces of"
        raise DataError(
            f"config.model.vocab_size={vocab_size}: smaller than the {ids} {what}"
            f" config.data.tokenizer={data.tokenizer}; set it to {-(-ids // 128) * 128}"
            " (a multiple of 128)."
        )


class Tabs:
    """Documents of each split that have no tab, which pairs (seq2seq) need."""

    MOST = 100_000  # whose numbers are kept

    def __init__(self) -> None:
        self.total: Counter[str] = Counter()
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, split: str, text: bytes, source: str) -> None:
        """Notes the next document of a split."""
        if b"\t" not in text:
            about = self.found.setdefault(split, {"count": 0, "first": source, "documents": []})
            about["count"] += 1
            if about["count"] <= self.MOST:
                about["documents"].append(self.total[split])
        self.total[split] += 1

    def lacking(self) -> dict[str, dict[str, Any]]:
        """{split: count, source of the first, numbers: of all of them where most documents of the
        split have a tab, else none}.
        """
        for split, about in self.found.items():
            if about["count"] > min(self.MOST, self.total[split] / 2):
                about["documents"] = []
        return self.found


def encode_parts(corpus: Any, parts: list[Any], tokenizer: Any, writer: Any, tabs: Tabs) -> int:
    """Encodes every part on all cores, in order, and notes its tab. Returns the number of texts
    that their ids do not restore: 0 for a lossless tokenizer.
    """
    from lm_jax.data.tokens.tokenizer import cores
    from lm_jax.progress import Progress

    lost = 0

    def finish(batch: list[Any], future: Future) -> None:
        nonlocal lost
        for part, (text, ids) in zip(batch, future.result(), strict=True):
            lost += not (tokenizer.lossless or tokenizer.restores(text, ids))
            writer.add(part.split, ids, len(text))
            tabs.add(part.split, text, part.source)
            if part.split == "heldout":
                writer.keep_text(text.decode(), part.source)
            progress.add(len(text))

    pending: deque[tuple[list[Any], Future]] = deque()
    with (
        Progress("encoding", sum(p.end - p.begin for p in parts)) as progress,
        ThreadPoolExecutor(cores()) as pool,
    ):
        for batch in batched(parts):
            pending.append((batch, pool.submit(encode_batch, corpus, batch, tokenizer)))
            if len(pending) > 2 * cores():
                finish(*pending.popleft())
        for each in pending:
            finish(*each)
    if lost:
        print(
            f"WARNING: this tokenizer is not lossless: {lost:,} of {len(parts):,} documents do not"
            " come back from their ids unchanged, and the model will not see what is lost.",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return lost


def batched(parts: Iterable[Any]) -> Iterator[list[Any]]:
    """Runs of parts of about a quarter megabyte together."""
    batch, size = [], 0
    for part in parts:
        batch.append(part)
        size += part.end - part.begin
        if size > 1 << 18:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode_batch(corpus: Any, batch: list[Any], tokenizer: Any) -> list[tuple[bytes, Any]]:
    """[(text, ids)] of `batch`; raises DataError when a lossless tokenizer loses some of it."""
    texts = [corpus.text(part) for part in batch]
    # One thread each, since the batches have one each; a large document alone may use all.
    threads = 0 if len(batch) == 1 else 1
    found = tokenizer.encode_batch([text.decode() for text in texts], threads)
    for part, text, ids in zip(batch, texts, found, strict=True):
        if tokenizer.lossless and not tokenizer.restores(text, ids):
            raise DataError(
                f"{part.source}: the tokenizer does not give this text back; use another"
                " (config.data.tokenizer), and report it as a bug."
            )
    return list(zip(texts, found, strict=True))


def announce_training(data: DataConfig, size: int) -> None:
    """Prints how long SentencePiece, which shows no progress, will take for `size` bytes."""
    if data.tokenizer != "bytes":
        about = f"{data.tokenizer}, {data.vocab_size} pieces, {size / 1e6:.1f} MB"
        seconds = max(1, round(size / (8e5 if data.tokenizer == "bpe" else 3e5)))
        if seconds > 2:
            print(
                f"training the tokenizer ({about}), about {seconds} s", file=sys.stderr, flush=True
            )
