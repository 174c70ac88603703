"""Is a run that was killed the same run? Every step's batch and the last bit of the parameters."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from quick_xla import xla_flags
from small_training import CONFIG, STEPS, final_bits, write_text

from lm_jax.errors import EXIT_PREEMPTED
from lm_jax.run.checkpoint import SavedSteps

KILLS = 11
# One process imports the package; each command is a fork of it, before jax has begun anything.
# One core and one device: the order of a sum depends on the number of threads.
SERVER = """
import os, runpy, sys
import lm_jax.training.start
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for line in sys.stdin:
    child = os.fork()
    if not child:
        flags = line.rstrip().split("\\t")
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["train", *flags]
        runpy.run_module("lm_jax.train", run_name="__main__", alter_sys=True)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runs:
    """Trains in forks of one process, in `folder`."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "config.py").write_text(CONFIG)
        write_text(folder / "text.jsonl")
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": xla_flags(1),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        }
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=folder, env=environment,
        )  # fmt: skip

    def start(self, name, *more):
        """Begins `name`, or goes on with it; its process id."""
        flags = ["--config=config.py", f"--workdir={name}", "--config.data.input=text.jsonl",
                 "--config.data.store=store", "--nopreflight", *more]  # fmt: skip
        print("\t".join(flags), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def code(self):
        """The exit code, once the process has ended."""
        return int(self.server.stdout.readline())

    def log(self):
        return (self.folder / "log").read_text()

    def rows(self, name):
        """The training rows of metrics.jsonl; the last line may be half a line."""
        path = self.folder / name / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [row for row in map(json.loads, lines) if row["kind"] == "train"]

    def wait_for(self, name, step, process):
        """Returns when the run is at `step`."""
        while not (rows := self.rows(name)) or rows[-1]["step"] < step:
            assert is_alive(process), self.log()
            time.sleep(0.01)

    def close(self):
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    runs = Runs(tmp_path_factory.mktemp("resume"))
    try:
        runs.start("whole")
        assert runs.code() == 0, runs.log()
        yield runs
    finally:
        runs.close()


def is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def ledger(runs, name, seen):
    """Adds what each step of `name` saw, and its loss, to `seen`; the steps that are there."""
    rows = runs.rows(name)
    for row in rows:
        seen.setdefault(row["step"], set()).add((row["batch_crc"], row["loss"]))
    return [row["step"] for row in rows]


def test_ten_kills_change_no_batch_no_loss_and_no_bit(runs):
    seed = time.time_ns()
    choose, seen, landed = random.Random(seed), {}, 0
    when = sorted(choose.sample(range(5, STEPS - 30), KILLS - 2))
    when = [None, *when[:4], None, *when[4:]]  # None: while it starts
    for step in when:
        process = runs.start("killed")
        if step is None:
            time.sleep(choose.uniform(0, 1))
        else:
            runs.wait_for("killed", step, process)
            time.sleep(choose.uniform(0, 0.1))
        os.kill(process, signal.SIGKILL)
        landed += runs.code() == -signal.SIGKILL
        ledger(runs, "killed", seen)
    runs.start("killed")
    assert runs.code() == 0, runs.log()
    expected = {}
    assert ledger(runs, "whole", expected) == list(range(1, STEPS + 1))
    assert ledger(runs, "killed", seen) == list(range(1, STEPS + 1))
    assert landed >= 10, seed
    assert seen == expected, seed
    assert len({batch for ((batch, _),) in expected.values()}) == STEPS
    assert final_bits(runs.folder, "killed") == final_bits(runs.folder, "whole"), seed


FAMILIES = {
    "bert": {"model.architecture": "encoder", "model.pooler": True, "model.token_types": 2,
             "loss.objective": "bert"},
    "t5": {"model.architecture": "encoder_decoder", "model.positions": "relative",
           "loss.objective": "span_corruption"},
    "lstm": {"model.architecture": "lstm", "data.carry": True, "microbatches": 1},
    "mixture": {"loss.objective": "ul2:2,fim:1,causal:1"},
    "roberta": {"model.architecture": "encoder", "loss.objective": "mlm"},
    "experts": {"model.num_experts": 4, "model.capacity_factor": 1.0},
    "gemma": {"model.window": 8, "model.layer_pattern": "lg", "model.norm_order": "sandwich",
              "model.attn_softcap": 20.0, "model.qk_norm": True},
    "rnn": {"model.architecture": "rnn"},
    "gru": {"model.architecture": "gru", "data.carry": True, "microbatches": 1},
    "hmm": {"model.architecture": "hmm"},
}  # fmt: skip


QUICK = ("lstm",)  # the others are the same code, and take minutes


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES],
)
def test_a_kill_changes_nothing_in_any_family(runs, family):
    flags = [f"--config.{name}={value}" for name, value in FAMILIES[family].items()]
    flags += ["--config.steps=40"]
    runs.start(f"{family}_whole", *flags)
    assert runs.code() == 0, runs.log()
    seen, expected = {}, {}
    for step in (13, 27):
        process = runs.start(f"{family}_killed", *flags)
        runs.wait_for(f"{family}_killed", step, process)
        os.kill(process, signal.SIGKILL)
        assert runs.code() == -signal.SIGKILL
        ledger(runs, f"{family}_killed", seen)
    runs.start(f"{family}_killed", *flags)
    assert runs.code() == 0, runs.log()
    assert ledger(runs, f"{family}_whole", expected) == list(range(1, 41))
    assert ledger(runs, f"{family}_killed", seen) == list(range(1, 41))
    assert seen == expected
    assert final_bits(runs.folder, f"{family}_killed") == final_bits(runs.folder, f"{family}_whole")


def test_sigterm_saves_the_step_that_is_done_and_says_so_by_its_exit_code(runs):
    process = runs.start("stopped")
    runs.wait_for("stopped", 13, process)
    os.kill(process, signal.SIGTERM)
    assert runs.code() == EXIT_PREEMPTED, runs.log()
    last = runs.rows("stopped")[-1]["step"]
    assert SavedSteps(runs.folder / "stopped").steps()[-1] == last
    assert f"saved step {last}" in runs.log()
    runs.start("stopped")
    assert runs.code() == 0, runs.log()
    assert runs.log().count(f"resuming stopped after step {last}") == 1
    assert final_bits(runs.folder, "stopped") == final_bits(runs.folder, "whole")
