"""Training a small character GPT on CPU: lm_jax beside eager PyTorch, and beside MaxText where a
Python that has it is named; in turns, whole processes.

    python benchmarks/cpu_gpt.py [--torch=PYTHON_WITH_TORCH] [--maxtext=PYTHON_WITH_MAXTEXT]
        [--rounds=3] [--steps=10] [--bfloat16]

6 layers, 6 heads, 384 wide, 256 context, batch 12, float32, exact GELU, 2 threads, AdamW, clipping.
--bfloat16: products in bfloat16, by config.model.matmul_precision here and torch.autocast there.
Prints tokens a second and tokens a CPU-second of each round, and the median ratio of the pairs.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def timed(python: str, script: str, *flags: str) -> dict:
    """The row that one process of one side prints."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "2"}
    command = [python, str(HERE / script), *flags]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    row = json.loads(done.stdout.splitlines()[-1])
    name = f"{row['name']} {row['version']}"
    print(f"{name:<32}{row['wall']:>12.0f}{row['cpu']:>14.0f}", flush=True)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default=sys.executable, help="a Python that has torch")
    parser.add_argument("--maxtext", default="", help="a Python that has MaxText")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--bfloat16", action="store_true", help="products of float32 in bfloat16")
    args = parser.parse_args()
    flags = [f"--steps={args.steps}", *["--bfloat16"] * args.bfloat16]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    rivals = {"PyTorch": (args.torch, "torch_gpt.py")}
    if args.maxtext:
        rivals["MaxText"] = (args.maxtext, "maxtext_gpt.py")
    ratios: dict[tuple[str, str], list[float]] = {}
    print(f"{'':<32}{'tokens/s':>12}{'tokens/CPU-s':>14}")
    for _ in range(args.rounds):
        ours = timed(sys.executable, "lm_jax_gpt.py", *flags)
        for rival, (python, script) in rivals.items():
            theirs = timed(python, script, *flags)
            for kind in ("wall", "cpu"):
                ratios.setdefault((rival, kind), []).append(ours[kind] / theirs[kind])
    for (rival, kind), values in ratios.items():
        print(f"over {rival} by {kind} time: median {statistics.median(values):.3f} of "
              f"{', '.join(f'{v:.3f}' for v in values)}")  # fmt: skip


if __name__ == "__main__":
    main()
