"""A trace of ten steps of GPT-2 124M: the longest kernels, and how long none ran."""

import collections
import tempfile
from pathlib import Path
from typing import Any

import jax

from accelerator.part import Measure
from accelerator.step import GPT2, Step, config_of
from lm_jax.devices import runtime

STEPS, SHOWN = 10, 10
OUTER = ("ThunkExecutor",)  # events of a CPU that contain the others


def run(measure: Measure) -> None:
    """The rows of this part."""
    runtime.start()
    measure.each("trace", traced, measure)


def traced(measure: Measure) -> None:
    """Runs the steps under the profiler, and adds up the time of each kernel."""
    layers = 2 if measure.tiny else GPT2["model.num_layers"]
    step = Step(config_of(GPT2, measure.tiny, model__scan_unroll=layers))
    jax.block_until_ready(step())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                metrics = step()
            jax.block_until_ready(metrics)
        path = next(Path(folder).rglob("*.xplane.pb"))
        events = kernels(jax.profiler.ProfileData.from_file(str(path)))
    if not events:
        measure.row("trace", note="the profiler recorded no kernel of this device")
        return
    totals: dict[str, float] = collections.defaultdict(float)
    calls: collections.Counter[str] = collections.Counter()
    for name, start, end in events:
        totals[name] += end - start
        calls[name] += 1
    span, busy = covered(events)
    measure.row("all", **{"ms a step": span / STEPS / 1e6, "idle %": 100 * (1 - busy / span),
                          "kernels a step": len(events) // STEPS})  # fmt: skip
    for name, total in sorted(totals.items(), key=lambda pair: -pair[1])[:SHOWN]:
        share = 100 * total / span
        measure.row(name[:80], **{"ms a step": total / STEPS / 1e6, "% of the time": share,
                                  "calls a step": calls[name] / STEPS})  # fmt: skip


def kernels(profile: Any) -> list[tuple[str, float, float]]:
    """(name, start, end) in nanoseconds of what ran on the device: on the streams of a GPU, the
    operations of a TPU, the threads of XLA on a CPU.
    """
    found = []
    for plane in profile.planes:
        device = plane.name.startswith(("/device:GPU", "/device:TPU"))
        if not device and not (plane.name == "/host:CPU" and jax.default_backend() == "cpu"):
            continue
        for line in plane.lines:
            wanted = ("Stream #", "XLA Ops") if device else ("tf_XLAEigen", "tf_XLAPjRtCpuClient")
            if line.name.startswith(wanted):
                found += [(e.name, e.start_ns, e.start_ns + e.duration_ns) for e in line.events
                          if e.duration_ns > 0 and not e.name.startswith(OUTER)]  # fmt: skip
    return found


def covered(events: list[tuple[str, float, float]]) -> tuple[float, float]:
    """(from the first start to the last end, the time in which anything ran)."""
    busy, until = 0.0, 0.0
    ordered = sorted((start, end) for _, start, end in events)
    for start, end in ordered:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return until - ordered[0][0], busy
