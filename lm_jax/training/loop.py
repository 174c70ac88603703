"""The training run: set-up, steps, the hooks between them, the end."""

import contextlib
import dataclasses
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_jax.config import Config, mesh_check
from lm_jax.config import check as config_check
from lm_jax.config.values import expand_home
from lm_jax.data.stream import batches
from lm_jax.data.views import by_objective, fit
from lm_jax.devices import hosts, quantized, runtime, sharding, xla_options
from lm_jax.devices.resolve import resolved
from lm_jax.errors import EXIT_PREEMPTED, UserError
from lm_jax.evaluation.heldout import Heldout
from lm_jax.run import rundir
from lm_jax.run.checkpoint import Checkpoints
from lm_jax.run.metrics import Metrics
from lm_jax.run.watchdog import Watchdog
from lm_jax.training import counting, hooks, out_of_memory, preflight, summary
from lm_jax.training.finish import finish
from lm_jax.training.hooks import Hook
from lm_jax.training.train_step import TrainState, init_state, make_train_step


def train(
    requested: Config,
    workdir: str,
    dry_run: bool = False,
    check: bool = True,
    profile: bool = False,
) -> int:
    """Trains `requested` in `workdir` to its end, from its newest checkpoint on where there is one;
    returns the exit code.

    dry_run: prints what would run, and writes nothing. check: runs the self-check first. profile:
    writes an XProf trace of a few steps.
    """
    if profile and requested.steps <= hooks.TRACED.start:
        raise UserError(
            f"--profile: records from step {hooks.TRACED.start} on, "
            f"config.steps={requested.steps} is too few."
        )
    workdir = expand_home(workdir)
    runtime.start()
    devices = runtime.devices()
    counts = requested.model.architecture == "ngram"
    devices = counting.host(devices) if counts else devices
    mesh = sharding.make_mesh(requested.mesh, devices)
    mesh_check.check_batch(requested.batch_size, requested.microbatches, mesh.shape)
    config_check.check_training(requested, mesh.shape)
    prefix, shared = config_check.has_prefix(requested), mesh.shape["context"] > 1
    model = resolved(requested.model, devices[0].platform, prefix, shared)
    config = dataclasses.replace(requested, model=model)
    fit.check_rows(config, mesh.shape["context"])
    kind = devices[0].device_kind
    for warning in (quantized.warning(model.quantization, kind), sharding.warning(mesh)):
        if warning:
            print(warning, flush=True)
    rundir.check(workdir, requested)
    opened = lambda: rundir.open_store(workdir, config, prepare=not dry_run)
    store = hosts.first_does(opened, "store") or opened()
    with jax.set_mesh(mesh):
        abstract: Any = None if counts else jax.eval_shape(lambda: init_state(config))
        print(summary.text(requested, config, workdir, mesh, abstract, store), flush=True)
        if dry_run or store is None:
            return 0
        with (
            Checkpoints(
                workdir, requested.checkpoint.keep, requested.checkpoint.keep_every
            ) as saved,
            out_of_memory.explained(config, mesh, workdir),
        ):
            if saved.steps():  # of other data: refused before anything is written
                rundir.check_data(saved.metadata(), store)
            if not counts:
                for split in ("train", "heldout"):  # room for specials, enough text: the same
                    by_objective.make(store, split, config, config.seed)
            hosts.first_does(lambda: rundir.create(workdir, requested), "folder")
            if counts:
                return counting.train(config, Path(workdir), mesh, store, saved)
            if check:
                print(preflight.run(config, mesh, abstract, workdir), flush=True)
            return Run(config, Path(workdir), mesh, store, saved, abstract, profile).run()


class Done(NamedTuple):
    """A step whose metrics are not read yet."""

    step: int
    metrics: dict[str, jax.Array]
    checksum: int | None


