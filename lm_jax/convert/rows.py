"""Rows: arrays of ours and the tensors of a Hugging Face file that hold the same numbers."""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from lm_jax.config import ModelConfig
from lm_jax.config.cost import depths


@dataclasses.dataclass(frozen=True)
class Row:
    """One of our arrays, or a part of it, and the tensor of theirs that holds the same numbers.

    ours, axes: flat name, and a letter for each axis but that of the layers; a number is an index.
    theirs, dims: name with {layer}, and its dimensions as products of the same letters. Rows that
    share a tensor of theirs are its parts along the last dimension, in the order of the table.
    """

    ours: str
    axes: str
    theirs: str
    dims: str

    @property
    def letters(self) -> str:
        """The axes of ours that are not fixed to an index."""
        return "".join(axis for axis in self.axes if axis.isalpha())

    @property
    def place(self) -> tuple[Any, ...]:
        """Index of this part in our array of one layer."""
        axes = re.findall(r"[A-Z]|\d+", self.axes)
        return tuple(slice(None) if axis.isalpha() else int(axis) for axis in axes)

    @property
    def stacked(self) -> bool:
        """Whether theirs is one tensor for each layer."""
        return "{layer}" in self.theirs

    def shape(self, sizes: dict[str, int]) -> tuple[int, ...]:
        """Shape of this part in their tensor."""
        return tuple(math.prod(sizes[letter] for letter in dim) for dim in self.dims.split())

    def to_ours(self, part: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """Their values in our order of axes (a view where numpy can)."""
        order = self.dims.replace(" ", "")
        split = part.reshape([sizes[letter] for letter in order])
        return split.transpose([order.index(letter) for letter in self.letters])

    def to_theirs(self, part: np.ndarray, sizes: dict[str, int]) -> np.ndarray:
        """The inverse of `to_ours`."""
        order = self.dims.replace(" ", "")
        return part.transpose([self.letters.index(letter) for letter in order]).reshape(
            self.shape(sizes)
        )


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """Sizes of the letters of a Row; C is the second axis of a square matrix [D, D]."""
    return {
        "V": config.vocab_size, "P": config.max_length + config.position_offset, "D": config.dim,
        "C": config.dim, "K": config.kv_heads, "G": config.num_heads // config.kv_heads,
        "H": config.head_size, "F": config.mlp_size, "T": config.token_types,
        "R": config.relative_buckets, "O": 2, "E": config.num_experts,
    }  # fmt: skip


def layers_of(config: ModelConfig, ours: str) -> int:
    """Number of layers of the stack that holds one of our arrays."""
    encoder, layers, _ = depths(config)
    return encoder or layers if ours.startswith("encoder/") else layers


def rows_by_tensor(rows: list[Row], config: ModelConfig) -> dict[str, tuple[int, list[Row]]]:
    """{tensor of theirs: (layer, the rows that are its parts)}."""
    found: dict[str, tuple[int, list[Row]]] = {}
    for row in rows:
        for layer in range(layers_of(config, row.ours) if row.stacked else 1):
            found.setdefault(row.theirs.format(layer=layer), (layer, []))[1].append(row)
    return found


def tensor_shape(rows: list[Row], sizes: dict[str, int]) -> tuple[int, ...]:
    """Shape of a tensor of theirs that these rows are the parts of."""
    shapes = [row.shape(sizes) for row in rows]
    return (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
