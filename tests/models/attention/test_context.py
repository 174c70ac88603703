"""Devices that share rows have equal work, and their results come back in text order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.config import MeshConfig
from lm_jax.devices import sharding
from lm_jax.devices.sharding import shard
from lm_jax.errors import UserError
from lm_jax.models.attention import context, kernels


def on(c, function, *args):
    """`function` on a mesh of c devices that share the rows, as numpy."""
    mesh = sharding.make_mesh(MeshConfig(data=1, context=c), jax.devices()[:c])
    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(function)(*args))


@pytest.mark.parametrize("c", [2, 4])
def test_each_device_has_an_early_piece_and_as_late_a_one(c):
    rows = np.arange(2 * 4 * c).reshape(2, 4 * c)
    parts = on(c, lambda x: context.parts_of(shard(x, "batch", None), balanced=True), rows)
    pieces = np.split(rows, 2 * c, 1)
    wanted = [piece for i in range(c) for piece in (i, 2 * c - 1 - i)]
    np.testing.assert_array_equal(parts, np.concatenate([pieces[i] for i in wanted], 1))


@pytest.mark.parametrize("c", [2, 4, 8])
def test_states_and_rows_come_back_in_the_order_of_the_text(c):
    x_BLD = np.random.default_rng(0).normal(size=(2, 4 * c, 3)).astype(np.float32)

    def there_and_back(x_BLD, how):
        parts = context.parts_of(shard(x_BLD, "batch", None, None), balanced=True)
        return how(parts, True)

    for how in (context.text_order, context.rows_of):
        np.testing.assert_array_equal(on(c, lambda x, h=how: there_and_back(x, h), x_BLD), x_BLD)


def test_a_row_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="a row of 12 tokens does not divide into 8 pieces"):
        on(4, lambda x: context.parts_of(x, balanced=True), np.zeros((1, 12)))
    assert on(4, lambda x: context.parts_of(x, balanced=False), np.zeros((1, 12))).shape == (1, 12)


def test_a_ring_refuses_what_it_cannot_do():
    x = jnp.zeros((1, 8, 1, 1, 4))
    for mask, backend in ((kernels.Mask(window=4), "xla"), (kernels.Mask(), "cudnn")):
        attend = lambda x, m=mask, b=backend: context.attention(x, x[:, :, :, 0], x[:, :, :, 0], m,
                                                                b, method="ring")  # fmt: skip
        with pytest.raises(UserError, match=r"'ring': cannot have .* set it to gather"):
            on(2, attend, x)
