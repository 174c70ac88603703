"""Which mesh, what to compute again, how many microbatches, which chips? Every plan that the checks
let through is estimated, and the best few are compiled.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax

from lm_jax.config import Config, MeshConfig
from lm_jax.config_check import CHOICES, check_mesh
from lm_jax.errors import UserError
from lm_jax.plan import request
from lm_jax.plan.chips import CHIPS, Topology
from lm_jax.plan.estimate import Estimate, estimate
from lm_jax.plan.measure import Measured, measure
from lm_jax.plan.roofline import Times

REMAT = CHOICES["model.remat"]
MOST_CHIPS = 4096  # of a topology that is looked at where none is named


@dataclasses.dataclass(frozen=True)
class Plan:
    """An estimate, and what the compiler says of it where it was asked."""

    estimate: Estimate
    measured: Measured | None = None
    failed: str = ""  # what the compiler said if it broke

    @property
    def config(self) -> Config:
        """What is planned."""
        return self.estimate.config

    @property
    def peak(self) -> float:
        """Bytes of a device, all that it holds at once."""
        return self.measured.memory.peak if self.measured else self.estimate.memory.total

    @property
    def times(self) -> Times:
        """Of a step."""
        return (self.measured and self.measured.times) or self.estimate.times

    @property
    def fits(self) -> bool:
        """Whether a device has that much memory."""
        return not self.failed and (self.measured or self.estimate).fits

    @property
    def source(self) -> str:
        """Where the figures come from."""
        return "failed" if self.failed else "compiled" if self.measured else "estimated"


def search(config: Config, topology: Topology, remat: str = "") -> list[Plan]:
    """All plans, the best first: those that fit, by their time with nothing overlapped. Of each
    mesh and policy, the one with the fewest microbatches that fits; the mesh and microbatches of
    `config` count for nothing. remat: this policy alone.

    Raises UserError when the batch divides over no mesh.
    """
    found = [
        least(config, topology, sizes, policy)
        for sizes in meshes(config, topology)
        for policy in ((remat,) if remat else REMAT)
    ]
    if not found:
        raise UserError(
            f"config.batch_size={config.batch_size}: divides over no mesh of the "
            f"{topology.devices} devices of {topology} that config.model can be cut over; "
            f"nearest: --batch={-(-config.batch_size // topology.devices) * topology.devices}."
        )
    alike = {(plan.estimate.config.mesh, plan.times.serial, plan.peak): plan for plan in found}
    return sorted(alike.values(), key=order)


def order(plan: Plan) -> tuple:
    """What ranks plans."""
    return not plan.fits, not plan.measured, plan.times.serial, plan.peak


def meshes(config: Config, topology: Topology) -> Iterator[MeshConfig]:
    """Those over all devices that the checks let through."""
    for sizes in factors(topology.devices, len(request.AXES)):
        mesh = MeshConfig(**dict(zip(request.AXES, sizes, strict=True)))
        if mesh.expert > 1 and not config.model.num_experts:
            continue  # the same as so many more of data
        tried = dataclasses.replace(config, mesh=mesh, microbatches=1)
        try:
            check_mesh(tried)
            request.check_slices(tried, topology)
            request.check_batch(tried)
        except UserError:
            continue
        yield mesh


def factors(count: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `count` as a product of so many numbers."""
    if parts == 1:
        yield (count,)
        return
    for first in range(1, count + 1):
        if count % first == 0:
            yield from ((first, *rest) for rest in factors(count // first, parts - 1))


def least(config: Config, topology: Topology, mesh: MeshConfig, remat: str) -> Plan:
    """The plan with the fewest microbatches that fits, or with the most."""
    model = dataclasses.replace(config.model, remat=remat)
    ways = math.prod(getattr(mesh, axis) for axis in request.SPLIT)
    rows = config.batch_size // ways
    for count in (n for n in range(1, rows + 1) if rows % n == 0):
        tried = dataclasses.replace(config, model=model, mesh=mesh, microbatches=count)
        plan = Plan(estimate(tried, topology))
        if plan.fits:
            break
    return plan


def compiled(plans: Sequence[Plan], count: int) -> list[Plan]:
    """The plans with the first `count` of them compiled, the best first.

    Raises MachineError without the compiler.
    """
    return sorted([with_compiler(plan) for plan in plans[:count]], key=order) + list(plans[count:])


def with_compiler(plan: Plan) -> Plan:
    """The plan and what the compiler says of it."""
    try:
        return Plan(plan.estimate, measure(plan.config, plan.estimate.topology))
    except jax.errors.JaxRuntimeError as error:
        return Plan(plan.estimate, failed=" ".join(str(error).split())[:120])


def topologies() -> Iterator[Topology]:
    """Slices of every TPU from one host on, doubled; hosts of GPUs, doubled."""
    for chip in CHIPS.values():
        shape = [1] * (chip.dims - 2) + [2, 2] if chip.is_tpu else [chip.host]
        hosts = 1
        while math.prod(shape) <= chip.most and math.prod(shape) * hosts <= MOST_CHIPS:
            yield Topology(chip, tuple(shape), hosts)
            if chip.is_tpu:
                shape = sorted([shape[0] * 2, *shape[1:]])
            else:
                hosts *= 2


def everywhere(config: Config, remat: str = "") -> list[Plan]:
    """The best plan that fits of each topology, in the order of `topologies`."""
    found = []
    for topology in topologies():
        try:
            best = search(config, topology, remat)[0]
        except UserError:  # too many devices for this batch
            continue
        found += [best] if best.fits else []
    return found
