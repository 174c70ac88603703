"""The token store: flat little-endian files of token ids and document ends, with random access.

    store.json         sizes, checksums, hash of the tokenizer, statistics of cleaning; written last
    <split>.tokens     uint16 (uint32 for a large vocabulary); a document is [bos] ids [eos]
    <split>.ends       uint64, one past the last token of each document
    <split>.sums       uint32, CRC-32 of each block of <split>.tokens, checked as it is read
    heldout.jsonl      the held-out text itself, for baselines over bytes
    tokenizer/

A local store is memory-mapped; one on gs:// is read by byte ranges through TensorStore: the same
files, no other format. `benchmarks/loader.py` has the comparison with ArrayRecord and zarr that
this choice rests on.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.config.values import expand_home, from_json
from lm_jax.data.tokens.files import Blocks, LocalFiles, RemoteFiles, is_remote
from lm_jax.data.tokens.hf_folder import ABOUT, COMPANIONS
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import DataError

FORMAT = "lm_jax token store 1"
SPLITS = ("train", "heldout")
# The first that exists identifies the tokenizer: a Hugging Face one has a tokenizer.json as well.
TOKENIZER_FILES = (ABOUT, "tokenizer.json", "tokenizer.model", *COMPANIONS)
CHECKED_AT_OPEN = 64 << 20  # bytes of a local file: a larger one is checked as it is read
BLOCK = 1 << 16  # bytes that have a checksum


class TokenStore:
    """Random access to the tokens of a store; picklable (a worker process opens it again).

    Attributes: path, splits, dtype, tokenizer_hash, fingerprint (identifies the data: contents and
    tokenizer), metadata (of preparing), tokenizer.
    """

    def __init__(self, path: Any):
        """Opens; raises DataError naming the file that is missing, cut short or damaged."""
        self.path = expand_home(str(path))
        self.files: Any = RemoteFiles(self.path) if is_remote(self.path) else LocalFiles(self.path)
        self.manifest = self.read_manifest()
        self.dtype = np.dtype(self.manifest["dtype"]).newbyteorder("<")
        self.tokenizer_hash: str = self.manifest["tokenizer_hash"]
        self.fingerprint: str = self.manifest["fingerprint"]
        self.metadata: dict[str, Any] = self.manifest["metadata"]
        self.splits = tuple(s for s in SPLITS if self.num_tokens(s))
        for name, expected in self.manifest["files"].items():
            self.check_size(name, expected["bytes"])
            if not self.checked_later(name):
                self.check_content(name, expected["sha256"])
        self.check_tokenizer()
        unknown = [f"{s}.tokens" for s in self.splits if f"{s}.sums" not in self.manifest["files"]]
        if any(map(self.checked_later, unknown)) and not multiprocessing.parent_process():
            print(
                f"warning: {self.path}: has no checksums of its blocks, as stores had before, so "
                "damage to its tokens goes unnoticed; python -m lm_jax.prepare makes them.",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    def read_manifest(self) -> dict[str, Any]:
        """The content of store.json; raises DataError unless it is one, whole and unchanged."""
        try:
            manifest = from_json(self.files.read("store.json"))
            found = manifest.get("format")
        except (ValueError, OSError, AttributeError):
            raise DataError(
                f"{self.path}: not a token store (no readable store.json);"
                " python -m lm_jax.prepare makes one."
            ) from None
        if found != FORMAT:
            raise DataError(f"{self.path}: format {found!r}, this version reads {FORMAT!r}.")
        try:
            unchanged = fingerprint(manifest) == manifest["fingerprint"]
        except (KeyError, AttributeError):
            unchanged = False
        if not unchanged:
            raise DataError(
                f"{self.path}/store.json: does not match its own fingerprint;"
                " it was edited or damaged."
            )
        return manifest

    @classmethod
    def open(cls, path: Any) -> "TokenStore":
        """The store at a local path or URL."""
        return cls(path)

    @staticmethod
    def exists(path: Any) -> bool:
        """Whether a store, whole or damaged, is at `path`."""
        return (RemoteFiles if is_remote(path) else LocalFiles)(expand_home(str(path))).exists(
            "store.json"
        )

    def __reduce__(self) -> Any:
        return TokenStore, (self.path,)

    def check_size(self, name: str, expected: int) -> None:
        """Raises DataError when a file is missing or of another size."""
        wrong = self.files.wrong_size(name, expected)
        if wrong:
            raise DataError(f"{self.path}/{name}: {wrong}; prepare the data again.")

    def check_content(self, name: str, expected: str) -> None:
        """Raises DataError when a file's sha256 is another."""
        sha256 = hashlib.sha256()
        for block in self.files.blocks(name):
            sha256.update(block)
        if sha256.hexdigest() != expected:
            raise DataError(f"{self.path}/{name}: its checksum is wrong; prepare the data again.")

    def checked_later(self, name: str) -> bool:
        """Whether a file is verified as it is read, and not at open: a large or remote one."""
        return is_remote(self.path) or self.manifest["files"][name]["bytes"] > CHECKED_AT_OPEN

    def read(self, name: str) -> bytes:
        """A whole file, verified; raises DataError."""
        data = self.files.read(name)
        if self.checked_later(name):
            expected = self.manifest["files"][name]["sha256"]
            if hashlib.sha256(data).hexdigest() != expected:
                raise DataError(
                    f"{self.path}/{name}: its checksum is wrong; prepare the data again."
                )
        return data

    @functools.cached_property
    def blocks(self) -> dict[str, Blocks | None]:
        """Blocks of each split's tokens, None where all are verified at open, or not at all."""
        found: dict[str, Blocks | None] = {}
        for split in SPLITS:
            name, sums = f"{split}.tokens", f"{split}.sums"
            found[split] = None
            if sums in self.manifest["files"] and self.checked_later(name):
                found[split] = Blocks(
                    f"{self.path}/{name}", self.manifest["files"][name]["bytes"],
                    np.frombuffer(self.read(sums), "<u4"), self.manifest["block_bytes"],
                )  # fmt: skip
        return found

    def check_tokenizer(self) -> None:
        """Raises DataError when the store's tokenizer is not the one its tokens were made with."""
        ours = next(
            (n for n in TOKENIZER_FILES if self.files.exists(f"tokenizer/{n}")), "tokenizer.json"
        )
        try:
            known = from_json(self.files.read(f"tokenizer/{ours}")).get("hash")
        except FileNotFoundError:
            raise DataError(f"{self.path}/tokenizer: missing; prepare the data again.") from None
        except (ValueError, OSError, AttributeError):
            raise DataError(
                f"{self.path}/tokenizer/{ours}: damaged; prepare the data again."
            ) from None
        if known != self.tokenizer_hash:
            raise DataError(
                f"{self.path}/tokenizer: hash {str(known)[:12]}, the tokens were made"
                f" with {self.tokenizer_hash[:12]}; prepare the data again."
            )

    def verify(self) -> None:
        """Reads every byte and raises DataError at the first file or id that is wrong."""
        for name, expected in self.manifest["files"].items():
            self.check_content(name, expected["sha256"])
        for split in self.splits:
            for start in range(0, self.num_tokens(split), 1 << 22):
                self.tokens(split, start, min(start + (1 << 22), self.num_tokens(split)))

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        if not is_remote(self.path):
            return load_tokenizer(os.path.join(self.path, "tokenizer"))
        with tempfile.TemporaryDirectory() as folder:
            for name in TOKENIZER_FILES:
                if self.files.exists(f"tokenizer/{name}"):
                    (Path(folder) / name).write_bytes(self.files.read(f"tokenizer/{name}"))
            return load_tokenizer(folder)

    def num_tokens(self, split: str) -> int:
        """Tokens of `split`, bos and eos of each document included."""
        return self.manifest["splits"][split]["tokens"]

    def num_documents(self, split: str) -> int:
        """Documents of `split`."""
        return self.manifest["splits"][split]["documents"]

    def num_bytes(self, split: str) -> int:
        """Bytes of UTF-8 text that the tokens of `split` stand for."""
        return self.manifest["splits"][split]["text_bytes"]

    def bytes_per_target(self, split: str, packed: bool) -> float:
        """Bytes of text for each token that is a target: all but bos, which only windows that are
        not `packed` predict.
        """
        targets = self.num_tokens(split) - packed * self.num_documents(split)
        return self.num_bytes(split) / max(1, targets)

    def ends(self, split: str) -> np.ndarray:
        """[documents] int64: one past the last token of each document."""
        return self.arrays[split]

    @functools.cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """Document ends of each split, in memory."""
        return {s: np.frombuffer(self.read(f"{s}.ends"), "<u8").astype(np.int64) for s in SPLITS}

    def tokens(self, split: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """[stop - start] int32 ids."""
        stop = self.num_tokens(split) if stop is None else stop
        return self.gather(split, np.array([start]), stop - start)[0]

    def gather(self, split: str, starts: np.ndarray, length: int) -> np.ndarray:
        """[n, length] int32: the `length` ids from each of `starts` [n]. Raises DataError on an id
        that is none.
        """
        last = self.num_tokens(split) - length
        if length < 0 or (starts.size and not (starts.min() >= 0 and starts.max() <= last)):
            raise IndexError(f"{split}: windows of {length} start at 0..{last}, not {starts}")
        found = self.files.rows(f"{split}.tokens", self.dtype, starts, length, self.blocks[split])
        if found.size and found.max() >= self.manifest["vocab_size"]:
            row = int(np.argmax(found.max(axis=1)))
            document = int(np.searchsorted(self.ends(split), starts[row], "right"))
            raise DataError(
                f"{self.path}/{split}.tokens: token id {found.max()} near document {document}, the"
                f" tokenizer has {self.manifest['vocab_size']}: damaged; prepare the data again."
            )
        return found.astype(np.int32)

    def document(self, split: str, i: int) -> np.ndarray:
        """Ids of document `i`: [bos] ... [eos]."""
        ends = self.ends(split)
        return self.tokens(split, int(ends[i - 1]) if i else 0, int(ends[i]))

    def text(self, split: str) -> Iterator[str]:
        """The text of each document, in order."""
        for i in range(self.num_documents(split)):
            yield self.tokenizer.decode(self.document(split, i))

    def heldout(self) -> Iterator[dict[str, str]]:
        """{"text", "source"} of each held-out document, as it was before tokenizing."""
        for line in self.read("heldout.jsonl").split(b"\n"):
            if line:
                yield json.loads(line)


def fingerprint(manifest: dict[str, Any]) -> str:
    """sha256 over token files, counts and tokenizer: not over the paths of the text or the
    metadata, nor the checksums of blocks, which older stores have not.
    """
    parts = {k: manifest[k] for k in ("dtype", "tokenizer_hash", "splits")}
    files = manifest["files"].items()
    parts["files"] = {k: v for k, v in files if k.endswith((".tokens", ".ends"))}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def token_documents(store: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of `split` without bos, which nobody predicts, and where each document ends."""
    ends = store.ends(split)
    begins = np.concatenate([[0], ends[:-1]])
    return np.delete(store.tokens(split), begins), ends - 1 - np.arange(len(ends))
