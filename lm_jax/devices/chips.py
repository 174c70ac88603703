"""Chips: their published rates, their names, and the slices and clusters they form.

Figures are per chip (a TPU v4, v5p and the "lite" ones are one JAX device, a tpu7x is two).
Sources: [cloud] the page of each TPU at docs.cloud.google.com/tpu/docs; [book] "How to scale your
model" (jax-ml.github.io/scaling-book, chapter 2), whose link rates are those that programs reach;
[libtpu] the memory available to a program in libtpu 0.0.42.1's errors; [nvidia] the data sheets of
A100, H100, H200, HGX B200 and of the DGX systems around them. Imports no jax: the launchers read
the table on machines that have none.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence

from lm_jax.errors import UserError, nearest

GiB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator. Rates are per second and chip, in one direction."""

    name: str  # the first part of a topology: v5p:4x4x4
    flops: float  # dense products of bfloat16
    hbm: float  # bytes available to a program
    hbm_rate: float  # bytes
    link: float  # bytes of one link to a neighbour; a GPU: of all its NVLinks, into the switch
    dims: int  # of the torus; 0: a switch, all pairs of chips at the rate of `link`
    wrap: int  # chips: a dimension of a multiple of this is a ring, a shorter one is a line
    max_chips: int  # in a slice, or GPUs behind one switch
    host: int  # chips of one host
    dcn: float  # bytes between slices, per host
    kinds: tuple[str, ...]  # parts of JAX's device_kind, lower case
    # Names in clouds: accelerators of GKE, types of gcloud, families of machine types.
    names: tuple[str, ...]
    gcloud: str = ""  # name in the Cloud TPU API, before the number of TensorCores
    cores: int = 1  # TensorCores, which gcloud counts
    devices: int = 1  # JAX devices
    int8: float = 0.0  # products; 0: no rate is published
    fp8: float = 0.0
    matmul: float = 0.9  # share of `flops` that a large product reaches

    @property
    def is_tpu(self) -> bool:
        """Whether this is a TPU, for which the TPU compiler can compile without one."""
        return self.dims > 0

    def faster(self, kind: str) -> bool:
        """Whether products of int8 or fp8 are much faster than those of bfloat16."""
        return getattr(self, kind) > 1.5 * self.flops

    @property
    def device_flops(self) -> float:
        """FLOP/s of one JAX device."""
        return self.flops / self.devices

    @property
    def device_hbm(self) -> float:
        """Bytes of one JAX device that are available to a program."""
        return self.hbm / self.devices

    @property
    def device_hbm_rate(self) -> float:
        """HBM bandwidth of one JAX device, in bytes per second."""
        return self.hbm_rate / self.devices

    @property
    def device_dcn(self) -> float:
        """Bytes per second between slices, per JAX device when all devices of a host send."""
        return self.dcn / (self.host * self.devices)


