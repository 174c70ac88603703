"""Explanations of out-of-memory errors: what did not fit, and the fields of the config that make it
smaller.
"""

import contextlib
import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lm_jax.config import Config, MeshConfig
from lm_jax.devices import sharding
from lm_jax.errors import MachineError
from lm_jax.models.head import MAX_LOGITS
from lm_jax.training.ahead_of_time import Step, trace

# Memory needed and available, in the errors of the TPU compiler (at its end, twice at its start),
# of the TPU runtime, and of those of GPU and CPU.
AMOUNT = r"([\d.]+ ?(?:bytes|[KMGT]?(?:iB)?B?))\b"
AMOUNTS = (
    rf"Used {AMOUNT} of {AMOUNT} hbm",
    rf"temporaries \({AMOUNT}\) exceeds available HBM \({AMOUNT}\)",
    rf"Requires {AMOUNT}, has {AMOUNT} available",
    rf"Attempting to (?:allocate|reserve) {AMOUNT}.*?There are {AMOUNT} free",
    rf"[Oo]ut of memory (?:while trying to )?allocat\w+ {AMOUNT}",
)
# One array of the lists that the compilers of TPU and GPU give.
LISTED = re.compile(rf"\bSize: {AMOUNT}\n(.*?)={{5,}}", re.DOTALL)
MIN_SHARE = 0.02  # of all that is listed; smaller kinds are left out
OF_TOKENS = ("saved", "scores", "activations", "other")  # smaller with fewer tokens at a time
WORDS = {
    "parameters": "parameters",
    "optimizer": "the optimizer's state",
    "weights": "gradients, and weights while they are used",
    "logits": "logits",
    "saved": "saved activations of {layers} layers",
    "scores": "attention scores",
    "activations": "activations of a microbatch",
    "other": "other arrays",
}


class Array(NamedTuple):
    """The part of an array on one device, and the operation or state path that it comes from."""

    bytes: int
    shape: tuple[int, ...]
    name: str
    whole: tuple[int, ...] = ()  # the shape of a weight on all devices together


def advice(text: str, config: Config, arrays: Sequence[Array] = ()) -> list[str]:
    """Explains the error `text` of a compiler or a runtime: memory needed and present, then a line
    for each kind of array, the largest first, with the fields that make it smaller. Empty for other
    errors.

    config: with the sizes of its mesh filled in. arrays: what the step holds (`held`), of which
    only the state counts where the compiler itself lists what is largest.
    """
    if (numbers := amounts(text)) is None:
        return []
    need, has = numbers
    own = [array for array in arrays if array.name.startswith("state")]
    known = shapes(own)
    sizes: dict[str, int] = defaultdict(int)
    for array in own + listed if (listed := in_text(text)) else arrays:
        sizes[kind(array, config, known)] += array.bytes
    parts, of_tokens = 2.0, sum(sizes[name] for name in OF_TOKENS if name in sizes)
    if has and of_tokens > need - has > 0:  # so many parts of the batch would fit, all else equal
        parts = of_tokens / (of_tokens - (need - has))
    lines = [f"{gib(need)} are needed, {gib(has)} are there" if has else
             f"no room for {gib(need)}" if need else "no room"]  # fmt: skip
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if sizes[name] >= MIN_SHARE * sum(sizes.values()):
            what = WORDS[name].format(layers=config.model.num_layers)
            fields = ", or ".join(remedies(name, config, parts))
            lines.append(f"{what}, {gib(sizes[name])}: set {fields}")
    return lines


def amounts(text: str) -> tuple[int, int] | None:
    """(needed, available) in bytes, of the error of a compiler or a runtime, 0 for a number that it
    lacks; None when it is about something else, or another memory than the device's main one.
    """
    if "RESOURCE_EXHAUSTED" not in text or re.search(r"memory space (?!hbm)", text):
        return None
    for pattern in AMOUNTS:
        if match := re.search(pattern, text, re.DOTALL):
            need, *has = map(size, match.groups())
            return need, has[0] if has else 0
    return (0, 0) if "memory" in text else None


def shapes(state: Sequence[Array]) -> set[tuple[int, ...]]:
    """Shapes of the state's arrays and of one layer of them, on one device and gathered from all
    along some axes, in no order: the compiler transposes as it likes.
    """
    known = set()
    for array in state:
        for shape in itertools.product(*zip(array.shape, array.whole, strict=True)):
            known |= (
                {unordered(shape), unordered(shape[1:])} if len(shape) > 2 else {unordered(shape)}
            )
    return known


