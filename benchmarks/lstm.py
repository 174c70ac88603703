"""Recurrent layers on CPU, forward and backward: lm_jax beside PyTorch, in turns, whole processes.

    python benchmarks/lstm.py [--torch=PYTHON_WITH_TORCH] [--cell=lstm] [--threads=2] [--rounds=3]

2 layers, 512 wide, 64 steps, batch 32, float32; --threads=1 pins a process to one core. Gradients
of the inputs and of all weights. Prints tokens a second and tokens a CPU-second of each round, and
the median ratio of the pairs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SHAPE = {"layers": 2, "dim": 512, "length": 64, "batch": 32, "threads": 2, "steps": 10}


def lm_jax_side(a):
    """(name, a step)."""
    from lm_jax.devices import runtime

    runtime.huge_pages()  # as every command of lm_jax does
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from lm_jax.models import ModelConfig
    from lm_jax.models.recurrent import Layers

    config = ModelConfig(architecture=a.cell, num_layers=a.layers, dim=a.dim, init_std=0.0)
    layers = Layers(config, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (a.batch, a.length, a.dim))
    keep, zeros = jnp.ones((a.batch, a.length)), jnp.zeros((a.layers, a.batch, a.dim))

    def total(layers, x):
        return jnp.sum(layers(x, keep, {"h": zeros, "c": zeros})[0])

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))
    return f"lm_jax {jax.__version__}", lambda: jax.block_until_ready(gradients(layers, x))


def torch_side(a):
    """(name, a step)."""
    import torch

    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    layers = getattr(torch.nn, a.cell.upper())(a.dim, a.dim, a.layers, batch_first=True)
    x = torch.randn(a.batch, a.length, a.dim, requires_grad=True)

    def step():
        layers.zero_grad(set_to_none=True)
        x.grad = None
        layers(x)[0].sum().backward()

    return f"PyTorch {torch.__version__}", step


def measure(a):
    """One side: a line of JSON."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: a.threads])
    name, step = {"lm_jax": lm_jax_side, "torch": torch_side}[a.side](a)
    for _ in range(3):
        step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(a.steps):
        step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = a.steps * a.batch * a.length
    print(json.dumps({"name": name, "wall": tokens / wall, "cpu": tokens / cpu}))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--cell", default="lstm", choices=("rnn", "lstm", "gru"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=("lm_jax", "torch"), help="of one process")
    for name, value in SHAPE.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    if a.side:
        return measure(a)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": str(a.threads)}
    shape = [f"--{name}={getattr(a, name)}" for name in ("cell", *SHAPE)]
    ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
    print(f"{a.cell}, {a.threads} threads{'tokens/s':>16}{'tokens/CPU-s':>14}")
    for _ in range(a.rounds):
        rows = []
        for side, python in (("lm_jax", sys.executable), ("torch", a.torch)):
            command = [python, __file__, f"--side={side}", *shape]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            name, wall, cpu = rows[-1].values()
            print(f"{name:<18}{wall:>15.0f}{cpu:>14.0f}", flush=True)
        for kind, values in ratios.items():
            values.append(rows[0][kind] / rows[1][kind])
    for kind, values in ratios.items():
        shown = ", ".join(f"{value:.3f}" for value in values)
        print(f"ratio by {kind} time: median {statistics.median(values):.3f} of {shown}")


if __name__ == "__main__":
    main()
