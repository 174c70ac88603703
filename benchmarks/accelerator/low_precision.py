"""Training with products in eight bits, and decoding beside the memory's bandwidth."""

import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from accelerator.part import Measure
from accelerator.step import GPT2, LLAMA_1B, config_of, ids, measured
from lm_jax.devices import runtime, sharding
from lm_jax.devices.chips import chip_of
from lm_jax.inference.generation import generate
from lm_jax.models import create


def run(measure: Measure) -> None:
    """The rows of this part."""
    runtime.start()
    rates: dict[str, float] = {}
    for kind in ("none", "fp8", "int8", "fp8_full"):
        measure.each(f"Llama 1B, {kind}", training, measure, kind, rates)
    for name, shape in (("GPT-2", GPT2), ("Llama 1B", LLAMA_1B)):
        for rows in (1, 64):
            label = f"decoding {name}, batch {rows}"
            measure.each(label, decoding, measure, label, shape, rows)


def training(measure: Measure, kind: str, rates: dict[str, float]) -> None:
    """The train step of Llama 1B with products in `kind`."""
    config = config_of(LLAMA_1B, measure.tiny, batch_size=4 if measure.tiny else 8,
                       model__quantization=kind)  # fmt: skip
    figures = measured(config, 0.2 if measure.tiny else 1.5)
    rates[kind] = figures["tok/s"]
    over = round(rates[kind] / rates["none"], 3) if "none" in rates else None
    measure.row(f"Llama 1B, {kind}", **figures, **{"over bfloat16": over})


def decoding(measure: Measure, label: str, shape: dict[str, Any], rows: int) -> None:
    """New tokens a second after prompts of 32, and the share of the bandwidth that reading the
    weights once for each of them takes.
    """
    config = config_of(shape, measure.tiny)
    new = 16 if measure.tiny else 128
    device = runtime.devices()[0]
    with jax.set_mesh(sharding.make_mesh(config.mesh, [device])):
        model: Any = jax.jit(lambda: create(config.model, rngs=nnx.Rngs(0)))()
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(nnx.state(model)))
        prompts = list(ids((rows, 32), config.model.vocab_size))
        for _ in range(2):  # the first compiles
            began = time.perf_counter()
            columns = list(generate(model, prompts, new, jax.random.key(0), temperature=0.0))
            seconds = time.perf_counter() - began
    chip = chip_of(device.device_kind)
    share = 100 * size * len(columns) / seconds / chip.device_hbm_rate if chip else None
    measure.row(label, **{"tok/s": np.size(columns) / seconds, "ms a token": seconds / new * 1e3,
                          "GB of weights": size / 1e9, "% of bandwidth": share})  # fmt: skip
