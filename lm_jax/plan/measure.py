"""Memory, FLOPs and communication of a config's train step on a topology, counted in the program of
the TPU compiler.
"""

import dataclasses
import time
from typing import Any

import jax

from lm_jax.config import Config
from lm_jax.config.cost import flops_per_token
from lm_jax.devices.chips import Topology
from lm_jax.devices.sharding import bytes_per_device
from lm_jax.plan import hlo, roofline
from lm_jax.plan.collectives import Collective, bytes_by, collectives
from lm_jax.plan.flops import Counter, Flops
from lm_jax.plan.traffic import traffic
from lm_jax.training import ahead_of_time, out_of_memory


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    parameters: float
    optimizer: float  # and the rest of the state
    batch: float
    temporaries: float  # activations, gradients, gathered weights; by the compiler
    peak: float  # all of them, and what is not donated; by the compiler
    limit: float  # what a program may use


@dataclasses.dataclass(frozen=True)
class Moved:
    """Bytes that one device moves in a step, and what that and its operations take."""

    traffic: float  # between the device and its HBM
    sent: dict[str, float]  # to other devices, by axes of the mesh
    sent_by_kind: dict[str, float]
    times: roofline.Times


@dataclasses.dataclass(frozen=True)
class Measured:
    """Measurements of one step."""

    memory: Memory
    flops: Flops  # of one device
    all_flops: Flops  # of all devices, where nothing is done twice
    moved: Moved | None  # None where the compiler refused the program: it does not fit
    unknown: tuple[str, ...]  # names of what could not be counted
    compile_seconds: float  # of the CPU, tracing included
    # Where it does not fit: what is largest, and what makes it smaller.
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the compiler found room for it."""
        return self.moved is not None


def measure(config: Config, topology: Topology) -> Measured:
    """Traces, compiles and counts; the mesh of `config` has no -1. Raises UserError where mesh or
    batch do not fit the topology, MachineError without the compiler.
    """
    began = time.process_time()
    devices = ahead_of_time.devices(topology.slice_name, topology.slices)
    step = ahead_of_time.trace_step(config, devices)
    # A device's share of the rows, if the experts are chosen equally often.
    share = 1 / config.mesh.expert
    flops = Counter(per_device=True, ragged=share).closed(step.traced.jaxpr)
    everything = Counter(ragged=share).closed(step.traced.jaxpr)
    unknown = tuple(flops.uncounted)
    bytes_of = lambda tree: sum(map(bytes_per_device, jax.tree.leaves(tree)))
    model, state, batch = map(bytes_of, (step.state.model, step.state, step.batch))
    memory = Memory(model, state - model, batch, 0.0, 0.0, topology.chip.device_hbm)
    try:
        compiled = step.compile()
    except jax.errors.JaxRuntimeError as error:
        advice = out_of_memory.advice(str(error), step.config, out_of_memory.held(step))
        if not advice:
            raise
        needed, _ = out_of_memory.amounts(str(error)) or (0, 0)
        memory = dataclasses.replace(memory, peak=needed, temporaries=needed - state - batch)
        took = time.process_time() - began
        return Measured(memory, flops, everything, None, unknown, took, tuple(advice))
    took = time.process_time() - began
    analysis = compiled.memory_analysis()
    # temp_size_in_bytes also counts buffers that are never live at the same time: it can exceed
    # the memory of a program that fits.
    peak = analysis.peak_memory_in_bytes
    state_bytes = (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    memory = dataclasses.replace(memory, peak=peak, temporaries=peak - state_bytes)
    program = hlo.parse(compiled.as_text())
    moved = count_moved(program, step.mesh, topology, flops)
    unknown += tuple(f"the steps of the compiled loop {name}" for name in program.unknown)
    return Measured(memory, flops, everything, moved, unknown, took)


def count_moved(program: hlo.Program, mesh: Any, topology: Topology, work: Flops) -> Moved:
    """Counts the bytes that a program moves, and its times; `work`: FLOPs of a device."""
    found, own = collectives(program, mesh.shape), traffic(program)
    times = roofline.times(topology, work, own, collective_seconds(found, mesh, topology))
    by_axes = bytes_by(found, lambda each: "+".join(each.axes))
    return Moved(own, by_axes, bytes_by(found, lambda each: each.kind), times)


def collective_seconds(found: list[Collective], mesh: Any, topology: Topology) -> dict[str, float]:
    """Seconds of collectives by network and axes: {"ici:fsdp": ..., "dcn:data": ...}, each group
    assumed to be as fast as the first.
    """
    devices = mesh.devices.reshape(-1)
    total: dict[str, float] = {}
    for each in found:
        if not each.axes:
            continue
        places = [roofline.place(devices[i], topology) for i in each.groups[0]]
        ici, dcn = roofline.seconds(topology, each.sent, places)
        for name, seconds in (("ici", ici), ("dcn", dcn)):
            if seconds:
                part = f"{name}:{'+'.join(each.axes)}"
                total[part] = total.get(part, 0.0) + seconds
    return total


def model_flops(config: Config) -> float:
    """FLOPs that the model needs for a step, nothing done twice (config.cost.flops_per_token)."""
    return flops_per_token(config.model, config.data.sequence_length) * config.tokens_per_step
