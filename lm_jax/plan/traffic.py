"""HBM traffic of a device in a step, read from the compiled program.

An instruction reads its operands and writes its result once, unless they are in VMEM; of an operand
that is only sliced, the slice, and of a result that is updated in place, the update. It is a lower
bound for kernels and products that read an operand more than once.
"""

from lm_jax.plan.hlo import Array, Computation, Instruction, Program

# Opcodes that move nothing, or whose bytes are counted where the move starts.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "partition-id", "replica-id", "optimization-barrier", "add-dependency")  # fmt: skip
FREE_TARGETS = ('custom_call_target="AllocateBuffer"', 'custom_call_target="ConcatBitcast"')
SLICES = ("dynamic-slice", "slice", "gather")


def traffic(program: Program) -> float:
    """Bytes that one device reads from its memory and writes to it in a step."""
    return sum(moved(program, where, i) * times for where, i, times in program.instructions())


def moved(program: Program, where: Computation, instruction: Instruction) -> float:
    """Bytes of one instruction."""
    opcode, arrays = instruction.opcode, instruction.arrays
    if (
        opcode in FREE
        or opcode.endswith("-done")
        or any(n in instruction.text for n in FREE_TARGETS)
    ):
        return 0.0
    if opcode == "send":  # (data, context, token)
        return hbm_bytes(arrays[0])
    if opcode == "copy-start":  # (destination, source, context)
        return hbm_bytes(arrays[0]) + hbm_bytes(arrays[1])
    operands = [where[name] for name in instruction.operands]
    if opcode in (*SLICES, "slice-start"):  # a slice-start: ((operand), slice, context)
        part = arrays[len(arrays) > 1]
        return part.bytes * (in_hbm(operands[0]) + (not part.on_chip))
    if opcode == "dynamic-update-slice":
        return operands[1].arrays[0].bytes * (in_hbm(operands[1]) + in_hbm(instruction))
    if opcode.endswith("-start"):  # its operands and its results
        return sum(map(hbm_bytes, arrays))
    if opcode != "fusion":
        return sum(map(hbm_bytes, arrays)) + sum(hbm_bytes(a) for o in operands for a in o.arrays)
    body = program.computations[instruction.called("calls")]
    total = written(program, body, body.root, arrays)
    for number, operand in enumerate(operands):
        if in_hbm(operand):
            total += read(program, body, body.parameter(number))
    return total


def hbm_bytes(array: Array) -> float:
    """Bytes of an array in HBM."""
    return 0.0 if array.on_chip else array.bytes


def in_hbm(instruction: Instruction) -> bool:
    """Whether the first array of a result is in HBM."""
    return not instruction.arrays[0].on_chip


def read(program: Program, body: Computation, source: Instruction) -> float:
    """HBM bytes that a fusion reads of a parameter, or of a view of it."""
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
    """HBM bytes that a fusion writes of a result, where `arrays` are those of the caller."""
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
    return sum(map(hbm_bytes, arrays))
