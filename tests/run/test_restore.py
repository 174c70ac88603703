"""Does what was saved come back, bit for bit or not at all?"""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import pytest
from small_state import ABSTRACT, bits, collected, make, saved

from lm_jax.errors import CheckpointError
from lm_jax.run.checkpoint import Checkpoints, SavedSteps

# ---- What does not fit ---------------------------------------------------------------------------


def test_a_checkpoint_of_another_model_is_refused_by_its_arrays(tmp_path):
    saved(tmp_path, steps=(1, 2))
    checkpoints, lines = collected(tmp_path)
    with pytest.raises(CheckpointError) as error:
        checkpoints.restore(jax.eval_shape(lambda: make(dim=24)))
    assert "model/blocks/w: checkpoint (2, 16, 256) vs model (2, 24, 256)" in str(error.value)
    assert str(error.value).count("checkpoint (") == 5
    assert "and 4 more." in str(error.value)
    assert (checkpoints.steps(), lines) == ([1, 2], [])  # it is whole: nothing is moved


def test_an_optimizer_of_another_form_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"model": {"w": jnp.ones(3)}, "opt": {"count": jnp.zeros(())}})
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore({"model": {"w": jnp.ones(3)}, "opt": {"momentum": jnp.ones(3)}})
    line = str(error.value)
    assert "the optimizer's state is of another config.optimizer" in line
    assert "opt/momentum: checkpoint none vs model (3,) float32" in line
    assert "\n" not in line


def test_types_are_never_cast_and_missing_and_extra_arrays_are_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(3), "old": jnp.ones(2), "c": jnp.ones((2, 2))})
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore(
                {
                    "a": jax.ShapeDtypeStruct((3,), jnp.bfloat16),
                    "new": jax.ShapeDtypeStruct((), jnp.int32),
                    "c": jax.ShapeDtypeStruct((2, 2), jnp.float32),
                }
            )
    assert str(error.value).endswith(
        "is of another model: a: checkpoint float32 vs model bfloat16; "
        "new: checkpoint none vs model () int32; old: checkpoint (2,) float32 vs model none."
    )


def test_no_checkpoint_and_an_absent_step_say_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint; train"):
        SavedSteps(tmp_path / "nowhere").restore(ABSTRACT)
    saved(tmp_path, steps=(1, 2))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; has 1, 2\."):
        SavedSteps(tmp_path).restore(ABSTRACT, step=5)
    assert bits(SavedSteps(tmp_path).restore(ABSTRACT, step=1)[0]) == bits(make(seed=1))


# ---- Damage --------------------------------------------------------------------------------------


def damage(path, choose):
    """One random injury of one file under `path`, weighted by size; says which."""
    files = sorted(p for p in path.glob("**/*") if p.is_file() and p.stat().st_size)
    file = choose.choices(files, [p.stat().st_size + 300 for p in files])[0]
    data = bytearray(file.read_bytes())
    kind = choose.choice(["flip", "flip", "truncate", "zero", "delete"])
    where = choose.randrange(len(data))
    if kind == "flip":
        data[where] ^= 1 << choose.randrange(8)
    elif kind == "truncate":
        del data[where:]
    elif kind == "zero":
        data[where : where + 64] = bytes(len(data[where : where + 64]))
    file.write_bytes(data)
    if kind == "delete":
        file.unlink()
    return f"{kind} at {where} of {file.relative_to(path)}"


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_damaged_the_newest_intact_step_comes_back(tmp_path, seed):
    expected = saved(tmp_path / "whole", steps=(1, 2))
    choose, fell_back = random.Random(seed), 0
    for trial in range(14):
        run = tmp_path / str(trial)
        shutil.copytree(tmp_path / "whole", run)
        what = damage(run / "checkpoints" / "2", choose)
        checkpoints, lines = collected(run)
        found, metadata = checkpoints.restore(ABSTRACT)
        step = metadata["step"]
        assert bits(found) == expected[step], what
        assert metadata["step_was"] == step, what
        committed = (run / "checkpoints" / "2").exists() and "commit_success" in what
        assert len(lines) == (step == 1 and not committed), what
        if lines:
            fell_back += 1
            assert "2: damaged: " in lines[0]
            assert lines[0].endswith(".quarantine/2; using step 1.")
            assert "\n" not in lines[0]
            assert checkpoints.steps() == [1]
    assert fell_back >= 4


