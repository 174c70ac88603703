"""Our side of cpu_gpt.py: the project's own train step on random tokens.

Prints JSON like torch_gpt.py.
"""

import argparse
import dataclasses
import json
import time

import jax
import numpy as np

from lm_jax.config import Config
from lm_jax.devices import runtime, sharding
from lm_jax.devices.resolve import resolved
from lm_jax.training.train_step import init_state, make_train_step

SHAPE = {"layers": 6, "heads": 6, "dim": 384, "length": 256, "batch": 12, "vocab": 128}


def parser() -> argparse.ArgumentParser:
    """The shape and --steps, as in torch_gpt.py."""
    p = argparse.ArgumentParser()
    for name, value in {**SHAPE, "steps": 10}.items():
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--bfloat16", action="store_true", help="products in bfloat16")
    return p


def config(a) -> Config:
    """The benchmark's GPT-2."""
    model = {
        "vocab_size": a.vocab, "num_layers": a.layers, "dim": a.dim, "num_heads": a.heads,
        "max_length": a.length, "norm": "layernorm", "positions": "learned", "activation": "gelu",
        "gated": False, "scan_unroll": a.layers,
        "matmul_precision": "bfloat16" if a.bfloat16 else "default",
    }  # fmt: skip
    data = {"sequence_length": a.length, "packed": False}
    c = Config.parse({"steps": 1000, "batch_size": a.batch, "model": model, "data": data})
    return dataclasses.replace(c, model=resolved(c.model, jax.default_backend()))


def batches(a):
    """Endless random batches, [1, batch, length]."""
    text = np.random.default_rng(0).integers(0, a.vocab, 1_000_000).astype(np.int32)
    rng = np.random.default_rng(1)
    weights = np.ones((1, a.batch, a.length), np.float32)
    while True:
        starts = rng.integers(0, len(text) - a.length - 1, a.batch)
        rows = text[starts[:, None] + np.arange(a.length + 1)][None]
        yield {"tokens": rows[..., :-1], "targets": rows[..., 1:], "weights": weights}


def main():
    a = parser().parse_args()
    runtime.huge_pages()  # as every command of lm_jax does
    runtime.start()
    c, stream = config(a), batches(a)
    mesh = sharding.make_mesh(c.mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(c))()
        step = jax.jit(make_train_step(c), donate_argnums=0)
        for index in range(3 + a.steps):
            if index == 3:
                wall, cpu = time.perf_counter(), time.process_time()
            state, metrics = step(state, sharding.put(next(stream), mesh, 1))
            float(metrics["loss"])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = a.steps * a.batch * a.length
    row = {"name": "lm_jax", "version": jax.__version__, "wall": tokens / wall, "cpu": tokens / cpu}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
