"""The stream of batches, from any step, read ahead by Grain's threads or worker processes."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm_jax.data.views.windows import Shard, Windows

AHEAD = 8  # batches that wait ready
STEPS = 2**40  # an endless stream


def batches(
    windows: Windows,
    start_step: int = 0,
    batch_size: int = 1,
    microbatches: int = 1,
    shard: Shard = (0, 1),
    workers: int = 0,
) -> "Batches":
    """Batches start_step, start_step + 1, ... without end, as a context manager: `with
    batches(...) as stream:`.

    Arrays are [microbatches, rows, length], of the parts in `shard` (see Windows.batch), and the
    same bytes for any number of workers. A worker process takes seconds to start: 0 (a thread)
    serves millions of tokens a second.
    """
    return Batches(windows, start_step, batch_size, microbatches, shard, workers)


class BatchAt:
    """Maps a step to its batch; a class, not a closure, because worker processes unpickle it."""

    def __init__(self, windows: Windows, batch_size: int, microbatches: int, shard: Shard):
        self.windows, self.batch_size = windows, batch_size
        self.microbatches, self.shard = microbatches, shard

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        batch = self.windows.batch(step, self.batch_size, self.shard, self.microbatches)
        return batch if self.microbatches > 1 else {k: v[None] for k, v in batch.items()}


class Batches:
    """The iterator that `batches` returns; `close` ends its threads and processes."""

    def __init__(
        self,
        windows: Windows,
        start_step: int,
        batch_size: int,
        microbatches: int,
        shard: Shard,
        workers: int,
    ):
        import grain

        batch_at = BatchAt(windows, batch_size, microbatches, shard)
        batch_at(start_step)  # an impossible batch is refused here, not in a thread
        steps = grain.MapDataset.range(start_step, STEPS).map(batch_at)
        if workers:
            parse_flags()
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            one = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
            dataset = steps.to_iter_dataset(one).mp_prefetch(
                options, worker_init_fn=die_with_parent
            )
        else:
            # One thread: the work is numpy's, and more threads only wait for each other.
            dataset = steps.to_iter_dataset(
                grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
            )
        self.iterator: Any = iter(dataset)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self.iterator)

    def close(self) -> None:
        """Ends the threads and worker processes; safe to call again."""
        if self.iterator is not None:
            # Left to the interpreter's end, Grain complains about shared memory and leaves
            # processes behind.
            self.iterator.close()
            self.iterator = None

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def parse_flags() -> None:
    """Grain's workers read absl flags, which a notebook or a test never parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def die_with_parent(worker: int, workers: int) -> None:
    """Asks Linux to kill this worker process when its parent dies, which Grain's workers outlive
    otherwise; what a terminal or SLURM send to all is left to the parent.
    """
    import signal

    del worker, workers
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