def test_a_half_written_and_a_half_deleted_step_are_passed_over(tmp_path):
    expected = saved(tmp_path, steps=(1, 2, 3, 4))[2]
    steps = tmp_path / "checkpoints"
    (steps / "4" / "commit_success.txt").unlink()  # killed at the end of its save, or copied badly
    shutil.copytree(steps / "4", steps / "5")
    (steps / "5" / "state" / "manifest.ocdbt").unlink()  # killed while it was written
    shutil.rmtree(steps / "3" / "state" / "d")  # killed while it was deleted
    (steps / "9.orbax-checkpoint-tmp").mkdir()
    checkpoints, lines = collected(tmp_path)
    found, _ = checkpoints.restore(ABSTRACT)
    assert bits(found) == expected
    assert len(lines) == 1
    checkpoints.save(3, make(seed=3))  # the same step again, and what was left is swept
    checkpoints.save(4, make(seed=4))
    checkpoints.close()
    assert checkpoints.steps() == [2, 3, 4]
    assert sorted(p.name for p in steps.iterdir() if p.name != ".trash") == [
        ".quarantine", "2", "3", "4"]  # fmt: skip
    assert sorted(p.name for p in (steps / ".quarantine").iterdir()) == ["3", "4"]
    assert len(lines) == 2
    assert lines[1].endswith(f"4: has no commit_success.txt, and is not used; moved to "
                             f"{steps}/.quarantine/4.")  # fmt: skip


def test_with_no_step_intact_each_reason_is_told_and_nothing_is_moved(tmp_path):
    saved(tmp_path, steps=(1, 2))
    for step in ("1", "2"):
        shutil.rmtree(tmp_path / "checkpoints" / step / "state")
    checkpoints, lines = collected(tmp_path)
    with pytest.raises(CheckpointError, match=r"no intact checkpoint: step 2: .*; step 1: "):
        checkpoints.restore(ABSTRACT)
    with pytest.raises(CheckpointError, match=r"step 1: .* There are 1, 2: choose another"):
        checkpoints.restore(ABSTRACT, step=1)
    assert (checkpoints.steps(), lines) == ([1, 2], [])


def test_a_reader_moves_nothing(tmp_path):
    expected = saved(tmp_path, steps=(1, 2))[1]
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "state")
    lines = []
    found, _ = SavedSteps(tmp_path, report=lines.append).restore(ABSTRACT)
    assert bits(found) == expected
    assert len(lines) == 1
    assert SavedSteps(tmp_path).steps() == [1, 2]


def test_changed_metadata_or_files_are_damage(tmp_path):
    saved(tmp_path, steps=(1, 2))
    manifest_file = tmp_path / "checkpoints" / "2" / "manifest" / "metadata"
    manifest_file.write_text(manifest_file.read_text().replace('"step_was"', '"step_is"'))
    assert SavedSteps(tmp_path, report=lambda line: None).metadata()["step_was"] == 1
    manifest_file.write_text("[" * 100_000)  # too deep for Python's JSON
    assert SavedSteps(tmp_path, report=lambda line: None).metadata()["step_was"] == 1
    files = tmp_path / "checkpoints" / "1" / "files" / "metadata"
    files.write_text(json.dumps(json.loads(files.read_text()) | {"more": "AAAA"}))
    with pytest.raises(CheckpointError, match="files have changed"):
        SavedSteps(tmp_path).files(1)


def test_all_of_a_step_is_read_from_that_step(tmp_path):
    saved(tmp_path, steps=(1, 2))
    (tmp_path / "checkpoints" / "2" / "files" / "metadata").write_text("")
    lines = []
    checkpoints = SavedSteps(tmp_path, report=lines.append)
    everything = lambda step: (step.files(), step.tree(ABSTRACT), step.metadata["step"])
    (_, tree, step), metadata = checkpoints.newest(None, everything)
    assert (step, metadata["step"]) == (1, 1)
    assert bits(tree) == bits(checkpoints.restore(ABSTRACT, step=1)[0])
    assert len(lines) == 1
    with pytest.raises(CheckpointError, match="step 2: files cannot be read"):
        checkpoints.newest(2, everything)


def test_a_step_that_the_run_deletes_while_it_is_read_gives_way_to_a_newer_one(tmp_path):
    expected = saved(tmp_path, steps=(1, 2))[2]
    aside, steps, lines, tries = tmp_path / "aside", tmp_path / "checkpoints", [], []
    (steps / "2").rename(aside)

    def read(step):
        tries.append(step.path.name)
        if len(tries) == 1:  # the run saves one more and deletes this one
            aside.rename(steps / "2")
            shutil.rmtree(steps / "1")
        return step.tree(ABSTRACT)

    found, metadata = SavedSteps(tmp_path, report=lines.append).newest(None, read)
    assert (bits(found), metadata["step"], tries, lines) == (expected, 2, ["1", "2"], [])
