"""Line charts as SVG text: ticks, units, levels to compare with, hover titles.

Colours are classes of the page's style sheet (report_style.py), so one chart serves light and dark.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 40
MAX_POINTS, MAX_TITLES = 1500, 160
LETTER, LINE = 6.6, 14  # pixels of a letter and a line of a level's name


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve: its name, its points, and which of the page's colours (1..) it has."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 1
    dots: bool = False


@dataclasses.dataclass(frozen=True)
class Frame:
    """The part of the picture that curves are in, and what it shows: [x0, x1], [y0, y1]."""

    x0: float
    x1: float
    y0: float  # an exponent of ten where `log`
    y1: float
    log: bool
    right: float  # its edge, in pixels

    def x(self, value: float) -> float:
        """The pixel of a value."""
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (self.right - LEFT)

    def y(self, value: float) -> float:
        """The pixel of a value."""
        value = math.log10(value) if self.log else value
        return HEIGHT - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def horizontal(self, kind: str, y: float) -> str:
        """A line across."""
        return f'<line class="{kind}" x1="{LEFT}" x2="{self.right:g}" y1="{y:.1f}" y2="{y:.1f}"/>'


def finite(pairs: Sequence[tuple]) -> list[tuple[float, float]]:
    """The points whose two values are finite numbers, by x."""
    kinds = (int, float)
    good = [p for p in pairs if all(isinstance(v, kinds) and math.isfinite(v) for v in p)]
    return sorted(good)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers, 1, 2 or 5 times a power of ten apart, inside [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A number as an axis shows it: 0.0003 -> '3e-4', 12000 -> '12k'."""
    if value == 0:
        return "0"
    size = abs(value)
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.4g}{letter}"
    if size < 1e-2:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    levels: Sequence[tuple[str, float]] = (),
    zero: bool = False,
    top: float = 0.0,
    log: bool = False,
    x_unit: str = "step",
) -> str:
    """A <figure> of the curves over steps, or "" when none has a point.

    unit: of the y axis. levels: horizontal lines to compare with. zero: the y axis starts at 0.
    top: the y axis reaches at least this far. log: logarithmic y axis, without points <= 0.
    """
    lines = [dataclasses.replace(s, points=finite(s.points)) for s in series]
    if log:
        lines = [dataclasses.replace(s, points=[p for p in s.points if p[1] > 0]) for s in lines]
    lines = [s for s in lines if s.points]
    if not lines:
        return ""
    levels = [(name, v) for name, v in levels if math.isfinite(v) and (v > 0 or not log)]
    xs = [x for s in lines for x, _ in s.points]
    ys = [y for s in lines for _, y in s.points] + [v for _, v in levels]
    x0, x1 = min([0, *xs]), max([*xs, min(xs) + 1])
    scale = math.log10 if log else float
    y0, y1 = scale(min(ys)), scale(max([*ys, top]))
    margin = 0.06 * (y1 - y0) or abs(y1) * 0.1 or 0.5
    y0, y1 = (0 if zero and y0 >= 0 else y0 - margin), y1 + margin
    # Names of levels stand beside the frame: inside they would cover the curves.
    letters = max((len(_level_name(*level)) + 1 for level in levels), default=0)
    frame = Frame(x0, x1, y0, y1, log, WIDTH - max(RIGHT, letters * LETTER))
    parts = [_axes(frame, x_unit), _levels(levels, frame)]
    parts += [_curve(s, frame) for s in lines]
    parts.append(_titles(lines, frame, x_unit, unit))
    names = "".join(
        f'<span class="key"><i class="k{s.colour}"></i>{escape(s.name)}</span>' for s in lines
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(unit)}</span>"
        f"{names if len(lines) > 1 else ''}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}, {escape(unit)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _axes(frame: Frame, x_unit: str) -> str:
    """Grid, tick labels and the name of the x axis."""
    parts, y0, y1 = [], frame.y0, frame.y1
    marks = [10.0**e for e in ticks(y0, y1, 4)] if frame.log else ticks(y0, y1, 5)
    if frame.log and len(marks) < 2:
        marks = [10.0 ** (y0 + (y1 - y0) * f) for f in (0.1, 0.5, 0.9)]
    for value in marks:
        text, y = label(float(f"{value:.2g}" if frame.log else f"{value:.6g}")), frame.y(value)
        parts.append(
            frame.horizontal("grid", y)
            + f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    base = HEIGHT - BOTTOM
    for value in ticks(frame.x0, frame.x1, 5):
        x = frame.x(value)
        parts.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 4}"/>'
            f'<text x="{x:.1f}" y="{base + 18}" text-anchor="middle">{label(value)}</text>'
        )
    middle = (LEFT + frame.right) / 2
    name = f'<text x="{middle:g}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_unit)}</text>'
    return "".join([*parts, frame.horizontal("axis", base), name])


