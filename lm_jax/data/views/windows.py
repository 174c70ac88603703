"""Fixed windows of tokens: example i of epoch e as a pure function of (seed, e, i), by a keyed
permutation.

The stream of examples is the concatenation of the epochs' permutations, and batch s is its
positions [s * batch_size, (s + 1) * batch_size). So a step number is the whole state of the data,
for any number of hosts.
"""

import functools
import hashlib

import numpy as np

from lm_jax.data.tokens.store import TokenStore
from lm_jax.errors import DataError, UserError

ROUNDS = 8  # of the Feistel network; three are enough for a good shuffle, more cost little
Shard = tuple[int | tuple[int, ...], int]  # which part or parts of a batch, of how many
BLOCK = 4096  # neighbouring positions are permuted together: numpy's overhead is by call


def permute(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Applies a permutation of 0..size-1, keyed by (seed, epoch), to each of `index` [n] int64; the
    inverse is unused.

    A Feistel network over the next power of two, walked until it lands inside (cycle walking;
    Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): no table, so an epoch of
    10^10 examples costs no memory. Only integer arithmetic of our own: the order is the same under
    every version of every library.
    """
    bits = max(2, int(size - 1).bit_length())
    left, right = bits // 2, bits - bits // 2
    keys = round_keys(seed, epoch)
    found = feistel(index.astype(np.uint64), left, right, keys)
    while True:
        outside = np.flatnonzero(found >= size)
        if outside.size == 0:
            return found.astype(np.int64)
        found[outside] = feistel(found[outside], left, right, keys)


def feistel(x: np.ndarray, left: int, right: int, keys: np.ndarray) -> np.ndarray:
    """One pass of the network over numbers of left + right bits; the halves swap sizes each
    round.
    """
    for key in keys:
        high, low = x >> np.uint64(right), x & np.uint64((1 << right) - 1)
        high = (high ^ mix(low + key)) & np.uint64((1 << left) - 1)
        x = (low << np.uint64(left)) | high
        left, right = right, left
    return x


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): every bit of the result depends on every
    bit of x.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def round_keys(seed: int, epoch: int) -> np.ndarray:
    """[ROUNDS] uint64 from a hash, so that neighbouring seeds and epochs have nothing in common."""
    digest = hashlib.sha512(f"lm_jax permutation 1/{seed}/{epoch}".encode()).digest()
    return np.frombuffer(digest, "<u8")[:ROUNDS]


class Windows:
    """The windows of `length` tokens of a split: window w is tokens [w * length, (w + 1) *
    length], targets included.

    seed None keeps their order (evaluation). packed: documents that share a window do not see each
    other. partial: the last window may be shorter than `length`, filled up with padding of weight
    0; else its tokens are left out. consecutive: the batch size, for a model that carries its state
    from step to step: row r of batch s is window r * n + s mod n, in order, of the n that each row
    has of the split (the rest of it, less than a batch, is left out); positions then count on from
    window to window, and are 0 where the state must start anew. shifted: the windows of an epoch
    begin later by a number of tokens below `length`, drawn from (seed, epoch), so that no token
    always has the same context; an epoch is one window shorter, and leaves out other tokens each
    time. Raises DataError when the split holds less than one window, or than one a row.
    """

    consecutive = 0  # also of views that have no such order

    def __init__(
        self,
        store: TokenStore,
        split: str,
        length: int,
        seed: int | None = 0,
        packed: bool = True,
        partial: bool = False,
        consecutive: int = 0,
        shifted: bool = False,
    ):
        if split not in store.splits:
            raise DataError(f"{store.path}: no {split} text. It has {', '.join(store.splits)}.")
        self.store, self.split, self.length = store, split, length
        self.seed, self.packed, self.partial = seed, packed, partial
        self.shifted, self.num_tokens = shifted, store.num_tokens(split)
        self.size = self.count()
        if consecutive and self.size < consecutive:
            raise DataError(
                f"{store.path}: {split} has {self.size} windows of {length} tokens, less than one"
                f" for each of config.batch_size={consecutive} rows (config.data.carry)."
            )
        self.consecutive, self.stretch = consecutive, self.size // max(1, consecutive)
        self.size = self.stretch * consecutive or self.size
        # (epoch, block, its order): one tuple, so that threads may share these windows.
        self.permuted: tuple[int, int, np.ndarray] = (-1, -1, np.empty(0, np.int64))

    def count(self) -> int:
        """Number of windows in the split; raises DataError when there is none."""
        whole = (self.num_tokens - 1) // self.length - self.shifted
        size = -(-(self.num_tokens - 1) // self.length) if self.partial else whole
        if size < 1:
            raise DataError(
                f"{self.store.path}: {self.split} has {self.num_tokens} tokens, one window needs "
                f"{self.length * (1 + self.shifted) + 1}; more text or a smaller"
                " config.data.sequence_length."
            )
        return size

    def __len__(self) -> int:
        """Examples an epoch."""
        return self.size

    def example(self, position: np.ndarray) -> np.ndarray:
        """[n] window numbers at places [n] of the endless stream of examples."""
        if self.consecutive:
            steps, rows = np.divmod(position, self.consecutive)
            return rows * self.stretch + steps % self.stretch
        if self.seed is None:
            return position % self.size
        found, permuted = np.empty(len(position), np.int64), self.permuted
        # A plain loop: the rows of a batch are few, and neighbours are in one block.
        for row, place in enumerate(position.tolist()):
            epoch, index = divmod(place, self.size)
            block, offset = divmod(index, BLOCK)
            if (epoch, block) != permuted[:2]:
                span = np.arange(block * BLOCK, min((block + 1) * BLOCK, self.size))
                permuted = epoch, block, permute(span, self.size, self.seed, epoch)
            found[row] = permuted[2][offset]
        self.permuted = permuted
        return found

    def batch(
        self,
        step: int,
        batch_size: int,
        shard: Shard = (0, 1),
        microbatches: int = 1,
        stop: int | None = None,
    ) -> dict[str, np.ndarray]:
        """One host's part of batch `step`: number `shard[0]` of `shard[1]` equal parts, or those of
        these numbers. Arrays [rows, length].

        tokens, targets, positions int32; segment_ids int32, 1.. by document and 0 on padding;
        weights float32, 0 where the target is padding or belongs to another document than its
        input; example [rows] int64, window numbers. With `microbatches`, [microbatches, rows /
        microbatches, length] of the one global batch in that shape: a host has its parts of every
        microbatch, so that each holds the same rows whatever the number of hosts. The stream ends
        at place `stop`, where it is given: the rows from there on have weight 0.
        """
        parts, count = np.atleast_1d(shard[0]), shard[1]
        if self.consecutive not in (0, batch_size):
            raise UserError(f"config.batch_size={batch_size}: the order is for {self.consecutive}.")
        if batch_size % (count * microbatches) or not all(0 <= part < count for part in parts):
            raise UserError(
                f"config.batch_size={batch_size}: must be divisible by {count} parts times"
                f" {microbatches} microbatches (part {shard[0]})."
            )
        rows = batch_size // count // microbatches  # of a part
        first = np.arange(microbatches)[:, None] * (rows * count) + parts * rows
        position = step * batch_size + (first[..., None] + np.arange(rows)).reshape(-1)
        if stop is None:
            batch = self.rows(position)
        else:
            batch = self.rows(np.minimum(position, stop - 1))
            batch["weights"] = batch["weights"] * (position < stop)[:, None].astype(np.float32)
        if microbatches > 1:
            batch = {k: v.reshape(microbatches, -1, *v.shape[1:]) for k, v in batch.items()}
        return batch

    def rows(self, position: np.ndarray) -> dict[str, np.ndarray]:
        """The batch at places [n] of the endless stream of examples."""
        return self.batch_of(self.example(position), self.shift(position // self.size))

    def shift(self, epoch: np.ndarray) -> np.ndarray | int:
        """Number of tokens by which the windows of each `epoch` [n] begin later."""
        if not self.shifted:
            return 0
        keys = [round_keys(self.seed or 0, e)[:1] for e in epoch.tolist()]
        return (mix(np.concatenate(keys)) % np.uint64(self.length)).astype(np.int64)

    def windows(self, example: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of the windows `example` [n] int64, in epoch 0 where that matters."""
        return self.batch_of(example, self.shift(np.zeros_like(example)))

    def batch_of(self, example: np.ndarray, shift: np.ndarray | int) -> dict[str, np.ndarray]:
        """The batch of the windows `example` [n], `shift` tokens later."""
        starts, length = example * self.length + shift, self.length
        full = starts + length < self.num_tokens
        if full.all():
            ids = self.store.gather(self.split, starts, length + 1)
        else:
            ids = np.full((len(starts), length + 1), self.store.tokenizer.pad_id, np.int32)
            ids[full] = self.store.gather(self.split, starts[full], length + 1)
            for row in np.flatnonzero(~full):
                rest = self.store.tokens(self.split, int(starts[row]))
                ids[row, : len(rest)] = rest
        segment_ids, positions, weights = self.documents(starts)
        if self.consecutive:
            # What the state has seen, of the document that goes on or of the row's stretch of text.
            seen = example % self.stretch * length
            if self.packed:
                ends = self.store.ends(self.split)
                document = np.concatenate([[0], ends])[np.searchsorted(ends, starts, "right")]
                seen = np.minimum(seen, starts - document)
            positions = (positions + seen[:, None] * (segment_ids == 1)).astype(np.int32)
        if not full.all():
            there = starts[:, None] + np.arange(1, length + 1) < self.num_tokens
            weights, segment_ids = weights * there, segment_ids * there
        return {
            "tokens": np.ascontiguousarray(ids[:, :-1]),
            "targets": np.ascontiguousarray(ids[:, 1:]),
            "segment_ids": segment_ids,
            "positions": positions,
            "weights": weights,
            "example": example.astype(np.int64),
        }

    def documents(self, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(segment_ids, positions, weights), each [n, length], of the windows that start at
        `starts` [n].
        """
        shape = (len(starts), self.length)
        places = np.broadcast_to(np.arange(self.length, dtype=np.int32), shape)
        if not self.packed:
            return np.ones(shape, np.int32), places.copy(), np.ones(shape, np.float32)
        ends = self.store.ends(self.split)
        low = np.searchsorted(ends, starts, "right")
        count = np.searchsorted(ends, starts + self.length, "right") - low
        row = np.repeat(np.arange(len(starts)), count)
        which = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + low[row]
        column = ends[which] - starts[row]  # 1..length: where the next document starts
        weights = np.ones(shape, np.float32)
        weights[row, column - 1] = 0
        inside = column < self.length
        row, column = row[inside], column[inside]
        begins = np.zeros(shape, np.int32)
        begins[row, column] = 1
        segment_ids = np.cumsum(begins, axis=1, dtype=np.int32) + np.int32(1)
        begins[row, column] = column
        return segment_ids, places - np.maximum.accumulate(begins, axis=1), weights
