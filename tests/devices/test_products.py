"""Products over a mesh equal those of one device, with their gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.config import LossConfig, MeshConfig
from lm_jax.devices import products, sharding
from lm_jax.devices.sharding import make_mesh, shard
from lm_jax.tasks.objectives import cross_entropy

B, L, D, F, V = 8, 6, 16, 32, 64
MESHES = [
    {"data": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 1, "fsdp": 2, "tensor": 4},
    {"data": 1, "context": 2, "fsdp": 2, "tensor": 2},
]
WORDS = (V, V - 4)  # the second does not divide over tensor x fsdp


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def branch(x_BLD, up_DF, gate_DF, down_FD):
    """Two weights read the stream, one writes to it."""
    axes = ("batch", "length", "mlp")
    h, g = products.expand(x_BLD, ("bld,df->blf", up_DF, axes), ("bld,df->blf", gate_DF, axes))
    return products.contract("blf,fd->bld", jnp.tanh(h) * g, down_FD, *axes)


def on(mesh, function, *args):
    """`function` of arrays with logical axes (sharding.table: by their rows), jitted, with the
    gradients of all of them.
    """

    def run(*arrays):
        axes = [names(len(x)) if callable(names) else names for x, names in args]
        laid = [shard(x, *names) for x, names in zip(arrays, axes, strict=True)]

        def summed(*laid):
            y = function(*laid)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape))), y

        floats = [i for i, x in enumerate(laid) if x.dtype == jnp.float32]
        (_, y), grads = jax.value_and_grad(summed, argnums=floats, has_aux=True)(*laid)
        return y, grads

    arrays = [x for x, _ in args]
    if mesh is None:
        return jax.tree.map(np.asarray, jax.jit(run)(*arrays))
    with jax.set_mesh(make_mesh(MeshConfig(**mesh))):
        return jax.tree.map(np.asarray, jax.jit(run)(*arrays))


def same(function, *args, mesh):
    wanted, found = on(None, function, *args), on(mesh, function, *args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("dim", [D, 6], ids=["spread", "not divisible"])
def test_a_branch_is_the_same_on_every_mesh(mesh, dim):
    weight = lambda seed: (numbers(dim, F, seed=seed), (None, "mlp"))
    x = lambda x_BLD, *w: branch(shard(x_BLD, *sharding.stream(dim)), *w)
    down = (numbers(F, dim, seed=3), ("mlp", None))
    same(x, (numbers(B, L, dim), ("batch", None, None)), weight(1), weight(2), down, mesh=mesh)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("V", WORDS, ids=["by words", "not divisible"])
def test_a_lookup_is_the_same_on_every_mesh(mesh, V):
    ids = np.random.default_rng(1).integers(0, V, (B, L)).astype(np.int32)
    look = lambda table, ids: products.lookup(table, ids, jnp.float32)
    same(look, (numbers(V, D), sharding.table), (ids, ("batch", None)), mesh=mesh)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("V", WORDS, ids=["by words", "not divisible"])
def test_the_loss_by_chunks_is_that_of_whole_logits_on_one_device(mesh, V):
    targets = np.random.default_rng(2).integers(0, V, (B, L)).astype(np.int32)
    rows = np.ones((B, L), np.int32)

    def loss(chunk_size, x_BLD, table, bias, targets, rows):
        config = LossConfig(chunk_size=chunk_size, z_loss=0.1, label_smoothing=0.1)
        readout = {"table": table, "bias": bias}
        return cross_entropy(x_BLD, readout, targets, rows.astype(jnp.float32), config)[0]

    args = [
        (numbers(B, L, D), ("batch", "length", None)),
        (numbers(V, D, seed=1), sharding.table),
        (numbers(V, seed=2), ("vocab",)),
        (targets, ("batch", None)),
        (rows, ("batch", None)),
    ]
    wanted, found = on(None, partial(loss, L), *args), on(mesh, partial(loss, 2), *args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, wanted)


def test_devices_that_share_the_heads_hold_a_part_of_each_state():
    with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=4))):
        assert sharding.stream(D) == ("batch", "length", "stream")
        assert sharding.stream(6) == ("batch", "length", None)
        table = shard(jnp.zeros((V, D)), *sharding.table(V))
        x_BLD = products.lookup(
            table, shard(jnp.zeros((B, L), jnp.int32), "batch", None), "float32"
        )
        assert x_BLD.sharding.shard_shape(x_BLD.shape) == (B // 2, L, D // 4)
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert sharding.stream(D) == ("batch", "length", None)


def test_a_frequent_word_loses_no_gradient_to_bfloat16():
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        table, ids = shard(jnp.zeros((V, D)), *sharding.table(V)), jnp.zeros((1, 4096), jnp.int32)
        ids = shard(ids, "batch", None)

        def total(table):
            return jnp.sum(products.lookup(table, ids, jnp.bfloat16).astype(jnp.float32))

        assert jax.jit(jax.grad(total))(table)[0, 0] == 4096  # a sum in bfloat16 stops at 256
