"""The bytes inside a file that may be packed, and whether they are text."""

import gzip
import hashlib
import io
import os
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from lm_jax.errors import DataError

SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"%PDF": "PDF",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"PAR1": "Parquet",
    b"\x7fELF": "a program",
    b"SQLite format": "SQLite",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}

CONTROL = bytes((*range(7), *range(14, 27)))  # control characters that are rare in text


class Counting(io.RawIOBase):
    """A file that reports the bytes read to `advance`, and hashes them.

    Attributes: count, bytes so far; digest, a hashlib object of them.
    """

    def __init__(self, file: BinaryIO, advance: Callable[[float], None]):
        self.file, self.advance, self.count = file, advance, 0
        self.digest = hashlib.blake2b(digest_size=16)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer`; returns the bytes read."""
        count = self.file.readinto(buffer)  # type: ignore[attr-defined]
        self.advance(count)
        self.count += count
        self.digest.update(memoryview(buffer)[:count])
        return count


def unpacked(path: str, raw: Counting) -> tuple[str, io.BufferedReader]:
    """(`path` without .gz or .zst, reader of what is inside `raw`)."""
    name, packing = os.path.splitext(path)
    packing, inside = packing.lower(), cast(Any, raw)
    if packing == ".gz":
        inside = gzip.GzipFile(fileobj=inside)
    elif packing == ".zst":
        inside = unzstd(inside, path)
    else:
        name = path
    return name, io.BufferedReader(inside, 1 << 20)


def unzstd(file: Any, path: str) -> Any:
    """A reader of zstd frames; raises DataError when they are damaged or cut short."""
    import zstandard

    # By default zstd refuses windows over 128 MiB; the longest is 2 GiB (zstd --long=31).
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)

    # Not the library's stream_reader: that one takes a file that is cut short for one that ends.
    class Reader(io.RawIOBase):
        def __init__(self) -> None:
            self.frame: Any = None
            self.packed, self.plain = b"", memoryview(b"")

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            """Fills `buffer` as far as the file goes, over however many frames that takes."""
            filled = 0
            while filled < len(buffer) and (self.plain or self.unpack()):
                count = min(len(buffer) - filled, len(self.plain))
                buffer[filled : filled + count] = self.plain[:count]
                self.plain, filled = self.plain[count:], filled + count
            return filled

        def unpack(self) -> bool:
            """Unpacks more text, perhaps none, into `plain`; False at the end of the file."""
            self.packed = self.packed or file.read(1 << 17)
            if not self.packed:
                if self.frame is not None:
                    raise DataError(f"{path}: damaged or cut short (the zstd frame has no end).")
                return False
            self.frame = self.frame or unpacker.decompressobj()
            try:
                self.plain = memoryview(self.frame.decompress(self.packed))
            except zstandard.ZstdError as error:
                raise DataError(f"{path}: damaged zstd file ({error}).") from None
            self.packed = b""
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data, None
            return True

    return Reader()


def binary(head: bytes) -> str:
    """Name of the binary format that the first bytes of a file belong to; "" for text."""
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            return kind
    control = len(head) - len(head.translate(None, CONTROL))
    return "binary data" if control > 4 + len(head) * 0.02 else ""
