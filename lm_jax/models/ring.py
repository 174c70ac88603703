"""How does a sequence that is cut over devices attend to all of itself?"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def to_zigzag(x_BL: jax.Array, axis: str) -> jax.Array:
    """[B, L, ...] of the i-th of c devices along `axis` (in a shard_map): from the i-th part of the
    sequence to pieces i and 2c - 1 - i of 2c, early and late work in equal shares (Llama 3,
    arXiv:2407.21783, section 3.3.2). L is even.
    """
    even, odd = zigzag(axis)
    front, back = jnp.split(x_BL, 2, 1)  # pieces 2i and 2i + 1
    front, back = jax.lax.ppermute(front, axis, even), jax.lax.ppermute(back, axis, odd)
    return jnp.concatenate(in_order((front, back), axis), 1)


def from_zigzag(x_BL: jax.Array, axis: str) -> jax.Array:
    """The inverse of to_zigzag."""
    even, odd = zigzag(axis)
    front, back = in_order(jnp.split(x_BL, 2, 1), axis)  # that of an even number first
    front = jax.lax.ppermute(front, axis, [(there, here) for here, there in even])
    back = jax.lax.ppermute(back, axis, [(there, here) for here, there in odd])
    return jnp.concatenate([front, back], 1)


def zigzag(axis: str) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(From, to) of the pieces of even numbers, then of odd ones: a permutation of devices each."""
    c = jax.lax.axis_size(axis)
    goes = [(piece // 2, min(piece, 2 * c - 1 - piece)) for piece in range(2 * c)]
    return goes[::2], goes[1::2]


def in_order(pieces: Sequence[jax.Array], axis: str) -> tuple[jax.Array, jax.Array]:
    """(That of an even number, that of an odd one) as a device holds them, and back: one of an even
    number has the even one first.
    """
    first, second = pieces
    is_even = jax.lax.axis_index(axis) % 2 == 0
    return jnp.where(is_even, first, second), jnp.where(is_even, second, first)
