"""Does a run that is stopped say what is on disk, by a signal at every moment?"""

import os
import signal
import subprocess
import sys
import threading

import pytest
from commands import ONE, Commands

from lm_jax.errors import EXIT_PREEMPTED
from lm_jax.run.checkpoint import SavedSteps
from lm_jax.run.interrupts import EXIT_KEYBOARD, Requests

CONFIG = """
import os, signal, threading
from lm_jax import config as lm_config

def get_config():
    config = lm_config.new()
    config.steps, config.batch_size, config.log_every = 12, 2, 1
    config.model.vocab_size, config.model.num_layers, config.model.dim = 384, 1, 16
    config.model.num_heads, config.model.max_length = 2, 32
    config.data.tokenizer, config.data.sequence_length = "bytes", 16
    config.data.heldout_fraction = 0.1
    config.eval.tokens, config.eval.samples, config.eval.every = 64, 1, 5
    config.eval.sample_tokens = 4
    config.optimizer.warmup_steps, config.checkpoint.every = 0, 4
    signal_at(*os.environ.get("SIGNAL_AT", "").split())
    return config

def signal_at(phase="", number="", call="1", times="1"):
    # The process sends itself the signal as it begins a phase: a real one, at that very moment.
    places = {
        "store": ("lm_jax.data.build", "encode_parts"),
        "compile": ("lm_jax.training.start", "init_state"),
        "data": ("lm_jax.training.loop", "Run.next_batch"),
        "save": ("lm_jax.run.checkpoint", "Checkpoints.save"),
        "saved": ("lm_jax.run.checkpoint", "Checkpoints.wait"),
        "evaluation": ("lm_jax.evaluation.heldout", "Heldout.loss"),
        "sample": ("lm_jax.evaluation.heldout", "Heldout.samples"),
        "end": ("lm_jax.evaluation.heldout", "Heldout.figures"),
    }
    if not phase:
        return
    import functools, importlib
    module, name = places[phase]
    owner = functools.reduce(getattr, name.split(".")[:-1], importlib.import_module(module))
    real, calls = getattr(owner, name.split(".")[-1]), []

    def signalled(*arguments, **more):
        calls.append(1)
        if len(calls) == int(call):
            for _ in range(int(times)):
                os.kill(os.getpid(), int(number))
        return real(*arguments, **more)

    setattr(owner, name.split(".")[-1], signalled)
"""
INT, TERM, HUP = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as run:
        yield run


def inputs(folder):
    """Writes config and text; returns the flags of a run in `folder`."""
    (folder / "c.py").write_text(CONFIG)
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 600)
    return [f"--config={folder}/c.py", f"--config.data.input={folder}/text.txt",
            f"--workdir={folder}/run", "--nopreflight"]  # fmt: skip


def cache(commands):
    return {"JAX_COMPILATION_CACHE_DIR": str(commands.folder / "cache")}


def train(commands, folder, when=""):
    """Exit code, output and errors of the run in `folder`, with a signal at a phase; without the
    lines of what takes long, as all does on a busy machine.
    """
    code, out, err = commands(
        "lm_jax.train", *inputs(folder), SIGNAL_AT=when, **ONE, **cache(commands)
    )
    slow = ("evaluating ", "reading ", "encoding ", "stopping: ")
    grain = "Grain multiprocess worker profiling requires"  # with the jax of Colab, in two lines
    lines = [line for line in err.splitlines(True) if not line.startswith(slow)]
    return code, out, "".join(line for line in lines if grain not in line)


