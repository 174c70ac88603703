"""Pieces of text in rows of a fixed length: runs of ids, joined and packed.

A piece is a row's part of one document. Ragged arrays: [k] of pieces, ordered by their row, and
flat arrays in which the pieces' tokens follow one another.
"""

from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]
Ragged = tuple[np.ndarray, np.ndarray]  # pieces: (flat ids [sum(sizes)], sizes [k])
# (starts, lengths), [k] or a number for all; a start is an index for `gather_ids`.
Runs = tuple[Any, Any]


def join(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[sum(lengths)] int64: starts[0], starts[0] + 1, ... (lengths[0] of them), starts[1], ..."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def gather_ids(ids: np.ndarray, index: np.ndarray) -> np.ndarray:
    """ids[index], where an index ~i (negative) stands for the id i itself."""
    return np.where(index < 0, ~index, ids[np.maximum(index, 0)])


def weave(ids: np.ndarray, *runs: Runs) -> Ragged:
    """Pieces that are each made of one run of `ids` after the other."""
    starts, lengths = (
        np.stack(np.broadcast_arrays(*x), 1).astype(np.int64) for x in zip(*runs, strict=True)
    )
    return gather_ids(ids, join(starts.reshape(-1), lengths.reshape(-1))), lengths.sum(1)


def before(group: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[k]: the sum of the `sizes` [k] that come before each in its `group` [k], which ascends."""
    total = np.cumsum(sizes) - sizes
    return total - total[np.searchsorted(group, group)] if len(group) else total


class Packing:
    """Places of the tokens of pieces of `sizes` [k] when the pieces of a row follow one another.

    Attributes: index [sum(sizes)] into the flat [rows * length]; place, the token's number in its
    piece.
    """

    def __init__(self, row: np.ndarray, sizes: np.ndarray, rows: int, length: int):
        self.row, self.sizes, self.shape = row, sizes, (rows, length)
        self.index = join(row * length + before(row, sizes), sizes)
        self.place = join(np.zeros(len(sizes), np.int64), sizes)

    def put(self, values: np.ndarray, fill: int = 0) -> np.ndarray:
        """[rows, length] int32 of `values` [sum(sizes)], `fill` elsewhere."""
        grid = np.full(self.shape, fill, np.int32)
        grid.reshape(-1)[self.index] = values
        return grid

    def segments(self) -> np.ndarray:
        """[rows, length] int32: 1.. by piece, 0 on padding."""
        number = np.arange(len(self.row)) - np.searchsorted(self.row, self.row) + 1
        return self.put(np.repeat(number, self.sizes))


def decoder_rows(
    ids: np.ndarray,
    row: np.ndarray,
    sizes: np.ndarray,
    given: np.ndarray,
    shape: tuple[int, int],
    pad_id: int,
) -> Batch:
    """A decoder's batch of `shape` [n, L] from pieces of `sizes` [k], of each row at most L + 1
    tokens: every token is the target of the one before it in its piece, except the first `given`
    [k] of a piece, which are its prefix.
    """
    packing = Packing(row, sizes, shape[0], shape[1] + 1)
    tokens, segments = packing.put(ids, pad_id), packing.segments()
    prefix = packing.put(packing.place < np.repeat(given, sizes))
    same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    arrays = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments[:, :-1],
        "positions": packing.put(packing.place)[:, :-1],
        "weights": (same & (prefix[:, 1:] == 0)).astype(np.float32),
        "prefix": prefix[:, :-1],
    }
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def encoder_decoder_rows(
    sources: Ragged,
    targets: Ragged,
    row: np.ndarray,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    ids: tuple[int, int],
) -> Batch:
    """An encoder-decoder's batch from pairs (inputs of the encoder, targets of the decoder).

    shapes: [n, S] of the encoder and [n, L] of the decoder; ids: (the first of each piece of the
    decoder's inputs, pad). The pieces of a row see each other on neither side.
    """
    (start_id, pad_id), (source, source_sizes), (target, target_sizes) = ids, sources, targets
    encoder = Packing(row, source_sizes, *shapes[0])
    decoder = Packing(row, target_sizes, *shapes[1])
    shifted = np.where(decoder.place == 0, start_id, np.roll(target, 1))
    segments = decoder.segments()
    return {
        "inputs": encoder.put(source, pad_id),
        "input_segment_ids": encoder.segments(),
        "input_positions": encoder.put(encoder.place),
        "tokens": decoder.put(shifted, pad_id),
        "targets": decoder.put(target, pad_id),
        "segment_ids": segments,
        "positions": decoder.put(decoder.place),
        "weights": (segments > 0).astype(np.float32),
    }


def prefix_rows(
    sources: Ragged, targets: Ragged, row: np.ndarray, shape: tuple[int, int], pad_id: int
) -> Batch:
    """The same pairs for a decoder alone: each target behind its source, which is its prefix."""
    (source, source_sizes), (target, target_sizes) = sources, targets
    sizes = source_sizes + target_sizes
    begin = np.cumsum(sizes) - sizes
    ids = np.empty(sizes.sum(), np.int64)
    ids[join(begin, source_sizes)] = source
    ids[join(begin + source_sizes, target_sizes)] = target
    return decoder_rows(ids, row, sizes, source_sizes, shape, pad_id)