def _level_name(name: str, value: float) -> str:
    """Label beside a level."""
    return f"{name} {label(value)}"


def _levels(levels: Sequence[tuple[str, float]], frame: Frame) -> str:
    """Dashed lines, each with its name to the right of the frame, and no name upon another."""
    levels = sorted(levels, key=lambda level: -level[1])
    places: list[float] = []
    for _, value in levels:
        places.append(max(frame.y(value) + 4, *(y + LINE for y in places[-1:]), TOP))
    for i in reversed(range(len(places))):  # those that were pushed below the frame move up
        places[i] = min([places[i], HEIGHT - BOTTOM, *(y - LINE for y in places[i + 1 : i + 2])])
    return "".join(
        frame.horizontal("level", frame.y(value))
        + f'<text class="levelname" x="{frame.right + 5:g}" y="{y:.1f}">'
        f"{escape(_level_name(name, value))}</text>"
        for (name, value), y in zip(levels, places, strict=True)
    )


def _curve(series: Series, frame: Frame) -> str:
    """The line, thinned to what a screen can show; dots where the points are few."""
    points = _thin(series.points, MAX_POINTS)
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    dots = ""
    if len(points) == 1 or (series.dots and len(points) <= 60):
        dots = "".join(
            f'<circle class="c{series.colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>'
            for x, y in points
        )
    return f'<polyline class="c{series.colour}" points="{path}"/>{dots}'


def _titles(lines: Sequence[Series], frame: Frame, x_unit: str, unit: str) -> str:
    """Bands under the pointer, each with the values at its step."""
    # Evaluations are rare: all of their steps are kept, and the dense curve is thinned around them.
    by_x: dict[float, list[str]] = {x: [] for s in lines for x, _ in _thin(s.points, MAX_TITLES)}
    for s in lines:
        for x, y in s.points:
            if x in by_x:
                by_x[x].append(f"{s.name}: {y:.4g} {unit}")
    places = sorted(by_x)
    centres = [frame.x(x) for x in places]
    edges = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(centres)), frame.right]
    height = HEIGHT - TOP - BOTTOM
    return "".join(
        f'<g class="hover"><rect x="{edges[i]:.1f}" y="{TOP}" '
        f'width="{max(0.5, edges[i + 1] - edges[i]):.1f}" height="{height}"/>'
        f'<line x1="{centres[i]:.1f}" x2="{centres[i]:.1f}" y1="{TOP}" y2="{TOP + height}"/>'
        f"<title>{escape(x_unit)} {x:g}\n{escape(chr(10).join(by_x[x]))}</title></g>"
        for i, x in enumerate(places)
    )


def _thin(points: Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """About `count` of the points, evenly, with the first, last, lowest and highest."""
    if len(points) <= count:
        return list(points)
    stride = -(-len(points) // count)
    keep = {*points[::stride], points[0], points[-1]}
    keep |= {min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])}
    return sorted(keep)
