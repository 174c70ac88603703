"""A collective is as fast as the wires between the devices that take part."""

import pytest

from lm_jax.devices.chips import parse
from lm_jax.plan.communication import seconds_per_byte


def test_an_axis_is_as_fast_as_its_place_in_the_torus():
    wires = seconds_per_byte(parse("v5p:4x4x4"), (("fsdp", 16), ("tensor", 4)))
    near = {axes: 1 / seconds for axes, (seconds, _) in wires.items()}
    assert near["tensor"] == pytest.approx(2 * 90e9)  # both ways of one ring
    assert near["fsdp"] == pytest.approx(4 * 90e9)
    assert near["fsdp+tensor"] == pytest.approx(6 * 90e9)


def test_between_slices_and_hosts_only_the_axis_that_crosses_waits_for_their_network():
    for topology, axes in (("v5e:4x4*2", "data"), ("h100:8*2", "data")):
        sizes = (("data", 2), ("fsdp", parse(topology).devices // 2), ("expert", 1), ("tensor", 1))
        wires = seconds_per_byte(parse(topology), sizes)
        assert wires[axes][1] > 0
        assert wires["fsdp"][1] == 0