# Large products: 0.90 of the peak is measured on v6e (8192^3) and 0.83 on tpu7x (16384^3), by
# Google's tpu-recipes, microbenchmarks; other TPUs have v6e's. GPUs are limited by power: about 0.7
# on an H200.
CHIPS = {chip.name: chip for chip in (
    # [cloud] 275 TFLOP/s of bf16 or int8, 1200 GB/s; 30.75 GiB of 32 [libtpu, megacore]; link
    # [book]; DCN 50 Gbit/s a chip [book: 6.25 GB/s].
    Chip("v4", 275e12, 30.75 * GiB, 1.2e12, 45e9, 3, 4, 4096, 4, 25e9, ("tpu v4",),
         ("tpu-v4-podslice", "v4", "tpu-v4", "ct4p-hightpu"), "v4", cores=2, int8=275e12),
    # [cloud] 197, int8 393, 819 GB/s, 6.4 Tbit/s of DCN a pod of 256; 15.75 GiB of 16 [libtpu];
    # link [book]; a ring only along 16 chips [book].
    Chip("v5e", 197e12, 15.75 * GiB, 819e9, 45e9, 2, 16, 256, 4, 12.5e9, ("tpu v5 lite", "tpu v5e"),
         ("tpu-v5-lite-podslice", "v5e", "v5litepod", "v5lite", "v5-lite", "tpu-v5e",
          "tpu-v5-lite-device", "ct5lp-hightpu", "ct5l-hightpu"), "v5litepod", int8=393e12),
    # [cloud] 459, fp8 no faster, 2765 GB/s, DCN 50 Gbit/s a chip, 6144 chips a job; 95.74 GiB of 96
    # [libtpu]; link, int8 [book].
    Chip("v5p", 459e12, 95.74 * GiB, 2.765e12, 90e9, 3, 4, 6144, 4, 25e9, ("tpu v5p", "tpu v5"),
         ("tpu-v5p-slice", "v5p", "tpu-v5p", "ct5p-hightpu"), "v5p", cores=2,
         int8=918e12, fp8=459e12),
    # [cloud] 918, int8 1836, fp8 no faster, 1638 GB/s, 25.6 Tbit/s of DCN a pod of 256; 31.25 GiB
    # of 32 [libtpu]; link, ring [book].
    Chip("v6e", 918e12, 31.25 * GiB, 1.638e12, 90e9, 2, 16, 256, 4, 50e9,
         ("tpu v6 lite", "tpu v6e"),
         ("tpu-v6e-slice", "v6e", "trillium", "tpu-v6e", "ct6e-standard"), "v6e",
         int8=1836e12, fp8=918e12),
    # [cloud] 2307, fp8 4614, 7380 GB/s, DCN 100 Gbit/s a chip; 94.75 GiB of 96 a device [libtpu];
    # link: the page has 1200 GB/s a chip in both directions, as for v5p, so v5p's rate.
    Chip("tpu7x", 2307e12, 189.5 * GiB, 7.38e12, 90e9, 3, 4, 9216, 4, 50e9, ("tpu7x", "tpu v7"),
         ("tpu7x", "v7x", "tpu-v7x", "ironwood", "tpu7x-standard"), cores=2, devices=2,
         fp8=4614e12, matmul=0.83),
    # [nvidia] SXM, dense; memory: 0.9 of nvidia-smi's figure (81,920, 81,559, 143,771, 183,359
    # MiB), since the driver, NCCL and allocations outside of JAX need the rest; eight InfiniBand
    # cards a host, of 200 Gbit/s with A100 and of 400 with the others.
    Chip("a100", 312e12, 0.9 * 81920 * 2**20, 2.039e12, 300e9, 0, 1, 8, 8, 200e9, ("a100",),
         ("nvidia-a100-80gb", "a100", "a100-80gb", "a2-ultragpu"), int8=624e12, matmul=0.7),
    Chip("h100", 989.4e12, 0.9 * 81559 * 2**20, 3.35e12, 450e9, 0, 1, 8, 8, 400e9, ("h100",),
         ("nvidia-h100-80gb", "h100", "h100-80gb", "a3-highgpu", "nvidia-h100-mega-80gb",
          "h100-mega-80gb", "a3-megagpu"), int8=1979e12, fp8=1979e12, matmul=0.7),
    Chip("h200", 989.4e12, 0.9 * 143771 * 2**20, 4.8e12, 450e9, 0, 1, 8, 8, 400e9, ("h200",),
         ("nvidia-h200-141gb", "h200", "h200-141gb", "a3-ultragpu"), int8=1979e12, fp8=1979e12,
         matmul=0.7),
    Chip("b200", 2250e12, 0.9 * 183359 * 2**20, 8e12, 900e9, 0, 1, 8, 8, 400e9, ("b200",),
         ("nvidia-b200", "b200", "a4-highgpu"), int8=4500e12, fp8=4500e12, matmul=0.7),
)}  # fmt: skip
NAMES = {name: chip for chip in CHIPS.values() for name in chip.names}
NUMBER = r"[1-9]\d{0,8}"
OTHER_CARDS = ("pcie", "nvl", "gb200")  # variants of H100, H200 and B200, with other rates


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that work together: slices of one shape, joined by the data centre's network."""

    chip: Chip
    shape: tuple[int, ...]  # of a slice, in chips; (GPUs of a host,)
    slices: int = 1  # GPUs: hosts

    def __str__(self) -> str:
        return self.slice_name + (f"*{self.slices}" if self.slices > 1 else "")

    @property
    def slice_name(self) -> str:
        """Name of one slice in the TPU compiler: v5p:4x4x4."""
        return f"{self.chip.name}:{joined(self.shape)}"

    @property
    def chips(self) -> int:
        """Number of chips in all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Number of JAX devices in all slices."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """Number of hosts in all slices."""
        return -(-math.prod(self.shape) // self.chip.host) * self.slices

    @property
    def wrapped(self) -> tuple[bool, ...]:
        """Whether each dimension is a ring. A three-dimensional slice has rings in all dimensions
        when all are multiples of 4 (whole cubes), else in none [cloud: v4]; a two-dimensional one
        along 16 chips [book].
        """
        rings = tuple(size % self.chip.wrap == 0 for size in self.shape)
        return rings if self.chip.dims < 3 else (all(rings),) * len(rings)


def joined(shape: tuple[int, ...]) -> str:
    """(4, 8) -> '4x8'."""
    return "x".join(map(str, shape))


def slices(chip: Chip) -> Sequence[tuple[int, ...]]:
    """The shapes of slices that clouds offer of a TPU [cloud], smaller ones first."""
    if chip.dims == 2:
        return [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
    small = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
    cubes = itertools.combinations_with_replacement(range(4, 256, 4), 3)
    large = [shape for shape in cubes if math.prod(shape) <= chip.max_chips]
    return [(1, 1, 1)] * (chip.name == "tpu7x") + small + sorted(large, key=math.prod)


def slice_of(chip: Chip, count: int) -> tuple[int, ...] | None:
    """The shape of a slice of `count` chips, the most cubic one; None when there is none."""
    shapes = [shape for shape in slices(chip) if math.prod(shape) == count]
    return min(shapes, key=sum) if shapes else None


@dataclasses.dataclass(frozen=True)
class Machine:
    """The parts of a machine's name; None for those that it leaves out."""

    chip: Chip
    shape: tuple[int, ...] | None = None
    chips_per_host: int | None = None
    slices: int | None = None


