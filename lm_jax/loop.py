"""How does a run go? Data, mesh, state, then steps until the end, a signal or a loss that is not finite."""

import dataclasses
import math
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm_jax import preflight, rundir, runtime, sharding, summary
from lm_jax.checkpoint import Checkpoints
from lm_jax.config import Config, resolved
from lm_jax.data.examples import Windows
from lm_jax.data.stream import batches
from lm_jax.errors import EXIT_PREEMPTED, DivergedError
from lm_jax.finish import finish
from lm_jax.metrics import Metrics
from lm_jax.objectives import OBJECTIVES
from lm_jax.sampling import sample_text
from lm_jax.train_step import TrainState, init_state, make_train_step


def train(
    asked: Config, workdir: str, dry_run: bool = False, check: bool = True, profile: bool = False
) -> int:
    """Runs `asked` in `workdir` to its end, or on from its newest checkpoint; returns the exit code."""
    runtime.start()
    devices = jax.devices()
    mesh = sharding.make_mesh(asked.mesh, devices)
    sharding.check_batch(mesh, asked.batch_size, asked.microbatches)
    config = dataclasses.replace(asked, model=resolved(asked.model, devices[0].platform))
    rundir.check(workdir, asked)
    store = rundir.open_store(workdir, config, prepare=not dry_run)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: init_state(config))
        print(summary.text(asked, config, workdir, mesh, abstract, store), flush=True)
        if dry_run:
            return 0
        rundir.create(workdir, asked)
        if check:
            print(preflight.run(config, mesh, abstract, workdir), flush=True)
        with Checkpoints(
            workdir, asked.checkpoint.keep, asked.checkpoint.keep_every
        ) as checkpoints:
            return Run(config, workdir, mesh, store, checkpoints, abstract).go(profile)


