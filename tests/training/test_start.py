"""A run begins where its folder and its config say, or is refused."""

import dataclasses

import jax
import pytest
from small_stores import CONFIG, write_store
from small_training import final_bits

from lm_jax.config import EvalConfig, OptimizerConfig
from lm_jax.devices import runtime
from lm_jax.errors import CheckpointError, MachineError, UserError
from lm_jax.run import rundir
from lm_jax.training import start

SMALL = dataclasses.replace(
    CONFIG, batch_size=2, eval=EvalConfig(every=0, samples=0, tokens=32),
    optimizer=OptimizerConfig(warmup_steps=1, schedule="constant"),
)  # fmt: skip


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(name, **changes) makes the run `name` with the changed config."""
    monkeypatch.setattr(runtime, "start", lambda: None)
    monkeypatch.setattr(runtime, "devices", lambda: jax.devices()[:1])

    def call(name, **changes):
        if not (tmp_path / name).exists():
            write_store(tmp_path / name / "data", CONFIG.data)
        config = dataclasses.replace(SMALL, **changes)
        return start.train(config, str(tmp_path / name), check=False)

    return call


def test_a_finished_run_that_is_made_longer_is_the_one_that_was_as_long_at_once(
    train, tmp_path, capsys
):
    assert train("longer", steps=2) == 0
    assert train("longer", steps=4) == 0
    assert "after step 2" in capsys.readouterr().out
    assert train("whole", steps=4) == 0
    assert final_bits(tmp_path, "longer") == final_bits(tmp_path, "whole")
    with pytest.raises(CheckpointError, match=r"config\.steps=3: the newest .* of step 4 already"):
        train("longer", steps=3)


def test_an_end_without_room_for_its_report_names_the_checkpoint(train, tmp_path):
    (tmp_path / "run").mkdir()
    write_store(tmp_path / "run" / "data", CONFIG.data)
    config = dataclasses.replace(SMALL, steps=2)
    rundir.create(tmp_path / "run", config)
    (tmp_path / "run" / "report.html").mkdir()
    why = r"run/report\.html: Is a directory; the checkpoint is \S+/run/checkpoints/2, and .* same"
    with pytest.raises(MachineError, match=why):
        train("run", steps=2)
    (tmp_path / "run" / "report.html").rmdir()
    assert train("run", steps=2) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_one_whose_learning_rates_would_have_been_others_is_not_made_longer(train):
    cosine = OptimizerConfig(warmup_steps=1)
    assert train("run", steps=2, optimizer=cosine) == 0
    with pytest.raises(UserError, match=r"another run: config\.steps is 2 there, 4 here"):
        train("run", steps=4, optimizer=cosine)
