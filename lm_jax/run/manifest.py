"""Manifests of checkpoints: fingerprints that show whether the arrays are those that were saved,
and of this model.

Storage may return other bytes than it was given, and the array format would not notice: one flipped
bit is just another weight. So a fingerprint of every array is kept. It is computed on the devices
that hold the array, in one pass over memory, and does not depend on how many devices there are or
how the array is laid out over them.
"""

import base64
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from lm_jax.config.values import from_json
from lm_jax.errors import CheckpointError

NAMED = 5  # differing arrays that an error names


class Damaged(Exception):
    """Why a step cannot be used, in one line."""


# ---- Names ---------------------------------------------------------------------------------------


def flatten(tree: Any) -> dict[str, Any]:
    """{"model/decoder/blocks/attn/wq": leaf} of modules, dataclasses, optimizer states, dicts.

    ValueError when two leaves would have one name.
    """
    names = []
    # A parameter is a node with one leaf, whose own name depends on Flax: the path stops at it.
    is_parameter = lambda x: isinstance(x, nnx.Variable)
    for path, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_parameter):
        name = "/".join(_part(key) for key in path)
        count = len(jax.tree.leaves(node))
        names += [name] if count == 1 else [f"{name}/{i}" for i in range(count)]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"two leaves of the tree have the name {twice!r}")
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def unflatten(flat: dict[str, Any], like: Any) -> Any:
    """The tree structured as `like` with the leaves of `flat`; ValueError when names differ."""
    names = flatten(like)
    if wrong := sorted(names.keys() ^ flat.keys()):
        raise ValueError(f"in one tree and not in the other: {', '.join(wrong[:5])}")
    return jax.tree.unflatten(jax.tree.structure(like), [flat[name] for name in names])


def _part(key: Any) -> str:
    for field in ("key", "name", "idx"):
        if hasattr(key, field):
            return str(getattr(key, field))
    return str(key)


# ---- The file ------------------------------------------------------------------------------------


def make(
    step: int,
    arrays: dict[str, Any],
    metadata: dict[str, Any] | None,
    files: dict[str, bytes] | None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """(manifest, encoded files), both as JSON takes them. TypeError when `metadata` is not JSON."""
    encoded = {name: base64.b64encode(data).decode() for name, data in (files or {}).items()}
    manifest = {
        "format": 1,
        "step": int(step),
        "arrays": describe(arrays),
        "files": digest(encoded),
        "metadata": json.loads(json.dumps(metadata or {})),
    }
    return manifest | {"digest": digest(manifest)}, encoded


def read(path: epath.Path) -> dict[str, Any]:
    """The manifest of the step at `path`; raises Damaged unless it is what was written."""
    manifest = _json(path / "manifest" / "metadata")
    if manifest.pop("digest", None) != digest(manifest):
        raise Damaged("its manifest has changed on disk")
    return manifest


def read_files(path: epath.Path, manifest: dict[str, Any]) -> dict[str, bytes]:
    """The caller's files of the step at `path`; raises Damaged unless they are what was written."""
    if manifest["files"] == digest({}):
        return {}
    encoded = _json(path / "files" / "metadata")
    if manifest["files"] != digest(encoded):
        raise Damaged("its files have changed on disk")
    return {name: base64.b64decode(text) for name, text in encoded.items()}


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        value = from_json(path.read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{path.parent.name} is missing") from None
    except (OSError, ValueError) as error:
        raise Damaged(f"{path.parent.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path.parent.name} has changed on disk")
    return value


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order and the spacing in which it was written."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ---- Arrays --------------------------------------------------------------------------------------


def describe(arrays: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: {shape, dtype, fingerprint}}, and for a PRNG key what it takes to rebuild it."""
    stored = {name: storable(x) for name, x in arrays.items()}
    prints = fingerprints(stored)
    rows: dict[str, dict[str, Any]] = {}
    for name, x in arrays.items():
        rows[name] = {"shape": list(x.shape), "dtype": str(x.dtype), "fingerprint": prints[name]}
        if is_key(x):
            rows[name]["key"] = {"impl": str(jax.random.key_impl(x)), "shape": stored[name].shape}
    return json.loads(json.dumps(rows))


def compare(rows: dict[str, dict[str, Any]], wanted: dict[str, Any], where: Any) -> None:
    """Raises CheckpointError, which names the first arrays of `rows` and `wanted` that differ."""
    saved = {name: (str(tuple(row["shape"])), row["dtype"]) for name, row in rows.items()}
    model = {name: (str(tuple(x.shape)), str(x.dtype)) for name, x in wanted.items()}
    names = [*model, *(name for name in saved if name not in model)]
    wrong = [name for name in names if saved.get(name) != model.get(name)]
    shown = []
    for name in wrong[:NAMED]:
        a, b = saved.get(name), model.get(name)
        # Shape and type are worth a word only where they differ.
        differs = [i for i in (0, 1) if not a or not b or a[i] != b[i]]
        one, other = (" ".join(x[i] for i in differs) if x else "none" for x in (a, b))
        shown.append(f"{name}: checkpoint {one} vs model {other}")
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        differ = f"{'; '.join(shown)}{more}."
        if all(name.startswith("opt/") for name in wrong):
            raise CheckpointError(
                f"{where}: the optimizer's state is of another config.optimizer, or of an earlier "
                f"lm_jax; train in a new --workdir: {differ}"
            )
        raise CheckpointError(f"{where}: is of another model: {differ}")


def is_key(x: Any) -> bool:
    """Whether `x` is a typed PRNG key array."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def storable(x: Any) -> Any:
    """`x`, or the words of a PRNG key."""
    return jax.random.key_data(x) if is_key(x) else x


def stored_as(row: dict[str, Any], sharding: Any = None) -> jax.ShapeDtypeStruct:
    """Shape and type in which the array of `row` is stored."""
    shape, dtype = (row["key"]["shape"], "uint32") if "key" in row else (row["shape"], row["dtype"])
    return jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype), sharding=sharding)


