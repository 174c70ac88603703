"""What can a chip do, and how are the chips of a slice or a cluster joined?

Published figures, a chip (a TPU v4, v5p and the "lite" ones are one JAX device, a tpu7x is two).
Sources: [cloud] the page of each TPU at docs.cloud.google.com/tpu/docs; [book] "How to scale your
model" (jax-ml.github.io/scaling-book, chapter 2), whose links are what programs get; [libtpu] the
memory that libtpu 0.0.42.1 says a program may use, when it refuses one; [nvidia] the data sheets of
H100, H200, HGX B200 and of the DGX systems around them.
"""

import dataclasses
import math
import re

from lm_jax.errors import UserError, nearest

GiB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator. Rates are a second, of one chip, in one direction."""

    name: str  # as a topology begins: v5p:4x4x4
    flops: float  # dense products of bfloat16
    hbm: float  # bytes that a program may use
    hbm_rate: float  # bytes
    link: float  # bytes of one link to a neighbour; a GPU: of all its NVLinks, into the switch
    dims: int  # of the torus; 0: a switch, through which each reaches each at the rate of `link`
    wrap: int  # chips: a dimension of a multiple of this is a ring, a shorter one is a line
    most: int  # chips in a slice, or GPUs behind one switch
    host: int  # chips
    dcn: float  # bytes between slices, a host
    devices: int = 1  # of JAX
    int8: float = 0.0  # products; 0: no faster way is published
    fp8: float = 0.0
    matmul: float = 0.9  # share of `flops` that a large product reaches

    @property
    def is_tpu(self) -> bool:
        """Whether the TPU compiler can be asked."""
        return self.dims > 0

    @property
    def device_flops(self) -> float:
        """Of one JAX device."""
        return self.flops / self.devices

    @property
    def device_hbm(self) -> float:
        """Bytes that a program may use of one JAX device."""
        return self.hbm / self.devices

    @property
    def device_hbm_rate(self) -> float:
        """Bytes a second of one JAX device."""
        return self.hbm_rate / self.devices

    @property
    def device_dcn(self) -> float:
        """Bytes a second between slices, of one JAX device when all of its host do the same."""
        return self.dcn / (self.host * self.devices)


# Large products: 0.90 of the peak is measured on v6e (8192^3) and 0.83 on tpu7x (16384^3), by
# Google's tpu-recipes, microbenchmarks; the others have v6e's, but GPUs, which power limits: about
# 0.7 on an H200.
CHIPS = {chip.name: chip for chip in (
    # [cloud] 275 TFLOP/s of bf16 or int8, 1200 GB/s; 30.75 GiB of 32 [libtpu, megacore]; link
    # [book]; DCN 50 Gbit/s a chip [book: 6.25 GB/s].
    Chip("v4", 275e12, 30.75 * GiB, 1.2e12, 45e9, 3, 4, 4096, 4, 25e9, int8=275e12),
    # [cloud] 197, int8 393, 819 GB/s, 6.4 Tbit/s of DCN a pod of 256; 15.75 GiB of 16 [libtpu];
    # link [book]; a ring only along 16 chips [book].
    Chip("v5e", 197e12, 15.75 * GiB, 819e9, 45e9, 2, 16, 256, 4, 12.5e9, int8=393e12),
    # [cloud] 459, fp8 no faster, 2765 GB/s, DCN 50 Gbit/s a chip, 6144 chips a job; 95.74 GiB of 96
    # [libtpu]; link, int8 [book].
    Chip("v5p", 459e12, 95.74 * GiB, 2.765e12, 90e9, 3, 4, 6144, 4, 25e9, int8=918e12, fp8=459e12),
    # [cloud] 918, int8 1836, fp8 no faster, 1638 GB/s, 25.6 Tbit/s of DCN a pod of 256; 31.25 GiB
    # of 32 [libtpu]; link, ring [book].
    Chip("v6e", 918e12, 31.25 * GiB, 1.638e12, 90e9, 2, 16, 256, 4, 50e9, int8=1836e12, fp8=918e12),
    # [cloud] 2307, fp8 4614, 7380 GB/s, DCN 100 Gbit/s a chip; 94.75 GiB of 96 a device [libtpu];
    # link: the page says 1200 GB/s a chip in both directions as it does of v5p, so as v5p's.
    Chip("tpu7x", 2307e12, 189.5 * GiB, 7.38e12, 90e9, 3, 4, 9216, 4, 50e9, devices=2, fp8=4614e12,
         matmul=0.83),
    # [nvidia] SXM, dense; memory: 0.9 of what nvidia-smi says (81,559, 143,771, 183,359 MiB), since
    # the driver, NCCL and what JAX does not reserve need the rest; eight InfiniBand cards of
    # 400 Gbit/s a host.
    Chip("h100", 989.4e12, 0.9 * 81559 * 2**20, 3.35e12, 450e9, 0, 1, 8, 8, 400e9, int8=1979e12,
         fp8=1979e12, matmul=0.7),
    Chip("h200", 989.4e12, 0.9 * 143771 * 2**20, 4.8e12, 450e9, 0, 1, 8, 8, 400e9, int8=1979e12,
         fp8=1979e12, matmul=0.7),
    Chip("b200", 2250e12, 0.9 * 183359 * 2**20, 8e12, 900e9, 0, 1, 8, 8, 400e9, int8=4500e12,
         fp8=4500e12, matmul=0.7),
)}  # fmt: skip


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
        """One slice, as the TPU compiler calls it: v5p:4x4x4."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """Of JAX, in all slices."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """Of all slices."""
        return -(-math.prod(self.shape) // self.chip.host) * self.slices

    @property
    def wrapped(self) -> tuple[bool, ...]:
        """Which dimensions are rings. A three-dimensional slice has rings in all dimensions, where
        all are multiples of 4 (it is made of whole cubes), or none [cloud: v4]; a two-dimensional
        one along 16 chips [book].
        """
        rings = tuple(size % self.chip.wrap == 0 for size in self.shape)
        return rings if self.chip.dims < 3 else (all(rings),) * len(rings)


def parse(text: str) -> Topology:
    """'v5p:4x4x4', two slices 'v6e:16x16*2', four hosts of eight GPUs 'h100:8*4' -> Topology.

    Raises UserError for a chip or a shape that does not exist; whether a TPU slice of this shape
    can be had, the compiler knows.
    """
    name, _, rest = text.strip().lower().partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology={text}: chip {name!r} is not known.{nearest(name, CHIPS)}")
    chip = CHIPS[name]
    form = {0: "8, or 8*4 for four hosts", 2: "16x16", 3: "4x4x4"}[chip.dims]
    found = re.fullmatch(r"([1-9]\d*(?:x[1-9]\d*)*)(?:\*([1-9]\d*))?", rest)
    shape = tuple(map(int, found[1].split("x"))) if found else ()
    if found is None or len(shape) != (chip.dims or 1):
        raise UserError(f"--topology={text}: the shape of {name} is written {name}:{form}.")
    if math.prod(shape) > chip.most:
        where = "slice" if chip.is_tpu else "host"
        raise UserError(
            f"--topology={text}: a {where} of {name} has at most {chip.most} chips; "
            f"several are written {name}:{form.split(',')[0]}*2."
        )
    return Topology(chip, shape, int(found[2] or 1))


# Dense bfloat16 peak of one JAX device in FLOP/s, by a part of its device_kind, lower case
# (vendors' data sheets; a TPU v4, v5p or v7 device is what jax.devices() lists: a chip, a chip, and
# half a chip).
PEAKS = {
    "tpu v4": 275e12, "tpu v5 lite": 197e12, "tpu v5e": 197e12, "tpu v5p": 459e12, "tpu v5": 459e12,
    "tpu v6 lite": 918e12, "tpu v6e": 918e12, "tpu7x": 1153e12, "tpu v7": 1153e12,
    "h200": 989.4e12, "h100": 989.4e12, "a100": 312e12, "b200": 2250e12,
}  # fmt: skip


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device, None when it is not in the table: MFU is then not known, never
    guessed.
    """
    kind = device_kind.lower()
    return next((peak for name, peak in PEAKS.items() if name in kind), None)
