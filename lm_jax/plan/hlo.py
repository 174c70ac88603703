"""The compiled program as instructions, each with the number of times it runs in a step."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "token": 0, "opaque": 0, "c64": 8, "c128": 16}  # others have bits in the name
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", re.DOTALL)
HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
END = re.compile(r"\}(, execution_thread=\S+)?\s*$")
CALLS = re.compile(r"(?:calls|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Array(NamedTuple):
    """One array of the result of an instruction."""

    dtype: str
    shape: tuple[int, ...]
    on_chip: bool  # in VMEM (a layout with S(1)), not in HBM

    @property
    def bytes(self) -> float:
        """Bytes without padding."""
        bits = re.search(r"\d+", self.dtype)
        each = BYTES[self.dtype] if self.dtype in BYTES else int(bits[0]) / 8 if bits else 0
        return math.prod(self.shape) * each


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]  # of the result, those of a tuple in order
    operands: tuple[str, ...]
    text: str  # after the operands: attributes
    literal: str  # between the brackets: the value of a constant, the number of a parameter

    @property
    def calls(self) -> list[str]:
        """Names of the computations that it calls."""
        found = CALLS.findall(self.text)
        for group in BRANCHES.findall(self.text):
            found += [name.strip().lstrip("%") for name in group.split(",")]
        return found

    def called(self, role: str) -> str:
        """The computation in this role: body, condition, calls."""
        found = re.search(rf"\b{role}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""


class Computation(dict[str, Instruction]):
    """Instructions by name; `root` is what it returns."""

    root: Instruction

    def parameter(self, number: int) -> Instruction:
        """The instruction for operand `number` of the caller."""
        return next(
            i for i in self.values() if i.opcode == "parameter" and i.literal == str(number)
        )

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read the result of `name`."""
        return [i for i in self.values() if name in i.operands]


@dataclasses.dataclass
class Program:
    """A compiled program, as one device runs it."""

    computations: dict[str, Computation]
    entry: str
    unknown: list[str] = dataclasses.field(default_factory=list)  # loops of unknown trip count

    def instructions(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """(computation, instruction, number of runs) of everything that runs in sequence: in loops,
        calls and branches (each of them, as if it were taken), not inside fusions.
        """
        self.unknown = []
        yield from self.instructions_of(self.entry, 1.0)

    def instructions_of(
        self, name: str, times: float
    ) -> Iterator[tuple[Computation, Instruction, float]]:
        """`instructions` of one computation that runs so many times."""
        computation = self.computations[name]
        for instruction in computation.values():
            if instruction.opcode == "while":
                steps = self.trip_count(computation, instruction)
                yield from self.instructions_of(instruction.called("body"), times * steps)
            elif instruction.opcode in ("call", "conditional"):
                for inner in instruction.calls or [instruction.called("to_apply")]:
                    yield from self.instructions_of(inner, times)
            else:
                yield computation, instruction, times

    def trip_count(self, where: Computation, loop: Instruction) -> float:
        """Number of iterations of a loop's body, 1 where it cannot be determined (see `unknown`):
        as noted by the compiler, or from a counter between two constants.
        """
        if known := re.search(r'known_trip_count[\\":{ ]+n[\\": ]+(\d+)', loop.text):
            return int(known[1])
        condition = self.computations[loop.called("condition")]
        compare = follow(condition, condition.root)
        numbers = [follow(condition, condition[name]) for name in compare.operands]
        direction = re.search(r"direction=(LT|LE)", compare.text)
        index = re.search(r"index=(\d+)", numbers[0].text) if numbers else None
        if not direction or not index or numbers[1].opcode != "constant":
            self.unknown.append(loop.name)
            return 1
        place, stop = int(index[1]), int(numbers[1].literal) + (direction[1] == "LE")
        begin, step = self.first_value(where, loop, place), self.increment(loop, place)
        return max(0, math.ceil((stop - begin) / step))

    def first_value(self, where: Computation, loop: Instruction, place: int) -> int:
        """The first value of the counter of a loop, 0 where it is not a constant."""
        carried = follow(where, where[loop.operands[0]])
        if carried.opcode != "tuple":
            return 0
        first = follow(where, where[carried.operands[place]])
        return int(first.literal) if first.opcode == "constant" else 0

    def increment(self, loop: Instruction, place: int) -> int:
        """Increment of a loop's counter in one iteration, 1 where it is not a constant."""
        body = self.computations[loop.called("body")]
        last = body[body.root.operands[place]] if body.root.opcode == "tuple" else body.root
        if last.opcode == "fusion":
            body = self.computations[last.called("calls")]
            last = body.root
        terms = [follow(body, body[name]) for name in last.operands] if last.opcode == "add" else []
        by = [int(term.literal) for term in terms if term.opcode == "constant"]
        return by[0] if len(by) == 1 and by[0] > 0 else 1


def follow(computation: Computation, instruction: Instruction) -> Instruction:
    """The source of a chain of copies."""
    while instruction.opcode in (
        "copy",
        "bitcast",
        "copy-done",
        "copy-start",
        "optimization-barrier",
    ):
        instruction = computation[instruction.operands[0]]
    return instruction


def parse(text: str) -> Program:
    """The text of a compiled module (compiled.as_text()) -> Program."""
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = waiting = ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = Computation()
            computations[header[2]] = current
            entry = header[2] if header[1] else entry
        elif current is None:
            continue
        elif END.match(line):
            add(current, waiting)
            current, waiting = None, ""
        elif LINE.match(line):
            add(current, waiting)
            waiting = line
        else:  # attributes that go on over lines
            waiting += line
    return Program(computations, entry)


def add(computation: Computation, text: str) -> None:
    """Reads one instruction, `%name = type opcode(operands), attributes`."""
    found = LINE.match(text)
    if not found:
        return
    rest = found[3]
    type_end = closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    start = rest.index("(", type_end)
    end = closing(rest, start)
    inside = rest[start + 1 : end]
    opcode = rest[type_end:start].strip()
    instruction = Instruction(
        found[2],
        opcode,
        tuple(arrays(rest[:type_end])),
        tuple(re.findall(r"%([\w.\-]+)", inside)),
        rest[end + 1 :],
        inside if opcode in ("constant", "parameter") else "",
    )
    computation[instruction.name] = instruction
    if found[1]:
        computation.root = instruction


def arrays(text: str) -> Iterator[Array]:
    """Parses the text of a type into arrays."""
    for dtype, shape, layout in ARRAY.findall(text):
        sizes = tuple(int(size.lstrip("<=")) for size in shape.split(",") if size)
        yield Array(dtype, sizes, "S(" in layout)


def closing(text: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)
