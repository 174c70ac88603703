"""The files of a store: a memory map for a directory, byte ranges through TensorStore for a URL,
and the checksums of their blocks.
"""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm_jax.errors import CheckpointError, DataError, MachineError, UserError

PATIENCE = 90  # seconds until the first answer of a URL


def is_remote(path: Any) -> bool:
    """gs://, s3:// and every other URL that TensorStore opens."""
    return "://" in str(path)


def path_of(path: Any, error: type[UserError] = CheckpointError) -> Any:
    """The epath.Path of a folder or URL; raises `error` for a URL that nothing here can open."""
    from etils import epath

    try:
        found = epath.Path(path)
        if is_remote(path):
            found.exists()  # the first call that needs what opens such URLs
        return found
    except KeyError:
        scheme = str(path).split("://")[0]
        raise error(
            f"{path}: {scheme}:// is not known; name a folder or gs://BUCKET/PATH."
        ) from None
    except ImportError as missing:
        extra = " (pip install lm_jax[gcs])" if str(path).startswith("gs://") else ""
        raise error(f"{path}: {missing}{extra}") from None


class Blocks:
    """The blocks of a file, `size` bytes each, with their CRC-32: which have been read and are as
    they were written. Damage is detected when a block is first read, at the cost of one pass over
    the file (3 GB a second), spread over the first epoch.
    """

    def __init__(self, name: str, length: int, sums: np.ndarray, size: int):
        self.name, self.length, self.sums, self.size = name, length, sums, size
        self.read, self.left = bytearray(len(sums)), len(sums)

    def unread(self, start: int, count: int) -> list[int]:
        """Blocks with some of the `count` bytes from `start` on that are not verified yet."""
        first, last = start // self.size, (start + max(count, 1) - 1) // self.size
        if self.read.find(0, first, last + 1) < 0:
            return []
        return [index for index in range(first, min(last + 1, len(self.read)))
                if not self.read[index]]  # fmt: skip

    def end(self, index: int) -> int:
        """One past the last byte of a block."""
        return min((index + 1) * self.size, self.length)

    def check(self, index: int, data: Any) -> None:
        """Verifies the bytes of a block; raises DataError."""
        if zlib.crc32(data) != self.sums[index]:
            raise DataError(
                f"{self.name}: bytes {index * self.size:,} to {self.end(index):,} have changed on "
                "disk since they were written; copy or prepare the data again."
            )
        self.left -= not self.read[index]
        self.read[index] = 1


class LocalFiles:
    """Files of a directory, memory-mapped."""

    def __init__(self, path: str):
        self.path = path
        self.maps: dict[str, np.ndarray] = {}

    def read(self, name: str) -> bytes:
        with open(os.path.join(self.path, name), "rb") as file:
            return file.read()

    def exists(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.path, name))

    def wrong_size(self, name: str, expected: int) -> str:
        """Why a file is not of the size that is expected; "" when it is."""
        if not self.exists(name):
            return "missing"
        size = os.path.getsize(os.path.join(self.path, name))
        return (
            "" if size == expected else f"{size} bytes, should be {expected}: cut short or changed"
        )

    def blocks(self, name: str) -> Iterator[bytes]:
        with open(os.path.join(self.path, name), "rb") as file:
            yield from iter(lambda: file.read(1 << 22), b"")

    def rows(self, name: str, dtype: np.dtype, starts: np.ndarray, length: int,
             blocks: Blocks | None = None) -> np.ndarray:  # fmt: skip
        """[n, length] items of a flat file from each of `starts` [n] on, of blocks that verify."""
        if name not in self.maps:
            # A plain view: slicing np.memmap itself costs microseconds a row.
            where = os.path.join(self.path, name)
            empty = os.path.getsize(where) == 0
            self.maps[name] = (
                np.empty(0, dtype) if empty else np.asarray(np.memmap(where, dtype, "r"))
            )
        tokens, found = self.maps[name], np.empty((len(starts), length), dtype)
        if blocks is not None and blocks.left:
            data = tokens.view(np.uint8)
            for start in starts.tolist():
                for index in blocks.unread(start * dtype.itemsize, length * dtype.itemsize):
                    blocks.check(index, data[index * blocks.size : (index + 1) * blocks.size])
        for row, start in enumerate(starts.tolist()):
            found[row] = tokens[start : start + length]
        return found


class RemoteFiles:
    """Files under a URL, read by byte ranges through TensorStore, the rows of a batch at the same
    time.
    """

    def __init__(self, path: str):
        import tensorstore

        self.path, self.answered = path, False
        try:
            self.kv = tensorstore.KvStore.open(path.rstrip("/") + "/").result()
        except ValueError as error:
            why = str(error).split(": ", 2)[-1].split(" [")[0]
            raise DataError(
                f"{path}: {why}; name a folder, or a URL of gs://, s3://, http:// or https://."
            ) from None

    def wait(self, future: Any) -> Any:
        """The answer of a request. Raises MachineError when the first one, which is small, gets
        none: without a network or access, TensorStore tries again for many minutes.
        """
        try:
            answer = future.result(timeout=None if self.answered else PATIENCE)
        except TimeoutError:
            raise MachineError(
                f"{self.path}: no answer within {PATIENCE} s; check the address, the network and "
                "the credentials."
            ) from None
        self.answered = True
        return answer

    def result(self, name: str, span: slice | None = None) -> bytes:
        reply = self.wait(self.kv.read(name, byte_range=span))
        if reply.state != "value":
            raise FileNotFoundError(name)
        return reply.value

    def read(self, name: str) -> bytes:
        return self.result(name)

    def exists(self, name: str) -> bool:
        # No byte of it: http:// has no lists.
        return self.wait(self.kv.read(name, byte_range=slice(0, 0))).state == "value"

    def wrong_size(self, name: str, expected: int) -> str:
        """Why a file is not of the size that is expected; "" when it is."""
        # A key-value store reports no sizes: the last byte must exist and the next one must not.
        if not self.exists(name):
            return "missing"
        if expected and not self.has_byte(name, expected - 1):
            return f"cut short, should be {expected} bytes"
        return f"longer than {expected} bytes" if self.has_byte(name, expected) else ""

    def has_byte(self, name: str, position: int) -> bool:
        try:
            return bool(self.result(name, slice(position, position + 1)))
        except ValueError:  # out of range
            return False

    def blocks(self, name: str) -> Iterator[bytes]:
        yield self.result(name)

    def rows(self, name: str, dtype: np.dtype, starts: np.ndarray, length: int,
             blocks: Blocks | None = None) -> np.ndarray:  # fmt: skip
        """[n, length] items of a flat file from each of `starts` [n] on, of blocks that verify."""
        size = dtype.itemsize
        spans = [slice(s * size, (s + length) * size) for s in starts.tolist()]
        if blocks is not None and blocks.left:
            unread = {i for span in spans for i in blocks.unread(span.start, length * size)}
            whole = {
                i: self.kv.read(name, byte_range=slice(i * blocks.size, blocks.end(i)))
                for i in sorted(unread)
            }
            for index, future in whole.items():
                blocks.check(index, self.wait(future).value)
        futures = [self.kv.read(name, byte_range=span) for span in spans]
        values = [self.wait(future).value for future in futures]
        return np.frombuffer(b"".join(values), dtype).reshape(len(starts), length)
