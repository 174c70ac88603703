"""GPT-2 124M of the same shape outside lm_jax: in plain JAX, and in PyTorch where it is."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from accelerator import plain_gpt2
from accelerator.part import Measure
from accelerator.step import GPT2, config_of, measured
from lm_jax.devices import runtime


def run(measure: Measure) -> None:
    """The rows of this part: ours, the rival, and the ratio."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the rival needs the memory, too
    runtime.start()
    layers = 2 if measure.tiny else GPT2["model.num_layers"]
    config = config_of(GPT2, measure.tiny, data__packed=False, model__scan_unroll=layers)
    seconds = 0.5 if measure.tiny else 2.5
    ours = measure.each("lm_jax", measured, config, seconds, 1)
    if ours is None:
        return
    measure.row("lm_jax, not packed", **ours)
    plain = measure.each("plain JAX", plain_gpt2.rate, config, seconds)
    if plain is not None:
        measure.row(
            "plain JAX", **plain, **{"lm_jax / it": round(ours["tok/s"] / plain["tok/s"], 3)}
        )
    if importlib.util.find_spec("torch") is None:
        measure.row("PyTorch", note="not installed")
        return
    jax.clear_caches()
    torch = measure.each("PyTorch", pytorch, measure, config)
    if torch is not None:
        measure.row("PyTorch", **torch, **{"lm_jax / it": round(ours["tok/s"] / torch["tok/s"], 3)})


def pytorch(measure: Measure, config: Any) -> dict[str, Any]:
    """The figures of the other process."""
    model = config.model
    sizes = {"layers": model.num_layers, "heads": model.num_heads, "dim": model.dim,
             "vocab": model.vocab_size, "length": config.data.sequence_length,
             "batch": config.batch_size}  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("torch_gpt2.py"))]
    command += [f"--{name}={value}" for name, value in sizes.items()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, measure.left - 1))
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])
