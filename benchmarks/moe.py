"""Cost of routing: 8 experts, 2 a token, beside the dense model of the same active FLOPs.

    python benchmarks/moe.py [--rounds=7] [--steps=2] [--experts=8] [--gated]

The dense model's feed-forward layer is two experts wide, so that both multiply a token by as many
weights (the router aside). Whole train steps, in turns. Prints the median ratio of the pairs, by
CPU time and wall time, in which the optimizer's pass over four times as many feed-forward weights
is included. The first step of a turn is not counted: it reclaims memory from the other model's
step, which happens once in a training of one model.
"""

import dataclasses
import statistics
import time

import jax
import lm_jax_gpt

from lm_jax.config.cost import flops_per_token
from lm_jax.devices import runtime, sharding
from lm_jax.training.train_step import init_state, make_train_step


def main():
    parser = lm_jax_gpt.parser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--gated", action="store_true")
    parser.set_defaults(steps=2)
    a = parser.parse_args()
    runtime.huge_pages()  # as every command of lm_jax does
    runtime.start()
    c, stream = lm_jax_gpt.config(a), lm_jax_gpt.batches(a)
    mesh = sharding.make_mesh(c.mesh)
    width = c.model.mlp_size
    dense = dataclasses.replace(c.model, gated=a.gated, mlp_dim=width)
    routed = dataclasses.replace(dense, mlp_dim=width // 2, num_experts=a.experts)
    runs = {}
    for name, model in (("dense", dense), ("experts", routed)):
        config = dataclasses.replace(c, model=model)
        with jax.set_mesh(mesh):
            state = jax.jit(lambda config=config: init_state(config))()
        step = jax.jit(make_train_step(config), donate_argnums=0)
        runs[name] = [state, step]
        print(f"{name}: {flops_per_token(model, a.length) / 1e6:.1f} MFLOP a token")

    def run(name, batch):
        with jax.set_mesh(mesh):
            runs[name][0], metrics = runs[name][1](runs[name][0], batch)
        return {key: float(value) for key, value in metrics.items()}

    for _ in range(3):
        batch = next(stream)
        found = {name: run(name, batch) for name in runs}
    for name, metrics in found.items():
        print(name, " ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    ratios: dict[str, list[float]] = {"CPU": [], "wall": []}
    for _ in range(a.rounds):
        took = {}
        for name in runs:
            batch = next(stream)
            run(name, batch)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(a.steps):
                run(name, batch)
            took[name] = time.process_time() - cpu, time.perf_counter() - wall
        for i, kind in enumerate(ratios):
            ratios[kind].append(took["experts"][i] / took["dense"][i])
    for kind, values in ratios.items():
        shown = ", ".join(f"{v:.3f}" for v in values)
        print(f"experts / dense by {kind} time: median {statistics.median(values):.3f} of {shown}")


if __name__ == "__main__":
    main()
