"""Search over meshes, remat policies, microbatches and chips. Every plan that passes the checks is
estimated, and the best few are compiled.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from lm_jax.config import Config, MeshConfig, ModelConfig
from lm_jax.config.field import facts_of
from lm_jax.config.mesh_check import BATCH_AXES
from lm_jax.devices.chips import CHIPS, Topology
from lm_jax.errors import UserError
from lm_jax.plan import compiler_process, request
from lm_jax.plan.estimate import Estimate, check_estimable, estimate, part_of
from lm_jax.plan.measure import Measured
from lm_jax.plan.memory import memory
from lm_jax.plan.roofline import Times

# Offloading is planned only where it is named: the link to the host is not modelled.
REMAT = tuple(policy for policy in facts_of(ModelConfig)["remat"].choices if policy != "offload")
MAX_UNFIT = 12  # plans that are shown where none fits
MIN_CONTEXT_TOKENS = 16_384  # windows from this length on may be split over `context`
MAX_CHIPS = 4096  # of the topologies that are searched where none is named


@dataclasses.dataclass(frozen=True)
class Plan:
    """An estimate, with the compiler's measurements where it was compiled."""

    estimate: Estimate
    measured: Measured | None = None
    failed: str = ""  # the error where the compiler failed

    @property
    def config(self) -> Config:
        """The planned config."""
        return self.estimate.config

    @property
    def peak(self) -> float:
        """Peak bytes of a device."""
        return self.measured.memory.peak if self.measured else self.estimate.memory.total

    @property
    def times(self) -> Times:
        """Times of a step."""
        moved = self.measured and self.measured.moved
        return moved.times if moved else self.estimate.times

    @property
    def fits(self) -> bool:
        """Whether a device has that much memory."""
        return not self.failed and (self.measured or self.estimate).fits

    @property
    def source(self) -> str:
        """Origin of the figures: compiled or estimated."""
        return "failed" if self.failed else "compiled" if self.measured else "estimated"


def search(config: Config, topology: Topology, remat: str = "") -> list[Plan]:
    """All plans that fit, by their time without overlap; where none does, a few, by their memory.
    Each mesh and policy has the fewest microbatches that fit; the mesh and microbatches of `config`
    are ignored. remat: this policy alone.

    Raises UserError when the batch divides over no mesh.
    """
    found = candidates(config, topology, remat)
    limit = topology.chip.device_hbm
    near = [tried for need, tried in found if need <= limit]
    if not near:
        near = [tried for _, tried in sorted(found, key=lambda each: each[0])[:MAX_UNFIT]]
    plans = [Plan(estimate(tried, topology)) for tried in near]
    alike = {(plan.config.mesh, plan.times.serial, plan.peak): plan for plan in plans}
    return sorted(alike.values(), key=rank_key)


def candidates(config: Config, topology: Topology, remat: str = "") -> list[tuple[int, Config]]:
    """Every mesh with every policy: (bytes of a device, config). Raises UserError without any."""
    found = [
        with_microbatches(dataclasses.replace(with_remat(config, policy), mesh=mesh), topology)
        for mesh in meshes(config, topology)
        for policy in ((remat,) if remat else REMAT)
    ]
    if not found:
        raise UserError(
            f"config.batch_size={config.batch_size}: divides over no mesh of the "
            f"{topology.devices} devices of {topology} that config.model can be cut over; "
            f"nearest: {-(-config.batch_size // topology.devices) * topology.devices}."
        )
    return found


