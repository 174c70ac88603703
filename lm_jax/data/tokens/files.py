"""Files of a store, read through a memory map of a directory or by byte ranges of a URL
(TensorStore); paths and URLs that cannot be opened.
"""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from lm_jax.errors import CheckpointError, DataError, UserError


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

    def rows(self, name: str, dtype: np.dtype, starts: np.ndarray, length: int) -> np.ndarray:
        """[n, length] items of a flat file from each of `starts` [n] on."""
        if name not in self.maps:
            # A plain view: slicing np.memmap itself costs microseconds a row.
            where = os.path.join(self.path, name)
            empty = os.path.getsize(where) == 0
            self.maps[name] = (
                np.empty(0, dtype) if empty else np.asarray(np.memmap(where, dtype, "r"))
            )
        tokens, found = self.maps[name], np.empty((len(starts), length), dtype)
        for row, start in enumerate(starts.tolist()):
            found[row] = tokens[start : start + length]
        return found


class RemoteFiles:
    """Files under a URL, read by byte ranges through TensorStore, the rows of a batch at the same
    time.
    """

    def __init__(self, path: str):
        import tensorstore

        try:
            self.kv = tensorstore.KvStore.open(path.rstrip("/") + "/").result()
        except ValueError as error:
            why = str(error).split(": ", 2)[-1].split(" [")[0]
            raise DataError(
                f"{path}: {why}; name a folder, or a URL of gs://, s3://, http:// or https://."
            ) from None

    def result(self, name: str, span: slice | None = None) -> bytes:
        reply = self.kv.read(name, byte_range=span).result()
        if reply.state != "value":
            raise FileNotFoundError(name)
        return reply.value

    def read(self, name: str) -> bytes:
        return self.result(name)

    def exists(self, name: str) -> bool:
        import tensorstore

        return bool(self.kv.list(tensorstore.KvStore.KeyRange(name, name + "\0")).result())

    def wrong_size(self, name: str, expected: int) -> str:
        """Why a file is not of the size that is expected; "" when it is."""
        # A key-value store does not tell a size: the last byte must be there and the one behind it
        # not.
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

    def rows(self, name: str, dtype: np.dtype, starts: np.ndarray, length: int) -> np.ndarray:
        """[n, length] items of a flat file from each of `starts` [n] on."""
        size = dtype.itemsize
        spans = [slice(s * size, (s + length) * size) for s in starts.tolist()]
        futures = [self.kv.read(name, byte_range=span) for span in spans]
        values = [future.result().value for future in futures]
        return np.frombuffer(b"".join(values), dtype).reshape(len(starts), length)
