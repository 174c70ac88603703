"""Progress: a bar on a terminal, a plain line every ten seconds elsewhere; numbers and durations
for people.
"""

import math
import sys
import time
from typing import Any, TextIO


class Progress:
    """`with Progress("reading", total, "MB", 1e6) as p: p.add(n)`; silent in its first two seconds.

    total None: unknown, no time left. `scale` turns what `add` counts into `unit`. quiet: silent,
    as where there is no stderr.
    """

    def __init__(
        self,
        label: str,
        total: float | None = None,
        unit: str = "MB",
        scale: float = 1e6,
        out: TextIO | None = None,
        quiet: bool = False,
    ):
        self.label, self.total, self.unit, self.scale = label, total, unit, scale
        self.out = out or sys.stderr
        self.bar = self.out is not None and self.out.isatty()
        self.done = 0.0
        self.start = time.monotonic()
        self.next = math.inf if quiet or self.out is None else self.start + 2
        self.shown, self.last = False, -1.0

    def add(self, amount: float) -> None:
        """`amount` more is done."""
        self.done += amount
        now = time.monotonic()
        if now >= self.next:
            self.show(now)
            self.next = now + (0.2 if self.bar else 10)

    def show(self, now: float) -> None:
        """Writes the line."""
        text = self.line(now - self.start)
        self.out.write(f"\r{text}\x1b[K" if self.bar else text + "\n")
        self.out.flush()
        self.shown, self.last = True, self.done

    def line(self, seconds: float) -> str:
        """`reading  42%  12.3 of 29.0 MB  4.1 MB/s  4s left`."""
        done, rate = self.done / self.scale, self.done / self.scale / max(seconds, 1e-9)
        if not self.total:
            return f"{self.label}  {done:,.1f} {self.unit}  {rate:,.1f} {self.unit}/s"
        left = (self.total - self.done) / max(self.done / max(seconds, 1e-9), 1e-9)
        return (
            f"{self.label}  {min(self.done / self.total, 1):.0%}  {done:,.1f} of"
            f" {self.total / self.scale:,.1f} {self.unit}  {rate:,.1f} {self.unit}/s"
            f"  {duration(max(left, 0))} left"
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.shown:
            if self.bar or self.done != self.last:
                self.show(time.monotonic())
            if self.bar:
                self.out.write("\n")


def duration(seconds: float) -> str:
    """42 -> '42s', 725 -> '12m', 3725 -> '1h02m'."""
    s = round(seconds)
    if s < 60:
        return f"{s}s"
    return f"{s // 60}m" if s < 3600 else f"{s // 3600}h{s % 3600 // 60:02d}m"


def human(number: float) -> str:
    """1234567 -> '1.23M', 999999 -> '1M'."""
    number = float(f"{number:.3g}")  # rounded first: 999.9 k would be '1e+03k'
    for power, letter in zip(range(21, 0, -3), "ZEPTGMk", strict=True):
        if abs(number) >= 10**power:
            return f"{number / 10**power:.3g}{letter}"
    return f"{number:.3g}"
