"""A plan as a screen of text and as one JSON object."""

import dataclasses
from typing import Any

from lm_jax.config import Config
from lm_jax.config.mesh_check import large_axes
from lm_jax.devices.chips import Topology
from lm_jax.plan.measure import Measured
from lm_jax.plan.roofline import Forecast
from lm_jax.progress import human

Forecasts = dict[str, Forecast]  # overlapped and serial


def as_dict(config: Config, topology: Topology, found: Measured, runs: Forecasts) -> dict[str, Any]:
    """A measured plan as a JSON object."""
    values = dataclasses.asdict(found)
    if found.moved:
        times = found.moved.times
        values["moved"]["times"] |= {**times.ends, "bound": times.bound}
    return {
        "config": config.name,
        "topology": str(topology),
        "devices": topology.devices,
        "mesh": dataclasses.asdict(config.mesh),
        "batch_size": config.batch_size,
        "tokens_per_step": config.tokens_per_step,
        "remat": config.model.remat,
        "fits": found.fits,
        **values,
        "forecast": {name: dataclasses.asdict(run) for name, run in runs.items()},
    }


def text(config: Config, topology: Topology, found: Measured, runs: Forecasts) -> str:
    """A measured plan as lines of text. Figures are the compiler's or counted; times are the
    roofline's.
    """
    chip, memory = topology.chip, found.memory
    mesh = large_axes(dataclasses.asdict(config.mesh))
    rows = [
        ("run", f"{config.name}: {config.batch_size} x {config.data.sequence_length} = "
                f"{human(config.tokens_per_step)} tokens a step, remat {config.model.remat}"),
        ("topology", f"{topology}: {topology.chips} chips, {topology.devices} devices, "
                     f"{topology.hosts} hosts; {human(chip.flops)}FLOP/s a chip, "
                     f"of which large products reach {chip.matmul:.0%}"),
        ("mesh", mesh or "one device"),
        ("memory", verdict(found)),
        ("", f"parameters {gb(memory.parameters)}, optimizer {gb(memory.optimizer)}, batch "
             f"{gb(memory.batch)}, temporaries {gb(memory.temporaries)}"),
        ("FLOPs", f"{found.all_flops.matrix:.3g} a step in matrix products, attention "
                  f"{found.all_flops.attention / found.all_flops.matrix:.0%} of them; a device "
                  f"{found.flops.matrix:.3g}, {repeated(found, topology)}{low_precision(found)}"),
    ]  # fmt: skip
    if moved := found.moved:
        rows.append(("traffic", f"{gb(moved.traffic)} between a device and its memory"))
        sent = [f"{axes or 'other'} {gb(size)}" for axes, size in moved.sent.items()]
        kinds = [f"{kind} {gb(size)}" for kind, size in moved.sent_by_kind.items()]
        rows.append(("sent", f"a device: {', '.join(sent) or 'nothing'}"))
        rows += [("", f"by kind: {', '.join(kinds)}")] if kinds else []
        parts = [f"{part} {seconds:.3g} s" for part, seconds in moved.times.parts.items()]
        rows.append(("roofline", f"{', '.join(parts)}; bound by {moved.times.bound}"))
    rows += [(name, forecast_line(run)) for name, run in runs.items()]
    rows += [("not counted", what) for what in found.unknown]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def verdict(found: Measured) -> str:
    """Whether the plan fits, in words."""
    memory = found.memory
    if not found.fits:
        return f"does not fit a device's {gb(memory.limit)}: {'; '.join(found.advice[:3])}"
    share = memory.peak / memory.limit
    return f"fits: {gb(memory.peak)} at most, {share:.0%} of the {gb(memory.limit)} of a device"


def repeated(found: Measured, topology: Topology) -> str:
    """Share of the FLOPs that more than one device computes, in words."""
    more = found.flops.matrix * topology.devices / found.all_flops.matrix - 1
    return "none of them twice" if more < 0.001 else f"{more:.1%} of them again on another"


def low_precision(found: Measured) -> str:
    """Share of the FLOPs in eight bits, in words; "" for none."""
    kinds = {"int8": found.flops.int8, "fp8": found.flops.fp8}
    whole = found.flops.matrix
    return "".join(f"; {size / whole:.0%} in {kind}" for kind, size in kinds.items() if size)


def forecast_line(run: Forecast) -> str:
    """A forecast as one line."""
    days = f", {run.days:.3g} days" if run.days is not None else ""
    cost = f", {run.cost:,.0f} USD" if run.cost is not None else ""
    speed = f"{human(run.tokens_per_second)} tokens/s, MFU {run.mfu:.1%}"
    return f"{run.seconds:.3g} s a step, {speed}{days}{cost}"


def gb(size: float) -> str:
    """Bytes as GB (10^9), below 10 MB as MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2g} MB"
