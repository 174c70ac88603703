"""Muon: momentum, orthogonalized matrix by matrix (K. Jordan et al., "Muon: An optimizer for hidden
layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon/).

As published and as torch.optim.Muon computes it: the momentum is not corrected for its start at
zero (optax.contrib.muon corrects it, which changes the second to the tenth step or so).
"""

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MOMENTUM = 0.95
STEPS = 5  # of Newton and Schulz
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # singular values end between 0.7 and 1.2
EPS = 1e-7  # a matrix of a smaller norm is not scaled up to 1


class MuonState(NamedTuple):
    """The momentum of each matrix."""

    momentum: Any


def scale_by_muon(matrices: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Orthogonalized Nesterov momentum times sqrt(max(1, columns / rows)), to be multiplied by
    -learning rate.

    matrices: a tree of parameters -> at each leaf (rows, columns), axes of the matrices in it; the
    axes in neither count matrices.
    """

    def init(params):
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(grads, state, params=None):
        del params
        mix = lambda m, g: MOMENTUM * m + (1 - MOMENTUM) * g
        momentum = jax.tree.map(mix, state.momentum, grads)
        move = lambda m, g, axes: orthogonal(mix(m, g), *axes)
        return jax.tree.map(move, momentum, grads, matrices(grads)), MuonState(momentum)

    return optax.GradientTransformation(init, update)


def orthogonal(x: jax.Array, rows: tuple[int, ...], columns: tuple[int, ...]) -> jax.Array:
    """Each matrix of x with its singular values moved to about 1, times sqrt(max(1, columns /
    rows)).
    """
    rows, columns = (tuple(axis % x.ndim for axis in axes) for axes in (rows, columns))
    others = tuple(axis for axis in range(x.ndim) if axis not in rows + columns)
    order = others + rows + columns
    size = lambda axes: prod(x.shape[axis] for axis in axes)
    m, n = size(rows), size(columns)
    lying = x.transpose(order)
    y = newton_schulz(lying.reshape(size(others), m, n)) * max(1.0, n / m) ** 0.5
    back = sorted(range(x.ndim), key=lambda axis: order[axis])
    return y.reshape(lying.shape).transpose(back)


def newton_schulz(x_NMK: jax.Array) -> jax.Array:
    """About U V^T of each matrix U S V^T: steps of the polynomial a x + b x^3 + c x^5 of its
    singular values.
    """
    a, b, c = COEFFICIENTS
    wide = x_NMK.shape[1] <= x_NMK.shape[2]  # products of the smaller side
    x = x_NMK if wide else x_NMK.mT
    norm = jnp.sqrt(jnp.sum(jnp.square(x), (1, 2), keepdims=True))
    x = x / jnp.maximum(norm, EPS)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x if wide else x.mT
