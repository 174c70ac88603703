"""Is a state kept whole, whatever happens while it is saved?"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_state
from jax.sharding import NamedSharding, PartitionSpec
from small_state import ABSTRACT, SHAPES, Model, bits, collected, make, mesh_of, saved

from lm_jax.errors import CheckpointError, MachineError
from lm_jax.run import checkpoint
from lm_jax.run.checkpoint import Checkpoints, SavedSteps, write_test

# ---- There and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["data", "one"])
def test_a_state_comes_back_bit_for_bit_on_any_mesh(tmp_path, start):
    with jax.set_mesh(mesh_of(start)):
        state = jax.jit(make)()
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(7, state, {"name": "é", "rates": [1e-4, None]})
    for name in SHAPES:
        mesh = mesh_of(name)
        with jax.set_mesh(mesh):
            abstract = jax.eval_shape(make)
            found, metadata = SavedSteps(tmp_path).restore(abstract)
        assert metadata == {"name": "é", "rates": [1e-4, None], "step": 7}
        assert bits(found) == bits(state)
        w = found.model.blocks.w[...]
        assert w.sharding == NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    found, _ = SavedSteps(tmp_path).restore(abstract, mesh=mesh_of("data"))  # no jax.set_mesh
    assert bits(found) == bits(state)
    found, _ = SavedSteps(tmp_path).restore(ABSTRACT)  # no mesh at all
    assert bits(found) == bits(state)
    assert found.step.devices() == {jax.devices()[0]}


def test_replicas_share_the_writing_of_large_arrays_alone(tmp_path):
    """A slice that one of them writes is a program to compile: 260 of them took 8 s of a run."""
    compiled, mesh = [], mesh_of("data")
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **more: "backend_compile" in name and compiled.append(name)
    )
    small = jax.device_put(jnp.arange(24.0).reshape(8, 3), NamedSharding(mesh, PartitionSpec()))
    large = jax.device_put(np.ones((2**21,), np.float32), NamedSharding(mesh, PartitionSpec()))
    with Checkpoints(tmp_path) as checkpoints:
        del compiled[:]
        checkpoints.save(1, {"x": small})
        assert not compiled
        checkpoints.save(2, {"x": large})
        assert compiled
    found, _ = SavedSteps(tmp_path).restore({"x": jax.ShapeDtypeStruct(large.shape, large.dtype)})
    assert found["x"].sum() == 2**21


@pytest.mark.parametrize("name", ["a[1]", "c\\d", "[!a]", "star*?{x}", "checkpoints"])
def test_a_folder_may_have_any_name(tmp_path, name):
    with Checkpoints(tmp_path / name) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.arange(4) + step}, {}, {"f": b"text"})
    there = SavedSteps(tmp_path / name)
    assert there.steps() == SavedSteps(tmp_path / name / "checkpoints").steps() == [1, 2]
    found, _ = there.restore({"x": jax.ShapeDtypeStruct((4,), jnp.int32)})
    assert found["x"].tolist() == [2, 3, 4, 5]
    assert there.files() == {"f": b"text"}


@pytest.mark.parametrize("again", [False, True])
def test_a_work_directory_that_is_moved_or_replaced_gets_no_step_more(tmp_path, again):
    with Checkpoints(tmp_path / "run") as checkpoints:
        (tmp_path / "run").mkdir()
        for step in (1, 2):
            checkpoints.save(step, {"x": jnp.arange(4) + step})
            checkpoints.wait()
        (tmp_path / "run").rename(tmp_path / "moved")
        if again:
            (tmp_path / "run").mkdir()
        with pytest.raises(MachineError, match=r"run: was moved or deleted .*step 3 is not saved"):
            checkpoints.save(3, {"x": jnp.arange(4)})
    assert SavedSteps(tmp_path / "moved").steps() == [1, 2]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_save_without_an_index_is_a_failed_one(tmp_path, monkeypatch):
    lines = []
    with Checkpoints(tmp_path, report=lines.append) as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(4)})
        checkpoints.wait()
        monkeypatch.setattr(checkpoint, "INDEX", "none")
        checkpoints.save(2, {"x": jnp.arange(4)})
        with pytest.raises(MachineError, match="step 2 was not saved: its index was not written"):
            checkpoints.wait()
        assert checkpoints.steps() == [1]
        monkeypatch.undo()
        checkpoints.save(3, {"x": jnp.arange(4)})
    assert SavedSteps(tmp_path).steps() == [1, 3]


def test_all_types_come_back_and_prng_keys_too(tmp_path):
    types = ("float32", "bfloat16", "float16", "int8", "uint8", "int32", "uint32", "bool")
    state = {name: jnp.asarray(np.arange(12).reshape(3, 4) % 2).astype(name) for name in types}
    state |= {"keys": jax.random.split(jax.random.key(3), 2)}
    state |= {"odd": jnp.array([jnp.nan, -0.0, jnp.inf]), "scalar": jnp.float32(1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
        found, _ = checkpoints.restore(jax.eval_shape(lambda: state))
    assert bits(found) == bits(state)
    assert jax.random.normal(found["keys"][1]) == jax.random.normal(state["keys"][1])


def test_a_restored_state_takes_the_place_of_a_new_one_in_the_compiled_step(tmp_path):
    with jax.set_mesh(mesh_of("all")):
        state = jax.jit(make)()
        step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, state)
            expected = bits(step(state))
            found, _ = checkpoints.restore(jax.eval_shape(make))
        assert bits(step(found)) == expected
        assert step._cache_size() == 1


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    with jax.set_mesh(mesh_of("data")):
        step = jax.jit(lambda s: jax.tree.map(lambda x: x * 3 + 1, s), donate_argnums=0)
        state = jax.jit(lambda: {"x": jnp.ones((512, 1024)), "y": jnp.zeros((64,))})()
        abstract = jax.eval_shape(lambda: state)
        with Checkpoints(tmp_path, keep=5) as checkpoints:
            for number in range(4):
                before = bits(state)
                checkpoints.save(number, state)
                state = step(state)  # overwrites the arrays while they are being written
                checkpoints.wait()
                assert bits(checkpoints.restore(abstract)[0]) == before


def test_a_model_is_restored_without_its_optimizer(tmp_path):
    bits_of = saved(tmp_path, steps=(1,))[1]
    for folder in (tmp_path / "checkpoints" / "1" / "state").glob("**/d"):
        assert folder.is_dir()
    found, _ = SavedSteps(tmp_path).newest(None, lambda step: step.model(jax.eval_shape(Model)))
    assert bits({"model": found}) == {k: v for k, v in bits_of.items() if k.startswith("model/")}
    arrays, metadata = SavedSteps(tmp_path).arrays()
    assert {name: x.tobytes() for name, x in arrays.items()} == bits({"model": found})
    assert all(type(x) is np.ndarray for x in arrays.values())
    assert metadata["step_was"] == 1


def test_a_step_is_whole_wherever_it_is_copied_to(tmp_path):
    saved(tmp_path / "run", steps=(1, 2))
    shutil.copytree(tmp_path / "run" / "checkpoints" / "2", tmp_path / "mine")
    places = ["mine", "run", "run/checkpoints", "run/checkpoints/2"]
    for place in places:
        for found in (SavedSteps(tmp_path / place), Checkpoints(tmp_path / place, read_only=True)):
            assert found.steps()[-1] == 2
            assert found.metadata() == {"step_was": 2, "step": 2}
            assert found.files() == {"t.model": b"\x00\xff"}
            assert bits(found.restore(ABSTRACT)[0]) == bits(make(seed=2))


def test_a_relative_path_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = saved("run", steps=(1,))[1]
    assert bits(SavedSteps("run").restore(ABSTRACT)[0]) == expected
    assert SavedSteps("run/checkpoints/1").steps() == [1]
    monkeypatch.chdir(tmp_path / "run" / "checkpoints" / "1")
    assert SavedSteps(".").steps() == [1]
    write_test(".")


def test_old_steps_go_but_for_those_to_be_kept(tmp_path):
    saved(tmp_path, steps=range(1, 8), keep=2, keep_every=3)
    assert SavedSteps(tmp_path).steps() == [3, 6, 7]
    saved(tmp_path, steps=(8,), keep=2, keep_every=3)  # another process goes on
    assert SavedSteps(tmp_path).steps() == [3, 6, 7, 8]
    assert not list(tmp_path.glob("**/*tmp*"))


def test_a_step_saved_twice_is_left_and_never_overwritten(tmp_path):
    saved(tmp_path, steps=(4,))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, make(seed=4))
        with pytest.raises(CheckpointError, match=r"4: is there already and differs"):
            checkpoints.save(4, make(seed=5))
    assert bits(SavedSteps(tmp_path).restore(ABSTRACT)[0]) == bits(make(seed=4))


# ---- The disk ------------------------------------------------------------------------------------


def test_a_save_that_fails_in_the_background_is_told_and_costs_no_earlier_step(
    tmp_path, monkeypatch
):
    expected = saved(tmp_path, steps=(1,))[1]
    checkpoints, lines = collected(tmp_path)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.JsonCheckpointHandler, "finalize", full, raising=False)
        checkpoints.save(2, make(seed=2))
        deadline = time.time() + 20
        while not lines and time.time() < deadline:
            checkpoints.poll()
        assert len(lines) == 1
        assert (
            "step 2 was not saved: no space left on the disk; the newest is of step 1." in lines[0]
        )
        assert checkpoints.steps() == [1]
        with pytest.raises(MachineError, match="step 2 was not saved"):
            checkpoints.wait()
        checkpoints.save(3, make(seed=3))
        checkpoints.save(4, make(seed=4))
        with pytest.raises(MachineError, match="3 saves in a row failed"):
            checkpoints.poll() or checkpoints.wait()
    assert bits(checkpoints.restore(ABSTRACT)[0]) == expected
    checkpoints.save(5, make(seed=5))  # there is room again
    checkpoints.close()
    assert checkpoints.steps() == [1, 5]
    assert bits(checkpoints.restore(ABSTRACT)[0]) == bits(make(seed=5))


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage)
    checkpoints, lines = collected(tmp_path)
    checkpoints.save(1, make())
    need = 1.2 * sum(x.nbytes for x in jax.tree.leaves(make()))
    assert f"1kB free on the disk, {need / 1000:.3g}kB needed" in lines[0]
    assert not (tmp_path / "checkpoints").exists()


def test_the_write_test_leaves_nothing(tmp_path):
    with jax.set_mesh(mesh_of("all")):
        write_test(tmp_path / "new")
    write_test(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_a_directory_that_cannot_hold_a_checkpoint_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", "/proc/lm_jax"):
        with pytest.raises(MachineError, match="cannot hold a checkpoint") as error:
            write_test(place)
        assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == ""


# ---- SIGKILL -------------------------------------------------------------------------------------

WRITER = """
    import sys
    sys.path.insert(0, {tests!r})
    from small_state import *
    with Checkpoints({run!r}) as checkpoints:
        for step in range(1, 10_000):
            checkpoints.save(step, make(seed=step))
            print(step, flush=True)
"""


def test_a_kill_costs_at_most_the_save_in_progress(tmp_path):
    code = textwrap.dedent(WRITER).format(
        tests=os.path.dirname(small_state.__file__), run=str(tmp_path)
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(6)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL
    last = int(lines[-1])  # whose save may be in progress, or already that of the step after it
    checkpoints, warnings = collected(tmp_path)
    found, metadata = checkpoints.restore(ABSTRACT)
    assert last - 1 <= metadata["step"] <= last + 1
    assert bits(found) == bits(make(seed=metadata["step"]))
    assert warnings == []
