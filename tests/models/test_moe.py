"""Mixture of experts equals a loop over tokens, on every mesh, and its balance is measured."""

import dataclasses
import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig
from lm_jax.devices import sharding
from lm_jax.models import Transformer, ragged
from lm_jax.models.attention import context
from lm_jax.models.attention.kernels import Mask
from lm_jax.models.layers import ACTIVATIONS, MLP
from lm_jax.models.moe import Experts
from lm_jax.run.checkpoint import flatten
from lm_jax.training import optimizers
from lm_jax.training.train_step import init_state, make_train_step

B, L, D, E, K = 8, 12, 16, 4, 2
CONFIG = ModelConfig(
    vocab_size=32, num_layers=2, dim=D, num_heads=2, mlp_dim=8, max_length=16, bias=True,
    num_experts=E, experts_per_token=K, shared_experts=1, init_std=0.3, dtype="float32",
    attention="xla",
)  # fmt: skip


def inputs(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, L, D))


@functools.cache
def made(config):
    """The layer, with biases that are not zero."""
    layer = Experts(config, rngs=nnx.Rngs(0))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), layer)


@functools.partial(jax.jit, static_argnames="dropless")
def says(layer, x, mask=None, dropless=False):
    return layer(x, mask, dropless)


def choices(layer, x):
    """(experts [T, K], weights [T, K]) of the definition."""
    probs = jax.nn.softmax(x.reshape(-1, D) @ layer.router[...])
    ids = jnp.argsort(-probs, -1)[:, : layer.config.experts_per_token]
    picked = jnp.take_along_axis(probs, ids, -1)
    return ids, picked / picked.sum(-1, keepdims=True)


@jax.jit
def slow(layer, x, kept=None):
    """The definition, token by token and expert by expert."""
    config, act = layer.config, ACTIVATIONS[layer.config.activation]
    ids, weights = choices(layer, x)
    weights = weights if kept is None else jnp.where(kept, weights, 0)

    def token(row, ids, weights):
        y = layer.shared(row[None, None])[0, 0] if config.shared_experts else jnp.zeros(D)
        for e in range(config.num_experts):
            h = jnp.einsum("d,dcf->cf", row, layer.up[e]) + layer.up_bias[e]
            h = act(h[0]) * h[1] if config.gated else act(h[0])
            y += jnp.sum(jnp.where(ids == e, weights, 0)) * (h @ layer.down[e] + layer.down_bias[e])
        return y

    return jax.lax.map(lambda each: token(*each), (x.reshape(-1, D), ids, weights)).reshape(x.shape)


def gradients(function, layer, x):
    """(output, gradients of a sum over it by layer and x)."""
    target = jax.random.normal(jax.random.key(9), x.shape)
    score = lambda layer, x: (jnp.sum(jnp.square((y := function(layer, x)) - target)), y)
    (_, y), grads = jax.value_and_grad(score, (0, 1), has_aux=True)(layer, x)
    return jax.tree.leaves((y, grads))


@pytest.mark.parametrize("gated", [True, False])
def test_a_layer_and_its_gradients_are_those_of_a_loop_over_tokens(gated):
    layer = made(dataclasses.replace(CONFIG, gated=gated))
    x = inputs()
    mine = jax.jit(lambda layer, x: gradients(lambda layer, x: layer(x)[0], layer, x))(layer, x)
    theirs = jax.jit(lambda layer, x: gradients(slow, layer, x))(layer, x)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert jnp.abs(b).max() > 1e-3


