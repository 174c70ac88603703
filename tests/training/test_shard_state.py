"""Is training the same with every optimizer when each device keeps a part of its state, and does a
run go on from one layout to another?
"""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest
from small_llama import LLAMA, STEPS, batch_of

from lm_jax.config import MeshConfig
from lm_jax.devices import sharding
from lm_jax.run.checkpoint import Checkpoints, flatten
from lm_jax.training.train_step import init_state, make_train_step

RATES = {"adamw": 3e-3, "muon": 3e-3, "adafactor": 0.05, "lion": 1e-3}
MESHES = {
    "one": {},
    "data 8": {"data": 8},
    "data 4 x tensor 2": {"data": 4, "tensor": 2},
    "data 2 x fsdp 2 x tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
}
MANY = list(MESHES)[1:]
LAST = MANY[-1]


@functools.cache
def program(optimizer, mesh_name="one", shard_state=False):
    """(mesh, abstract state, new state, compiled step, microbatches)."""
    sizes = MESHES[mesh_name]
    mesh = sharding.make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(sizes.values())])
    parts = 2 if mesh_name == LAST else 1  # accumulated gradients are spread, too
    options = dataclasses.replace(
        LLAMA.optimizer, name=optimizer, learning_rate=RATES[optimizer], shard_state=shard_state
    )
    config = dataclasses.replace(LLAMA, optimizer=options, microbatches=parts)
    with jax.set_mesh(mesh):
        make = jax.jit(lambda: init_state(config))
        abstract = jax.eval_shape(lambda: init_state(config))
        batch = sharding.put(batch_of(0, parts), mesh, leading=1)
        step = jax.jit(make_train_step(config)).lower(abstract, batch).compile()
    return mesh, abstract, make, step, parts


def steps(program, state, numbers):
    """(losses, the last state): a compiled step takes the layout that it was compiled for alone."""
    mesh, _, _, step, parts = program
    losses = []
    with jax.set_mesh(mesh):
        for number in numbers:
            state, metrics = step(state, sharding.put(batch_of(number, parts), mesh, leading=1))
            losses.append(float(metrics["loss"]))
    return np.array(losses), state


@functools.cache
def trained(*which):
    """(losses of 20 steps, first state)."""
    with jax.set_mesh(program(*which)[0]):
        first = program(*which)[2]()
    return steps(program(*which), first, range(STEPS))[0], first


QUICK = {("adamw", MANY[0]), ("adafactor", LAST)}
EACH = [
    pytest.param(optimizer, mesh, marks=[pytest.mark.slow] * ((optimizer, mesh) not in QUICK))
    for optimizer in RATES
    for mesh in MANY
    if optimizer != "muon" or mesh == LAST  # which has two layers, that two devices share
]


@pytest.mark.parametrize(("optimizer", "mesh"), EACH)
def test_twenty_steps_with_a_sharded_state_are_those_of_one_device(optimizer, mesh):
    losses, first = trained(optimizer, mesh, True)
    np.testing.assert_allclose(losses, trained(optimizer)[0], rtol=1e-5)
    # An eighth of the state, but for what does not divide and what is on every device: counters.
    here = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(first.opt))
    whole = sum(x.nbytes for x in jax.tree.leaves(first.opt))
    if optimizer != "adafactor":  # whose rows and columns are few, and many of them on every device
        assert whole / 8 <= here < 1.05 * whole / 8
    assert here < whole / 2
    assert any("data" in str(x.sharding.spec) for x in jax.tree.leaves(first.opt))
    assert not any("data" in str(x.sharding.spec) for x in jax.tree.leaves(first.model))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MANY)
@pytest.mark.parametrize("optimizer", RATES)
def test_twenty_steps_without_are_those_of_one_device_too(optimizer, mesh):
    losses, _ = trained(optimizer, mesh, False)
    np.testing.assert_allclose(losses, trained(optimizer)[0], rtol=1e-5)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("lion", "muon")]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", *SLOW])
def test_every_optimizer_learns(optimizer):
    losses, _ = trained(optimizer)
    assert losses[-3:].mean() < losses[0] - 0.1


@pytest.mark.parametrize("shard_state", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_updates_are_gathered_only_where_the_state_is_sharded(shard_state):
    step = program("adamw", "data 8", shard_state)[3]
    assert ("all-gather(" in step.as_text()) == shard_state


# The first and the last program of a run that is saved between them.
GOES_ON = [
    (("data 8", True), ("one", False)),
    (("one", False), ("data 8", True)),
    pytest.param(("data 8", True), ("data 8", False), marks=pytest.mark.slow),
    pytest.param((LAST, True), (MANY[1], True), marks=pytest.mark.slow),
    pytest.param((LAST, False), (LAST, True), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("first", "then"), GOES_ON)
def test_a_run_goes_on_with_another_layout_of_its_state(tmp_path, first, then):
    with jax.set_mesh(program("adamw", *first)[0]):
        state = program("adamw", *first)[2]()
    before, state = steps(program("adamw", *first), state, range(3))
    mesh, abstract, *_ = program("adamw", *then)
    with Checkpoints(tmp_path) as saved:
        saved.save(3, state)
        saved.wait()
        with jax.set_mesh(mesh):
            restored, _ = saved.restore(abstract)
    for name, x in flatten(restored).items():
        np.testing.assert_array_equal(x, flatten(state)[name])
    after, _ = steps(program("adamw", *then), restored, range(3, 6))
    np.testing.assert_allclose([*before, *after], trained("adamw")[0][:6], rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adafactor", *SLOW])
def test_a_restored_state_goes_on_to_the_same_bits(tmp_path, optimizer):
    one = program(optimizer)
    with jax.set_mesh(one[0]), Checkpoints(tmp_path) as saved:
        _, state = steps(one, one[2](), range(3))
        saved.save(3, state)
        restored, _ = saved.restore(one[1])
    ends = [flatten(steps(one, start, range(3, 5))[1]) for start in (state, restored)]
    assert ends[0].keys() == ends[1].keys()
    for name, x in ends[0].items():
        np.testing.assert_array_equal(x, ends[1][name], err_msg=name)
