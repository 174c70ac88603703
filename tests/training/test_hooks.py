"""What the loop calls between its steps, and when."""

import dataclasses
import json
import multiprocessing
import shlex
import shutil
import signal
import types
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from ml_collections import ConfigDict
from small_stores import CONFIG, write_store

from lm_jax.config import CheckpointConfig, EvalConfig, OptimizerConfig
from lm_jax.devices import runtime
from lm_jax.errors import UserError
from lm_jax.run.checkpoint import SavedSteps
from lm_jax.training import finish, hooks, loop, start

ONE_STEP = dataclasses.replace(
    CONFIG, steps=1, batch_size=2, eval=EvalConfig(every=0, samples=0, tokens=32),
    optimizer=OptimizerConfig(warmup_steps=0),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Runs are in the process of the tests, on one of its devices."""
    monkeypatch.setattr(runtime, "start", lambda: None)
    monkeypatch.setattr(runtime, "devices", lambda: jax.devices()[:1])


class Recorder(hooks.Hook):
    """Notes each call; acts every third step."""

    phase = "evaluation"

    def __init__(self):
        self.calls, self.losses = [], {}

    def entered(self, phase, step):
        self.calls.append((phase, step))

    def finished(self, step, values, checksum):
        self.losses[step] = values["loss"]

    def due(self, step, last, stopping):
        return hooks.every(3, step, last)

    def act(self, step, state):
        assert sorted(self.losses)[-1] == step == int(state.step)
        self.calls.append(("act", step))

    def __enter__(self):
        self.calls.append(("begin", 0))
        return self

    def __exit__(self, *exception):
        self.calls.append(("end", 0))


def test_each_hook_is_called_at_its_steps_after_their_metrics_are_read(tmp_path, monkeypatch):
    recorder, own = Recorder(), loop.Run.default_hooks
    monkeypatch.setattr(
        loop.Run, "default_hooks", lambda run, profile: [*own(run, profile), recorder]
    )
    config = dataclasses.replace(
        CONFIG, steps=5, batch_size=2,
        eval=EvalConfig(every=2, samples=0, tokens=32), checkpoint=CheckpointConfig(every=4),
        optimizer=OptimizerConfig(warmup_steps=1),
    )  # fmt: skip
    write_store(tmp_path / "data", CONFIG.data)
    assert start.train(config, str(tmp_path), check=False) == 0
    steps = lambda step, *more: [("data", step), ("step", step), *((name, step) for name in more)]
    look = ("evaluation", "evaluation")  # the loss, and samples
    assert recorder.calls == [
        ("begin", 0), *steps(1), *steps(2, *look), *steps(3, "evaluation", "act"),
        *steps(4, "save", *look), *steps(5, "save", *look, "evaluation", "act", "save"), ("end", 0),
    ]  # fmt: skip
    assert sorted(recorder.losses) == [1, 2, 3, 4, 5]


def test_a_config_dict_trains_in_a_thread_and_signals_stay_as_they_are(tmp_path, monkeypatch):
    write_store(tmp_path / "data", CONFIG.data)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as pool:
        values = ConfigDict(ONE_STEP.to_dict())
        training = pool.submit(start.train, values, str(tmp_path), check=False)
        assert training.result() == 0
    with pytest.raises(UserError, match=r"config\.stepz: no such field"):
        start.train({"stepz": 1}, str(tmp_path))
    assert start.train(ONE_STEP, str(tmp_path)) == 0  # it is finished
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_a_worker_that_imports_the_script_does_not_train_there(tmp_path, monkeypatch):
    child = types.SimpleNamespace(_inheriting=True)  # as in a spawned process that imports __main__
    monkeypatch.setattr(multiprocessing, "current_process", lambda: child)
    with pytest.raises(UserError, match="if __name__ == '__main__'"):
        start.train(CONFIG, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


class Removal(hooks.Hook):
    """Takes away, before the second step, what a save needs beside the state."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch

    def before_step(self, step):
        if step == 2:
            (self.folder / "config.json").unlink()
            self.monkeypatch.setattr("tempfile.TemporaryDirectory", None)  # /tmp is full


def test_a_save_reads_no_other_file(tmp_path, monkeypatch):
    removal, own = Removal(tmp_path, monkeypatch), loop.Run.default_hooks
    monkeypatch.setattr(
        loop.Run, "default_hooks", lambda run, profile: [*own(run, profile), removal]
    )
    config = dataclasses.replace(
        CONFIG, steps=3, batch_size=2, checkpoint=CheckpointConfig(every=2),
        eval=EvalConfig(every=0, samples=0, tokens=32), optimizer=OptimizerConfig(warmup_steps=0),
    )  # fmt: skip
    write_store(tmp_path / "data", CONFIG.data)
    assert start.train(config, str(tmp_path), check=False) == 0
    saved = SavedSteps(tmp_path)
    assert saved.steps() == [2, 3]
    assert saved.metadata()["config"] == config.to_dict()
    assert saved.files().keys() == saved.files(2).keys() != set()


class Stop(hooks.Hook):
    """Asks to stop before step 2, as SIGTERM does, or after every save, as one during it does."""

    def __init__(self, run, when):
        self.run, self.when = run, when

    def before_step(self, step):
        if self.when == "before" and step == 2:
            self.run.requests.pending = signal.SIGTERM

    def entered(self, phase, step):
        if self.when == "at the last" and phase == "save" and step == 4:
            self.run.requests.pending = signal.SIGTERM


@pytest.mark.parametrize("when", ["before", "at the last"])
def test_what_a_stop_kept_from_being_evaluated_is_evaluated_when_the_run_goes_on(
    tmp_path, monkeypatch, when
):
    config = dataclasses.replace(
        CONFIG, steps=4, batch_size=2, eval=EvalConfig(every=2, samples=1, tokens=32),
        checkpoint=CheckpointConfig(every=2), optimizer=OptimizerConfig(warmup_steps=0),
    )  # fmt: skip
    rows, own = {}, loop.Run.default_hooks
    for name in ("whole", "stopped"):
        write_store(tmp_path / name / "data", CONFIG.data)
        run = lambda name=name: start.train(config, str(tmp_path / name), check=False)
        if name == "stopped":
            hooked = lambda run, profile: [*own(run, profile), Stop(run, when)]
            monkeypatch.setattr(loop.Run, "default_hooks", hooked)
            assert run() == 75
            monkeypatch.setattr(loop.Run, "default_hooks", own)
        assert run() == 0
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        keep = ("step", "kind", "loss", "text")
        rows[name] = [{k: row[k] for k in keep if k in row} for row in map(json.loads, lines)]
    assert [row["step"] for row in rows["whole"] if row["kind"] == "sample"] == [2, 4]
    assert rows["stopped"] == rows["whole"]


def test_a_run_that_lost_its_checkpoints_says_that_it_begins_again(tmp_path, monkeypatch, capsys):
    write_store(tmp_path / "data", CONFIG.data)
    line = f"{tmp_path} has metrics up to step 1 and no checkpoint: training begins again at step 1"
    for lost in (False, True):
        if lost:
            shutil.rmtree(tmp_path / "checkpoints")
        assert start.train(ONE_STEP, str(tmp_path), check=False) == 0
        assert (line in capsys.readouterr().out.splitlines()) == lost


class LateInterrupt(hooks.Hook):
    """A Ctrl-C on one of several processes during the last save, when no step follows at which all
    could stop.
    """

    def __init__(self, run, monkeypatch):
        self.run, self.monkeypatch = run, monkeypatch

    def due(self, step, last, stopping):
        return step == last

    def act(self, step, state):
        self.monkeypatch.setattr("lm_jax.devices.hosts.are_several", lambda: True)
        self.run.requests.pending = signal.SIGINT


def test_no_process_of_several_leaves_the_others_alone_at_the_end(tmp_path, monkeypatch):
    own = loop.Run.default_hooks
    monkeypatch.setattr(
        loop.Run, "default_hooks",
        lambda run, profile: [*own(run, profile), LateInterrupt(run, monkeypatch)],
    )  # fmt: skip
    write_store(tmp_path / "data", CONFIG.data)
    assert start.train(ONE_STEP, str(tmp_path), check=False) == 0
    assert (tmp_path / "report.html").exists()


def test_the_commands_that_follow_are_quoted_for_a_shell(tmp_path):
    prompt = "it's $HOME"
    config = dataclasses.replace(CONFIG, eval=EvalConfig(prompt=prompt))
    generate, evaluate = finish.following(config, tmp_path / "a b").splitlines()
    assert shlex.split(generate)[3:] == [f"--checkpoint={tmp_path}/a b", f"--prompt={prompt}"]
    assert shlex.split(evaluate)[3] == f"--checkpoint={tmp_path}/a b"


def test_a_run_that_is_over_before_its_profile_begins_says_that_there_is_none(tmp_path, capsys):
    with hooks.Profile(tmp_path, 990, lambda phase, step: None, lambda: None) as profile:
        for step in range(991, 1000):
            profile.before_step(step)
    assert capsys.readouterr().out == (
        "profile: none written, since the run ended before step 1000\n"
    )


@pytest.mark.parametrize(("count", "steps"), [(0, [7]), (3, [3, 6, 7]), (1, [1, 2, 3, 4, 5, 6, 7])])
def test_every_so_many_steps_and_always_at_the_end(count, steps):
    assert [step for step in range(1, 8) if hooks.every(count, step, 7)] == steps
