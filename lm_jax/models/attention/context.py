"""Context parallelism: devices share the rows of a batch; each has a part of the queries, and
attends to the keys and values of all parts.
"""

# Shapes: B batch, L query length, S key length, D model width, K key heads, G queries a key head, H
# head size; inside `local` L is a device's own part.

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm_jax.devices import collectives, sharding
from lm_jax.devices.sharding import axes_of, shard, spec, ways
from lm_jax.errors import UserError
from lm_jax.models.attention import kernels
from lm_jax.models.attention.kernels import Mask, Scores
from lm_jax.models.attention.ring import BLOCKS, ring_attention


def order(length: int, causal: bool) -> np.ndarray:
    """[length]: the place in the text of each token of a row, in the order of the devices.

    With a causal mask the first tokens of a row cost less than the last: a row is cut into 2 c
    pieces for c devices, of which device i has i and 2 c - 1 - i, so that all have equal work
    (Brandon et al. 2023, arXiv:2311.09431; in this order Llama 3, arXiv:2407.21783, 3.3.2). Raises
    UserError where a row does not divide.
    """
    parts = ways("length")
    pieces = 2 * parts if causal and parts > 1 else parts
    if length % pieces:
        raise UserError(
            f"config.mesh.context={parts}: a row of {length} tokens does not divide into {pieces} "
            "pieces; change config.data.sequence_length."
        )
    places = np.arange(length)
    return zigzag(places, parts) if pieces > parts else places


def zigzag(x: np.ndarray, parts: int) -> np.ndarray:
    """x [length] with piece i followed by piece 2 parts - 1 - i, for each of the parts."""
    pieces = x.reshape(2, parts, -1)
    return np.stack([pieces[0], pieces[1, ::-1]], 1).reshape(-1)


def shared(
    mask: Mask, rows: dict[str, jax.Array], places_BL: jax.Array
) -> tuple[Mask, dict[str, jax.Array], jax.Array]:
    """(mask, arrays of tokens [1 or B, L] with positions and types, places [1 or B, L] of the
    tokens among the keys), in the order of the devices that share the rows.
    """
    if ways("length") == 1:
        return mask, rows, places_BL
    balanced, segments = mask.causal, mask.segments
    names = ("tokens", "positions", "token_types")
    rows = {name: parts_of(rows[name], balanced) for name in names if name in rows}
    places_BL = parts_of(places_BL, balanced)
    own = None if segments is None else parts_of(segments, balanced)
    mask = dataclasses.replace(
        mask, segments=own, key_segments=segments, q_places=places_BL, balanced=balanced
    )
    return mask, rows, places_BL


def parts_of(x_BL: jax.Array, balanced: bool) -> jax.Array:
    """Cuts rows [1 or B, L, ...] over the devices that share them, in the order of `order`."""
    if ways("length") == 1:
        return x_BL
    rows = "batch" if sharding.is_cut(x_BL, 0) else None
    places = order(x_BL.shape[1], balanced)
    x_BL = x_BL[:, places] if balanced else x_BL
    return shard(x_BL, rows, "length", *(None,) * (x_BL.ndim - 2))


def rows_of(x_BL: jax.Array, balanced: bool) -> jax.Array:
    """Whole rows [B, L, ...] in the order of the text on each device: the inverse of `parts_of`."""
    if ways("length") == 1:
        return x_BL
    x_BL = shard(x_BL, "batch", *(None,) * (x_BL.ndim - 1))
    return x_BL[:, np.argsort(order(x_BL.shape[1], balanced))] if balanced else x_BL


def attention(
    q_BLKGH, k_BSKH, v_BSKH, mask: Mask, backend: str, scores: Scores | None = None,
    method: str = "gather",
) -> jax.Array:  # fmt: skip
    """kernels.attention, also of rows that several devices share: method "gather" collects all keys
    and values of its rows on each device, "ring" passes them from device to device. Raises
    UserError for arguments that a ring does not support.
    """
    scores = scores or Scores(q_BLKGH.shape[-1] ** -0.5)
    if ways("length") == 1:
        return kernels.attention(q_BLKGH, k_BSKH, v_BSKH, mask, backend, scores)
    run = {"gather": gathered, "ring": ringed}[method]
    return run(kernels.scaled(q_BLKGH, scores), k_BSKH, v_BSKH, mask, backend, scores)


def ringed(q_BLKGH, k_BSKH, v_BSKH, mask: Mask, backend: str, scores: Scores) -> jax.Array:
    """Ring attention: keys and values pass from device to device (ring.py)."""
    if mask.window or mask.prefix is not None or scores.bias is not None or backend not in BLOCKS:
        raise UserError(
            "config.model.context_attention='ring': cannot have a window, a prefix, biased scores "
            "(relative, alibi) or config.model.attention=cudnn; set it to gather."
        )
    (axis,) = axes_of("length")
    run = partial(ring_attention, axis=axis, causal=mask.causal, cap=scores.softcap,
                  backend=backend)  # fmt: skip
    heads, rows = spec("batch", "length", "heads"), spec("batch", "length")
    q_ids, k_ids = mask.segments, mask.segments if mask.balanced else mask.key_segments
    ids = None if q_ids is None else rows
    k_ids = None if k_ids is None else shard(k_ids, "batch", "length")
    local = jax.shard_map(
        run, in_specs=(heads, heads, heads, ids, ids), out_specs=heads, check_vma=False
    )
    return local(q_BLKGH, k_BSKH, v_BSKH, q_ids, k_ids)