class Run:
    """The state of a run, its compiled step, and its hooks."""

    def __init__(self, config: Config, workdir: Path, mesh: Any, store: Any, saved: Checkpoints,
                 abstract: TrainState, profile: bool = False):  # fmt: skip
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.store, self.saved, self.stopping = store, saved, False
        self.state, self.start = self.first_state(abstract)
        options = xla_options.accepted(mesh)
        self.step = jax.jit(make_train_step(config), donate_argnums=0, compiler_options=options)
        self.share = hosts.share(mesh)
        self.heldout = Heldout(config, store, mesh, self.share)
        bytes_per_token = store.bytes_per_target("train", config.data.packed)
        kind = mesh.devices.flat[0].device_kind
        self.metrics = Metrics(workdir, config, bytes_per_token, kind, mesh.size, self.start,
                               hosts.is_first())  # fmt: skip
        self.hooks = self.default_hooks(profile)

    def default_hooks(self, profile: bool) -> list[Hook]:
        """What happens beside the steps, in this order."""
        config, saved = self.config, self.saved
        describe = lambda step: rundir.metadata(step, config, self.workdir, self.store, self.mesh)
        files = lambda: rundir.tokenizer_files(self.store)
        wait = lambda: jax.block_until_ready(self.state)
        profiling = hooks.Profile(self.workdir / "profile", self.start, self.enter, wait)
        return [
            hooks.Watch(Watchdog(self.workdir, config.watchdog, self.start)),
            hooks.StopAtNan(config, saved, self.enter, lambda: self.state.model),
            hooks.Log(config, self.metrics, self.start),
            *([profiling] if profile else []),
            hooks.Save(config, saved, describe, files),
            hooks.Evaluate(config, self.heldout, self.metrics),
            hooks.Sample(config, self.heldout, self.metrics),
        ]

    def first_state(self, abstract: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint that verifies, or a new state, born sharded; and its step."""
        if not self.saved.steps():
            return jax.jit(lambda: init_state(self.config))(), 0
        state, _ = self.saved.restore(abstract)
        step = int(state.step)
        print(f"resuming {self.workdir} after step {step}", flush=True)
        return state, step

    def run(self) -> int:
        """Steps until the end or SIGTERM; then the figures of the end.

        Returns the exit code; raises DivergedError.
        """
        config, last = self.config, self.config.steps
        hosts.on_sigterm(self.stop)
        windows = by_objective.make(self.store, "train", config, config.seed)
        began = time.perf_counter()
        with contextlib.ExitStack() as entered:
            for hook in self.hooks:
                entered.enter_context(hook)
            stream = entered.enter_context(
                batches(
                    windows,
                    self.start,
                    config.batch_size,
                    config.microbatches,
                    self.share,
                    config.data.workers,
                )
            )
            stopped_at = self.steps(stream, windows, began)
            self.enter("save", stopped_at or last)
            self.saved.wait()
        if stopped_at:
            print(f"SIGTERM: saved step {stopped_at}; the same command goes on.", flush=True)
            return EXIT_PREEMPTED
        if self.start < last or not (self.workdir / "report.html").exists():
            seconds = time.perf_counter() - began
            finish(config, self.workdir, self.state, self.heldout, seconds)
        else:
            print(f"{self.workdir} is finished: {self.workdir / 'report.html'}", flush=True)
        return 0

    def steps(self, stream: Any, windows: Any, began: float) -> int:
        """Trains; returns the step at which SIGTERM ended it, 0 where it is at the end.

        Metrics are read one step late, so that no device waits for them.
        """
        last, done = self.config.steps, None
        for step in range(self.start + 1, last + 1):
            self.enter("data", step)
            batch = self.next_batch(stream)
            for hook in self.hooks:
                hook.before_step(step)
            self.enter("step", step)
            self.state, metrics = self.step(self.state, self.on_device(batch))
            self.log_finished_step(done)
            done = Done(step, metrics, self.checksum(step, batch, windows))
            if step == self.start + 1:
                self.first_step_done(done, began)
            if hosts.told_to_stop(step):
                self.stop()
            stopping = self.stopping
            if due := hooks.due(self.hooks, step, last, stopping):
                self.log_finished_step(done)
                done = None
                self.save_and_evaluate(step, due)
            if stopping:
                return step
        return 0

    def stop(self, *_: Any) -> None:
        """SIGTERM: the step under way is finished and saved."""
        self.stopping = True

    def enter(self, phase: str, step: int) -> None:
        """Tells the hooks what is done now."""
        for hook in self.hooks:
            hook.entered(phase, step)

    def checksum(self, step: int, batch: dict[str, np.ndarray], windows: Any) -> int | None:
        """`batch_crc` of the whole batch of a step, when every step is logged."""
        config = self.config
        if config.log_every > 1 or not hosts.is_first():
            return None
        if self.share[1] > 1:
            batch = windows.batch(step - 1, config.batch_size, (0, 1), config.microbatches)
        return batch_crc(batch)

    def next_batch(self, stream: Any) -> dict[str, np.ndarray]:
        """The next batch; the wait counts as waiting for data."""
        since = time.perf_counter()
        batch = next(stream)
        self.metrics.clock.waited(since)
        return batch

    def on_device(self, batch: dict[str, np.ndarray], leading: int = 1) -> dict[str, jax.Array]:
        """[microbatches, B, L] host arrays onto the mesh, without the examples' numbers."""
        inputs = {name: value for name, value in batch.items() if name != "example"}
        return sharding.put(inputs, self.mesh, leading)

    def first_step_done(self, done: Done, began: float) -> None:
        """Waits for the first step, so that its compilation is not counted as training."""
        jax.block_until_ready(done.metrics)
        seconds = time.perf_counter() - began
        print(f"first step done, {seconds:.1f} s with compilation", flush=True)
        self.metrics.clock.restart()

    def log_finished_step(self, done: Done | None) -> None:
        """Reads the metrics of a step that is over by now, and hands them to the hooks."""
        if done is None:
            return
        values = {name: float(value) for name, value in done.metrics.items()}
        for hook in self.hooks:
            hook.finished(done.step, values, done.checksum)

    def save_and_evaluate(self, step: int, due: list[Hook]) -> None:
        """Lets the hooks that are due act on the state after `step`, outside of training time."""
        since = time.perf_counter()
        for hook in due:
            self.enter(hook.phase, step)
            hook.act(step, self.state)
        self.metrics.clock.left_out(since)


def batch_crc(batch: dict[str, np.ndarray]) -> int:
    """Checksum of the examples' numbers and tokens: the ledger of what each step saw."""
    crc = zlib.crc32(batch["example"].tobytes())
    return zlib.crc32(batch["tokens"].tobytes(), crc)
