"""How does a run go? Data, mesh, state, then steps until the end, a signal, or a loss that is not
finite.
"""

import contextlib
import dataclasses
import math
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_jax.config import Config, MeshConfig, mesh_check
from lm_jax.config import check as config_check
from lm_jax.config.values import expand_home
from lm_jax.data.stream import batches
from lm_jax.data.views import by_objective, fit
from lm_jax.devices import hosts, quantized, runtime, sharding, xla_options
from lm_jax.devices.resolve import resolved
from lm_jax.errors import EXIT_PREEMPTED, DivergedError, UserError
from lm_jax.evaluation.heldout import Heldout
from lm_jax.run import rundir
from lm_jax.run.checkpoint import Checkpoints
from lm_jax.run.metrics import Metrics
from lm_jax.run.watchdog import Watchdog
from lm_jax.training import counting, out_of_memory, preflight, summary
from lm_jax.training.finish import finish
from lm_jax.training.train_step import TrainState, init_state, make_train_step

TRACED = range(10, 15)  # steps after the first that --profile records


def train(
    asked: Config, workdir: str, dry_run: bool = False, check: bool = True, profile: bool = False
) -> int:
    """Runs `asked` in `workdir` to its end, or on from its newest checkpoint; the exit code."""
    if profile and asked.steps <= TRACED.start:
        raise UserError(
            f"--profile: records from step {TRACED.start} on, "
            f"config.steps={asked.steps} is too few."
        )
    workdir = expand_home(workdir)
    runtime.start()
    devices = runtime.devices()
    counts = asked.model.architecture == "ngram"
    devices = counting.host(devices) if counts else devices
    mesh = sharding.make_mesh(asked.mesh, devices)
    mesh_check.check_batch(asked.batch_size, asked.microbatches, mesh.shape)
    # Once more, now that what a -1 stands for is known.
    config_check.check(dataclasses.replace(asked, mesh=MeshConfig(**mesh.shape)))
    prefix, shared = config_check.has_prefix(asked), mesh.shape["context"] > 1
    model = resolved(asked.model, devices[0].platform, prefix, shared)
    config = dataclasses.replace(asked, model=model)
    fit.check_rows(config, mesh.shape["context"])
    kind = devices[0].device_kind
    for warning in (quantized.warning(model.quantization, kind), sharding.warning(mesh)):
        if warning:
            print(warning, flush=True)
    rundir.check(workdir, asked)
    opened = lambda: rundir.open_store(workdir, config, prepare=not dry_run)
    store = hosts.first_does(opened, "store") or opened()
    with jax.set_mesh(mesh):
        abstract: Any = None if counts else jax.eval_shape(lambda: init_state(config))
        print(summary.text(asked, config, workdir, mesh, abstract, store), flush=True)
        if dry_run or store is None:
            return 0
        with (
            Checkpoints(workdir, asked.checkpoint.keep, asked.checkpoint.keep_every) as saved,
            out_of_memory.explained(config, mesh, workdir),
        ):
            if saved.steps():  # of other data: refused before anything is written
                rundir.check_data(saved.metadata(), store)
            if not counts:
                for split in ("train", "heldout"):  # room for specials, enough text: the same
                    by_objective.make(store, split, config, config.seed)
            hosts.first_does(lambda: rundir.create(workdir, asked), "folder")
            if counts:
                return counting.train(config, Path(workdir), mesh, store, saved)
            if check:
                print(preflight.run(config, mesh, abstract, workdir), flush=True)
            return Run(config, Path(workdir), mesh, store, saved, abstract).go(profile)


class Done(NamedTuple):
    """A step whose metrics are not read yet."""

    step: int
    metrics: dict[str, jax.Array]
    crc: int | None


