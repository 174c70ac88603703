"""Times are bytes and operations over rates, of the links that a group has."""

import pytest

from lm_jax.devices.chips import CHIPS, parse
from lm_jax.plan.flops import Flops
from lm_jax.plan.roofline import Times, forecast, matrix, rate, seconds, times


def line(length, dims=3, along=2):
    """Places of a slice along one dimension: (dimensions..., device of the chip)."""
    return [tuple(i if dim == along else 0 for dim in range(dims)) + (0,) for i in range(length)]


def test_a_ring_has_two_links_a_line_one_and_all_dimensions_work_at_once():
    cube, flat = parse("v5p:4x4x4"), parse("v5e:8x16")
    link = cube.chip.link
    assert rate(cube, line(4)) == 2 * link
    assert rate(cube, line(2)) == link
    every = [(x, y, z, 0) for x in range(4) for y in range(4) for z in range(4)]
    assert rate(cube, every) == 6 * link
    assert rate(flat, line(16, 2, 1)) == 2 * flat.chip.link
    assert rate(flat, line(8, 2, 0)) == flat.chip.link
    assert rate(parse("h100:8"), line(8, 1, 0)) == 450e9


def test_the_two_devices_of_a_chip_share_its_links():
    seven = parse("tpu7x:4x4x4")
    link = seven.chip.link
    assert rate(seven, line(4)) == link  # a ring of two, for half of the chip
    assert rate(seven, [(*p[:3], core) for p in line(4) for core in (0, 1)]) == 2 * link
    assert rate(seven, [(0, 0, 0, 0), (0, 0, 0, 1)]) == 6 * link


def test_between_slices_each_device_moves_its_part_of_what_its_slice_has():
    two = parse("v6e:16x16*2")
    far = [(0, 0, 0, 0), (1, 0, 0, 0)]
    assert seconds(two, 1e9, far) == (0.0, pytest.approx(1e9 / two.chip.device_dcn))
    ring = [(s, *place) for s in (0, 1) for place in line(16, 2, 1)]
    whole = 1e9  # an all-reduce of this: 2 (n - 1) / n of it is sent in all
    near, between = seconds(two, 2 * whole * 31 / 32, ring)
    assert near == pytest.approx(2 * whole * 15 / 16 / (2 * two.chip.link))
    assert between == pytest.approx(2 * (whole / 16) / 2 / two.chip.device_dcn)


def test_a_step_takes_at_least_its_slowest_part_and_at_most_all():
    v5p = parse("v5p:4x4x4")
    found = times(v5p, Flops(products=459e12 * 0.9), 2.765e12 / 2, {"ici:fsdp": 0.25})
    assert found.parts == {"matrix": 1.0, "memory": 0.5, "ici:fsdp": 0.25}
    assert (found.overlapped, found.serial, found.bound) == (1.0, 1.75, "matrix")
    assert Times({"matrix": 1.0, "dcn:data": 2.0}).bound == "dcn:data"


@pytest.mark.parametrize(
    ("topology", "kind", "seconds"),
    [("v5e:4x4", "int8", 1 + 197 / 393), ("v5e:4x4", "fp8", 2.0), ("v5p:4x4x4", "int8", 1.5),
     ("v5p:4x4x4", "fp8", 2.0), ("tpu7x:4x4x4", "int8", 2.0), ("tpu7x:4x4x4", "fp8", 1.5)],
)  # fmt: skip
def test_products_of_eight_bits_take_as_long_as_the_chip_says(topology, kind, seconds):
    topology = parse(topology)
    rate = topology.chip.device_flops * topology.chip.matmul
    work = Flops(products=2 * rate, **{kind: rate})
    assert matrix(topology, work) == pytest.approx(seconds)


def test_a_forecast_is_tokens_days_and_money():
    v5p, step = parse("v5p:4x4x4"), 2.0
    flops = 0.5 * step * 64 * CHIPS["v5p"].flops
    run = forecast(v5p, step, 1_000_000, flops, tokens=43.2e9, price=4.2)
    assert (run.tokens_per_second, run.mfu, run.days) == (500_000, 0.5, 1.0)
    assert run.cost == pytest.approx(24 * 64 * 4.2)
    silent = forecast(v5p, step, 1_000_000, flops)
    assert silent.days is None
    assert silent.cost is None
