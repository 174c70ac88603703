"""What the machine is, and what its products and copies reach on random data."""

import os
import platform
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp

from accelerator.part import Measure
from lm_jax.devices import runtime
from lm_jax.devices.chips import peak_flops
from lm_jax.devices.versions import installed

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "qwix",
            "torch", "jax-cuda12-plugin", "jax-cuda13-plugin", "nvidia-cudnn-cu12",
            "nvidia-cudnn-cu13", "libtpu")  # fmt: skip
# M, K, N of the products of GPT-2 124M (64 x 1024 tokens), of Llama 1B (16 x 2048), and large.
PRODUCTS = {
    "GPT-2 up": (65_536, 768, 3072), "GPT-2 out": (65_536, 768, 768),
    "GPT-2 head": (8192, 768, 50_304), "Llama 1B up": (32_768, 2048, 8192),
    "Llama 1B head": (4096, 2048, 128_256), "8192 cubed": (8192, 8192, 8192),
}  # fmt: skip
QUERY = "driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"


def run(measure: Measure) -> None:
    """The rows of this part."""
    runtime.start()
    device = runtime.devices()[0]
    peak = peak_flops(device.device_kind)
    there = {name: installed(name) for name in PACKAGES}
    python = f"Python {platform.python_version()}"
    versions = ", ".join([python, *(f"{name} {found}" for name, found in there.items() if found)])
    lacking = ", ".join(n for n in ("orbax-checkpoint", "grain", "sentencepiece", "qwix", "torch")
                        if not there[n])  # fmt: skip
    measure.row("device", kind=device.device_kind, platform=device.platform, cores=os.cpu_count(),
                versions=versions, missing=lacking or None, driver=driver())  # fmt: skip
    for name, shape in PRODUCTS.items():
        if measure.tiny:
            M, K, N = (max(64, size // 64) for size in shape)
            shape = M, K, N
        for kind in ("bfloat16", "float8_e4m3fn"):
            measure.each(f"{name} {kind}", product, measure, name, shape, kind, peak)
    measure.each("copy", copy, measure)


def driver() -> str | None:
    """What nvidia-smi says of the driver and the clocks, where it is."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def seconds_of(function: Any, *arguments: Any, least: float = 0.3) -> float:
    """Seconds of one call of a jitted function, over as many calls as take `least` seconds."""
    jax.block_until_ready(function(*arguments))
    count = 1
    while True:
        began = time.perf_counter()
        for _ in range(count):
            out = function(*arguments)
        jax.block_until_ready(out)
        took = time.perf_counter() - began
        if took >= least:
            return took / count
        count = max(2 * count, int(1.2 * count * least / max(took, 1e-9)) if took > 0.01 else 0)


def product(measure: Measure, name: str, shape: Any, kind: str, peak: float | None) -> None:
    """One product [M, K] x [K, N], accumulated in float32 and rounded to bfloat16."""
    M, K, N = shape
    keys = jax.random.split(jax.random.key(0))
    a, b = (
        jax.random.normal(key, size).astype(kind)
        for key, size in zip(keys, ((M, K), (K, N)), strict=True)
    )
    multiply = jax.jit(
        lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16)
    )
    flops = 2 * M * K * N / seconds_of(multiply, a, b, least=0.05 if measure.tiny else 0.3)
    share = round(100 * flops / peak, 1) if peak else None
    measure.row(f"{name} {kind}", shape=f"{M} x {K} x {N}",
                **{"TFLOP/s": flops / 1e12, "% of bf16 peak": share})  # fmt: skip


def copy(measure: Measure) -> None:
    """Reads and writes 2 GiB."""
    x = jnp.ones((2**18 if measure.tiny else 2**29,), jnp.float32)
    took = seconds_of(jax.jit(lambda x: x + 1), x, least=0.05 if measure.tiny else 0.3)
    measure.row("copy", **{"GB/s": 2 * x.size * 4 / took / 1e9})
