"""Writer of a token store, which is whole or not there at all."""

import contextlib
import hashlib
import json
import os
import platform
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.data.tokens.files import RemoteFiles, is_remote
from lm_jax.data.tokens.store import BLOCK, FORMAT, SPLITS, fingerprint
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import DataError, MachineError


class Writer:
    """Writes a store into a hidden directory beside `path`; `finish` renames it, so a store is
    whole or not there.

    `with Writer(path, tokenizer) as writer: writer.add("train", ids, text_bytes);
    writer.finish({...})` Raises DataError on an id outside the vocabulary and when `path` already
    exists.
    """

    def __init__(self, path: Any, tokenizer: Tokenizer):
        self.path, self.tokenizer = str(path), tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        refuse_existing(self.path)
        try:
            self.folder = unfinished(self.path)
        except OSError as error:
            raise MachineError(f"{self.path}: cannot write here ({error.strerror}).") from None
        self.files = {name: Hashed(self.folder / name) for name in data_files()}
        self.counts = {s: {"tokens": 0, "documents": 0, "text_bytes": 0} for s in SPLITS}

    def add(self, split: str, ids: np.ndarray, text_bytes: int) -> None:
        """Appends one document of `ids` [n] (no bos or eos) that stand for `text_bytes` bytes of
        text.
        """
        if ids.size and not (ids.min() >= 0 and ids.max() < self.tokenizer.vocab_size):
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise DataError(
                f"token id {wrong} in document {self.counts[split]['documents']} of {split}:"
                f" the tokenizer has {self.tokenizer.vocab_size}."
            )
        document = np.empty(ids.size + 2, self.dtype)
        document[0], document[1:-1], document[-1] = (
            self.tokenizer.bos_id,
            ids,
            self.tokenizer.eos_id,
        )
        count = self.counts[split]
        count["tokens"] += document.size
        count["documents"] += 1
        count["text_bytes"] += text_bytes
        self.files[f"{split}.tokens"].write(document.tobytes())
        self.files[f"{split}.ends"].write(np.array([count["tokens"]], "<u8").tobytes())

    def keep_text(self, text: str, source: str) -> None:
        """Appends one held-out document as text."""
        line = json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n"
        self.files["heldout.jsonl"].write(line.encode())

    def finish(self, metadata: dict[str, Any]) -> None:
        """Commits. `metadata` (JSON) is kept as `TokenStore.metadata`."""
        files = {name: file.close() for name, file in self.files.items()}
        for split in SPLITS:
            sums = Hashed(self.folder / f"{split}.sums")
            sums.write(np.array(self.files[f"{split}.tokens"].sums, "<u4").tobytes())
            files[f"{split}.sums"] = sums.close()
        self.tokenizer.save(self.folder / "tokenizer")
        manifest = {
            "format": FORMAT,
            "dtype": self.dtype.name,
            "block_bytes": BLOCK,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer_hash": self.tokenizer.hash,
            "splits": self.counts,
            "files": files,
            "metadata": metadata,
        }
        manifest["fingerprint"] = fingerprint(manifest)
        with open(self.folder / "store.json", "w", encoding="utf-8") as file:
            file.write(json.dumps(manifest, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_remote(self.path):
            upload(self.folder, self.path)
            return
        refuse_existing(self.path)
        target = os.path.realpath(self.path)  # an empty folder that is linked to is replaced
        if os.path.isdir(target):
            os.rmdir(target)
        os.rename(self.folder, target)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: Any) -> None:
        for file in self.files.values():
            with contextlib.suppress(OSError):  # it writes what is left, which a full disk refuses
                file.file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Hashed:
    """A file that knows its size, its sha256 and the CRC-32 of its blocks when it is closed."""

    def __init__(self, path: Path):
        self.file, self.sha256, self.size = path.open("wb"), hashlib.sha256(), 0
        self.sums: list[int] = []

    def write(self, data: bytes) -> None:
        """Appends."""
        self.file.write(data)
        self.sha256.update(data)
        while data:
            if self.size % BLOCK == 0:
                self.sums.append(0)
            part = data[: BLOCK - self.size % BLOCK]
            self.sums[-1] = zlib.crc32(part, self.sums[-1])
            self.size += len(part)
            data = data[len(part) :]

    def close(self) -> dict[str, Any]:
        """Size and sha256, once all is on disk."""
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return {"bytes": self.size, "sha256": self.sha256.hexdigest()}


def data_files() -> list[str]:
    """Names of the files that hold documents."""
    return [f"{s}.{kind}" for s in SPLITS for kind in ("tokens", "ends")] + ["heldout.jsonl"]


def refuse_existing(path: str) -> None:
    """Raises DataError when something is at `path` already; an empty directory is nothing."""
    if is_remote(path):
        if RemoteFiles(path).exists("store.json"):
            raise DataError(
                f"{path}: holds a token store already; give another place or delete it."
            )
    elif os.path.exists(path) and not (os.path.isdir(path) and not os.listdir(path)):
        raise DataError(f"{path}: exists already; give another place or delete it.")
    elif os.path.ismount(path):  # which no folder can be renamed to
        raise DataError(f"{path}: is where a disk is mounted; give a folder below it.")


MADE: dict[Path, list[Path]] = {}  # folders above a store that this process made, nearest first


def local(path: str) -> Path:
    """The place beside which the hidden directories of `path` are: on its disk, where they can be
    renamed.
    """
    if is_remote(path):
        return Path(tempfile.gettempdir()) / "lm_jax-store"
    return Path(os.path.realpath(path))


def unfinished(path: str) -> Path:
    """A new hidden directory beside `path`; those that killed processes of this machine left there
    are deleted.
    """
    target = local(path)
    above = [parent for parent in target.parents if not parent.exists()]
    MADE.setdefault(target, above)
    target.parent.mkdir(parents=True, exist_ok=True)
    for left, pid in left_behind(target):
        if not alive(pid):
            shutil.rmtree(left, ignore_errors=True)
    name = f".{target.name}.unfinished-{platform.node()}~{os.getpid()}-{secrets.token_hex(4)}"
    folder = target.parent / name
    folder.mkdir(0o700 if is_remote(path) else 0o777)  # the folder of temporary files is everyone's
    return folder


def discard(path: str) -> None:
    """Deletes the hidden directories of this process beside `path`, and the folders that it made
    above and that hold nothing else.
    """
    target = local(path)
    for left, pid in left_behind(target):
        if pid == str(os.getpid()):
            shutil.rmtree(left, ignore_errors=True)
    for parent in MADE.pop(target, []):
        with contextlib.suppress(OSError):
            parent.rmdir()


def left_behind(target: Path) -> Iterator[tuple[Path, str]]:
    """(hidden directory, process number) of those beside `target` that this machine made: on a
    shared disk, the processes of others cannot be seen from here.
    """
    prefix = f".{target.name}.unfinished-"
    for path in sorted(target.parent.glob(".*")):
        if path.name.startswith(prefix):
            host, _, rest = path.name.removeprefix(prefix).rpartition("~")
            if host == platform.node():
                yield path, rest.split("-")[0]


def alive(pid: str) -> bool:
    """Whether a process of this number runs here."""
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def upload(folder: Path, url: str) -> None:
    """Copies the files of `folder` to `url`, store.json last: before it is there, there is no
    store. Raises MachineError.
    """
    kv = RemoteFiles(url).kv
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    for name in sorted(names, key=lambda n: n == "store.json"):
        content = (folder / name).read_bytes()
        try:
            kv.write(name, content).result()
        except (ValueError, RuntimeError, OSError) as error:  # TensorStore's, of any status
            why = " ".join(str(error).split())[:200].replace("\0", "")
            raise MachineError(f"{url}: cannot write here ({why}).") from None