def named(text: str, flag: str = "--topology") -> Machine:
    """Parses a machine's name: a chip by any of its names, alone or with a shape (v5p:4x4x4,
    tpu-v6e-slice:4x8), with a number of chips (v6e:16, h100:8), with gcloud's number of TensorCores
    (v5litepod-16, v5e-16, v5p-128, tpu7x-128), or as a machine type (ct5lp-hightpu-4t); a suffix *2
    means two slices, or two hosts of GPUs. Raises UserError.
    """
    lower = text.strip().lower()
    name = max((n for n in NAMES if re.match(rf"{re.escape(n)}(?![a-z0-9])", lower)), key=len,
               default="")  # fmt: skip
    if not name:
        unknown = re.split(r"[:*]", lower)[0]
        bare = re.sub(r"-\d+$", "", unknown)
        raise UserError(f"{flag}={text}: chip {unknown!r} is not known.{nearest(bare, CHIPS)}")
    chip = NAMES[name]
    form = re.fullmatch(
        rf"(?:-(?P<host>{NUMBER})[tg])?(?:(?P<sign>[:-])(?P<size>{NUMBER}(?:x{NUMBER})*))?"
        rf"(?:\*(?P<slices>{NUMBER}))?", lower[len(name) :],
    )  # fmt: skip
    if form is None:
        raise UserError(f"{flag}={text}: the shape of {chip.name} is written {written(chip)}.")
    count = int(form["slices"]) if form["slices"] else None
    per_host = int(form["host"]) if form["host"] else None
    machine = Machine(chip, None, per_host, count)
    if form["size"]:
        shape = shape_of(chip, form["sign"], form["size"], f"{flag}={text}")
        return dataclasses.replace(machine, shape=shape)
    if per_host and not chip.is_tpu:
        return dataclasses.replace(machine, shape=(per_host,))
    return machine


def written(chip: Chip) -> str:
    """An example of the notation of a slice of this chip."""
    form = {0: "8, or 8*4 for four hosts", 2: "16x16", 3: "4x4x4"}[chip.dims]
    return f"{chip.name}:{form}"


def shape_of(chip: Chip, sign: str, size: str, where: str) -> tuple[int, ...]:
    """The shape that `size` means: 4x8, or a number of chips (after ":") or TensorCores (after
    "-"). Raises UserError.
    """
    shape = tuple(map(int, size.split("x")))
    if not chip.is_tpu or len(shape) > 1:
        if len(shape) != (chip.dims or 1):
            raise UserError(f"{where}: the shape of {chip.name} is written {written(chip)}.")
        return shape
    cores = chip.cores if sign == "-" else 1
    found = slice_of(chip, shape[0] // cores) if shape[0] % cores == 0 else None
    if found is None:
        sizes = sorted({cores * math.prod(shape) for shape in slices(chip)})
        close = min(sizes, key=lambda n: abs(math.log(n / shape[0])))
        what = f"{chip.name}{sign}{close}"
        raise UserError(f"{where}: no slice of {chip.name} has this size; the nearest is {what}.")
    return found


def parse(text: str) -> Topology:
    """Parses 'v5p:4x4x4', two slices 'v6e:16x16*2', four hosts of eight GPUs 'h100:8*4', or another
    name of a machine (see `named`).

    Raises UserError for a chip or a shape that does not exist; whether a TPU slice of this shape is
    possible, the compiler knows.
    """
    machine = named(text)
    chip, shape = machine.chip, machine.shape
    if shape is None and machine.chips_per_host:
        shape = slice_of(chip, machine.chips_per_host)
    if shape is None:
        raise UserError(f"--topology={text}: the shape of {chip.name} is written {written(chip)}.")
    if math.prod(shape) > chip.max_chips:
        where = "slice" if chip.is_tpu else "host"
        several = written(chip).split(",")[0]
        raise UserError(
            f"--topology={text}: a {where} of {chip.name} has at most {chip.max_chips} chips; "
            f"several are written {several}*2."
        )
    return Topology(chip, shape, machine.slices or 1)


def chip_of(device_kind: str) -> Chip | None:
    """The chip of a JAX device by its kind; None when it is not in the table."""
    kind = device_kind.lower()
    found = [(part, chip) for chip in CHIPS.values() for part in chip.kinds if part in kind]
    return max(found, key=lambda row: len(row[0]))[1] if found else None


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device; None when it is not in the table: MFU is never guessed."""
    chip = chip_of(device_kind)
    other = chip and chip.fp8 and any(card in device_kind.lower() for card in OTHER_CARDS)
    return chip.device_flops if chip and not other else None
