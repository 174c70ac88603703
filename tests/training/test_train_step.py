"""Is a step the same on every mesh and in every number of microbatches, and is its state safe?"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_llama import LLAMA, STEPS, B, L, V, batch_of

from lm_jax.config import LossConfig, MeshConfig, OptimizerConfig
from lm_jax.devices import sharding
from lm_jax.run.checkpoint import flatten
from lm_jax.training import optimizers
from lm_jax.training.train_step import init_state, make_train_step

GPT2 = dataclasses.replace(
    LLAMA,
    model=dataclasses.replace(
        LLAMA.model, norm="layernorm", positions="learned", activation="gelu_tanh", gated=False,
        bias=True, mlp_dim=0,
    ),
)  # fmt: skip
MESHES = {
    "data 8": {"data": 8},
    "fsdp 8": {"data": 1, "fsdp": 8},
    "tensor 4 x data 2": {"data": 2, "tensor": 4},
    "fsdp 2 x tensor 2 x data 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "context 2 x slice 2 x tensor 2": {"data": 1, "slice": 2, "context": 2, "tensor": 2},
    "ring 8": {"data": 1, "context": 8},
}


@functools.cache
def trained(mesh_name, chunk_size=0):
    """(losses, gradient norms, first state, last state) of 20 steps."""
    devices = jax.devices() if mesh_name in MESHES else jax.devices()[:1]
    mesh = sharding.make_mesh(MeshConfig(**MESHES.get(mesh_name, {})), devices)
    config = dataclasses.replace(LLAMA, loss=dataclasses.replace(LLAMA.loss, chunk_size=chunk_size))
    if "ring" in mesh_name:
        model = dataclasses.replace(LLAMA.model, context_attention="ring")
        config = dataclasses.replace(config, model=model)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(config))()
        first = {name: (x.sharding, x.addressable_shards[0].data.shape, np.asarray(x))
                 for name, x in flatten(state).items()}  # fmt: skip
        step = jax.jit(make_train_step(config), donate_argnums=0)
        found = []
        for number in range(STEPS):
            before = state
            state, metrics = step(state, sharding.put(batch_of(number), mesh, leading=1))
            found.append([float(metrics[name]) for name in ("loss", "gnorm")])
        assert step._cache_size() == 1
        # Donated: the old state's memory is the new one's.
        assert all(x.is_deleted() for x in jax.tree.leaves(before))
    losses, norms = np.array(found).T
    return losses, norms, first, {name: np.asarray(x) for name, x in flatten(state).items()}


def test_twenty_steps_on_one_device_learn():
    losses, norms, _, last = trained("one")
    assert abs(losses[0] - math.log(V)) < 0.1
    assert losses[-1] < losses[0] - 0.2
    assert np.isfinite(norms).all()
    assert last["step"] == STEPS


@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_steps_are_the_same_on_every_mesh(mesh):
    chunk_size = 4 if "x" in mesh else 0  # on two of them the logits are never whole, either
    losses, norms, first, last = trained("one")
    others = trained(mesh, chunk_size)
    np.testing.assert_allclose(others[0], losses, rtol=1e-5)
    np.testing.assert_allclose(others[1], norms, rtol=1e-4)
    for name, (_, _, value) in first.items():
        np.testing.assert_allclose(others[2][name][2], value, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(others[3][name], last[name], rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("mesh", list(MESHES)[1:])
def test_parameters_and_moments_are_born_spread_over_the_mesh(mesh):
    first = trained(mesh, 4 if "x" in mesh else 0)[2]
    ways = math.prod(MESHES[mesh].get(axis, 1) for axis in ("fsdp", "tensor"))
    checked = 0
    for name, (place, shape, value) in first.items():
        if name.startswith("model/") and value.size >= 1024:
            assert math.prod(shape) * ways == value.size, name
            checked += 1
        for moment in ("mu", "nu"):
            other = f"opt/0/{moment}/{name.removeprefix('model/')}"
            assert other not in first or first[other][:2] == (place, shape)
    assert checked >= 7
    assert sum(name.startswith("opt/0/mu/") for name in first) == sum(
        n[:6] == "model/" for n in first
    )


def test_muon_moves_the_same_on_a_mesh():
    config = dataclasses.replace(
        LLAMA, model=dataclasses.replace(LLAMA.model, zero_init=True),
        optimizer=dataclasses.replace(LLAMA.optimizer, name="muon", warmup_steps=0),
    )  # fmt: skip
    found = []
    for devices, sizes in ((1, {}), (8, {"data": 2, "fsdp": 2, "tensor": 2})):
        mesh = sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
        with jax.set_mesh(mesh):
            # Each has its place, or a restored one would lie on the first device alone.
            leaves = jax.tree.leaves(jax.eval_shape(lambda: init_state(config)))
            assert all(x.sharding or not x.shape for x in leaves)
            first = state = jax.jit(lambda: init_state(config))()
            step = jax.jit(make_train_step(config))
            for number in range(2):
                state, metrics = step(state, sharding.put(batch_of(number), mesh, leading=1))
            assert step._cache_size() == 1  # what comes out is laid out as what went in
        places = [[(k, x.sharding) for k, x in flatten(s).items()] for s in (first, state)]
        assert places[0] == places[1]
        found.append(
            ({k: np.asarray(x) for k, x in flatten(state.model).items()}, float(metrics["loss"]))
        )
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
    for name, x in found[0][0].items():
        np.testing.assert_allclose(found[1][0][name], x, rtol=1e-2, atol=1e-4)


def test_a_rate_of_muon_that_is_too_large_is_the_one_that_is_blamed():
    muon = OptimizerConfig(name="muon", warmup_steps=0, muon_learning_rate=1e30)
    config = dataclasses.replace(LLAMA, optimizer=muon)
    step, state = one(config)
    batch, losses = batch_of(0), []
    while len(losses) < 5 and all(map(math.isfinite, losses)):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert not math.isfinite(losses[-1])
    blamed = optimizers.largest_rate(config.optimizer, state.model)
    assert blamed == "config.optimizer.muon_learning_rate (now 1e+30)"


# ---- One step, without a mesh --------------------------------------------------------------------


@functools.cache
def one(config):
    """(the step, a new state) of `config`, without a mesh."""
    return jax.jit(make_train_step(config)), jax.jit(lambda: init_state(config))()


def norm_of(tree):
    return math.sqrt(sum(float(jnp.sum(jnp.square(x))) for x in jax.tree.leaves(tree)))


GOLDEN = {"llama": (4.177403, 1.169409, 12.931331), "gpt2": (4.162920, 1.413988, 12.961930)}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_first_step_is_what_it_was(name):
    if name == "llama":
        losses, norms, first, _ = trained("one")
        start = [x for path, (_, _, x) in first.items() if path.startswith("model/")]
        found = [losses[0], norms[0], norm_of(start)]
    else:
        step, state = one(GPT2)
        _, metrics = step(state, batch_of(0))
        found = [float(metrics["loss"]), float(metrics["gnorm"]), norm_of(state.model)]
    hint = f"loss, gradient and parameter norm: if you meant to change it, update GOLDEN to {found}"
    np.testing.assert_allclose(found, GOLDEN[name], rtol=1e-4, err_msg=hint)


BESIDE = {  # what adds means to the loss, which are not of target tokens
    "nothing": GPT2,
    "pairs": dataclasses.replace(GPT2, model=dataclasses.replace(
        GPT2.model, architecture="encoder", pooler=True)),
    # The balance of the experts, a product of two means, is that of each microbatch.
    "experts": dataclasses.replace(
        GPT2, model=dataclasses.replace(GPT2.model, num_experts=2, mlp_dim=16),
        loss=LossConfig(balance_loss=0.0, router_z_loss=1.0)),
}  # fmt: skip


def batch_beside(name, microbatches):
    """`batch_of`, with labels of pairs or, where experts look, rows of unlike length."""
    batch = batch_of(3, microbatches)
    rows = np.arange(B).reshape(microbatches, -1)
    if name == "pairs":
        batch["pair_label"] = (rows % 3 == 0).astype(np.int32)
    if name == "experts":
        batch["segment_ids"] *= np.arange(L)[None, None] < 2 + rows[..., None] * (L - 2) // B
        batch["weights"] *= batch["segment_ids"] > 0
    return batch


@pytest.mark.parametrize("name", BESIDE)
def test_microbatches_of_unlike_weight_make_the_step_of_the_full_batch(name):
    step, state = one(BESIDE[name])
    whole, metrics = step(state, batch_beside(name, 1))
    parts, others = step(state, batch_beside(name, 4))
    beside = {"pairs": {"pair_nll"}, "experts": {"router_z"}}.get(name, set())
    for key in {"loss", "gnorm", "tokens"} | beside:
        np.testing.assert_allclose(others[key], metrics[key], rtol=1e-5)
    # The moments are the gradients; parameters move by hardly more than their signs.
    whole, parts = (
        {k: x for k, x in flatten(s).items() if k[:9] == "opt/0/mu/"} for s in (whole, parts)
    )
    most = max(float(jnp.max(jnp.abs(x))) for x in whole.values())
    for name, x in whole.items():
        np.testing.assert_allclose(parts[name], x, rtol=1e-4, atol=1e-5 * most)


def test_a_step_that_is_not_finite_changes_nothing():
    step, state = one(GPT2)
    batch = batch_of(0)
    batch["weights"][0, 0, 0] = np.inf
    new, metrics = step(state, batch)
    assert not math.isfinite(float(metrics["loss"]))
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_without_a_target_is_no_division_by_zero():
    step, state = one(GPT2)
    batch = batch_of(0)
    _, metrics = step(state, {**batch, "weights": 0 * batch["weights"]})
    assert [float(metrics[name]) for name in ("loss", "gnorm", "tokens")] == [0.0, 0.0, 0.0]


def test_gradients_are_clipped_to_their_norm_and_the_norm_before_is_reported():
    step, state = one(GPT2)
    new, metrics = step(state, batch_of(0))
    assert float(metrics["gnorm"]) > 1.2 > GPT2.optimizer.clip_norm
    moments = {k: x for k, x in flatten(new).items() if k.startswith("opt/0/mu/")}
    assert norm_of(moments) == pytest.approx(1 - GPT2.optimizer.b1, rel=1e-4)  # of a norm of 1


def test_dropout_is_drawn_from_seed_and_step_alone():
    model = dataclasses.replace(GPT2.model, dropout=0.3)
    step = jax.jit(make_train_step(dataclasses.replace(GPT2, model=model)))
    plain_step, state = one(GPT2)
    # The same parameters in a model whose options say dropout.
    abstract = jax.eval_shape(lambda: init_state(dataclasses.replace(GPT2, model=model)))
    state = jax.tree.unflatten(jax.tree.structure(abstract), jax.tree.leaves(state))
    loss = lambda state: float(step(state, batch_of(0))[1]["loss"])
    assert loss(state) == loss(state)
    assert loss(state) != loss(dataclasses.replace(state, step=state.step + 1))
    plain = float(plain_step(one(GPT2)[1], batch_of(0))[1]["loss"])
    assert 1e-6 < abs(loss(state) - plain) < 0.5
