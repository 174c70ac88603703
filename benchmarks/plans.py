"""The TPU compiler's figures for the models and slices of docs/plans.md: both of its tables.

    python benchmarks/plans.py [--rows=1,3]

Runs `python -m lm_jax.plan --json` with the flags of each row, one after the other (minutes each),
and beside it the estimate that a search ranks by. Prints each row when it is done.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time

from lm_jax.config import Config
from lm_jax.devices import chips
from lm_jax.plan import estimate, request

ROWS = (
    ("GPT-2 124M", "gpt2_124m.py", "v5e:4x4", "config", 0),
    ("BERT large", "bert.py:large", "v5e:16x16", "data:256", 0),
    ("T5 1.1 XXL", "t5.py:1.1_xxl", "v5e:16x16", "fsdp:256", 256),
    ("Llama 3 8B", "llama3_8b.py", "v5p:4x4x4", "config", 0),
    ("Llama 3 8B", "llama3_8b.py", "v5p:4x4x4", "fsdp:16,tensor:4", 16),
    ("Llama 3 8B", "llama3_8b.py", "v5e:16x16", "config", 256),
    ("Llama 3 8B", "llama3_8b.py", "v6e:16x16", "config", 0),
    ("Llama 3 8B", "llama3_8b.py", "tpu7x:4x4x4", "config", 0),
    ("Mixtral 8x7B", "mixtral_8x7b.py", "v5p:4x4x8", "config", 0),
    ("Llama 3 70B", "llama3.py:70b", "v5p:8x8x8", "fsdp:512", 0),
    ("Llama 3 70B", "llama3.py:70b", "v6e:16x16*2", "slice:2,fsdp:256", 0),
    ("Llama 3.1 8B, 131,072 tokens", "llama3.py:3.1_8b", "v5p:4x4x8", "config", 0),
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default=",".join(map(str, range(1, len(ROWS) + 1))))
    rows = [ROWS[int(row) - 1] for row in parser.parse_args().rows.split(",")]
    for name, file, topology, mesh, batch in rows:
        flags = [f"--config=configs/{file}", f"--topology={topology}", f"--mesh={mesh}"]
        flags += [f"--batch={batch}"] if batch else []
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "lm_jax.plan", *flags, "--json"],
                              stdout=subprocess.PIPE, text=True, check=False)  # fmt: skip
        wall = time.perf_counter() - began
        if done.returncode not in (0, 1):
            print(f"{name} {' '.join(flags)}: code {done.returncode}", flush=True)
            continue
        found = json.loads(done.stdout)
        print(memory_row(name, flags, found, predicted(*flags), wall), flush=True)
        print(time_row(name, found), flush=True)


def predicted(config, topology, mesh, batch="--batch=0"):
    """Bytes of a device by the analytic model, before any compilation."""
    path, topology, mesh, batch = (x.partition("=")[2] for x in (config, topology, mesh, batch))
    file, _, argument = path.partition(":")
    scope: dict = {}
    with open(file, encoding="utf-8") as code:
        exec(compile(code.read(), file, "exec"), scope)
    values = scope["get_config"](*([argument] if argument else []))
    topology = chips.parse(topology)
    config = request.for_topology(
        Config.parse(values), topology, "" if mesh == "config" else mesh, int(batch)
    )
    return estimate.estimate(config, topology).memory.total


def memory_row(name, flags, found, predicted, wall):
    """A row of the first table."""
    memory = {kind: size / 1e9 for kind, size in found["memory"].items()}
    held = f"{memory['peak']:.2f} of {memory['limit']:.2f}" + " TOO MUCH" * (not found["fits"])
    ratio = predicted / found["memory"]["peak"]
    return (f"| {name} | {found['topology']} | {mesh_of(found)} | {found['tokens_per_step']:,} | "
            f"{memory['parameters']:.2f} + {memory['optimizer']:.2f} | {held} | {ratio:.3f} | "
            f"{found['compile_seconds']:.0f} ({wall:.0f}) | `{shlex.join(flags)}` |")  # fmt: skip


def time_row(name, found):
    """A row of the second table."""
    if not found["fits"]:
        return f"| {name} | {found['topology']} | does not fit: {found['advice'][0]} |"
    matrix = sum(found["flops"][kind] for kind in ("products", "attention"))
    moved, ends = found["moved"], found["forecast"].values()
    sent = ", ".join(f"{axes} {size / 1e9:,.2f}" for axes, size in moved["sent"].items())
    span = lambda field, form: " to ".join(form.format(run[field]) for run in ends)
    return (f"| {name} | {found['topology']} | {matrix:.3g} | "
            f"{moved['traffic'] / 1e9:,.0f} | {sent} | {moved['times']['bound']} | "
            f"{span('seconds', '{:.3g}')} | {span('mfu', '{:.0%}')} | "
            + " to ".join(f"{run['tokens_per_second'] / found['devices']:,.0f}" for run in ends)
            + " |")  # fmt: skip


def mesh_of(found):
    """A mesh in words: fsdp 16 x tensor 4."""
    return " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)


if __name__ == "__main__":
    main()
