"""Cost of BERT's and T5's steps beside a decoder's: CPU seconds for the same FLOPs, in turns.

    python benchmarks/families.py [--rounds=7] [--steps=2]

The three have the same width, heads, batch and length; T5 has half of the layers on each side.
FLOPs are the compiler's own count of each step, with every loop unrolled so that it counts all of
them. Prints the median ratio of the pairs of seconds a FLOP, by CPU time and by wall time. The
first step of a turn is not counted: it reclaims memory from the step before it.
"""

import dataclasses
import statistics
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from lm_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig
from lm_jax.devices import runtime, sharding
from lm_jax.training.train_step import init_state, make_train_step

ROUNDS = flags.DEFINE_integer("rounds", 7, "Turns.")
STEPS = flags.DEFINE_integer("steps", 2, "Steps a turn.")
B, L, V = 8, 256, 2048
GPT = ModelConfig(
    vocab_size=V, num_layers=6, dim=384, num_heads=6, max_length=L, norm="layernorm",
    positions="learned", activation="gelu", gated=False, bias=True, scan_unroll=6,
    attention="xla", dtype="float32",
)  # fmt: skip
MODELS = {
    "decoder": GPT,
    "BERT": dataclasses.replace(GPT, architecture="encoder", head_transform=True, head_bias=True),
    "T5": dataclasses.replace(
        GPT, architecture="encoder_decoder", num_layers=3, norm="rmsnorm", positions="relative",
        attn_scale=1.0, activation="relu", bias=False, scan_unroll=3,
    ),
}  # fmt: skip


def compiled(model):
    """(step, state, batch, FLOPs of a step)."""
    config = Config(model=model, batch_size=B, data=DataConfig(sequence_length=L),
                    loss=LossConfig(chunk_size=L))  # fmt: skip
    rng = np.random.default_rng(0)
    batch: dict[str, Any] = {
        "tokens": rng.integers(0, V, (1, B, L)),
        "targets": rng.integers(0, V, (1, B, L)),
    }
    if model.architecture == "encoder_decoder":
        batch["inputs"] = rng.integers(0, V, (1, B, L))
    batch = {name: x.astype(np.int32) for name, x in batch.items()}
    rare = rng.random((1, B, L)) < 0.15
    weights = rare if model.architecture == "encoder" else np.ones((1, B, L))
    batch["weights"] = weights.astype(np.float32)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(config))()
        batch = sharding.put(batch, mesh, leading=1)
        step = jax.jit(make_train_step(config), donate_argnums=0).lower(state, batch).compile()
    costs: Any = step.cost_analysis()
    return step, state, batch, costs["flops"]


def main(argv):
    """Prints the table."""
    del argv
    runs = {name: list(compiled(model)) for name, model in MODELS.items()}
    found: dict[str, list[Any]] = {name: [] for name in MODELS}
    for _ in range(ROUNDS.value + 1):
        for name, run in runs.items():
            step, state, batch, flops = run
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(STEPS.value):
                state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            run[1] = state
            spent = time.process_time() - cpu, time.perf_counter() - wall
            found[name].append([seconds / STEPS.value / flops for seconds in spent])
    print(
        f"{'model':<10}{'GFLOP a step':>14}{'CPU s a step':>14}{'CPU ratio':>11}{'wall ratio':>12}"
    )
    for name, (_, _, _, flops) in runs.items():
        turns, base = (
            np.array(found[name][1:]),
            np.array(found["decoder"][1:]),
        )  # the first warms up
        cpu, wall = (statistics.median((turns / base)[:, i]) for i in (0, 1))
        seconds = statistics.median(turns[:, 0]) * flops
        print(f"{name:<10}{flops / 1e9:>14.1f}{seconds:>14.2f}{cpu:>11.3f}{wall:>12.3f}")


if __name__ == "__main__":
    runtime.huge_pages()
    runtime.start()
    app.run(main)
