"""Metrics of a run: one line that people and grep can read, metrics.jsonl, TensorBoard events,
MFU.
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from lm_jax.config import Config
from lm_jax.config.cost import flops_per_token
from lm_jax.config.field import INT_MAX
from lm_jax.config.values import from_json
from lm_jax.devices.chips import peak_flops
from lm_jax.progress import duration, human
from lm_jax.run.appended import Appended, Events
from lm_jax.run.rundir import replace_text


def perplexity(loss: float) -> float:
    """exp(nats per token), infinity where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


class Clock:
    """Time since the last line, divided into waiting for data, left out, and training."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Starts a new line."""
        self.start, self.data, self.paused, self.steps = time.perf_counter(), 0.0, 0.0, 0

    def waited(self, since: float) -> None:
        """Counts the time since `since` as waiting for data."""
        self.data += time.perf_counter() - since

    def left_out(self, since: float) -> None:
        """Takes the time since `since` (an evaluation, a save) out of the rate."""
        self.paused += time.perf_counter() - since

    @property
    def seconds(self) -> float:
        """Seconds of training since the last line."""
        return max(1e-9, time.perf_counter() - self.start - self.paused)


class Metrics:
    """Writes what a run reports; `step` also prints the line. Lines after `resumed_from` of an
    earlier try go.
    """

    def __init__(self, workdir: str | os.PathLike, config: Config, bytes_per_token: float,
                 device_kind: str, devices: int, resumed_from: int = 0,
                 writes: bool = True):  # fmt: skip
        self.config, self.bytes_per_token = config, bytes_per_token
        self.flops = flops_per_token(config.model, config.data.sequence_length)
        peak = peak_flops(device_kind)
        self.peak = peak * devices if peak else None
        self.clock = Clock()
        self.rows: Appended | None = None
        self.board: Events | None = None
        self.trouble = ""
        # Of the rows of the step that is resumed from; all, where another process has them.
        self.kinds = {"train", "eval", "sample"}
        if not writes:
            return
        self.path = Path(workdir) / "metrics.jsonl"
        try:
            keep = shorten(self.path, resumed_from)
            self.kinds = {str(row.get("kind")) for row in keep if row["step"] == resumed_from}
        except OSError as error:
            print(f"warning: {self.path}: {error.strerror}; lines of an earlier try stay in it.",
                  file=sys.stderr, flush=True)  # fmt: skip
        self.rows = Appended(self.path)
        self.board = Events(Path(workdir) / "tb", resumed_from + 1)

    def bits_per_byte(self, loss: float) -> float:
        """Nats a token as bits a byte of training text, by its mean token length; not a number
        where the targets are not the text, each token of it once.
        """
        if self.config.loss.objective != "causal":
            return math.nan
        return loss / math.log(2) / self.bytes_per_token

    def write(self, step: int, kind: str, **values: Any) -> None:
        """One row of metrics.jsonl; its numbers and texts go to TensorBoard too."""
        if self.rows is None or self.board is None:
            return
        row = {"step": step, "kind": kind, **values, "time": round(time.time(), 3)}
        # JSON has no infinity: what is not a number is written as null.
        row = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        self.rows.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self.board.scalar(f"{kind}/{name}", value, step)
            elif isinstance(value, str) and kind == "sample":
                # Markdown joins lines, but not those of a block of code.
                code = "\n".join(f"    {line}" for line in value.splitlines())
                self.board.text(f"{kind}/{name}", code, step)
        self.report_trouble(step)

    def report_trouble(self, step: int) -> None:
        """A line when a disk takes no more metrics, and one when it does again."""
        files = [file for file in (self.rows, self.board) if file is not None]
        trouble = next((f"{file.path}: {file.error}" for file in files if file.error), "")
        if trouble and not self.trouble:
            print(f"warning: step {step}: {trouble}; the metrics wait in memory, the run goes on.",
                  file=sys.stderr, flush=True)  # fmt: skip
        elif self.trouble and not trouble:
            lost = sum(file.lost for file in files)
            print(f"step {step}: metrics are written again, {lost or 'none'} were lost", flush=True)
        self.trouble = trouble

    def train(self, step: int, values: dict[str, float], crc: int | None) -> None:
        """The line of a finished step, and its row: `values` are loss, gnorm, lr, tokens and what
        else the objective reports.
        """
        config, clock = self.config, self.clock
        loss, more = values["loss"], dict(values)
        known = {name: more.pop(name) for name in ("loss", "lr", "gnorm", "tokens")}
        seconds = clock.seconds
        # The first step is compiled in its time: no rate is known from it.
        rate = clock.steps * config.tokens_per_step / seconds if clock.steps else None
        mfu = rate * self.flops / self.peak if rate and self.peak else None
        share = min(1.0, clock.data / seconds)
        bpb = self.bits_per_byte(loss)
        extra: dict[str, Any] = {} if crc is None else {"batch_crc": crc}
        extra |= {"tokens_per_second": rate and round(rate, 1), "data_fraction": round(share, 4)}
        self.write(step, "train", **known, bpb=bpb, mfu=mfu, **extra, **more)
        left = (config.steps - step) * config.tokens_per_step
        speed = human(rate) if rate else "n/a"
        # Left out where a run never has it: bits per byte of other objectives, MFU of a device
        # without a known peak.
        bits = f"  bpb {bpb:.3f}" if math.isfinite(bpb) else ""
        used = f"  mfu {'n/a' if mfu is None else f'{mfu:.1%}'}" if self.peak else ""
        print(
            f"step {step}/{config.steps}  loss {loss:.3f}{bits}  "
            f"lr {values['lr']:.1e}  gnorm {values['gnorm']:.2f}  {speed} tok/s{used}  "
            f"data {share:.1%}  eta {duration(left / rate) if rate else 'n/a'}"
            + "".join(f"  {name} {value:.3f}" for name, value in more.items()),
            flush=True,
        )
        clock.restart()

    def evaluation(self, step: int, loss: float, bpb: float, tokens: int, seconds: float) -> None:
        """The line of an evaluation on held-out text, and its row; `bpb`: bits per byte of it."""
        self.write(
            step,
            "eval",
            loss=loss,
            bpb=bpb,
            perplexity=perplexity(loss),
            tokens=tokens,
            seconds=seconds,
        )
        bits = f"  bpb {bpb:.3f}" if math.isfinite(bpb) else ""
        print(
            f"eval {step}/{self.config.steps}  loss {loss:.3f}{bits}  "
            f"perplexity {perplexity(loss):.1f}  {human(tokens)} tokens  {seconds:.1f} s",
            flush=True,
        )

    def close(self) -> None:
        """Writes what waits, and closes the files; a line for what could not be written."""
        for file in (self.rows, self.board):
            if file is not None:
                file.close()
                if file.error:
                    print(f"warning: {file.path}: {file.error}; its last {len(file.waiting):,} "
                          "bytes are lost.", file=sys.stderr, flush=True)  # fmt: skip


def shorten(path: Path, last: int) -> list[dict[str, Any]]:
    """Leaves only the rows up to step `last` in a metrics.jsonl, none for 0; returns them. Raises
    OSError.
    """
    keep = [row for row in read(path) if row["step"] <= last and last]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in keep)
    if path.exists() and path.read_bytes().startswith(whole := text.encode(errors="replace")):
        os.truncate(path, len(whole))  # which a full disk allows
    elif path.exists():
        replace_text(path, text)
    return keep


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl. Lines that are no rows are left out: a killed run leaves half of
    one, a power failure a block of zeros.
    """
    path, rows = Path(path), []
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    # Not splitlines(): a sample may hold U+2028 and other ends of lines that JSON does not escape.
    for line in text.removesuffix("\n").split("\n") if text else []:
        try:
            row = from_json(line)
        except ValueError:
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if type(step) is int and 0 <= step <= INT_MAX:
            rows.append(row)
    return rows
