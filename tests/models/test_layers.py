"""Layers: gelu and dropout against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.config import MeshConfig
from lm_jax.devices.sharding import make_mesh, shard
from lm_jax.models.layers import dropout, gelu


@pytest.mark.parametrize("derivative", [False, True])
def test_gelu_is_the_exact_one(derivative):
    x = jnp.linspace(-8, 8, 1001)
    exact = lambda x: jax.nn.gelu(x, approximate=False)
    ours, theirs = ((jax.vmap(jax.grad(f)) if derivative else f) for f in (gelu, exact))
    np.testing.assert_allclose(ours(x), theirs(x), rtol=0, atol=1e-6)
    assert jnp.abs(ours(x) - jax.nn.gelu(x, approximate=True)).max() > 1e-4


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.linspace(-4, 4, 101, dtype=jnp.bfloat16)
    assert gelu(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


def test_a_device_draws_the_dropout_of_its_own_part_and_the_same_as_one_device():
    x = jnp.ones((8, 6, 4))

    def drop(key):
        return dropout(shard(x, "batch", None, "stream"), 0.5, key)

    with jax.set_mesh(make_mesh(MeshConfig(data=4, tensor=2))):
        program = jax.jit(drop).lower(jax.random.key(0)).compile()
        parts = program(jax.random.key(0))
    assert "u32[2,6,2]" in program.as_text()
    assert "u32[8,6,4]" not in program.as_text()
    np.testing.assert_array_equal(parts, dropout(x, 0.5, jax.random.key(0)))
