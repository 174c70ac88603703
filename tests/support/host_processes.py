"""Training runs of several processes on this machine, each in place of a host."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from quick_xla import xla_flags
from small_training import CONFIG, write_text

from lm_jax.run.checkpoint import SavedSteps

STEPS, DEVICES = 24, 4


def make_folder(folder):
    """The folder with the config and the text of the runs."""
    (folder / "config.py").write_text(CONFIG)
    write_text(folder / "text.jsonl")
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin(folder, name, count, *more, steps=STEPS, program=("-m", "lm_jax.train")):
    """Starts `count` processes that make the run `name` together, on DEVICES devices in all."""
    port = free_port()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(DEVICES // count),
        "JAX_COMPILATION_CACHE_DIR": str(folder / f"cache{count}"),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    }
    processes = []
    for index in range(count):
        who = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={count}",
               f"--process_id={index}"] if count > 1 else []  # fmt: skip
        with open(folder / f"{name}.{index}.log", "a") as log:
            processes.append(subprocess.Popen(
                [sys.executable, *program, "--config=config.py", f"--workdir={name}",
                 "--config.data.input=text.jsonl", "--config.data.store=store", "--nopreflight",
                 f"--config.steps={steps}", "--config.batch_size=8", *who, *more],
                cwd=folder, env=environment, stdout=log, stderr=log,
            ))  # fmt: skip
    return processes


def codes(processes, seconds=200):
    """The exit codes, once all have ended."""
    until = time.monotonic() + seconds
    try:
        return [process.wait(max(1, until - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()


def log(folder, name):
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{name}.*.log")))


def rows(folder, name):
    path = folder / name / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return {row["step"]: row for row in map(json.loads, lines) if row["kind"] == "train"}


def wait_for(folder, name, step, processes):
    while max(rows(folder, name), default=0) < step:
        assert all(process.poll() is None for process in processes), log(folder, name)
        time.sleep(0.05)


def same_run(folder, name, other):
    """The same batches, and losses and parameters equal but for the order of sums."""
    found, wanted = rows(folder, name), rows(folder, other)
    assert found.keys() == wanted.keys()
    for step, row in wanted.items():
        assert found[step]["batch_crc"] == row["batch_crc"]
        assert found[step]["loss"] == pytest.approx(row["loss"], rel=1e-5)
    mine, theirs = (SavedSteps(folder / run).arrays(within="model/")[0] for run in (name, other))
    assert mine.keys() == theirs.keys()
    for array in theirs:
        np.testing.assert_allclose(mine[array], theirs[array], rtol=1e-4, atol=1e-5)
