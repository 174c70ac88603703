"""Bytes moved between a device and its memory in a step, read from the compiled program.

An instruction reads its operands and writes its result once, what lies in the chip's own memory
aside; of an operand that is only sliced, the slice, and of a result that is updated in place, the
update. A lower bound of a kernel or a product that reads an operand more than once.
"""

from lm_jax.plan.hlo import Array, Computation, Instruction, Program

# They move nothing, or what they move is counted where it starts.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "partition-id", "replica-id", "optimization-barrier", "add-dependency")  # fmt: skip
NOTHING = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')
SLICES = ("dynamic-slice", "slice", "gather")


def traffic(program: Program) -> float:
    """Bytes that one device reads from its memory and writes to it in a step."""
    return sum(moved(program, where, i) * times for where, i, times in program.run())


def moved(program: Program, where: Computation, instruction: Instruction) -> float:
    """Bytes of one instruction."""
    opcode, arrays = instruction.opcode, instruction.arrays
    if opcode in FREE or opcode.endswith("-done") or any(n in instruction.text for n in NOTHING):
        return 0.0
    if opcode == "send":  # (what goes, a number, a token)
        return outside(arrays[0])
    if opcode == "copy-start":  # (there, here, a flag)
        return outside(arrays[0]) + outside(arrays[1])
    operands = [where[name] for name in instruction.operands]
    if opcode in (*SLICES, "slice-start"):  # a slice-start: ((whole), slice, a flag)
        part = arrays[len(arrays) > 1]
        return part.bytes * (in_memory(operands[0]) + (not part.on_chip))
    if opcode == "dynamic-update-slice":
        return operands[1].arrays[0].bytes * (in_memory(operands[1]) + in_memory(instruction))
    if opcode.endswith("-start"):  # its operands and its results
        return sum(map(outside, arrays))
    if opcode != "fusion":
        return sum(map(outside, arrays)) + sum(outside(a) for o in operands for a in o.arrays)
    body = program.computations[instruction.called("calls")]
    total = written(program, body, body.root, arrays)
    for number, operand in enumerate(operands):
        if in_memory(operand):
            total += read(program, body, body.parameter(number))
    return total


def outside(array: Array) -> float:
    """Bytes of it that are in the memory beside the chip."""
    return 0.0 if array.on_chip else array.bytes


def in_memory(instruction: Instruction) -> bool:
    """Whether its first result is in the memory beside the chip."""
    return not instruction.arrays[0].on_chip


def read(program: Program, body: Computation, source: Instruction) -> float:
    """Bytes of a parameter of a fusion, or of a view of it, that the fusion reads."""
    whole, total = source.arrays[0].bytes, 0.0
    for user in body.users(source.name):
        first = user.operands[0] == source.name
        if user.opcode == "bitcast" or "output_to_operand_aliasing" in user.text:
            total += read(program, body, user)  # the same bytes, by another name
        elif user.opcode in SLICES and first:
            total += user.arrays[0].bytes
        elif user.opcode == "fusion":
            inner = program.computations[user.called("calls")]
            for number, name in enumerate(user.operands):
                if name == source.name:
                    total += read(program, inner, inner.parameter(number))
        elif user.opcode != "dynamic-update-slice" or not first:  # else it is updated in place
            return whole
    return min(total, whole)


def written(program: Program, body: Computation, result: Instruction,
            arrays: tuple[Array, ...]) -> float:  # fmt: skip
    """Bytes of a result of a fusion that the fusion writes, where `arrays` are what comes out."""
    if result.opcode == "tuple":
        parts = zip(result.operands, arrays, strict=True)
        return sum(written(program, body, body[name], (array,)) for name, array in parts)
    if all(array.on_chip for array in arrays):
        return 0.0
    if result.opcode == "bitcast":
        return written(program, body, body[result.operands[0]], arrays)
    if result.opcode == "dynamic-update-slice":
        return body[result.operands[1]].arrays[0].bytes
    if result.opcode == "fusion":
        inner = program.computations[result.called("calls")]
        return written(program, inner, inner.root, arrays)
    return sum(map(outside, arrays))
