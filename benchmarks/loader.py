"""Tokens a second that one core loads: our store and Grain wrapper beside other stores.

    python benchmarks/loader.py [--tokens=50000000] [--seconds=2]

Every row reads random windows of the same uint16 tokens from the same disk cache and makes int32
batches of them; ours makes segment ids, positions and weights as well. The process is pinned to
one core; figures are for a second of it.
"""

import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator

import numpy as np
from absl import app, flags

from lm_jax.data.stream import batches
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.writer import Writer
from lm_jax.data.views.windows import Windows, permute

TOKENS = flags.DEFINE_integer("tokens", 50_000_000, "Tokens of the made-up text.")
SECONDS = flags.DEFINE_float("seconds", 2.0, "How long each row runs.")
SHAPES = ((256, 12), (256, 64), (1024, 8), (1024, 64))  # (length, batch size)


def main(argv: list[str]) -> None:
    """Prints a table."""
    del argv
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(folder)
        print(f"{store.num_tokens('train'):,} tokens, {store.num_documents('train'):,} documents")
        names = [f"{length} x {size}" for length, size in SHAPES]
        print(f"{'million tokens a second':<42}" + "".join(f"{n:>12}" for n in names))
        for name, make in ROWS.items():
            cells = []
            for length, size in SHAPES:
                run = make(store, folder, length, size)
                cells.append(f"{rate(run, length * size) / 1e6:>12.1f}")
                run.close()
            print(f"{name:<42}" + "".join(cells), flush=True)


def make_store(folder: str) -> TokenStore:
    """Random bytes as documents of a thousand tokens on average."""
    random = np.random.default_rng(0)
    with Writer(f"{folder}/store", Tokenizer.byte_level()) as writer:
        while writer.counts["train"]["tokens"] < TOKENS.value:
            ids = random.integers(0, 256, int(random.exponential(1000))).astype(np.int32)
            writer.add("train", ids, ids.size)
        writer.finish({})
    return TokenStore.open(f"{folder}/store")


def rate(run: Iterator, tokens: int) -> float:
    """Tokens for a second of this process, all its threads counted."""
    for _ in range(3):
        next(run)
    start, done = time.process_time(), 0
    while time.process_time() - start < SECONDS.value:
        next(run)
        done += tokens
    return done / (time.process_time() - start)


def window_numbers(store: TokenStore, length: int, size: int) -> Iterator[np.ndarray]:
    """Random windows, drawn beforehand: the others do not pay for a permutation."""
    count = (store.num_tokens("train") - 1) // length
    order = permute(np.arange(count), count, 0, 0)
    while True:
        for start in range(0, count - size, size):
            yield order[start : start + size]


def stream(workers: int) -> Callable:
    """Ours as training uses it, through Grain."""

    def run(store: TokenStore, folder: str, length: int, size: int) -> Generator:
        with batches(Windows(store, "train", length), 0, size, workers=workers) as found:
            yield from found

    return run


def windows(packed: bool) -> Callable:
    """Ours without Grain."""

    def run(store: TokenStore, folder: str, length: int, size: int) -> Generator:
        examples, step = Windows(store, "train", length, packed=packed), 0
        while True:
            yield examples.batch(step, size)
            step += 1

    return run


def tensorstore_files(store: TokenStore, folder: str, length: int, size: int) -> Generator:
    """Ours as it reads a URL: byte ranges of the same file through TensorStore."""
    return windows(True)(TokenStore.open(f"file://{folder}/store"), folder, length, size)


def memory_map(store: TokenStore, folder: str, length: int, size: int) -> Generator:
    """The least that can be done: copy windows out of a memory map."""
    tokens = np.asarray(np.memmap(f"{folder}/store/train.tokens", np.uint16, "r"))
    for numbers in window_numbers(store, length, size):
        found = np.empty((size, length + 1), np.int32)
        for row, start in enumerate((numbers * length).tolist()):
            found[row] = tokens[start : start + length + 1]
        yield found


def array_record(store: TokenStore, folder: str, length: int, size: int) -> Generator:
    """ArrayRecord, one window a record (a change of length means writing it anew)."""
    from array_record.python import array_record_data_source, array_record_module

    path = f"{folder}/{length}.array_record"
    if not os.path.exists(path):
        tokens = np.fromfile(f"{folder}/store/train.tokens", np.uint16)
        writer = array_record_module.ArrayRecordWriter(path, "group_size:1,uncompressed")
        for start in range(0, len(tokens) - length, length):
            writer.write(tokens[start : start + length + 1].tobytes())
        writer.close()
    source = array_record_data_source.ArrayRecordDataSource(path)
    for numbers in window_numbers(store, length, size):
        records = source.__getitems__(numbers.tolist())
        yield np.frombuffer(b"".join(records), np.uint16).reshape(size, -1).astype(np.int32)


def zarr(driver: str) -> Callable:
    """A one-dimensional TensorStore array in chunks of 65,536 tokens; the chunk cache holds all of
    it.
    """

    def run(store: TokenStore, folder: str, length: int, size: int) -> Generator:
        import tensorstore

        spec = {
            "driver": driver,
            "kvstore": {"driver": "file", "path": f"{folder}/{driver}"},
            "context": {"cache_pool": {"total_bytes_limit": 1 << 30}},
        }
        if not os.path.exists(f"{folder}/{driver}"):
            tokens = np.fromfile(f"{folder}/store/train.tokens", np.uint16)
            tensorstore.open(
                spec,
                create=True,
                dtype=np.uint16,
                shape=tokens.shape,
                chunk_layout=tensorstore.ChunkLayout(chunk_shape=[1 << 16]),
            ).result().write(tokens).result()
        array = tensorstore.open(spec).result()
        for numbers in window_numbers(store, length, size):
            starts = (numbers * length).tolist()
            futures = [array[start : start + length + 1].read() for start in starts]
            yield np.stack([future.result() for future in futures]).astype(np.int32)

    return run


ROWS = {
    "memory map, windows copied, nothing more": memory_map,
    "this store, packed": windows(True),
    "this store, packed, through Grain": stream(0),
    "this store, not packed": windows(False),
    "this store by URL (TensorStore key-value)": tensorstore_files,
    "ArrayRecord, a window a record": array_record,
    "TensorStore zarr": zarr("zarr"),
    "TensorStore zarr3": zarr("zarr3"),
}

if __name__ == "__main__":
    app.run(main)