def test_one_expert_is_the_dense_layer():
    config = dataclasses.replace(CONFIG, num_experts=1, experts_per_token=1, shared_experts=0)
    layer, x = made(config), inputs()
    dense = MLP(config, rngs=nnx.Rngs(0))
    for name in ("up", "down", "up_bias", "down_bias"):
        setattr(dense, name, nnx.Param(getattr(layer, name)[0]))
    np.testing.assert_allclose(
        says(layer, x)[0], jax.jit(lambda dense, x: dense(x))(dense, x), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("sizes", [(0, 300, 0, 5), (41, 0, 64, 200), (0, 0, 0, 305)])
def test_grouped_products_are_those_of_ragged_dot_whatever_the_sizes(sizes):
    rng, rows = np.random.default_rng(0), sum(sizes)
    x, g = (jnp.asarray(rng.standard_normal((305 + ragged.ROOM, n)), jnp.float32) for n in (6, 5))
    w = jnp.asarray(rng.standard_normal((4, 6, 5)), jnp.float32)
    sizes, grouped = jnp.asarray(sizes), partial(ragged.grouped, "none")
    g = g.at[rows:].set(0)
    mine, theirs = (
        jax.jit(lambda x, w, f=f: jax.vjp(lambda x, w: f(x, w, sizes)[:rows], x, w)[1](g[:rows]))
        for f in (grouped, jax.lax.ragged_dot)
    )
    np.testing.assert_allclose(
        grouped(x, w, sizes)[:rows], jax.lax.ragged_dot(x, w, sizes)[:rows], rtol=1e-5, atol=1e-5
    )
    (dx, dw), (dx_ref, dw_ref) = mine(x, w), theirs(x, w)
    np.testing.assert_allclose(dx[:rows], dx_ref[:rows], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, dw_ref, rtol=1e-4, atol=1e-4)
    for a, b in zip(ragged.backward_ragged(x, w, sizes, g), (dx_ref, dw_ref), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


# ---- Who is asked --------------------------------------------------------------------------------


def all_to(expert, config=CONFIG):
    """A layer whose router prefers one expert, and after it the next, for every token."""
    layer = made(config)
    router = np.zeros((D, E), np.float32)
    router[0, expert], router[0, (expert + 1) % E] = 2.0, 1.0
    layer = jax.tree.map(lambda x: x, layer)
    layer.router = nnx.Param(jnp.asarray(router))
    return layer, inputs().at[..., 0].set(10.0)


def test_balance_is_1_when_choices_are_spread_and_more_when_all_ask_the_same():
    layer, x = all_to(1)
    aux = says(layer, x)[1]
    np.testing.assert_allclose(aux["load"], [0, 0.5, 0.5, 0])
    # Switch, equation 4, by hand: half of the choices each, and nearly all of the probability.
    probs = np.exp([0.0, 20, 10, 0]) / np.exp([0.0, 20, 10, 0]).sum()
    assert float(aux["balance"]) == pytest.approx(E * (0.5 * probs[1] + 0.5 * probs[2]), rel=1e-5)
    assert float(aux["router_z"]) == pytest.approx(20**2, rel=1e-4)
    layer.router = nnx.Param(3 * jnp.eye(D, E))
    first = jnp.arange(B * L).reshape(B, L) % E
    x = jax.nn.one_hot(first, D) + jax.nn.one_hot((first + 1) % E, D)
    aux = says(layer, x)[1]
    np.testing.assert_allclose(aux["load"], np.full(E, 1 / E), rtol=1e-6)
    assert float(aux["balance"]) == pytest.approx(1.0, rel=1e-6)


def test_without_a_capacity_no_choice_is_dropped_though_all_ask_the_same():
    layer, x = all_to(2)
    np.testing.assert_allclose(says(layer, x)[0], slow(layer, x), rtol=1e-4, atol=1e-5)


def test_under_a_capacity_all_first_choices_may_come_before_any_second_one():
    config = dataclasses.replace(CONFIG, capacity_factor=0.75, capacity_order="choices")
    layer, x = made(config), inputs()
    ids = np.asarray(choices(layer, x)[0]).reshape(B * L, K)
    capacity = math.ceil(0.75 * B * L * K / E)
    seen, kept = [0] * E, np.zeros((B * L, K), bool)
    for k in range(K):
        for t in range(B * L):
            kept[t, k] = seen[ids[t, k]] < capacity
            seen[ids[t, k]] += 1
    assert kept[:, 0].sum() > kept[:, 1].sum()
    slow_y = np.asarray(slow(layer, x, kept))
    np.testing.assert_allclose(says(layer, x)[0], slow_y, rtol=1e-4, atol=1e-5)
    mesh = sharding.make_mesh(MeshConfig(data=2, expert=4), jax.devices())
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jnp.asarray, layer), sharding.shard(x, "batch", None, None)
        np.testing.assert_allclose(says(*placed)[0], slow_y, rtol=1e-4, atol=1e-5)


def test_a_capacity_drops_exactly_the_choices_that_come_late():
    config = dataclasses.replace(CONFIG, capacity_factor=0.75)
    layer, x = made(config), inputs()
    ids = np.asarray(choices(layer, x)[0])
    capacity = math.ceil(0.75 * B * L * K / E)
    seen, kept = [0] * E, np.zeros((B * L, K), bool)
    for t in range(B * L):
        for k in range(K):
            kept[t, k] = seen[ids[t, k]] < capacity
            seen[ids[t, k]] += 1
    assert B * L < kept.sum() < B * L * K
    y, aux = says(layer, x)
    slow_y = np.asarray(slow(layer, x, kept))
    np.testing.assert_allclose(y, slow_y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(aux["load"], np.array(seen) / (B * L * K), rtol=1e-6)
    y, _ = says(layer, x, dropless=True)
    np.testing.assert_allclose(y, slow(layer, x), rtol=1e-4, atol=1e-5)
    # The same ones, when the rows of the batch are on other devices.
    mesh = sharding.make_mesh(MeshConfig(data=2, expert=4), jax.devices())
    with jax.set_mesh(mesh):
        placed = jax.tree.map(jnp.asarray, layer), sharding.shard(x, "batch", None, None)
        np.testing.assert_allclose(says(*placed)[0], slow_y, rtol=1e-4, atol=1e-5)
    # And when others have the end of a row.
    mesh = sharding.make_mesh(MeshConfig(data=1, context=2, expert=4), jax.devices())
    with jax.set_mesh(mesh):
        places = context.order(L, causal=True)
        assert list(places) != list(range(L))
        x = context.parts_of(sharding.shard(x, "batch", None, None), balanced=True)
        y, _ = says(jax.tree.map(jnp.asarray, layer), x, Mask(balanced=True))
        np.testing.assert_allclose(y, slow_y[:, places], rtol=1e-4, atol=1e-5)


def test_padding_asks_nobody_and_counts_nowhere():
    layer = made(dataclasses.replace(CONFIG, capacity_factor=1.0, shared_experts=0))
    x, real = inputs(), jnp.arange(L)[None] >= 5
    mask = Mask(segments=jnp.broadcast_to(real, (B, L)).astype(jnp.int32))
    y, aux = says(layer, x, mask)
    other, aux_other = says(layer, jnp.where(real[..., None], x, 7 * inputs(1)), mask)
    _, aux_alone = says(layer, x[:, 5:])
    np.testing.assert_array_equal(y, other)
    for name in aux:
        np.testing.assert_allclose(aux[name], aux_other[name], rtol=1e-6)
        np.testing.assert_allclose(aux[name], aux_alone[name], rtol=1e-5)
    assert not jnp.any(y[:, :5])


# ---- In a model ----------------------------------------------------------------------------------

RUN = Config(
    steps=20, batch_size=B,
    model=dataclasses.replace(CONFIG, init_std=0.02, num_layers=1),
    data=DataConfig(sequence_length=L),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=4),
)  # fmt: skip
MESHES = {
    "data 8": {"data": 8},
    "expert 4 x data 2": {"data": 2, "expert": 4},
    "fsdp 2 x expert 2 x tensor 2": {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2},
    "context 2 x expert 4": {"data": 1, "context": 2, "expert": 4},
}


def batch_of(step):
    """Two documents a row and some padding, [1, B, L]."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, 32, (B, L + 1))
    tokens[:, 1::2] = (tokens[:, :-1:2] + 1) % 32  # something to learn
    segments = np.broadcast_to(1 + (np.arange(L) >= 4), (B, L)).copy()
    segments[: B // 2, -3:] = 0
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": segments}
    batch = {name: x.astype(np.int32)[None] for name, x in batch.items()}
    return {**batch, "weights": (batch["segment_ids"] > 0).astype(np.float32)}


@functools.cache
def trained(mesh_name):
    """Metrics of 20 steps, each [20], and which part of `up` a device has."""
    devices = jax.devices() if mesh_name in MESHES else jax.devices()[:1]
    mesh = sharding.make_mesh(MeshConfig(**MESHES.get(mesh_name, {})), devices)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(RUN))()
        part = state.model.decoder.blocks.mlp.up[...].addressable_shards[0].data.shape
        step, rows = jax.jit(make_train_step(RUN), donate_argnums=0), []
        for number in range(20):
            state, metrics = step(state, sharding.put(batch_of(number), mesh, leading=1))
            rows.append({name: float(x) for name, x in metrics.items()})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}, part


def test_training_lowers_the_loss_and_reports_the_balance():
    found, _ = trained("one")
    assert found["loss"][0] == pytest.approx(math.log(32), abs=0.1)
    assert found["loss"][-1] < found["loss"][0] - 0.1
    assert (found["balance"] > 0.99).all()
    assert (found["balance"] < E).all()
    assert found["router_z"][0] == pytest.approx(math.log(E) ** 2, rel=0.1)
    assert (found["load"] >= 1).all()
    assert (found["load"] <= E / K).all()


@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_steps_are_the_same_on_every_mesh(mesh):
    (found, part), (one, _) = trained(mesh), trained("one")
    for name in ("loss", "balance", "router_z", "load"):
        np.testing.assert_allclose(found[name], one[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["gnorm"], one["gnorm"], rtol=1e-4)
    sizes = MESHES[mesh]
    cut = [sizes.get(axis, 1) for axis in ("expert", "fsdp", "tensor")]
    assert part == (1, E // cut[0], D // cut[1], 2, 8 // cut[2])


def test_decoding_with_a_cache_says_what_the_whole_text_says():
    model = jax.jit(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0)))()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 7)), jnp.int32)
    whole = jax.jit(Transformer.hidden)(model, tokens)
    cache, parts = model.init_cache(2, 8), []
    for part in (tokens[:, :5], tokens[:, 5:6], tokens[:, 6:]):
        x, cache = jax.jit(Transformer.decode)(model, part, cache)
        parts.append(x)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_muon_takes_each_expert_by_itself_and_leaves_the_router_to_adamw():
    config = OptimizerConfig(name="muon", muon_learning_rate=1.0, warmup_steps=0, weight_decay=0.0,
                             learning_rate=1.0, schedule="constant")  # fmt: skip
    model = Transformer(dataclasses.replace(CONFIG, gated=False), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), model)
    tx = optimizers.make(config, 10)
    moved = jax.jit(lambda g: tx.update(g, tx.init(model), model)[0])(grads).decoder.blocks.mlp
    for kernel in (moved.up[..., 0, :], moved.down[...], moved.shared.up[:, :, 0]):
        sizes = np.linalg.svd(np.asarray(kernel), compute_uv=False)
        assert (sizes / sizes.mean(-1, keepdims=True) > 0.5).all()  # every matrix is orthogonal
        assert (sizes / sizes.mean(-1, keepdims=True) < 1.6).all()
    steps = np.abs(moved.router[...])
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)  # the signs, as Adam's first step
    decays = flatten(optimizers.decayed(model).decoder.blocks.mlp)
    assert {name for name, decays in decays.items() if not decays} == {
        f"{at}{name}" for at in ("", "shared/") for name in ("up_bias", "down_bias")
    }
