"""A mixture of views by weight."""

from typing import Any

import numpy as np

from lm_jax.data.views import noise
from lm_jax.data.views.layout import Batch
from lm_jax.data.views.windows import Windows


class Mixture(Windows):
    """Views by weight: the place of an example in the endless stream decides which one it is of.

    Each view goes through windows and epochs of its own: a place is the same place in all of them,
    so that none sees a window twice before its epoch is over. Rows are as long as the longest
    view's, and have what any view has: 0 where their own has none.
    """

    def __init__(self, members: list[Windows], weights: list[float], seed: int | None):
        self.members, self.seed, self.store = members, seed, members[0].store
        share = np.array(weights) / np.sum(weights)
        self.bounds = np.cumsum(share)
        # An epoch is as many examples as go through the text once, all views together.
        self.size = max(1, round(1 / np.sum(share / [len(member) for member in members])))
        self.arrays: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for member in members:
            for name, array in member.windows(np.zeros(1, np.int64)).items():
                known = self.arrays.get(name, (array.shape[1:],))[0]
                self.arrays[name] = max(known, array.shape[1:]), array.dtype

    def member(self, position: np.ndarray) -> np.ndarray:
        """[n]: the number of the view that each place [n] of the stream is of."""
        zero = np.zeros_like(position)
        key = noise.keys(self.seed or 0, zero, position)
        chance = noise.uniform(noise.words(key, noise.MEMBER, zero))
        return np.minimum(np.searchsorted(self.bounds, chance, "right"), len(self.members) - 1)

    def rows(self, position: np.ndarray) -> Batch:
        """The batch at places [n] of the endless stream of examples."""
        member, batch = self.member(position), {}
        for name, (shape, dtype) in self.arrays.items():
            fill = self.store.tokenizer.pad_id if name in ("tokens", "targets", "inputs") else 0
            batch[name] = np.full((len(position), *shape), fill, dtype)
        for i in np.unique(member).tolist():
            where = np.flatnonzero(member == i)
            for name, array in self.members[i].rows(position[where]).items():
                there: Any = (where, *map(slice, array.shape[1:]))
                batch[name][there] = array
        return batch
