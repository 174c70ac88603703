"""Runs the parts one after the other, each in a process of its own with a time limit; needs the
standard library alone. See accelerator.sh for the flags.
"""

import argparse
import contextlib
import datetime
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from accelerator import table

ROOT = Path(__file__).parents[2]
# Seconds of eight minutes, the most valuable parts first. What a part leaves goes to the next.
PARTS = {
    "machine": 30,  # ceilings on random data, versions, clocks
    "gpt2": 150,  # the train step of GPT-2 124M, and what makes it faster
    "rivals": 70,  # the same shape in PyTorch, or in plain JAX
    "families": 90,  # other models, beside the memory that a plan predicts
    "correct": 60,  # kernels and types against their references; a kill
    "low_precision": 50,  # training in eight bits, decoding
    "trace": 30,  # kernels of ten steps
}
LEAST = 5.0  # seconds that are worth the start of a process
GRACE = 3.0  # seconds between SIGTERM and SIGKILL
ROW = "ROW "  # before a row on the standard output of a part


def arguments() -> argparse.Namespace:
    """The flags; exits with 2 at a wrong one."""
    parser = argparse.ArgumentParser(prog="accelerator.sh", allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "accelerator")
    parser.add_argument("--platform", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--report", action="store_true")
    found = parser.parse_args()
    found.parts = found.parts.split(",")
    if not 0.1 <= found.minutes <= 600:
        parser.error(f"--minutes={found.minutes}: must be 0.1 to 600.")
    for name in found.parts:
        if name not in PARTS and not name.endswith(".py"):
            parser.error(f"--parts={name}: no such part; there are {', '.join(PARTS)}.")
        if name.endswith(".py") and not Path(name).is_file():
            parser.error(f"--parts={name}: no such file.")
    return found


def main() -> int:
    """Measures, or writes the report."""
    args = arguments()
    if args.report:
        return table.report(args.out, ROOT / "docs")
    args.out.mkdir(parents=True, exist_ok=True)
    results = Results(args.out)
    end = time.monotonic() + 60 * args.minutes
    weights = [PARTS.get(part, 60) for part in args.parts]
    for index, part in enumerate(args.parts):
        left = end - time.monotonic()
        limit = left * weights[index] / sum(weights[index:])
        if limit < LEAST:
            results.add(part, {"name": part, "note": f"not run: {max(left, 0):.0f} s left"})
            continue
        print(f"== {part} ({limit:.0f} s at most)", flush=True)
        run_part(part, limit, args, results)
    print(f"results: {args.out / 'table.md'}")
    return 0


class Results:
    """Rows of all parts, on disk as soon as they are known."""

    def __init__(self, folder: Path):
        self.folder, self.rows = folder, []  # type: tuple[Path, list[dict]]
        (folder / "results.jsonl").write_text("")
        self.date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")

    def add(self, part: str, row: dict) -> None:
        """Adds a row, prints it, and writes the files."""
        row = {"part": Path(part).stem, "date": self.date, **row}
        self.rows.append(row)
        with open(self.folder / "results.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        (self.folder / "table.md").write_text(table.page(self.rows))
        print(f"  {table.line(row)}", flush=True)


def run_part(part: str, limit: float, args: argparse.Namespace, results: Results) -> None:
    """One part, in a process group of its own that is gone when this returns."""
    log_path = args.out / f"{Path(part).stem}.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1",
                   "JAX_COMPILATION_CACHE_DIR": str(args.out.resolve() / "compiled")}  # fmt: skip
    if args.platform == "cpu":
        environment |= {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "accelerator.part", part, f"{limit:.1f}", args.platform]
    began = time.monotonic()
    with open(log_path, "w") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=pump, args=(process.stdout, lines), daemon=True).start()
        late = follow(process, lines, began + limit, part, log, results)
        stop(process)
    seconds = time.monotonic() - began
    if late:
        results.add(part, {"name": part, "note": f"stopped after {seconds:.0f} s, its limit"})
    elif process.returncode:
        last = (log_path.read_text().strip().splitlines() or ["no output"])[-1]
        why = f"failed with code {process.returncode}: {last[:200]}"
        results.add(part, {"name": part, "note": why})


def pump(stream, lines: "queue.Queue[str | None]") -> None:
    """Puts the lines of a stream into a queue, and None at its end."""
    for text in stream:
        lines.put(text)
    lines.put(None)


def follow(process, lines, until: float, part: str, log, results: Results) -> bool:
    """Reads the output of a part until it ends; whether `until` came before. What it has started
    may hold the pipe for longer.
    """
    ended = False
    while time.monotonic() < until:
        try:
            text = lines.get(timeout=0.2)
        except queue.Empty:
            if ended:
                return False
            ended = process.poll() is not None  # one look more: the last lines may be on their way
            continue
        if text is None:
            return False
        log.write(text)
        log.flush()
        if text.startswith(ROW):
            results.add(part, json.loads(text[len(ROW) :]))
    return True


def stop(process: subprocess.Popen) -> None:
    """Ends the process and all that it started."""
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
