"""Runs a config through training, a kill, a resume, evaluation and export, in processes of its own.

Each process is a fork of one that has imported the package and not begun with jax: an abort of XLA
ends the fork alone.
"""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm_jax import api, convert
from lm_jax.config import Config, MeshConfig
from lm_jax.convert.__main__ import export
from lm_jax.data.stream import BatchAt
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.views import by_objective
from lm_jax.devices import sharding
from lm_jax.devices.resolve import resolved
from lm_jax.errors import UserError
from lm_jax.evaluation.perplexity import on_heldout
from lm_jax.run.checkpoint import Checkpoints, flatten
from lm_jax.training import start
from lm_jax.training.train_step import init_state, make_train_step

KILLED_AFTER = 2  # steps; n-grams are counted in one


SERVER = """
import json, os, signal, sys, traceback
import whole_runs
for line in sys.stdin:
    name, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(300)
        code = 1
        try:
            getattr(whole_runs, name)(*arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """`with Forks() as forks: code = forks.run("killed", *arguments)`: exit codes of forks of one
    process, -9 where one was killed.
    """

    def __enter__(self) -> "Forks":
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        return self

    def run(self, name: str, *arguments: Any) -> int:
        """Exit code of a function of this file."""
        assert self.server.stdin
        assert self.server.stdout
        values = [str(x) if isinstance(x, Path) else x for x in arguments]
        print(json.dumps([name, *values]), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def __exit__(self, *exception: Any) -> None:
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


def quiet(log: str) -> None:
    """Sends what this process writes to a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(handle, number)
    jax.config.update("jax_numpy_rank_promotion", "raise")


def killed(values: dict[str, Any], workdir: str, log: str) -> None:
    """Trains, with the self-check, until the checkpoint of step KILLED_AFTER is on the disk."""
    quiet(log)
    config, save = Config.parse(values), Checkpoints.save

    def save_and_die(self: Checkpoints, step: int, *arguments: Any, **more: Any) -> None:
        save(self, step, *arguments, **more)
        if step == KILLED_AFTER or config.model.architecture == "ngram":
            self.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    Checkpoints.save = save_and_die  # type: ignore[method-assign]
    start.train(config, workdir)


def resumed(values: dict[str, Any], folder: str, log: str, found: str) -> None:
    """Ends the run, on any mesh, and writes what every verb says of it to `found`."""
    quiet(log)
    config, workdir = Config.parse(values), Path(folder)
    start.train(config, folder)
    steps = {row["step"]: row for row in rows_of(workdir) if row["kind"] == "train"}
    lm = api.load(folder)
    result = on_heldout(lm, folder, {"window": config.data.sequence_length})[1]
    answer = {
        "steps": {step: [row["loss"], row["gnorm"]] for step, row in steps.items()},
        "heldout": json.loads((workdir / "summary.json").read_text())["model"]["loss"],
        "evaluate": result.loss,
        "alone": alone(config) if hasattr(lm.model, "forward") else {},
        "export": exported(lm, workdir.with_name(f"{workdir.name}.hf")),
    }
    Path(found).write_text(json.dumps(answer))


def rows_of(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def alone(config: Config) -> dict[int, list[float]]:
    """Losses and gradient norms by step, on one device, without any part of the run."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    store = TokenStore.open(config.data.store)
    windows = by_objective.make(store, "train", config, config.seed)
    values = config.to_dict() | {"mesh": {}}
    values["model"] = values["model"] | {"context_attention": "gather"}
    config = Config.parse(values)
    config = Config.parse(values | {"model": resolved(config.model, "cpu").__dict__})
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(config))()
        step = jax.jit(make_train_step(config), donate_argnums=0)
        batch_at = BatchAt(windows, config.batch_size, config.microbatches, (0, 1))
        found = {}
        for number in range(1, config.steps + 1):
            batch = batch_at(number - 1)
            del batch["example"]
            state, metrics = step(state, sharding.put(batch, mesh, leading=1))
            found[number] = [float(metrics[name]) for name in ("loss", "gnorm")]
    return found


def exported(lm: Any, path: Path) -> str:
    """ "" where the export, read again, has every number; the refusal where there is no family."""
    try:
        export(lm, path, "")
    except UserError as error:
        return str(error)
    again = flatten(convert.import_hf(path)[1])
    own = flatten(lm.model)
    assert set(own) == set(again)
    for name, value in own.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(again[name]), name)
    return ""


def gap(a: float, b: float) -> float:
    """Relative difference."""
    return (
        abs(a - b) / max(abs(a), abs(b), 1e-9)
        if math.isfinite(a) and math.isfinite(b)
        else math.inf
    )
