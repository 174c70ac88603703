"""Hooks: logging, saving, evaluating, sampling, profiling and watching, which the training loop
calls between its steps.
"""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from lm_jax.config import Config
from lm_jax.errors import DivergedError
from lm_jax.evaluation.heldout import Heldout
from lm_jax.run.checkpoint import Checkpoints
from lm_jax.run.metrics import Metrics
from lm_jax.run.restore import everywhere
from lm_jax.run.watchdog import Watchdog
from lm_jax.training import optimizers

TRACED = range(10, 15)  # steps after the first that --profile records


class Hook:
    """Base class: a hook overrides the calls that it needs. The loop makes each call to all hooks
    in the order of its list, and enters them as context managers around its steps.

    phase: what `act` is called for the watchdog (run/watchdog.py has the names).
    """

    phase = "step"

    def entered(self, phase: str, step: int) -> None:
        """The loop begins `phase` (one of watchdog.PLACES) of `step`."""

    def before_step(self, step: int) -> None:
        """`step` is about to be dispatched."""

    def finished(self, step: int, values: dict[str, float], checksum: int | None) -> None:
        """The metrics of `step` have arrived: one step late, so that no device waits for them.

        checksum: of the whole batch, where every step is logged.
        """

    def due(self, step: int, last: int, stopping: bool) -> bool:
        """Whether to call `act` after `step`. last: the run's last step; stopping: SIGTERM came."""
        del step, last, stopping
        return False

    def missed(self, step: int, last: int) -> bool:
        """Whether `act` was due after `step`, from which the run goes on, and never ended."""
        del step, last
        return False

    def act(self, step: int, state: Any) -> None:
        """Called after `step` where `due`, with its state, once its metrics are logged. The time
        does not count as training. What raises interrupts.Break ends early, without effect.
        """

    def __enter__(self) -> "Hook":
        return self

    def __exit__(self, *exception: Any) -> None:
        pass


def every(count: int, step: int, last: int) -> bool:
    """Whether `step` is a multiple of `count` (0: none is) or the last one."""
    return step == last or (count > 0 and step % count == 0)


class Watch(Hook):
    """Reports the loop's position to the watchdog, which runs around the steps."""

    def __init__(self, dog: Watchdog):
        self.dog = dog

    def entered(self, phase: str, step: int) -> None:
        self.dog.at(phase, step)

    def finished(self, step: int, values: dict[str, float], checksum: int | None) -> None:
        self.dog.done(step)

    def __enter__(self) -> "Watch":
        self.dog.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.dog.__exit__(*exception)


class StopAtNan(Hook):
    """Ends a run whose loss or gradient norm is not finite with a DivergedError. model: gives the
    model as it is.
    """

    def __init__(self, config: Config, saved: Checkpoints, enter: Callable[[str, int], None],
                 model: Callable[[], Any]):  # fmt: skip
        self.config, self.saved, self.enter, self.model = config, saved, enter, model

    def finished(self, step: int, values: dict[str, float], checksum: int | None) -> None:
        """Raises DivergedError, once a save under way is on disk."""
        loss, gnorm = values["loss"], values["gnorm"]
        if math.isfinite(loss) and math.isfinite(gnorm):
            return
        self.enter("save", step)
        self.saved.wait()
        steps = self.saved.steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "nothing is saved"
        rate = optimizers.largest_rate(self.config.optimizer, self.model())
        raise DivergedError(
            f"step {step}: loss {loss}, gradient norm {gnorm}: not finite; {kept}. In a "
            f"new --workdir try a lower {rate}, a longer "
            "config.optimizer.warmup_steps, or config.loss.z_loss=1e-4."
        )


class Log(Hook):
    """Prints and writes the metrics every config.log_every steps, and of the first and last."""

    def __init__(self, config: Config, metrics: Metrics, start: int):
        self.config, self.metrics, self.start = config, metrics, start

    def finished(self, step: int, values: dict[str, float], checksum: int | None) -> None:
        """Prints and writes the step, if its turn has come."""
        self.metrics.clock.steps += step > self.start + 1  # the first one is compiled
        if step == 1 or every(self.config.log_every, step, self.config.steps):
            self.metrics.train(step, values, checksum)

    def __exit__(self, *exception: Any) -> None:
        self.metrics.close()


