"""Cost of loader, metrics and logging: the whole loop beside its bare step on a resident batch.

    python benchmarks/loop_overhead.py [--rounds=3] [--steps=60]

Prints, for rounds in turns, seconds a step of both and the median ratio.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from lm_jax.config import Config
from lm_jax.data.views import by_objective
from lm_jax.devices import sharding
from lm_jax.devices.resolve import resolved
from lm_jax.run import rundir
from lm_jax.run.checkpoint import Checkpoints
from lm_jax.training import loop
from lm_jax.training.train_step import init_state


class Timed:
    """A step that records the times of its calls."""

    def __init__(self, step):
        self.step, self.calls = step, []

    def __call__(self, state, batch):
        self.calls.append(time.perf_counter())
        return self.step(state, batch)

    def milliseconds(self):
        """Mean time between calls, without the first three (compilation, filling the pipeline)."""
        return (self.calls[-1] - self.calls[3]) / (len(self.calls) - 4) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    words = np.random.default_rng(0).integers(97, 123, 2_000_000).astype(np.uint8).tobytes()
    (folder / "text.txt").write_bytes(words)
    asked = Config.parse({
        "steps": args.steps, "batch_size": 12, "log_every": 10,
        "model": {"vocab_size": 384, "dim": 192, "num_heads": 4, "num_layers": 4, "scan_unroll": 4},
        "data": {"input": f"{folder}/text.txt", "tokenizer": "bytes", "store": f"{folder}/store"},
        "optimizer": {"warmup_steps": 10}, "eval": {"every": 0, "tokens": 3072, "samples": 0},
        "checkpoint": {"every": 10**6},
    })  # fmt: skip
    config = dataclasses.replace(asked, model=resolved(asked.model, jax.default_backend()))
    mesh, ratios = sharding.make_mesh(asked.mesh), []
    for index in range(args.rounds):
        workdir = folder / f"run{index}"
        store = rundir.open_store(workdir, config, prepare=True)
        assert store is not None
        rundir.create(workdir, asked)
        with jax.set_mesh(mesh), Checkpoints(workdir) as saved:
            abstract = jax.eval_shape(lambda: init_state(config))
            run = loop.Run(config, workdir, mesh, store, saved, abstract)
            bare, timed = run.step, Timed(run.step)
            run.step = timed  # type: ignore[assignment]
            run.run()
            windows = by_objective.make(store, "train", config, config.seed)
            batch = run.on_device({k: v[None] for k, v in windows.batch(0, 12).items()})
            alone = Timed(bare)
            for _ in range(args.steps):
                run.state, metrics = alone(run.state, batch)
                jax.block_until_ready(metrics)
        loop_ms, bare_ms = timed.milliseconds(), alone.milliseconds()
        ratios.append(loop_ms / bare_ms)
        print(f"loop {loop_ms:.1f} ms a step, bare step {bare_ms:.1f} ms")
    print(f"loop / bare step: median {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
