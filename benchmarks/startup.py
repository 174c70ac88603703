"""Time from the command to the first finished step: cold, then with a warm compilation cache.

    python benchmarks/startup.py [--config=configs/quickstart.py] [--rounds=2]

The token store is prepared before; the clock runs from the start of the process to the line
`first step done`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def first_step(config: str, store: str, cache: str) -> tuple[float, float]:
    """(wall seconds, CPU seconds) until the line appears."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "lm_jax.train", f"--config={config}", f"--workdir={folder}/run",
            f"--config.data.store={store}", "--config.data.input=",
        ]  # fmt: skip
        env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
        start = time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
        ) as child:
            for line in child.stdout or ():
                if line.startswith("first step done"):
                    wall = time.perf_counter() - start
                    times = Path(f"/proc/{child.pid}/stat").read_text().split()
                    child.kill()
                    ticks = os.sysconf("SC_CLK_TCK")
                    return wall, (int(times[13]) + int(times[14])) / ticks
    raise SystemExit("the run ended before its first step")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        prepare = [sys.executable, "-m", "lm_jax.prepare", f"--config={args.config}"]
        subprocess.run([*prepare, f"--output={store}"], cwd=ROOT, check=True, capture_output=True)
        for index in range(args.rounds):
            cache = f"{folder}/cache{index}"
            for kind in ("cold", "warm"):
                wall, cpu = first_step(args.config, store, cache)
                print(f"{kind}: first step after {wall:.1f} s ({cpu:.1f} CPU s)", flush=True)


if __name__ == "__main__":
    main()
