"""The process of one part: python -m accelerator.part NAME SECONDS PLATFORM."""

import importlib
import json
import runpy
import sys
import time
from typing import Any

from accelerator.__main__ import ROW


class Measure:
    """What a part gets: its time, its size, and where its rows go."""

    def __init__(self, seconds: float, tiny: bool):
        self.tiny = tiny
        self.end = time.monotonic() + seconds
        self.longest = 0.0  # seconds of the longest measurement so far

    @property
    def left(self) -> float:
        """Seconds before the part is stopped."""
        return self.end - time.monotonic()

    def row(self, name: str, **figures: Any) -> None:
        """Hands a row of figures to the results; those that are None are left out."""
        row = {"name": name, **{k: v for k, v in figures.items() if v is not None}}
        print(ROW + json.dumps(row, default=float), flush=True)

    def each(self, name: str, function: Any, *arguments: Any) -> Any:
        """The result of one measurement, None where it was left out for want of time or failed,
        which gives a row.
        """
        if self.left < 1.1 * self.longest + 1:
            self.row(name, note=f"left out: {self.left:.0f} s left")
            return None
        began = time.monotonic()
        try:
            return function(*arguments)
        except Exception as error:  # one setting of many; the others are worth their rows
            text = " ".join(str(error).split())[:200]
            short = "does not fit" if "RESOURCE_EXHAUSTED" in text else type(error).__name__
            self.row(name, note=f"{short}: {text}")
            return None
        finally:
            self.longest = max(self.longest, time.monotonic() - began)


def main() -> None:
    """Runs the part."""
    part, seconds, platform = sys.argv[1:]
    # The time that the interpreter took to come here is the driver's: a little less is left.
    measure = Measure(float(seconds) - 1.5, tiny=platform == "cpu")
    if part.endswith(".py"):
        runpy.run_path(part)["run"](measure)
    else:
        importlib.import_module(f"accelerator.{part}").run(measure)


if __name__ == "__main__":
    main()
