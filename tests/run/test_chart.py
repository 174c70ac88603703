"""Are axes and curves where the numbers are?"""

import itertools
import re

import pytest

from lm_jax.run import chart
from lm_jax.run.chart import Series


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 2000, [0, 500, 1000, 1500, 2000]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, expected):
    assert chart.ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3e-4, "3e-4"), (2.5e-3, "2.5e-3"), (0.25, "0.25"), (12_000, "12k"), (2e6, "2M")],
)
def test_labels_are_short(value, text):
    assert chart.label(value) == text


def points_of(svg):
    found = re.search(r'points="([^"]*)"', svg).group(1)
    return [tuple(map(float, pair.split(","))) for pair in found.split()]


def test_a_straight_line_is_drawn_straight_inside_the_frame():
    points = points_of(chart.line_chart("t", "u", [Series("s", [(i, 2 * i) for i in range(11)])]))
    assert points[0][0] == chart.LEFT
    assert points[-1][0] == chart.WIDTH - chart.RIGHT
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(points)]
    assert slopes == pytest.approx([slopes[0]] * 10, abs=0.01)
    assert slopes[0] < 0  # y grows downwards on a screen
    assert all(chart.TOP <= y <= chart.HEIGHT - chart.BOTTOM for _, y in points)


def test_a_logarithmic_axis_spaces_powers_of_ten_evenly():
    points = points_of(
        chart.line_chart("t", "u", [Series("s", [(1, 0), (2, 1), (3, 10), (4, 100)])], log=True)
    )
    assert len(points) == 3  # zero has no logarithm
    assert points[0][1] - points[1][1] == pytest.approx(points[1][1] - points[2][1], abs=0.11)


def test_names_of_levels_are_beside_the_curves_and_apart():
    curve = Series("s", [(i, 8 - 6 * i / 99) for i in range(100)])
    levels = [("xz -9", 2.0), ("byte 5-gram", 2.05), ("token 5-gram", 2.01), ("other", 7.9)]
    svg = chart.line_chart("t", "u", [curve], levels)
    names = re.findall(r'levelname" x="([\d.]+)" y="([\d.]+)">([^<]*)<', svg)
    assert sorted(name.rsplit(" ", 1)[0] for *_, name in names) == sorted(n for n, _ in levels)
    edge = max(x for x, _ in points_of(svg))
    assert all(float(x) >= edge + 4 for x, _, _ in names), "right of every point"
    assert all(float(x) + chart.LETTER * len(name) <= chart.WIDTH for x, _, name in names)
    places = sorted(float(y) for _, y, _ in names)
    assert min(b - a for a, b in itertools.pairwise(places)) >= chart.LINE - 0.1
    assert places[-1] <= chart.HEIGHT - chart.BOTTOM


def test_a_chart_without_points_is_nothing():
    assert chart.line_chart("t", "u", [Series("s", [(1, None), (2, float("nan"))])]) == ""


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1.0, -1.0], [1e-9, 1e9]])
def test_flat_single_and_wide_curves_are_drawn(values):
    svg = chart.line_chart("t", "u", [Series("s", list(enumerate(values)))], zero=True)
    assert "nan" not in svg
    assert len(points_of(svg)) == len(values)


def test_a_long_curve_is_thinned_but_keeps_its_spike():
    points = [(i, 1.0) for i in range(20_000)]
    points[12_345] = (12_345, 9.0)
    svg = chart.line_chart("t", "u", [Series("s", points)])
    assert len(svg) < 120_000
    assert "step 12345\ns: 9 u" in svg