# Phase and call of it, the newest step that must be on disk then (None: no checkpoint).
NEWEST = "the newest checkpoint is of step"
MOMENTS = {
    "store": ("store", 1, None),
    "compile": ("compile", 1, None),
    "first": ("data", 1, None),
    "data": ("data", 7, 7),
    "save": ("save", 1, 4),
    "evaluation": ("evaluation", 1, 5),
    "sample": ("sample", 2, 10),
    "saved": ("saved", 1, 12),
    "end": ("end", 1, 12),
}
QUICK = {
    ("evaluation", TERM),
    ("data", INT),
    ("store", HUP),
    ("data", HUP),
}  # all are run by test.sh --slow


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(moment, number, marks=[pytest.mark.slow] * ((moment, number) not in QUICK))
        for moment in MOMENTS
        for number in (TERM, INT, HUP)
    ],
)
def test_what_is_said_is_on_disk_and_the_same_command_goes_on(commands, tmp_path, moment, number):
    phase, call, step = MOMENTS[moment]
    code, out, err = train(commands, tmp_path, f"{phase} {number} {call}")
    saved = SavedSteps(tmp_path / "run").steps()
    assert code == (EXIT_KEYBOARD if number == INT else EXIT_PREEMPTED), err
    assert saved[-1:] == [step] * (step is not None)
    line = (err if number == INT else out).splitlines()[-1]
    said = {TERM: "SIGTERM: ", HUP: "SIGHUP: ", INT: "error: stopped by the keyboard"}
    assert line.startswith(said[number])
    assert (f"step {step} " in line.replace(";", " ")) == (step is not None), line
    assert len(err.splitlines()) == (number == INT), err
    assert "Traceback" not in out + err
    code, out, err = train(commands, tmp_path)
    assert (code, err) == (0, "")
    assert SavedSteps(tmp_path / "run").steps()[-1] == 12
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_ctrl_c_twice_ends_at_once(commands, tmp_path):
    code, _, err = train(commands, tmp_path, f"data {INT} 7 2")
    assert code == EXIT_KEYBOARD
    assert err.startswith("error: stopped by the keyboard")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_run_under_nohup_outlives_its_terminal(commands, tmp_path):
    words = ["nohup", sys.executable, "-m", "lm_jax.train", *inputs(tmp_path)]
    env = os.environ | ONE | cache(commands) | {"SIGNAL_AT": f"data {HUP} 7"}
    assert subprocess.run(words, env=env, capture_output=True).returncode == 0
    assert SavedSteps(tmp_path / "run").steps()[-1] == 12


def test_a_second_ctrl_c_that_comes_as_the_run_is_over_says_nothing(monkeypatch):
    """Two at once are one call of the handler, and two bytes for the thread."""
    ended = []
    monkeypatch.setattr(Requests, "owner", True)
    monkeypatch.setattr(Requests, "obeyed", 0)
    monkeypatch.setattr(Requests, "end", lambda self, number: ended.append(number))
    with Requests() as requests:
        requests.deferred = True
        os.kill(os.getpid(), INT)
        assert requests.pending == INT
        os.write(requests.ends[1], bytes([INT]))
    for thread in threading.enumerate():
        if thread.name == "signals":
            thread.join(10)
    assert ended == []
    assert Requests.obeyed == INT


ENDING = """
import signal, sys, time
import lm_jax.run.interrupts as interrupts
interrupts.own()
with interrupts.Requests() as early:
    with interrupts.Requests() as requests:
        requests.deferred = True
        signal.raise_signal({number})
        assert requests.pending == {number}
    print("said")
    sys.stdout.flush()
    signal.raise_signal({number})
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(TERM, EXIT_PREEMPTED), (INT, EXIT_KEYBOARD)])
def test_a_signal_after_the_last_line_says_nothing_more(number, code):
    done = subprocess.run([sys.executable, "-c", ENDING.format(number=number)],
                          capture_output=True, text=True, timeout=30)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (code, "said\n", "")


def test_ctrl_c_while_a_command_is_imported_is_one_line():
    process = subprocess.Popen(
        [sys.executable, "-c", "import lm_jax.run.interrupts as i; i.quietly_until_started('');"
         "print('on', flush=True); import time; time.sleep(60)"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (EXIT_KEYBOARD, "error: stopped by the keyboard.\n")


STUCK = """
import ctypes, lm_jax.run.interrupts as interrupts
interrupts.own()
mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
with interrupts.Requests() as requests:
    requests.kept = "step 3 is saved"
    print("on", flush=True)
    lock(mutex)  # for ever; as a compilation, a call that no signal interrupts
"""


@pytest.mark.parametrize(
    ("number", "code"), [(TERM, EXIT_PREEMPTED), (INT, EXIT_KEYBOARD), (HUP, EXIT_PREEMPTED)]
)
def test_a_signal_ends_a_process_whose_main_thread_does_not_hear_it(number, code):
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "on\n"
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "step 3 is saved" in out + err
    assert len((out + err).splitlines()) == 1


@pytest.mark.parametrize("streams", [">/dev/full 2>&1", "| head -1", ">&- 2>&-"])
def test_a_run_goes_on_without_its_log(commands, tmp_path, streams):
    arguments = inputs(tmp_path)
    command = f"{sys.executable} -m lm_jax.train {' '.join(arguments)} {streams}"
    env = os.environ | ONE | cache(commands)
    done = subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], env=env)
    assert done.returncode == 0
    assert (tmp_path / "run" / "report.html").exists()
