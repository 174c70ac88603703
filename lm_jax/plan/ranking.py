"""Plans side by side, as text, as JSON and as one HTML page."""

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lm_jax.config.cost import flops_per_token
from lm_jax.plan.roofline import Forecast, forecast
from lm_jax.plan.search import Plan
from lm_jax.plan.show import gb
from lm_jax.run.chart import label
from lm_jax.run.report_style import STYLE

SHOWN = 12  # plans in a table
COLOURS = ("#2a6fd6", "#d9622b", "#3c9a5f", "#8a5fc7", "#c2a12c", "#4fb3bf", "#b8577e", "#8794a3",
           "#6b4a2f", "#1f3a5f", "#9bc53d", "#e08fb0")  # fmt: skip
WIDTH, BAR, NAME = 960, 26, 320  # pixels of a chart, a row of it, the names of its rows
Bars = Sequence[tuple[str, Mapping[str, float]]]


def run_of(plan: Plan, tokens: float, price: float) -> Forecast:
    """Forecast of a run in which nothing of a step overlaps: an upper bound of time and cost."""
    config = plan.config
    needed = flops_per_token(config.model, config.data.sequence_length) * config.tokens_per_step
    topology = plan.estimate.topology
    serial = plan.times.serial
    return forecast(topology, serial, config.tokens_per_step, needed, tokens, price)


def affordable(
    plans: Sequence[Plan], tokens: float, price: Mapping[str, float], deadline: float
) -> list[Plan]:
    """The plans whose run takes at most so many days (0: any), the cheapest first: in USD where a
    price is given, else in chip hours; of equal ones, the smallest first.
    """
    found = []
    for plan in plans:
        topology = plan.estimate.topology
        run = run_of(plan, tokens, price.get(topology.chip.name, 0.0))
        taken = run.days or 0.0
        if not deadline or taken <= deadline:
            found.append((run.cost is None, run.cost or taken * topology.chips, plan.peak, plan))
    return [plan for *_, plan in sorted(found, key=lambda each: each[:3])]


def as_dict(plan: Plan, tokens: float, price: float) -> dict[str, Any]:
    """A plan as a JSON object."""
    config, found = plan.config, plan.estimate
    return {
        "topology": str(found.topology),
        "mesh": dataclasses.asdict(config.mesh),
        "remat": config.model.remat,
        "microbatches": config.microbatches,
        "source": plan.source,
        "failed": plan.failed,
        "fits": plan.fits,
        "peak": plan.peak,
        "limit": found.topology.chip.device_hbm,
        "times": {"parts": plan.times.parts, "bound": plan.times.bound,
                  **plan.times.ends},
        "layered": dataclasses.asdict(plan.estimate.layered),
        "estimated": {"peak": found.memory.total, "memory": found.memory.kinds,
                      "phase": found.memory.phase, "flops": found.flops,
                      "traffic": found.traffic, "sent": found.sent,
                      **found.times.ends},
        "forecast": dataclasses.asdict(run_of(plan, tokens, price)),
    }  # fmt: skip


def text(
    plans: Sequence[Plan], tokens: float, price: Mapping[str, float], with_topology: bool
) -> str:
    """A table of the first plans; with_topology: one column more. The share of time that a device
    waits is the layered estimate's.
    """
    head = [
        *(["topology"] if with_topology else []), "mesh", "remat", "parts", "memory of a device",
        "step", "bound", "waits", "MFU", "days", *(["USD"] if price else []), "figures",
    ]  # fmt: skip
    rows = [head]
    for plan in plans[:SHOWN]:
        topology = plan.estimate.topology
        limit = topology.chip.device_hbm
        run = run_of(plan, tokens, price.get(topology.chip.name, 0.0))
        cost = "?" if run.cost is None else f"{run.cost:,.0f}"
        rows.append([
            *([str(topology)] if with_topology else []), mesh(plan), plan.config.model.remat,
            str(plan.config.microbatches),
            f"{gb(plan.peak)} {plan.peak / limit:4.0%}" + " TOO MUCH" * (not plan.fits),
            f"{plan.times.overlapped:.3g} to {plan.times.serial:.3g} s", plan.times.bound,
            f"{plan.estimate.layered.share:.1%}", f"{run.mfu:.1%}", f"{run.days or 0:.3g}",
            *([cost] if price else []),
            plan.source + (f": {plan.failed}" if plan.failed else ""),
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def mesh(plan: Plan) -> str:
    """'fsdp:16,tensor:4', as --mesh is written."""
    sizes = dataclasses.asdict(plan.config.mesh)
    return ",".join(f"{name}:{size}" for name, size in sizes.items() if size > 1) or "data:1"


def page(plans: Sequence[Plan], title: str) -> str:
    """A self-contained page: the parts of a step and the memory of a device, of the first plans."""
    names = [(plan, f"{plan.estimate.topology} {mesh(plan)} {plan.config.model.remat}"
                    f" x{plan.config.microbatches}, {plan.source}")
             for plan in plans[:SHOWN]]  # fmt: skip
    times = [(name, plan.times.parts) for plan, name in names]
    kinds = [(name, {k: v / 1e9 for k, v in plan.estimate.memory.kinds.items()})
             for plan, name in names]  # fmt: skip
    limits = {plan.estimate.topology.chip.device_hbm / 1e9 for plan, _ in names}
    one = limits.pop() if len(limits) == 1 else 0.0
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        f"<header><h1>{escape(title)}</h1></header>\n"
        f"<section><h2>A step by parts, one after the other</h2>{bars(times, 's')}</section>\n"
        "<section><h2>Memory of a device at its fullest, as estimated</h2>"
        f"{bars(kinds, 'GB', one)}</section>\n</main></body></html>\n"
    )


def bars(rows: Bars, unit: str, level: float = 0.0) -> str:
    """Rows of stacked bars as SVG with a legend; `level`: a vertical line, 0 for none."""
    longest = max([level, *(sum(parts.values()) for _, parts in rows)]) * 1.14
    scale = (WIDTH - NAME) / longest
    kinds = list(dict.fromkeys(kind for _, parts in rows for kind in parts))
    found = []
    for number, (name, parts) in enumerate(rows):
        y, x = number * BAR, float(NAME)
        found.append(f'<text x="{NAME - 8}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        for kind, value in parts.items():
            colour, wide = COLOURS[kinds.index(kind) % len(COLOURS)], value * scale
            found.append(
                f'<rect x="{x:.1f}" y="{y + 4}" width="{wide:.1f}" height="{BAR - 8}" '
                f'fill="{colour}"><title>{escape(kind)}: {value:.4g} {unit}</title></rect>'
            )
            x += wide
        found.append(f'<text x="{x + 5:.1f}" y="{y + 17}">{label(sum(parts.values()))}</text>')
    height = len(rows) * BAR
    if level:
        x = NAME + level * scale
        found.append(f'<line class="level" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
    key = '<span class="key"><i style="background:{}"></i>{}</span>'
    keys = "".join(
        key.format(COLOURS[i % len(COLOURS)], escape(kind)) for i, kind in enumerate(kinds)
    )
    return (
        f"<figure><figcaption><span>{escape(unit)}{f', line: {level:.4g}' * bool(level)}</span>"
        f'{keys}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(found)}</svg>'
        "</figure>"
    )