def unordered(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without an order and without the ones in it."""
    return tuple(sorted(size for size in shape if size > 1))


def in_text(text: str) -> list[Array]:
    """Largest arrays as the compiler lists them, if it does, but not what a program is given."""
    arrays = []
    for amount, more in LISTED.findall(text):
        name = re.search(r'op_name="([^"]*)"', more)
        shape = re.search(r"[Ss]hape: \w+\[([\d,]*)\]", more)
        sizes = tuple(map(int, filter(None, shape[1].split(",")))) if shape else ()
        if "Entry Parameter" not in more:
            arrays.append(Array(size(amount), sizes, name[1] if name else ""))
    return arrays


def size(text: str) -> int:
    """'21.25G', '6.00MiB', '9 bytes' -> bytes."""
    number, letter = re.fullmatch(r"([\d.]+) ?([KMGT]?).*", text).groups()  # type: ignore[union-attr]
    return round(float(number) * 1024 ** " KMGT".index(letter or " "))


def gib(number: float) -> str:
    """Bytes as the compilers write them: 2**30 is 1 GiB."""
    power = next(p for p in (40, 30, 20, 0) if number >= 2**p / 4)
    return f"{number / 2**power:.2f} { {40: 'TiB', 30: 'GiB', 20: 'MiB', 0: 'bytes'}[power] }"


def kind(array: Array, config: Config, known: set[tuple[int, ...]]) -> str:
    """The entry of WORDS that describes an array; known: the `shapes` of the state's arrays."""
    model, shape, name = config.model, array.shape, array.name
    if name.startswith("state"):
        return "optimizer" if name.startswith("state.opt") else "parameters"
    length, rows = config.data.sequence_length, max(1, microbatch(config) // ways(config))
    widths = {model.dim, model.mlp_size, model.head_size, model.value_size}
    widths |= {width // config.mesh.tensor for width in widths}
    words = {model.vocab_size, model.vocab_size // config.mesh.tensor} - widths - {length}
    if "->blv" in name or (words & set(shape) and len(shape) > 2):
        return "logits"
    if unordered(shape) in known or words & set(shape):
        return "weights"
    layers = {count // len(model.kinds) for count in (model.num_layers, model.encoder_layers)}
    tokens = {length, rows * length}
    stacked = len(shape) > 2 and shape[0] in layers - {0}
    if stacked and tokens & set(shape[1:]) and math.prod(shape[1:]) % (rows * length) == 0:
        return "saved"
    if "attention" in name and shape[-1:] not in {(1,), *((width,) for width in widths)}:
        return "scores"
    if tokens & set(shape) or math.prod(shape) % (rows * length) == 0:
        return "activations"
    return "weights" if stacked else "other"


def remedies(kind: str, config: Config, parts: float = 2) -> list[str]:
    """The fields that make arrays of a kind smaller, with values, the cheapest first; parts: in
    how many a microbatch should be cut.
    """
    model, mesh, optimizer = config.model, config.mesh, config.optimizer
    length, each = config.data.sequence_length, microbatch(config) // ways(config)
    changes: list[tuple[str, Any, Any]] = []
    if kind == "logits":
        now = config.loss.chunk_size
        each_position = 4 * max(1, each) * model.vocab_size // mesh.tensor
        auto = min(length, max(1, MAX_LOGITS // each_position))
        changes.append(("loss.chunk_size", 0 if now > auto else max(1, (now or auto) // 2), now))
    if kind == "scores" and model.attention == "xla":
        changes.append(("model.attention", "auto", "xla"))
    if kind in ("saved", "scores") and model.remat not in ("full", "offload"):
        changes.append(("model.remat", "full", model.remat))
    if kind in ("parameters", "optimizer", "weights"):
        if kind == "optimizer" and mesh.data > 1 and not optimizer.shard_state:
            changes.append(("optimizer.shard_state", True, False))
        fits = (n for n in range(mesh.data, 1, -1) if mesh.data % n == 0)
        if n := next((n for n in fits if model.dim % (mesh.fsdp * n) == 0), 0):
            value = f"{mesh.fsdp * n} with config.mesh.data={mesh.data // n}"
            changes.append(("mesh.fsdp", value, mesh.fsdp))
        else:
            changes.append(("mesh.fsdp", f"{2 * mesh.fsdp} on twice the devices", mesh.fsdp))
        if kind == "optimizer" and optimizer.name == "adamw":
            changes.append(("optimizer.name", "adafactor", "adamw"))
    elif each > 1:
        n = next((n for n in range(2, each) if each % n == 0 and n >= parts), each)
        changes.append(("microbatches", config.microbatches * n, config.microbatches))
    if not changes:
        changes.append(("data.sequence_length", max(1, length // 2), length))
    return [f"config.{field}={value} (now {now})" for field, value, now in changes]


def microbatch(config: Config) -> int:
    """Sequences of one microbatch."""
    return config.batch_size // config.microbatches


def ways(config: Config) -> int:
    """Number of devices that share a microbatch."""
    return math.prod(getattr(config.mesh, axis) for axis in sharding.RULES["batch"])


def held(step: Step) -> list[Array]:
    """Arrays that a device holds in a step: the state, gradients, saved activations, and of each
    other kind the largest array. An upper bound: the compiler may need less.
    """
    own = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(step.state):
        name = f"state{jax.tree_util.keystr(path)}"
        own.append(array_of(leaf, name)._replace(whole=leaf.shape))
    known = shapes(own)
    own += [
        array._replace(name="gradient") for array in own if array.name.startswith("state.model")
    ]
    largest: dict[str, Array] = {}
    for array in arrays_in(step.traced.jaxpr.jaxpr):
        name = kind(array, step.config, known)
        if name == "saved" and array.name.endswith(":scan") and "transpose" not in array.name:
            own.append(array)
        elif name not in ("saved", "weights"):
            largest[name] = max(array, largest.get(name, array))
    return own + list(largest.values())


def arrays_in(jaxpr: Any, inside: str = "") -> Iterator[Array]:
    """Results of the operations of a jaxpr, inside loops and functions, too."""
    for equation in jaxpr.eqns:
        scope = f"{inside}/{equation.source_info.name_stack}"
        name = f"{scope}:{equation.primitive.name}"
        for variable in equation.outvars:
            if hasattr(variable.aval, "dtype"):
                yield array_of(variable.aval, name)
        is_program = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from arrays_in(getattr(value, "jaxpr", value), scope)


def array_of(x: Any, name: str) -> Array:
    """The part of an abstract array on one device; inside a shard_map, an array of that shape."""
    place: Any = getattr(x, "sharding", None)
    shape = list(x.shape)
    for dimension, axes in enumerate(getattr(place, "spec", ())):
        for axis in (axes,) if isinstance(axes, str) else axes or ():
            shape[dimension] //= place.mesh.shape[axis]
    return Array(math.prod(shape) * x.dtype.itemsize, tuple(shape), name)


@contextlib.contextmanager
def explained(config: Config, mesh: Any, workdir: Any) -> Iterator[None]:
    """Ends what runs out of a device's memory with a MachineError of one line; what the compiler or
    the runtime wrote is kept in WORKDIR/out-of-memory-PROCESS.txt, where the disk takes it.
    """
    try:
        yield
    except Exception as error:
        text, arrays = str(error), list[Array]()
        if amounts(text) is None:
            raise
        with contextlib.suppress(Exception):  # nothing that goes wrong here may hide the error
            arrays = held(trace(config, mesh))
        filled = dataclasses.replace(config, mesh=MeshConfig(**mesh.shape))
        lines = advice(text, filled, arrays)
        file = Path(workdir) / f"out-of-memory-{jax.process_index()}.txt"
        shown = "; ".join(lines[:4])
        with contextlib.suppress(OSError):
            file.write_text("\n".join([*lines, "", text, ""]), "utf-8")
            shown += f"; all of it: {file}"
        device = described(mesh.local_devices[0])
        raise MachineError(f"out of memory on {device}: {shown}") from error


def described(device: Any) -> str:
    """The kind of a device and, where it reports it, how much of its memory was in use."""
    stats: dict[str, int] = {}
    with contextlib.suppress(RuntimeError):  # a backend that does not implement it
        stats = device.memory_stats() or {}
    used, limit = stats.get("peak_bytes_in_use"), stats.get("bytes_limit")
    return f"{device.device_kind} ({gib(used)} of {gib(limit)} in use)" if used and limit else (
        device.device_kind
    )  # fmt: skip