class Profile(Hook):
    """Writes an XProf trace of the steps TRACED after `start`; a run that ends before closes it, or
    prints that there is none.

    wait: returns when the devices have done what was dispatched.
    """

    def __init__(self, folder: Path, start: int, enter: Callable[[str, int], None],
                 wait: Callable[[], Any]):  # fmt: skip
        self.folder, self.start, self.enter, self.wait = folder, start, enter, wait
        self.trace, self.begun = contextlib.ExitStack(), False

    def before_step(self, step: int) -> None:
        """Begins or ends the trace."""
        index = step - self.start
        if index in (TRACED.start, TRACED.stop):
            self.enter("profile", step)
        if index == TRACED.start:
            self.begun = True
            self.trace.enter_context(jax.profiler.trace(str(self.folder)))
            self.trace.callback(self.wait)  # before the trace is closed
            print(f"profile: {self.folder} (for xprof or TensorBoard)", flush=True)
        if index == TRACED.stop:
            self.trace.close()

    def __exit__(self, *exception: Any) -> None:
        self.trace.close()
        if not self.begun:
            first = self.start + TRACED.start
            print(f"profile: none written, since the run ended before step {first}", flush=True)


class Save(Hook):
    """Saves in the background every config.checkpoint.every steps, at the end, and when a
    signal ends the run.

    about: metadata of every checkpoint. files: what lies beside the arrays. Both were read when the
    run began: a save needs no other file.
    """

    phase = "save"

    def __init__(self, config: Config, saved: Checkpoints, about: dict[str, Any],
                 files: dict[str, bytes]):  # fmt: skip
        self.config, self.saved, self.about, self.files = config, saved, about, files

    def finished(self, step: int, values: dict[str, float], checksum: int | None) -> None:
        self.saved.poll()

    def due(self, step: int, last: int, stopping: bool) -> bool:
        return stopping or every(self.config.checkpoint.every, step, last)

    def act(self, step: int, state: Any) -> None:
        self.saved.save(step, state, self.about, self.files)


class Evaluate(Hook):
    """Held-out loss every config.eval.every steps and at the end."""

    phase, kind = "evaluation", "eval"  # kind: of its rows in metrics.jsonl

    def __init__(self, config: Config, heldout: Heldout, metrics: Metrics):
        self.config, self.heldout, self.metrics = config, heldout, metrics

    def due(self, step: int, last: int, stopping: bool) -> bool:
        return not stopping and every(self.config.eval.every, step, last)

    def missed(self, step: int, last: int) -> bool:
        """Whether the row of `step` is missing; the same in all processes, of which one has it."""
        there = everywhere(self.kind in self.metrics.kinds)
        return self.due(step, last, stopping=False) and not there

    def act(self, step: int, state: Any) -> None:
        since = time.perf_counter()
        result = self.heldout.loss(state.model, self.config.eval.tokens)
        seconds = time.perf_counter() - since
        self.metrics.evaluation(step, result.loss, result.bits_per_byte, result.tokens, seconds)


class Sample(Evaluate):
    """Texts that the model writes, as often as it is evaluated."""

    kind = "sample"

    def missed(self, step: int, last: int) -> bool:
        """Whether its rows are missing, where the model writes any."""
        return super().missed(step, last) and self.config.eval.samples > 0

    def act(self, step: int, state: Any) -> None:
        """Writes, keeps and prints the samples."""
        for prompt, text in self.heldout.samples(state.model):
            self.metrics.write(step, "sample", prompt=prompt, text=text)
            lines = (prompt + text).splitlines()
            print(f"sample {step}:", *lines, sep="\n    ", flush=True)


def due(hooks: Sequence[Hook], step: int, last: int, stopping: bool) -> list[Hook]:
    """The hooks that act after `step`, in order."""
    return [hook for hook in hooks if hook.due(step, last, stopping)]
