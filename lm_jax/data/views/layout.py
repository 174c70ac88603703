"""Pieces of text in rows of a fixed length: runs of ids, joined and packed.

A piece is a row's part of one document. Ragged arrays: [k] of pieces, ordered by their row, and
flat arrays in which the pieces' tokens follow one another.
"""

from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]


def join(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[sum(lengths)] int64: starts[0], starts[0] + 1, ... (lengths[0] of them), starts[1], ..."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def read(ids: np.ndarray, index: np.ndarray) -> np.ndarray:
    """ids[index], where an index ~i (negative) stands for the id i itself."""
    return np.where(index < 0, ~index, ids[np.maximum(index, 0)])


def weave(ids: np.ndarray, *runs: tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(flat ids, sizes [k]) of pieces that are each made of `runs`: pairs (starts, lengths), [k]
    or a number for all, where a start is an index for `read`.
    """
    starts, lengths = (
        np.stack(np.broadcast_arrays(*x), 1).astype(np.int64) for x in zip(*runs, strict=True)
    )
    return read(ids, join(starts.reshape(-1), lengths.reshape(-1))), lengths.sum(1)


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


def pair_rows(
    sources: tuple[np.ndarray, np.ndarray],
    targets: tuple[np.ndarray, np.ndarray],
    row: np.ndarray,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    ids: tuple[int, int],
) -> Batch:
    """An encoder-decoder's batch of pairs (what the encoder reads, what the decoder says).

    sources, targets: (tokens [sum(sizes)], sizes [k]); shapes: [n, S] of the encoder and [n, L] of
    the decoder; ids: (what begins each piece of the decoder's inputs, and pad). The pieces
    of a row see each other on neither side.
    """
    (start_id, pad_id), (source, source_sizes), (target, target_sizes) = ids, sources, targets
    reads = Packing(row, source_sizes, *shapes[0])
    says = Packing(row, target_sizes, *shapes[1])
    segments = says.segments()
    return {
        "inputs": reads.put(source, pad_id),
        "input_segment_ids": reads.segments(),
        "input_positions": reads.put(reads.place),
        "tokens": says.put(np.where(says.place == 0, start_id, np.roll(target, 1)), pad_id),
        "targets": says.put(target, pad_id),
        "segment_ids": segments,
        "positions": says.put(says.place),
        "weights": (segments > 0).astype(np.float32),
    }


def one_row(
    sources: tuple[np.ndarray, np.ndarray],
    targets: tuple[np.ndarray, np.ndarray],
    row: np.ndarray,
    shape: tuple[int, int],
    pad_id: int,
) -> Batch:
    """The same pairs for a decoder alone: each target behind its source, which is its prefix."""
    (source, reads), (target, says) = sources, targets
    sizes = reads + says
    begin = np.cumsum(sizes) - sizes
    ids = np.empty(sizes.sum(), np.int64)
    ids[join(begin, reads)], ids[join(begin + reads, says)] = source, target
    return decoder_rows(ids, row, sizes, reads, shape, pad_id)
