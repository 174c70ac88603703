"""Safetensors files, checked before their data is used; read and written.

The library accepts duplicate names, names with `../` and any number of entries. The format is an
8-byte length, a JSON header and the data (github.com/huggingface/safetensors), so it is read here,
one tensor at a time. Files come from strangers: whatever is wrong is a CheckpointError.
"""

import dataclasses
import json
import math
import os
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lm_jax.errors import CheckpointError

MAX_HEADER = 32 * 2**20
MAX_TENSORS = 100_000
MAX_DIMS = 8
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,512}")
SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
         "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip
WEIGHTS = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
POINTER = b"version https://git-lfs.github.com/spec/"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file: its values begin at byte `start`."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int

    def read(self) -> np.ndarray:
        """The values, one of WEIGHTS, as float32; raises CheckpointError when one is not finite."""
        values = np.empty(self.shape, WEIGHTS[self.dtype])
        with open(self.path, "rb") as file:
            file.seek(self.start)
            if file.readinto(values.reshape(-1).view(np.uint8).data) != values.nbytes:
                raise CheckpointError(f"{self.path}: ends inside tensor {self.name}.")
        values = values.astype(np.float32, copy=False)
        # max and min propagate NaN and allocate nothing, unlike isfinite.
        if values.size and not (math.isfinite(values.max()) and math.isfinite(values.min())):
            raise CheckpointError(f"{self.path}: tensor {self.name} holds NaN or infinity.")
        return values


def tensors(directory: Path) -> dict[str, Tensor]:
    """Every tensor of `model.safetensors`, or of the files that its index names, by name.

    Reads no data. Raises CheckpointError on a malformed file, and on a directory of pickles only.
    """
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    refuse_link(single)
    if single.is_file():
        return header(single)
    if not index.is_file():
        refuse_pickles(directory)
        raise CheckpointError(f"{directory}: has no model.safetensors and no {index.name}.")
    places = read_json(index, MAX_HEADER).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index}: weight_map is missing or empty.")
    if len(places) > MAX_TENSORS:
        raise CheckpointError(f"{index}: {len(places)} tensors, more than {MAX_TENSORS}.")
    found: dict[str, Tensor] = {}
    paths = [shard_path(index, name) for name in sorted({str(file) for file in places.values()})]
    for path in paths:
        for tensor in header(path).values():
            if places.get(tensor.name) != path.name:
                raise CheckpointError(f"{tensor.path}: tensor {tensor.name} is not in the index.")
            found[tensor.name] = tensor
    for name, file in places.items():
        if name not in found:
            raise CheckpointError(f"{index}: tensor {name[:200]} is not in {file}.")
    return found


def refuse_pickles(path: Path) -> None:
    """Raises CheckpointError when `path` is, or has, weights that only a pickle can hold."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        if file.suffix in PICKLES:
            raise CheckpointError(
                f"{file}: is a pickle, which can run any code when it is read; have its author, or "
                "`save_pretrained` of transformers, write safetensors."
            )


def shard_path(index: Path, name: str) -> Path:
    """The file that an index names; raises CheckpointError when it is not beside the index."""
    path = index.parent / name
    if not (NAME.fullmatch(name) and name.endswith(".safetensors")):
        raise CheckpointError(
            f"{index}: names the file {name[:200]!r}; only files beside it can be."
        )
    refuse_link(path)
    if not path.is_file():
        raise CheckpointError(f"{index}: names {name}, which is not there.")
    return path


def refuse_link(path: Path) -> None:
    """Raises CheckpointError when `path` is a link that leads out of its directory.

    The one that is followed is that of the Hub's cache, from snapshots/<revision> into blobs.
    """
    directory = path.parent.resolve()
    allowed = [directory]
    if directory.parent.name == "snapshots":
        allowed.append(directory.parent.parent / "blobs")
    try:
        out = path.is_symlink() and path.resolve(strict=True).parent not in allowed
    except (OSError, RuntimeError):  # to nothing, or to itself
        raise CheckpointError(f"{path}: is a link that leads nowhere.") from None
    if out:
        raise CheckpointError(f"{path}: is a link that leads out of the directory.")


def refuse_pointer(path: Path, first: bytes) -> None:
    """Raises CheckpointError when a file that begins with `first` is a Git LFS pointer."""
    if first == POINTER:
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, not the file itself: run `git lfs pull` in "
            f"{path.parent}, or download the file."
        )


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name; raises CheckpointError unless they fill its data exactly."""
    total = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        refuse_pointer(path, first + file.read(len(POINTER) - 8))
        file.seek(len(first))
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(total - 8, MAX_HEADER):
            raise CheckpointError(
                f"{path}: is not a safetensors file: a header of {length} bytes in a file of "
                f"{total}, at most {MAX_HEADER} allowed."
            )
        entries = parse_json(file.read(length), path)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a table of strings.")
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{path}: {len(entries)} tensors, more than {MAX_TENSORS}.")
    spans, found = [], {}
    for name, entry in entries.items():
        if not NAME.fullmatch(name):
            raise CheckpointError(
                f"{path}: tensor {name[:200]!r}: a name is letters, digits, '.', '-' and '_'."
            )
        start, stop = span(path, name, entry)
        spans.append((start, stop, name))
        found[name] = Tensor(name, path, entry["dtype"], tuple(entry["shape"]), 8 + length + start)
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise CheckpointError(
                f"{path}: tensor {name} begins at byte {start} of the data, {end} was expected."
            )
        end = stop
    if end != total - 8 - length:
        raise CheckpointError(
            f"{path}: the header describes {end} bytes of data, the file has {total - 8 - length}."
        )
    return found