class Run:
    """The parts of a run that is under way."""

    def __init__(self, config: Config, workdir: Path, mesh: Any, store: Any, saved: Checkpoints,
                 abstract: TrainState):  # fmt: skip
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.store, self.saved, self.stopped = store, saved, False
        self.state, self.start = self.first_state(abstract)
        options = xla_options.accepted(mesh)
        self.step = jax.jit(make_train_step(config), donate_argnums=0, compiler_options=options)
        self.share = hosts.share(mesh)
        self.heldout = Heldout(config, store, mesh, self.share)
        bytes_per_token = store.num_bytes("train") / store.num_tokens("train")
        kind = mesh.devices.flat[0].device_kind
        self.metrics = Metrics(workdir, config, bytes_per_token, kind, mesh.size, self.start,
                               hosts.is_first())  # fmt: skip
        self.dog = Watchdog(workdir, config.watchdog, self.start)

    def first_state(self, abstract: TrainState) -> tuple[TrainState, int]:
        """The newest checkpoint that verifies, or a new state, born sharded; and its step."""
        if not self.saved.steps():
            return jax.jit(lambda: init_state(self.config))(), 0
        state, _ = self.saved.restore(abstract)
        step = int(state.step)
        print(f"resuming {self.workdir} after step {step}", flush=True)
        return state, step

    def go(self, profile: bool) -> int:
        """Steps until the end or SIGTERM. Metrics are read one step late: no device waits for it.

        Returns the exit code; raises DivergedError.
        """
        config, last = self.config, self.config.steps
        hosts.on_sigterm(self.stop)
        windows = by_objective.make(self.store, "train", config, config.seed)
        done: Done | None = None
        began = time.perf_counter()
        with (
            self.dog,
            contextlib.ExitStack() as trace,
            batches(
                windows,
                self.start,
                config.batch_size,
                config.microbatches,
                self.share,
                config.data.workers,
            ) as stream,
        ):
            for step in range(self.start + 1, last + 1):
                self.dog.at("data", step)
                batch = self.next_batch(stream)
                if profile:
                    self.profile(step, trace)
                self.dog.at("step", step)
                self.state, metrics = self.step(self.state, self.on_device(batch))
                self.read(done)
                done = Done(step, metrics, self.crc(step, batch, windows))
                if step == self.start + 1:
                    self.first_step_done(done, began)
                if hosts.told_to_stop(step):
                    self.stop()
                save = step % config.checkpoint.every == 0 or step == last or self.stopped
                look = step == last or (config.eval.every > 0 and step % config.eval.every == 0)
                if save or look:
                    self.read(done)
                    done = None
                    self.pause(step, save, look and not self.stopped)
                if self.stopped:
                    self.dog.at("save", step)
                    self.saved.wait()
                    print(f"SIGTERM: saved step {step}; the same command goes on.", flush=True)
                    return EXIT_PREEMPTED
            self.dog.at("save", last)
            self.saved.wait()
        self.metrics.close()
        if self.start < last or not (self.workdir / "report.html").exists():
            seconds = time.perf_counter() - began
            finish(config, self.workdir, self.state, self.heldout, seconds)
        else:
            print(f"{self.workdir} is finished: {self.workdir / 'report.html'}", flush=True)
        return 0

    def stop(self, *_: Any) -> None:
        """SIGTERM: the step under way is finished and saved."""
        self.stopped = True

    def crc(self, step: int, batch: dict[str, np.ndarray], windows: Any) -> int | None:
        """The ledger's entry of a step, when every step is logged: that of the whole batch."""
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

    def profile(self, step: int, trace: contextlib.ExitStack) -> None:
        """Starts and stops the XProf trace; a run that ends before closes it too."""
        folder, index = self.workdir / "profile", step - self.start
        if index in (TRACED.start, TRACED.stop):
            self.dog.at("profile", step)
        if index == TRACED.start:
            trace.enter_context(jax.profiler.trace(str(folder)))
            trace.callback(lambda: jax.block_until_ready(self.state))
            print(f"profile: {folder} (for xprof or TensorBoard)", flush=True)
        if index == TRACED.stop:
            trace.close()

    def read(self, done: Done | None) -> None:
        """Reads the metrics of a step that is over by now; raises DivergedError."""
        self.saved.poll()
        if done is None:
            return
        values = {name: float(value) for name, value in done.metrics.items()}
        self.dog.done(done.step)
        loss, gnorm = values["loss"], values["gnorm"]
        self.metrics.clock.steps += done.step > self.start + 1
        if not (math.isfinite(loss) and math.isfinite(gnorm)):
            self.dog.at("save", done.step)
            self.saved.wait()  # a save under way counts
            steps = self.saved.steps()
            kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "nothing is saved"
            rate = self.config.optimizer.learning_rate
            raise DivergedError(
                f"step {done.step}: loss {loss}, gradient norm {gnorm}: not finite; {kept}. In a "
                f"new --workdir try a lower config.optimizer.learning_rate (now {rate:g}), a "
                "longer config.optimizer.warmup_steps, or config.loss.z_loss=1e-4."
            )
        if done.step % self.config.log_every == 0 or done.step in (1, self.config.steps):
            self.metrics.train(done.step, values, done.crc)

    def pause(self, step: int, save: bool, look: bool) -> None:
        """What does not count as training: a save, a look at held-out text."""
        since = time.perf_counter()
        if save:
            self.dog.at("save", step)
            about = rundir.metadata(step, self.config, self.workdir, self.store, self.mesh)
            self.saved.save(step, self.state, about, rundir.tokenizer_files(self.store))
        if look:
            self.dog.at("evaluation", step)
            loss, tokens = self.heldout.loss(self.state.model, self.config.eval.tokens)
            self.metrics.evaluation(step, loss, tokens, time.perf_counter() - since)
            for prompt, text in self.heldout.samples(self.state.model):
                self.metrics.write(step, "sample", prompt=prompt, text=text)
                print(f"sample {step}: {' '.join((prompt + text).split())[:300]}", flush=True)
        self.metrics.clock.left_out(since)


def batch_crc(batch: dict[str, np.ndarray]) -> int:
    """Checksum of the examples' numbers and tokens: the ledger of what each step saw."""
    crc = zlib.crc32(batch["example"].tobytes())
    return zlib.crc32(batch["tokens"].tobytes(), crc)
