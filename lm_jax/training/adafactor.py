"""Adafactor (Shazeer and Stern 2018, arXiv:1804.04235) on stacked matrices: second moments as a row
and a column.

optax.scale_by_factored_rms factors the two longest axes of an array. Ours are stacked over layers
and have heads as axes, so that would mix layers, or heads with widths; here the axes are given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# Sections 6 and 7 and algorithm 4.
DECAY = 0.8  # the second moment of step t keeps 1 - t^-0.8
EPS_SQUARE = 1e-30  # beside squared gradients
EPS_SCALE = 1e-3  # a parameter counts as at least as large, or one of zeros would stay so
MAX_RMS = 1.0  # root mean square of an update


class FactoredState(NamedTuple):
    """Steps so far, and for each parameter the mean of its squared gradients {"v"}, or the means
    over columns and over rows {"row", "column"}, of which the other axes have size 1.
    """

    steps: jax.Array
    moments: Any


def scale_by_adafactor(matrices: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Updates relative to the size of their parameter, to be multiplied by -learning rate.

    matrices: a tree of parameters -> at each leaf (rows, columns), axes of the matrices in it; the
    axes in neither count matrices. Without rows, the leaf is of vectors, along the columns.
    """

    def init(params):
        empty = lambda x, axes: {name: 0 * m for name, m in means(x, *axes).items()}
        return FactoredState(
            jnp.zeros((), jnp.int32), jax.tree.map(empty, params, matrices(params))
        )

    def update(grads, state, params):
        steps = state.steps + 1
        kept = 1 - steps.astype(jnp.float32) ** -DECAY
        axes = matrices(params)

        def moment(g, old, axes):
            new = means(jnp.square(g) + EPS_SQUARE, *axes)
            return {name: kept * old[name] + (1 - kept) * new[name] for name in new}

        moments = jax.tree.map(moment, grads, state.moments, axes)
        return jax.tree.map(scaled, grads, moments, params, axes), FactoredState(steps, moments)

    return optax.GradientTransformation(init, update)


def means(x: jax.Array, rows: tuple[int, ...], columns: tuple[int, ...]) -> dict[str, jax.Array]:
    """Means of x over columns and over rows, where there are any."""
    if not rows:
        return {"v": x}
    return {"row": jnp.mean(x, columns, keepdims=True), "column": jnp.mean(x, rows, keepdims=True)}


def scaled(g: jax.Array, moment: dict, param: jax.Array, axes: tuple) -> jax.Array:
    """The update of each matrix or vector in a leaf (algorithms 4 and 5), positive."""
    rows, columns = axes
    rms = lambda x: jnp.sqrt(jnp.mean(jnp.square(x), rows + columns, keepdims=True))
    if rows:
        row, column = moment["row"], moment["column"]
        u = g * jax.lax.rsqrt(row / jnp.mean(row, rows, keepdims=True)) * jax.lax.rsqrt(column)
    else:
        u = g * jax.lax.rsqrt(moment["v"])
    return u / jnp.maximum(1.0, rms(u) / MAX_RMS) * jnp.maximum(EPS_SCALE, rms(param))