def span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Begin and end of an entry's data; raises CheckpointError if that does not fit."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{path}: tensor {name}: expected dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise CheckpointError(f"{path}: tensor {name}: dtype {str(dtype)[:40]!r} is not known.")
    whole = lambda values: (
        isinstance(values, list)
        and all(type(value) is int and 0 <= value < 2**62 for value in values)
    )
    if not whole(shape) or len(shape) > MAX_DIMS:
        raise CheckpointError(f"{path}: tensor {name}: shape {str(shape)[:80]} is not possible.")
    if not whole(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"{path}: tensor {name}: offsets {str(offsets)[:80]} are not possible."
        )
    size = math.prod(shape) * SIZES[dtype]
    if offsets[1] - offsets[0] != size:
        raise CheckpointError(
            f"{path}: tensor {name}: {offsets[1] - offsets[0]} bytes of data, "
            f"{dtype} {shape} needs {size}."
        )
    return offsets[0], offsets[1]


def read_json(path: Path, max_bytes: int = 2**20) -> dict[str, Any]:
    """The object in a JSON file of at most `max_bytes`; raises CheckpointError."""
    refuse_link(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file.")
    if path.stat().st_size > max_bytes:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes, more than {max_bytes}.")
    data = path.read_bytes()
    refuse_pointer(path, data[: len(POINTER)])
    return parse_json(data, path)


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object in `data`, no key twice, every number finite; raises CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"{twice[:100]!r} is there twice")
        return found

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not a number")

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise CheckpointError(f"{path}: nested too deeply.") from None
    except ValueError as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object.")
    return value


def write(
    directory: Path,
    shapes: dict[str, tuple[int, ...]],
    get: Callable[[str], np.ndarray],
    max_bytes: int,
) -> None:
    """Writes float32 tensors one at a time: one file, or several of `max_bytes` and an index."""
    groups: list[list[str]] = [[]]
    room = max_bytes
    for name in sorted(shapes):
        size = 4 * math.prod(shapes[name])
        if size > room and groups[-1]:
            groups.append([])
            room = max_bytes
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        write_file(directory / "model.safetensors", groups[0], shapes, get)
        return
    places = {}
    for i, names in enumerate(groups):
        file = f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        write_file(directory / file, names, shapes, get)
        places.update(dict.fromkeys(names, file))
    total = 4 * sum(math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_file(
    path: Path,
    names: Sequence[str],
    shapes: dict[str, tuple[int, ...]],
    get: Callable[[str], np.ndarray],
) -> None:
    """Writes one file. transformers reads only files whose metadata has `format: pt`."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        stop = start + 4 * math.prod(shapes[name])
        entries[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            values = np.ascontiguousarray(get(name), "<f4")
            assert values.shape == shapes[name], name
            file.write(values.data if values.size else b"")
            del values  # or it would live until the next one is whole
        file.flush()
        os.fsync(file.fileno())