def check(rows: dict[str, dict[str, Any]], arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """`arrays` of storage, with keys rebuilt; raises Damaged when one is not what was saved."""
    prints = fingerprints(arrays)
    wrong = [name for name in arrays if prints[name] != rows[name]["fingerprint"]]
    if wrong:
        raise Damaged(
            f"{len(wrong)} of {len(arrays)} arrays have changed on disk, first {wrong[0]}"
        )
    keys = {name: rows[name]["key"]["impl"] for name in arrays if "key" in rows[name]}
    return arrays | {
        name: jax.random.wrap_key_data(arrays[name], impl=impl) for name, impl in keys.items()
    }


# ---- Fingerprints --------------------------------------------------------------------------------


def fingerprints(arrays: dict[str, Any]) -> dict[str, str]:
    """{name: 16 hexadecimal digits} of jax or numpy arrays, the same wherever they are.

    Arrays on accelerators take one jitted call; those in this process's memory take numpy, which
    is as fast there and need not be compiled for every shape.
    """
    here = {name: _on_host(x) for name, x in arrays.items() if _is_on_host(x)}
    there = {name: x for name, x in arrays.items() if name not in here}
    if there:
        here |= zip(there, jax.device_get(_on_device(list(there.values()))), strict=True)
    return {name: "".join(f"{int(word):08x}" for word in here[name]) for name in arrays}


def _scramble(words: Any, position: Any) -> tuple[Any, Any]:
    """Two uint32 numbers an element, to be summed: its bits and place as MurmurHash3 ends them.

    (Appleby 2011.) Each is a bijection of the bits, so a change of one element is found for
    certain; any other, but for a chance of about 2^-64. A sum of bits weighted by odd numbers is
    cheaper, and misses two flipped signs.
    """
    h = words + position * np.uint32(0x9E3779B9)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    h = h ^ (h >> np.uint32(16))
    g = (h ^ np.uint32(0x5BD1E995)) * np.uint32(0x27D4EB2F)
    return h, g ^ (g >> np.uint32(15))


def _position(np_or_jnp: Any, shape: tuple[int, ...], part: tuple[slice, ...]) -> Any:
    """Row-major index modulo 2^32 of each element of a `part` of an array of `shape`.

    As a sum of broadcast axes, so that on a device no more than its part is ever made.
    """
    index, stride = np.zeros((1,) * len(shape), np.uint32), 1
    for axis in reversed(range(len(shape))):
        places = np_or_jnp.arange(*part[axis].indices(shape[axis])).astype(np.uint32)
        places = places * np.uint32(stride & 0xFFFFFFFF)
        index = index + places.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        stride *= shape[axis]
    return index


@jax.jit
def _on_device(arrays: list[jax.Array]) -> list[jax.Array]:
    def one(x):
        u = _words(x)
        position = _position(jnp, u.shape, (slice(None),) * u.ndim)
        return jnp.stack([jnp.sum(word, dtype=jnp.uint32) for word in _scramble(u, position)])

    with jax.named_scope("fingerprints"):
        return [one(x) for x in arrays]


def _words(x: jax.Array) -> jax.Array:
    """The bits of each element as uint32; elements of 8 bytes become two along a new last axis."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag], axis=-1)
    elif x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if x.dtype.itemsize == 8:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)


def _is_on_host(x: Any) -> bool:
    if not isinstance(x, jax.Array):
        return True
    return x.is_fully_addressable and all(d.platform == "cpu" for d in x.devices())


def _on_host(x: Any) -> np.ndarray:
    """The sums of one array, part by part, each read once."""
    if isinstance(x, jax.Array):
        shards = [shard for shard in x.addressable_shards if shard.replica_id == 0]
        parts = [(shard.index, np.asarray(shard.data)) for shard in shards]
    else:
        parts = [((slice(None),) * x.ndim, x)]
    total = np.zeros(2, np.uint32)
    for index, part in parts:
        width = part.dtype.itemsize
        words = np.ascontiguousarray(part).reshape(-1).view(f"u{min(width, 4)}")
        shape = (*x.shape, width // 4) if width > 4 else x.shape
        index = (*index, slice(None)) if width > 4 else index
        position = _position(np, shape, index).reshape(-1)
        for start in range(0, words.size, CHUNK):
            block = slice(start, start + CHUNK)
            pair = _scramble(words[block].astype(np.uint32), position[block])
            total += np.array([np.sum(word, dtype=np.uint32) for word in pair])
    return total


CHUNK = 2**15  # elements that fit the nearest cache with their intermediate values
