"""Roofline: lower and upper bounds of a step's time, and what a run costs.

Each part of a chip (matrix unit, HBM, links) needs some time for its work of a step (Williams et
al. 2009, doi:10.1145/1498765.1498785). If all overlap, the step takes as long as the slowest part,
its bound; if none do, as long as their sum. Measured times lie between.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm_jax.devices.chips import Topology
from lm_jax.plan.flops import Flops

DIE_TO_DIE = 6  # links, in bandwidth, between the two devices of a tpu7x [cloud: tpu7x]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a step by parts: matrix, memory, ici:AXES and dcn:AXES of the mesh."""

    parts: dict[str, float]

    @property
    def overlapped(self) -> float:
        """Seconds if all parts overlap."""
        return max(self.parts.values())

    @property
    def serial(self) -> float:
        """Seconds if no parts overlap."""
        return math.fsum(self.parts.values())

    @property
    def ends(self) -> dict[str, float]:
        """Lower and upper bound, by name."""
        return {"overlapped": self.overlapped, "serial": self.serial}

    @property
    def bound(self) -> str:
        """The part that takes longest."""
        return max(self.parts, key=lambda name: self.parts[name])


def times(topology: Topology, work: Flops, memory: float, network: Mapping[str, float]) -> Times:
    """Times of one device in a step from its FLOPs, HBM bytes, and seconds
    of the network (see `seconds`).
    """
    own = {"matrix": matrix(topology, work), "memory": memory / topology.chip.device_hbm_rate}
    return Times(own | dict(network))


def matrix(topology: Topology, work: Flops) -> float:
    """Seconds of the matrix unit of a device; products in eight bits that the chip
    does not speed up are counted as bfloat16.
    """
    chip = topology.chip
    low = {"int8": max(chip.int8, chip.flops), "fp8": max(chip.fp8, chip.flops)}
    full = work.matrix - work.int8 - work.fp8
    whole = full / chip.flops + sum(getattr(work, name) / rate for name, rate in low.items())
    return whole * chip.devices / chip.matmul


def seconds(
    topology: Topology, sent: float, places: Sequence[tuple[int, ...]]
) -> tuple[float, float]:
    """(inside slices, between them) of a collective in which each device of a group sends `sent`
    bytes. places: the `place` of each of its devices.

    A group across slices works in two stages: inside each slice, then between slices, each device
    with its own part.
    """
    slices = len({place[0] for place in places})
    inner = [place[1:] for place in places if place[0] == places[0][0]]
    near = len(inner)
    far = (1 - 1 / slices) / near / (1 - 1 / (near * slices)) if slices > 1 else 0.0
    here = sent * (1 - 1 / near) / (1 - 1 / (near * slices)) if near > 1 else 0.0
    return (here / rate(topology, inner) if here else 0.0), sent * far / topology.chip.device_dcn


def place(device: Any, topology: Topology) -> tuple[int, ...]:
    """(slice, torus coordinates..., core of the chip) of a jax device."""
    coords = device.coords[: len(topology.shape)]
    return getattr(device, "slice_index", 0), *coords, device.core_on_chip


def rate(topology: Topology, places: Sequence[tuple[int, ...]]) -> float:
    """Bytes a second that a device can send to the others of a group inside of a slice: both ways
    of a ring, one of a line, over all dimensions in which the group extends, if the collective uses
    them at once. The devices of a chip share its links; where both are in the group, they also
    share what arrives.
    """
    chip = topology.chip
    *extents, devices = (len(set(column)) for column in zip(*places, strict=True))
    if not chip.is_tpu:
        return chip.link
    links = sum(
        2 if ring and extent == size else 1
        for extent, size, ring in zip(extents, topology.shape, topology.wrapped, strict=True)
        if extent > 1
    )
    return chip.link * (links * devices / chip.devices if links else DIE_TO_DIE)


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Time and cost of a run whose step takes `seconds`."""

    seconds: float
    tokens_per_second: float
    mfu: float  # without recomputation
    days: float | None  # of the whole run; None where its tokens are unknown
    cost: float | None  # USD; None where the price is unknown


def forecast(
    topology: Topology, step: float, tokens_per_step: int, model_flops: float,
    tokens: float = 0.0, price: float = 0.0,
) -> Forecast:  # fmt: skip
    """Forecast of a run of `tokens` in all at `price` for an hour of a chip, where a step takes
    `step` seconds and the model needs `model_flops` for it (6 times parameters times tokens, and
    attention: config.cost.flops_per_token).
    """
    days = tokens / tokens_per_step * step / 86_400 if tokens else None
    cost = days * 24 * topology.chips * price if days and price else None
    mfu = model_flops / (step * topology.chip.flops * topology.chips)
    return Forecast(step, tokens_per_step / step, mfu, days, cost)
