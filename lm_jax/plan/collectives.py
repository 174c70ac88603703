"""Bytes that each device sends in a step, along each axis of the mesh, read from the compiled
program.

A device of a ring of n sends (n - 1) / n of the whole for an all-gather, a reduce-scatter or an
all-to-all, and twice that for an all-reduce (Chan et al. 2007, doi:10.1002/cpe.1206, section 4).
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from lm_jax.errors import MachineError
from lm_jax.plan.hlo import Computation, Instruction, Program

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
         "collective-permute", "collective-broadcast")  # fmt: skip
# The TPU compiler writes a reduce-scatter as a fusion of an all-reduce with the slice that follows.
SCATTER = "all-reduce-scatter"
LIST = re.compile(r"replica_groups=\{(\{[\d,{} ]*\})?\}")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)")
MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^ ]*)\))? \{([^}]*)\}")
ORDER = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?")
PART = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")
# Between slices the TPU compiler sends through the hosts; devices are those of one slice.
MEGASCALE = re.compile(
    r'_xla_megascale_target="\{([\d,:]+)\}.*_xla_megascale_transfer_type="(\w+)"'
)
PAIRS = re.compile(r"source_target_pairs=\{([\d,{} ]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction that moves data between devices."""

    kind: str
    name: str  # of the operation in the source, where the compiler notes it
    axes: tuple[str, ...]  # of the mesh, along which its groups lie; () for none or another order
    groups: np.ndarray  # [groups, size] places in the mesh; of a permute: [pairs, 2]
    whole: float  # bytes of what a group has together; of a permute: of what a device sends
    times: float  # how often it runs in a step

    @property
    def size(self) -> int:
        """Devices of a group."""
        return self.groups.shape[1]

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step."""
        part = (self.size - 1) / self.size
        share = {"all-reduce": 2 * part, "collective-permute": 1.0}.get(self.kind, part)
        return self.whole * share * self.times


def collectives(program: Program, mesh: Mapping[str, int]) -> list[Collective]:
    """Those of a program compiled for a mesh of these axes (name: size), in order.

    Raises MachineError at one whose groups cannot be read.
    """
    return [
        found
        for where, instruction, times in program.instructions()
        for found in collectives_of(program, where, instruction, times, mesh)
    ]


def collectives_of(program: Program, where: Computation, instruction: Instruction, times: float,
           mesh: Mapping[str, int], scatter: bool = False) -> Iterator[Collective]:  # fmt: skip
    """Collectives of an instruction, also inside fusions and asynchronous computations."""
    kind = instruction.opcode.removesuffix("-start")
    if kind in KINDS:
        yield collective(where, instruction, "reduce-scatter" if scatter else kind, times, mesh)
    elif kind == "send" and (found := MEGASCALE.search(instruction.text)):
        kind = found[2].lower().replace("_", "-")
        groups = between_slices(found[1], math.prod(mesh.values()))
        yield collective(where, instruction, kind, times, mesh, groups)
    elif kind in ("fusion", "async", "call"):  # a call-start: on another core of the chip
        for name in instruction.calls or [instruction.called("to_apply")]:
            called = program.computations[name]
            for inner in called.values():
                more = scatter or name.startswith(SCATTER)
                yield from collectives_of(program, called, inner, times, mesh, more)


def collective(where: Computation, instruction: Instruction, kind: str, times: float,
        mesh: Mapping[str, int], groups: np.ndarray | None = None) -> Collective:  # fmt: skip
    """The collective of an instruction, between `groups`, by default those of its attributes."""
    if groups is None:
        groups = group_array(instruction.text, math.prod(mesh.values()))
    held = sum(a.bytes for name in instruction.operands for a in where[name].arrays)
    whole = held * groups.shape[1] if kind == "all-gather" else held
    name = re.search(r'op_name="([^"]*)"', instruction.text)
    axes = axes_of(groups, mesh)
    return Collective(kind, name[1] if name else instruction.name, axes, groups, whole, times)


def group_array(text: str, count: int) -> np.ndarray:
    """[groups, size] of the attributes of a collective of `count` devices, in any of their forms:
    {{0,1},{2,3}}, [2,2]<=[4], [2,2]<=[2,2]T(1,0), mesh['a'=2,'b'=2] {'b'}, pairs.
    """
    if found := PAIRS.search(text):
        return np.array(integers(found[1]), int).reshape(-1, 2)
    if found := IOTA.search(text):
        return iota(found[2]).reshape(integers(found[1]))
    if found := MESH.search(text):
        groups = mesh_groups(found[1], found[3])
        return iota(found[2])[groups] if found[2] else groups
    if found := LIST.search(text):
        if not found[1]:
            return np.arange(count).reshape(1, count)
        return np.array([integers(part) for part in re.findall(r"\{([^{}]*)\}", found[1])])
    raise MachineError(
        f"the compiler's program has groups of devices in an unknown form: {text[:160]}"
    )


def between_slices(slices: str, count: int) -> np.ndarray:
    """[devices of a slice, slices] of `count` devices in slices of these numbers, "1,2" or "1:4":
    each device with those at its place in the other slices.
    """
    parts = [integers(part) for part in slices.split(",")]
    number = sum(part[-1] - part[0] + 1 for part in parts)
    return np.arange(count).reshape(number, -1).T


def integers(text: str) -> list[int]:
    """All whole numbers in a text."""
    return [int(number) for number in re.findall(r"\d+", text)]


def iota(text: str) -> np.ndarray:
    """'[2,4]T(1,0)' -> 0 4 1 5 2 6 3 7: the numbers of an array of this shape, transposed."""
    found = ORDER.match(text)
    if not found:
        raise MachineError(
            f"the compiler's program has an order of devices in an unknown form: {text}"
        )
    shape = integers(found[1])
    order = integers(found[2]) if found[2] else range(len(shape))
    return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1)


def mesh_groups(mesh: str, names: str) -> np.ndarray:
    """Groups along axes of a mesh of the compiler's own: "'a'=2,'b'=8" and "'b':(2)4", the part of
    size 4 of b, after one of 2. Each axis is split into the parts that are named and those between.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    taken = [(name, int(before or 1), int(size or sizes[name]))
             for name, before, size in PART.findall(names)]  # fmt: skip
    shape: list[int] = []
    inner: dict[tuple[str, int], int] = {}  # (axis, size before it) -> its dimension in `shape`
    for name, size in sizes.items():
        before = 1
        for start, part in sorted((b, s) for n, b, s in taken if n == name):
            shape.append(start // before)
            inner[name, start] = len(shape)
            shape.append(part)
            before = start * part
        shape.append(size // before)
    last = [inner[name, before] for name, before, _ in taken]
    first = [dim for dim in range(len(shape)) if dim not in last]
    ids = np.arange(math.prod(shape)).reshape(shape).transpose(first + last)
    return ids.reshape(-1, math.prod(part for _, _, part in taken))


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of a mesh, devices in its order, along which the members of a group differ."""
    places = np.unravel_index(groups, tuple(mesh.values()))
    return tuple(
        name for name, place in zip(mesh, places, strict=True) if (place != place[:, :1]).any()
    )


def bytes_by(found: Iterable[Collective], key: Callable[[Collective], str]) -> dict[str, float]:
    """{key: bytes that a device sends in a step}, largest first."""
    total: dict[str, float] = {}
    for each in found:
        total[key(each)] = total.get(key(each), 0.0) + each.sent
    return dict(sorted(total.items(), key=lambda item: -item[1]))
