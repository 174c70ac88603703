"""The training loop: the state of a run, its steps, the hooks between them, the end."""

import contextlib
import signal
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_jax.config import Config
from lm_jax.data.stream import batches
from lm_jax.data.views import by_objective
from lm_jax.devices import hosts, sharding, xla_options
from lm_jax.errors import EXIT_PREEMPTED
from lm_jax.evaluation.heldout import Heldout
from lm_jax.run import metrics, rundir
from lm_jax.run.checkpoint import Checkpoints
from lm_jax.run.interrupts import Break, Interrupted, Requests
from lm_jax.run.metrics import Metrics
from lm_jax.run.watchdog import Watchdog
from lm_jax.training import hooks
from lm_jax.training.finish import finish
from lm_jax.training.hooks import Hook
from lm_jax.training.train_step import TrainState, init_state, make_train_step


class Done(NamedTuple):
    """A step whose metrics are not read yet."""

    step: int
    metrics: dict[str, jax.Array]
    checksum: int | None


class Run:
    """The state of a run, its compiled step, and its hooks."""

    def __init__(self, config: Config, workdir: Path, mesh: Any, store: Any, saved: Checkpoints,
                 abstract: TrainState, profile: bool = False,
                 requests: Requests | None = None):  # fmt: skip
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.store, self.saved, self.requests = store, saved, requests or Requests()
        self.state, self.start = self.first_state(abstract)
        options = xla_options.accepted(mesh)
        self.step = jax.jit(make_train_step(config), donate_argnums=0, compiler_options=options)
        self.share = hosts.share(mesh)
        self.heldout = Heldout(config, store, mesh, self.share, self.break_if_stopping)
        bytes_per_token = store.bytes_per_target("train", config.data.packed)
        kind = mesh.devices.flat[0].device_kind
        self.metrics = Metrics(workdir, config, bytes_per_token, kind, mesh.size, self.start,
                               hosts.is_first())  # fmt: skip
        self.hooks = self.default_hooks(profile)

    def default_hooks(self, profile: bool) -> list[Hook]:
        """Hooks of a run, in the order in which they are called."""
        config, saved = self.config, self.saved
        about = rundir.metadata(config, self.workdir, self.store, self.mesh)
        files = rundir.tokenizer_files(self.store.tokenizer)
        wait = lambda: jax.block_until_ready(self.state)
        profiling = hooks.Profile(self.workdir / "profile", self.start, self.enter, wait)
        return [
            hooks.Watch(Watchdog(self.workdir, config.watchdog, self.start)),
            hooks.StopAtNan(config, saved, self.enter, lambda: self.state.model),
            hooks.Log(config, self.metrics, self.start),
            *([profiling] if profile else []),
            hooks.Save(config, saved, about, files),
            hooks.Evaluate(config, self.heldout, self.metrics),
            hooks.Sample(config, self.heldout, self.metrics),
        ]

    def first_state(self, abstract: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint that verifies, or a new state, born sharded; and its step."""
        if not self.saved.steps():
            if hosts.is_first() and (rows := metrics.read(self.workdir / "metrics.jsonl")):
                print(f"{self.workdir} has metrics up to step {rows[-1]['step']} and no checkpoint:"
                      " training begins again at step 1", flush=True)  # fmt: skip
            return jax.jit(lambda: init_state(self.config))(), 0
        state, _ = self.saved.restore(abstract)
        step = int(state.step)
        print(f"resuming {self.workdir} after step {step}", flush=True)
        return state, step

    def run(self) -> int:
        """Steps until the end, SIGTERM or Ctrl-C; then the figures of the end.

        Returns the exit code; raises DivergedError, and KeyboardInterrupt after Ctrl-C.
        """
        config, last = self.config, self.config.steps
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
            self.catch_up()
            stopped_at = self.steps(stream, windows, began)
            self.enter("save", stopped_at or last)
            self.saved.wait()
        if stopped_at or self.stop_requested():
            return self.stopped()
        self.requests.kept = f"step {last} is saved, and the same command writes the report"
        self.requests.deferred = False
        if self.start < last or not (self.workdir / "report.html").is_file():
            seconds = time.perf_counter() - began
            finish(config, self.workdir, self.state, self.heldout, seconds)
        else:
            print(f"{self.workdir} is finished: {self.workdir / 'report.html'}", flush=True)
        return 0

    def steps(self, stream: Any, windows: Any, began: float) -> int:
        """Trains; returns the step after which it was stopped, 0 where it is at the end.

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
            stopping = hosts.stop_requested(step) or self.stop_requested()
            if due := hooks.due(self.hooks, step, last, stopping):
                self.log_finished_step(done)
                done = None
                self.save_and_evaluate(step, due)
                if not stopping and self.stop_requested():  # meanwhile: the step is not saved yet
                    stopping = True
                    self.save_and_evaluate(step, hooks.due(self.hooks, step, last, stopping))
            if stopping:
                return step
        return 0

    def catch_up(self) -> None:
        """Lets the hooks act that a stop kept from acting after the step that is gone on from."""
        step, last = self.start, self.config.steps
        finished = step == last and (self.workdir / "report.html").is_file()
        if step and not finished:
            self.save_and_evaluate(step, [hook for hook in self.hooks if hook.missed(step, last)])

    def stop_requested(self) -> bool:
        """Whether a signal asked this process, which makes the run alone, to stop."""
        return self.requests.pending != 0 and not hosts.are_several()

    def break_if_stopping(self) -> None:
        """Raises Break where a stop was requested: an evaluation is not finished then."""
        if self.stop_requested():
            raise Break

    def stopped(self) -> int:
        """Prints what is on disk and returns the exit code of SIGTERM, or raises Interrupted."""
        saved = f"saved step {self.saved.steps()[-1]}; the same command goes on."
        asked = signal.Signals(self.requests.pending or signal.SIGTERM)  # 0: another host was asked
        if asked == signal.SIGINT:
            raise Interrupted(f"stopped by the keyboard: {saved}")
        print(f"{asked.name}: {saved}", flush=True)
        return EXIT_PREEMPTED

    def enter(self, phase: str, step: int) -> None:
        """Announces the beginning of a phase (one of watchdog.PLACES) to all hooks."""
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
        self.requests.deferred = True  # from now on there is something to save
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
            with contextlib.suppress(Break):
                hook.act(step, self.state)
        self.metrics.clock.left_out(since)


def batch_crc(batch: dict[str, np.ndarray]) -> int:
    """Checksum of the examples' numbers and tokens: the ledger of what each step saw."""
    crc = zlib.crc32(batch["example"].tobytes())
    return zlib.crc32(batch["tokens"].tobytes(), crc)
