"""Kernels, types and checkpoints of this device against their references."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from accelerator.gpt2 import KERNELS
from accelerator.part import Measure
from accelerator.step import GPT2, Step, config_of
from lm_jax.devices import runtime, sharding
from lm_jax.training import preflight

SMALL = GPT2 | {
    "batch_size": 16, "model.vocab_size": 2048, "model.num_layers": 4, "model.dim": 256,
    "model.mlp_dim": 1024, "model.num_heads": 4, "model.max_length": 256,
    "data.sequence_length": 256, "optimizer.learning_rate": 1e-3, "optimizer.warmup_steps": 20,
}  # fmt: skip
SAVED, LAST = 3, 6  # steps of the run that is killed


def run(measure: Measure) -> None:
    """The rows of this part."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # two processes share the device
    runtime.start()
    measure.each("preflight", check, measure)
    kernel = KERNELS.get(jax.default_backend())
    if kernel:
        measure.each(f"{kernel} beside xla", kernels, measure, kernel)
    else:
        measure.row("kernel beside xla", note=f"{jax.default_backend()} has xla attention only")
    measure.each("bfloat16 beside float32", types, measure)
    measure.each("killed", killed, measure)


def check(measure: Measure) -> None:
    """The self-check of a run: attention, forward and gradients, documents apart."""
    config = config_of(GPT2, measure.tiny)
    with jax.set_mesh(sharding.make_mesh(config.mesh, runtime.devices()[:1])):
        error = preflight.check_attention(config)
    measure.row("preflight", **{"largest difference": error}, attention=config.model.attention)


def losses(steps: int, config: Any, learnable: bool = False) -> np.ndarray:
    """The losses of the first steps, on other batches each time."""
    step = Step(config)
    found = []
    for number in range(steps):
        tokens = (step.batch["tokens"] + number) % config.model.vocab_size
        targets = (3 * tokens + 7) % config.model.vocab_size
        step.batch |= {"tokens": tokens, **({"targets": targets} if learnable else {})}
        found.append(step()["loss"])
    return np.array([float(x) for x in found])


def kernels(measure: Measure, kernel: str) -> None:
    """Losses of 20 steps, packed, by both kernels on the same batches."""
    both = [losses(20, config_of(GPT2, measure.tiny, batch_size=16, model__attention=name))
            for name in (kernel, "xla")]  # fmt: skip
    gap = np.abs(both[0] - both[1]).max()
    measure.row(
        f"{kernel} beside xla", steps=20, **{"largest difference": gap, "loss": both[1][-1]}
    )


def types(measure: Measure) -> None:
    """Losses of a small model in both types, on the same batches of what it can learn."""
    steps, made = 20 if measure.tiny else 200, {}
    for dtype in ("float32", "bfloat16"):
        config = config_of(SMALL, measure.tiny, model__dtype=dtype)
        made[dtype] = losses(steps, config, learnable=True)
    gap = np.abs(made["float32"] - made["bfloat16"])
    measure.row("bfloat16 beside float32", steps=steps, first=made["float32"][0],
                last=made["float32"][-1], **{"last in bfloat16": made["bfloat16"][-1],
                "largest difference": gap.max(), "mean difference": gap.mean()})  # fmt: skip


def killed(measure: Measure) -> None:
    """A run that is killed after a save and goes on: losses equal to those of one that is not."""
    try:
        from lm_jax.run.checkpoint import Checkpoints
    except ImportError as error:
        measure.row("killed", note=f"left out: {error}")
        return
    whole = losses(LAST, small(measure.tiny))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "accelerator.correct", folder, str(int(measure.tiny))]
        code = subprocess.run(command, timeout=max(1, measure.left), capture_output=True).returncode
        step = Step(small(measure.tiny))
        with Checkpoints(folder) as saved, jax.set_mesh(step.mesh):
            step.state, _ = saved.restore(jax.eval_shape(lambda: step.state))
        rest = after(step, SAVED)
    gap = float(np.abs(rest - whole[SAVED:]).max())
    measure.row(
        "killed", **{"exit code": code, "steps after": len(rest), "largest difference": gap}
    )


def small(tiny: bool) -> Any:
    """The model of `killed`."""
    return config_of(SMALL, tiny, batch_size=4)


def after(step: Step, done: int) -> np.ndarray:
    """The losses of the steps from `done` on, as `losses` has them."""
    for number in range(done):
        step.batch["tokens"] = (step.batch["tokens"] + number) % step.config.model.vocab_size
    found = []
    for number in range(done, LAST):
        step.batch["tokens"] = (step.batch["tokens"] + number) % step.config.model.vocab_size
        found.append(float(step()["loss"]))
    return np.array(found)


def victim(folder: str, tiny: bool) -> None:
    """Saves after step SAVED, and is killed in the step that follows."""
    from lm_jax.run.checkpoint import Checkpoints

    runtime.start()
    step = Step(small(tiny))
    for number in range(LAST):
        step.batch["tokens"] = (step.batch["tokens"] + number) % step.config.model.vocab_size
        step()
        if number + 1 == SAVED:
            with Checkpoints(Path(folder)) as saved:
                saved.save(SAVED, step.state)
        if number + 1 > SAVED:
            os.kill(os.getpid(), 9)


if __name__ == "__main__":
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    victim(sys.argv[1], bool(int(sys.argv[2])))
