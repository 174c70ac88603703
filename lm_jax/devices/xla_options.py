"""Compiler options by kind of device: one table, each row with the place that publishes it; options
that the installed compiler refuses are left out, with a line.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Options = dict[str, Any]
# By a part of the device's kind, lower case; the first that is found counts.
GENERATIONS = {
    "tpu v4": "v4", "tpu v5 lite": "v5e", "tpu v5e": "v5e", "tpu v5": "v5p", "tpu v6": "v6e",
    "tpu7x": "tpu7x", "tpu v7": "tpu7x", "h100": "hopper", "h200": "hopper",
}  # fmt: skip

# Few: what its makers, or a trainer that publishes its speed, set beside the defaults of libtpu
# 0.0.42.1 and jaxlib 0.10.2, which take all of them (tests/devices/test_xla_options.py). An
# option that ends the process or that a large program alone is refused for has no place here: a
# probe would not find it.
TABLE: dict[str, Options] = {
    # axlearn (common/compiler_options.py): the default from v5 on.
    "v4": {
        "xla_enable_async_all_gather": True,
        "xla_enable_async_collective_permute": True,
    },
    # MaxText (configs/tpu/v5e/16b.sh, 61 % of the peak); its others are defaults or for SLICES. The
    # first is for v5e alone: elsewhere libtpu refuses programs that gather with it ("incorrect
    # results, hang, SDC"), though MaxText has it for v5p and v6e too.
    "v5e": {
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
    },
    # MaxText (configs/tpu/v5p/128b.sh, 69 % of the peak).
    "v5p": {
        "xla_tpu_megacore_fusion_allow_ags": False,
        "xla_tpu_enable_ag_backward_pipelining": True,
    },
    # MaxText (configs/tpu/v6e/llama2_7b_4096.sh); what kernels may take of the vector memory is not
    # there for other arrays: up to its size, 128 MiB, more lies in HBM. Not the three of openxla's
    # docs/flags_guidance.md that gather the weights of a layer during the one before: what they
    # hold of a large model is not measured.
    "v6e": {"xla_tpu_scoped_vmem_limit_kib": 98304},
    # tpu-recipes (training/ironwood, Llama 3.1 70B) the first two, without its bf16 emission mode,
    # which may round differently; the others are BROKEN, and on by default here.
    "tpu7x": {
        "xla_tpu_scoped_vmem_limit_kib": 61440,
        "xla_tpu_use_single_sparse_core_for_all_gather_offload": True,
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce": False,
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": False,
    },
    # JAX (docs/gpu_performance_tips.md), and in NVIDIA's images of it.
    "hopper": {"xla_gpu_enable_latency_hiding_scheduler": True},
}
# Between slices: axlearn and MaxText, to sum the gradients of a layer during the one before.
SLICES: Options = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}
# What makes losses wrong when it is on, and where that is told: never in the table, and a line
# when the environment sets it.
BROKEN = {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "axlearn: another quality on v6e, "
    "abnormal losses on tpu7x",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "axlearn: abnormal losses",
    "xla_gpu_enable_host_memory_offloading": "openxla/xla#46231: wrong gradients",
}
VARIABLES = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")


def accepted(mesh: Mesh) -> Options:
    """The `compiler_options` of a program on the devices of `mesh`: those of its generation that
    this compiler takes. An option that is set in LIBTPU_INIT_ARGS or XLA_FLAGS stays as it is
    there. Prints a line for each that is refused, and for one there that makes losses wrong.
    """
    there = in_environment()
    for name in there.keys() & BROKEN.keys():
        if there[name].lower() not in ("false", "0"):
            print(f"WARNING: {name}={there[name]} is known to fail ({BROKEN[name]})", flush=True)
    kept: Options = {}
    for name, value in wanted(mesh).items():
        if name in there:
            continue
        if why := refusal(mesh, kept | {name: value}):
            print(f"compiler option {name}={value} is left out: {why}", flush=True)
        else:
            kept[name] = value
    return kept


def wanted(mesh: Mesh) -> Options:
    """The rows of the table for the devices of `mesh`."""
    devices = mesh.devices.flat
    kind = getattr(devices[0], "device_kind", "").lower()
    generation = next((name for part, name in GENERATIONS.items() if part in kind), "")
    several = len({getattr(device, "slice_index", None) for device in devices}) > 1
    return TABLE.get(generation, {}) | (SLICES if several else {})


def refusal(mesh: Mesh, options: Options) -> str:
    """Why the compiler does not take `options`, for a program of one sum; "" when it does."""
    x = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        with not_kept():
            jax.jit(lambda x: x + 1).lower(x).compile(compiler_options=options)
    except Exception as error:  # of many types, and none of them is a reason not to train
        return " ".join(str(error).split())[:200]
    return ""


@contextlib.contextmanager
def not_kept() -> Iterator[None]:
    """Keeps compiled programs out of the cache: one for devices that are not here could not be
    loaded again, and jax would warn of it.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


def in_environment() -> dict[str, str]:
    """The options that the variables of the environment set, --name=value or --name."""
    text = " ".join(os.environ.get(name, "") for name in VARIABLES)
    return {name: value or "true" for name, value in re.findall(r"--(xla_\w+)(?:=(\S+))?", text)}