class Run:
    """The parts of a run that is under way."""

    def __init__(self, config: Config, workdir: str, mesh: Any, store: Any, checkpoints: Checkpoints,
                 abstract: TrainState):  # fmt: skip
        self.config, self.workdir, self.mesh = config, Path(workdir), mesh
        self.store, self.checkpoints = store, checkpoints
        self.state, self.start = self.first_state(abstract)
        self.metrics = Metrics(workdir, config, store.num_bytes("train") / store.num_tokens("train"),
                               mesh.devices.flat[0].device_kind, mesh.size, self.start)  # fmt: skip
        self.step = jax.jit(make_train_step(config), donate_argnums=0)
        self.stopped = False

    def first_state(self, abstract: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint that verifies, or a new state, born sharded."""
        if not self.checkpoints.steps():
            return jax.jit(lambda: init_state(self.config))(), 0
        state, metadata = self.checkpoints.restore(abstract)
        rundir.check_data(metadata, self.store)
        step = int(state.step)
        print(f"resuming {self.workdir} after step {step}", flush=True)
        return state, step

    def go(self, profile: bool) -> int:
        """Steps until the end or SIGTERM; metrics are read one step late, so the device never waits for them."""
        config, metrics = self.config, self.metrics
        signal.signal(signal.SIGTERM, self.stop)
        windows = Windows(
            self.store, "train", config.data.sequence_length, config.seed, config.data.packed
        )
        pending: tuple[int, Any, int | None] | None = None
        traced = range(self.start + 10, self.start + 15) if profile else range(0)
        began = time.perf_counter()
        with batches(windows, self.start, config.batch_size, config.microbatches,
                     workers=config.data.workers) as stream:  # fmt: skip
            for step in range(self.start + 1, config.steps + 1):
                since = time.perf_counter()
                host_batch = next(stream)
                metrics.clock.waited(since)
                if step in traced and step == traced.start:
                    jax.profiler.start_trace(str(self.workdir / "profile"))
                self.state, result = self.step(self.state, device_batch(host_batch, self.mesh))
                metrics.clock.steps += 1
                crc = batch_crc(host_batch) if config.log_every == 1 else None
                self.report(pending)
                self.checkpoints.poll()
                pending = (step, result, crc)
                if step == self.start + 1:
                    jax.block_until_ready(result)
                    print(
                        f"first step done, {time.perf_counter() - began:.1f} s with compilation",
                        flush=True,
                    )
                    metrics.clock.restart()
                if step in traced and step == traced.stop - 1:
                    jax.block_until_ready(self.state)
                    jax.profiler.stop_trace()
                    print(
                        f"profile: {self.workdir / 'profile'} (xprof or TensorBoard reads it)",
                        flush=True,
                    )
                due = step % config.checkpoint.every == 0 or step == config.steps or self.stopped
                looked = config.eval.every and step % config.eval.every == 0 or step == config.steps
                if due or looked:
                    self.report(pending)
                    pending = None
                    since = time.perf_counter()
                    if due:
                        self.save(step)
                    if looked and not self.stopped:
                        self.look(step)
                    metrics.clock.left_out(since)
                if self.stopped:
                    self.checkpoints.wait()
                    print(
                        f"stopped by SIGTERM, saved step {step}; the same command goes on.",
                        flush=True,
                    )
                    return EXIT_PREEMPTED
        self.checkpoints.wait()
        metrics.close()
        if self.start < config.steps or not (self.workdir / "summary.json").exists():
            finish(config, self.workdir, self.store, self.state, self.mesh, time.perf_counter() - began)
        else:
            print(f"{self.workdir} is finished: {self.workdir / 'report.html'}", flush=True)
        return 0

    def stop(self, *_: Any) -> None:
        """SIGTERM: the step under way is finished and saved."""
        self.stopped = True

    def report(self, pending: tuple[int, Any, int | None] | None) -> None:
        """Reads the metrics of a step that is done by now; raises DivergedError when they are not finite."""
        if pending is None:
            return
        step, result, crc = pending
        loss, gnorm = float(result["loss"]), float(result["gnorm"])
        if not (math.isfinite(loss) and math.isfinite(gnorm)):
            good = self.checkpoints.steps()
            kept = f"the checkpoint of step {good[-1]} is kept" if good else "nothing was saved yet"
            raise DivergedError(
                f"step {step}: loss {loss}, gradient norm {gnorm}: not finite; {kept}. Try a lower "
                f"config.optimizer.learning_rate (now {self.config.optimizer.learning_rate:g}), a longer "
                "warmup_steps, or config.loss.z_loss=1e-4 in a new --workdir."
            )
        if step % self.config.log_every == 0 or step in (1, self.config.steps):
            self.metrics.train(step, loss, float(result["lr"]), gnorm, float(result["tokens"]), crc)

    def save(self, step: int) -> None:
        """A checkpoint that holds all that evaluate, generate and load need."""
        self.checkpoints.save(step, self.state, rundir.metadata(self.config, self.workdir, self.store, self.mesh),
                              extra_files=rundir.tokenizer_files(self.store))  # fmt: skip

    def look(self, step: int) -> None:
        """Loss on held-out text, and samples."""
        config, since = self.config, time.perf_counter()
        loss, tokens = self.heldout_loss()
        self.metrics.evaluation(step, loss, tokens, time.perf_counter() - since)
        tokenizer, prompt = self.store.tokenizer, config.eval.prompt
        room = config.model.max_length - len(tokenizer.encode(prompt)) - 1
        length = min(config.eval.sample_tokens, room)
        for index in range(config.eval.samples if length > 0 else 0):
            text = sample_text(self.state.model, tokenizer, prompt, length, seed=index)
            self.metrics.write(step, "sample", prompt=prompt, text=text)
            print(f"sample {step}: {' '.join((prompt + text).split())[:300]}", flush=True)

    def heldout_loss(self) -> tuple[float, int]:
        """(nats per token, tokens) over the first config.eval.tokens of held-out windows, always the same ones."""
        config = self.config
        objective = OBJECTIVES[config.loss.objective]
        if not hasattr(self, "eval_step"):
            self.eval_step = jax.jit(
                lambda model, batch: objective(model, batch, None, config.loss)[1]
            )
        windows = Windows(self.store, "heldout", config.data.sequence_length, 0, config.data.packed)
        rows = config.batch_size // config.microbatches
        count = max(
            1,
            min(config.eval.tokens, self.store.num_tokens("heldout"))
            // (rows * config.data.sequence_length),
        )
        nll = tokens = 0.0
        for index in range(count):
            batch = sharding.put(model_inputs(windows.batch(index, rows)), self.mesh)
            sums = self.eval_step(self.state.model, batch)
            nll, tokens = nll + float(sums["nll"]), tokens + float(sums["tokens"])
        return nll / max(1.0, tokens), int(tokens)


def model_inputs(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What goes to the device: not the examples' numbers."""
    return {name: value for name, value in batch.items() if name != "example"}


def device_batch(batch: dict[str, np.ndarray], mesh: Any) -> dict[str, jax.Array]:
    """[microbatches, B, L] host arrays onto the mesh."""
    return sharding.put(model_inputs(batch), mesh, leading=1)


def batch_crc(batch: dict[str, np.ndarray]) -> int:
    """Checksum of the tokens and of which examples they are: the ledger of what each step saw."""
    return zlib.crc32(
        np.ascontiguousarray(batch["tokens"]), zlib.crc32(np.ascontiguousarray(batch["example"]))
    )