def with_remat(config: Config, policy: str) -> Config:
    """`config` with this remat policy."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=policy))


def rank_key(plan: Plan) -> tuple:
    """Sort key of plans."""
    return not plan.fits, not plan.measured, plan.times.serial, plan.peak


def meshes(config: Config, topology: Topology) -> Iterator[MeshConfig]:
    """Meshes of all devices that pass the checks; without pipelines, which have no estimate, and
    without the slice axis, which is equivalent to a larger data axis.
    """
    axes = [axis for axis in request.AXES if axis not in ("slice", "stage")]
    for sizes in factors(topology.devices, len(axes)):
        mesh = MeshConfig(**dict(zip(axes, sizes, strict=True)))
        if mesh.expert > 1 and not config.model.num_experts:
            continue  # equivalent to a larger data axis
        if mesh.context > 1 and config.data.sequence_length < MIN_CONTEXT_TOKENS:
            continue  # equivalent to a larger fsdp axis that sends more
        tried = dataclasses.replace(config, mesh=mesh, microbatches=1)
        try:
            request.check_on(tried, topology)
            if mesh.context > 1:  # whose pieces of a row may not divide, or be too short
                part_of(tried, topology)
        except UserError:
            continue
        yield mesh


def factors(count: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `count` as a product of `parts` numbers, in order."""
    if parts == 1:
        yield (count,)
        return
    for first in range(1, count + 1):
        if count % first == 0:
            yield from ((first, *rest) for rest in factors(count // first, parts - 1))


def with_microbatches(config: Config, topology: Topology) -> tuple[int, Config]:
    """(bytes of a device, the config with the fewest microbatches that fits, or with the most)."""
    rows = config.batch_size // math.prod(getattr(config.mesh, axis) for axis in BATCH_AXES)
    counts = [count for count in range(1, rows + 1) if rows % count == 0]

    def need(count: int) -> int:
        tried = dataclasses.replace(config, microbatches=count)
        return memory(part_of(tried, topology)).total

    if need(1) <= topology.chip.device_hbm:
        return need(1), dataclasses.replace(config, microbatches=1)
    low, high = 0, len(counts) - 1  # from two on, memory falls with the number of microbatches
    while low < high:
        middle = (low + high) // 2
        if need(counts[middle]) <= topology.chip.device_hbm:
            high = middle
        else:
            low = middle + 1
    return need(counts[low]), dataclasses.replace(config, microbatches=counts[low])


def compiled(plans: Sequence[Plan], count: int) -> list[Plan]:
    """`plans`, the first `count` of them compiled (one process a core) and sorted again. Raises
    MachineError without the compiler.
    """
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        first = list(pool.map(with_compiler, plans[:count]))
    return sorted(first, key=rank_key) + list(plans[count:])


def with_compiler(plan: Plan) -> Plan:
    """The plan with the compiler's measurements, or its error."""
    try:
        return Plan(plan.estimate, compiler_process.measure(plan.config, plan.estimate.topology))
    except (jax.errors.JaxRuntimeError, compiler_process.CompilerError) as error:
        return Plan(plan.estimate, failed=" ".join(str(error).split())[:120])


def topologies() -> Iterator[Topology]:
    """Slices of every TPU from one host on, and hosts of GPUs, in powers of two."""
    for chip in CHIPS.values():
        shape = [1] * (chip.dims - 2) + [2, 2] if chip.is_tpu else [chip.host]
        hosts = 1
        while math.prod(shape) <= chip.max_chips and math.prod(shape) * hosts <= MAX_CHIPS:
            # Clouds write the shortest slice of three dimensions 2x2x1.
            yield Topology(chip, tuple(shape if 1 not in shape[:-1] else shape[::-1]), hosts)
            if chip.is_tpu:
                shape = sorted([shape[0] * 2, *shape[1:]])
            else:
                hosts *= 2


def everywhere(config: Config, remat: str = "") -> list[Plan]:
    """The best plan that fits of each topology, in the order of `topologies`. Raises UserError
    where none fits on any: for lack of memory, or as the first of them when all refuse.
    """
    check_estimable(config)
    found: list[Plan] = []
    refused: list[UserError] = []
    for topology in topologies():
        try:
            found.append(search(config, topology, remat)[0])
        except UserError as error:  # too many devices for this batch, or nothing for its chips
            refused.append(error)
    if not found:
        raise refused[0]
    if not (fitting := [best for best in found if best.fits]):
        raise UserError(
            f"config.batch_size={config.batch_size}: no slice of up to {MAX_CHIPS} chips has room "
            "for a step of it; try a smaller one, or --remat=full."
        )
    return fitting
