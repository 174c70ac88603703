"""Attention over a sequence that is cut over devices is attention over the whole of it."""

# Shapes: B batch, L length of the whole sequence, K key heads, G query heads a key head, H size.

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from lm_jax.models import ring

CUT = PartitionSpec(None, "context")
RNG = np.random.default_rng(0)


def over(devices: int, function):
    """`function` of each device's part of arrays [B, L, ...]."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("context",))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=CUT, out_specs=CUT, check_vma=False))


@pytest.mark.parametrize("c", [1, 2, 3, 8])
def test_zigzag_gives_each_device_an_early_piece_and_as_late_a_one(c):
    x_BL = jnp.arange(2 * 4 * c).reshape(2, 4 * c)
    there = over(c, functools.partial(ring.to_zigzag, axis="context"))(x_BL)
    pieces = np.split(x_BL, 2 * c, 1)
    order = [piece for i in range(c) for piece in (i, 2 * c - 1 - i)]
    np.testing.assert_array_equal(there, np.concatenate([pieces[i] for i in order], 1))
    back = over(c, functools.partial(ring.from_zigzag, axis="context"))(there)
    np.testing.assert_array_equal(back, x_BL)


def test_gradients_go_through_zigzag_both_ways():
    def both(x):
        x = ring.to_zigzag(x, "context")
        return ring.from_zigzag(jnp.sin(x), "context")

    x_BL = jnp.asarray(RNG.normal(size=(1, 16)), jnp.float32)
    found = jax.grad(lambda x: (over(4, both)(x) * jnp.arange(16.0)[None]).sum())(x_BL)
    np.testing.assert_allclose(found, jnp.cos(x_BL) * jnp.arange(16.0)[None], rtol=1e-5)