def gathered(q_BLKGH, k_BSKH, v_BSKH, mask: Mask, backend: str, scores: Scores) -> jax.Array:
    """Attention in which each device gathers all keys and values of its rows."""
    parts, G = ways("length"), q_BLKGH.shape[3]
    arrays: dict[str, tuple[jax.Array | None, tuple[str | None, ...]]] = {
        "segments": (mask.segments, ("batch", "length")),
        "key_segments": (mask.key_segments, ("batch", None)),
        "prefix": (mask.prefix, ("batch", None)),
        "q_places": (mask.q_places, (None, "length")),
        "bias": (scores.bias, bias_axes(scores.bias)),
        "key": (scores.key, ()),
    }
    given = {name: (x, axes) for name, (x, axes) in arrays.items() if x is not None}
    one, place = None, None
    # A full mask is the same for every part, and jax (0.10) cannot cut it into parts.
    if backend == "splash" and (mask.causal or mask.window):
        lengths = q_BLKGH.shape[1], k_BSKH.shape[1]
        places = order(lengths[0], mask.balanced)
        one = kernels.splash_kernel(mask, *lengths, G, scores.softcap, places, parts)
        mesh = jax.sharding.get_abstract_mesh()
        rows = spec(None, "length") or PartitionSpec()
        place = one.manual_sharding_spec(NamedSharding(mesh, rows))
        one = jax.tree.map(jax.sharding.reshard, one, place)

    def local(one, q_BLKGH, k_BSKH, v_BSKH, more):
        k_BSKH, v_BSKH = (in_order(x, mask.balanced) for x in (k_BSKH, v_BSKH))
        own = Mask(
            mask.causal, mask.window, **{n: x for n, x in more.items() if n not in ("bias", "key")}
        )
        key = collectives.own_key(more["key"]) if "key" in more else None
        here = dataclasses.replace(scores, bias=more.get("bias"), key=key)
        more = {} if one is None else {"one": one}
        return kernels.RUN[backend](q_BLKGH, k_BSKH, v_BSKH, own, here, **more)

    heads = spec("batch", "length", "heads")
    run = jax.shard_map(
        local, out_specs=heads, check_vma=False,
        in_specs=(place, heads, heads, heads, {n: spec(*axes) for n, (_, axes) in given.items()}),
    )  # fmt: skip
    laid = {name: shard(x, *axes) if axes else x for name, (x, axes) in given.items()}
    return run(one, q_BLKGH, k_BSKH, v_BSKH, laid)


def bias_axes(bias: jax.Array | None) -> tuple[str | None, ...]:
    """Logical axes of a bias [1 or B, K, G, L, S] of the scores."""
    rows = None if bias is None or bias.shape[0] == 1 else "batch"
    return rows, "heads", None, "length", None


def in_order(x_BS: jax.Array, balanced: bool) -> jax.Array:
    """All-gather of x [B, S, ...] over the devices that share its rows, in text order."""
    (axis,) = collectives.inside("length")
    if not balanced:
        return jax.lax.all_gather(x_BS, axis, axis=1, tiled=True)
    first, last = jnp.split(x_BS, 2, 1)
    first = jax.lax.all_gather(first, axis, axis=1, tiled=True)
    last = jax.lax.all_gather(last, axis, axis=1)[:, ::-1]
    return jnp.concatenate([first, last.reshape(first.shape)], 1)


def text_order(x_BLD: jax.Array, balanced: bool) -> jax.Array:
    """The residual stream in the order of the text, from that of `order`."""
    if not balanced or ways("length") == 1:
        return x_BLD
    axes = ("batch", "length", None)
    return collectives.on_each_device(unfolded, (axes,), axes, own=False)(x_BLD)


def unfolded(x_BLD: jax.Array) -> jax.Array:
    """Pieces 2 i and 2 i + 1 on device i, from the pieces i and 2 c - 1 - i that it has."""
    (axis,) = collectives.inside("length")
    i, last = jax.lax.axis_index(axis), 2 * jax.lax.axis_size(axis) - 1
    pieces = jnp.split(x_BLD, 2, 1)

    def sent(odd: int) -> jax.Array:
        """Sends each even or odd piece to its device; each device has one of both."""
        own = jnp.where(i % 2 == odd, *pieces)
        to = [(d, (d if d % 2 == odd else last - d) // 2) for d in range((last + 1) // 2)]
        return jax.lax.ppermute(own, axis, to)

    return jnp.concatenate([sent(0), sent(1)], 1)
