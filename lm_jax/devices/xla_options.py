"""Compiler options by chip: one table, each row with its source; options that the installed
compiler refuses are left out, with a line.
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

from lm_jax.devices.chips import chip_of

Options = dict[str, Any]
# JAX (docs/gpu_performance_tips.md), and in NVIDIA's images of it.
HOPPER: Options = {"xla_gpu_enable_latency_hiding_scheduler": True}
# By chip (devices/chips.py). Few: those that its makers, or a trainer that publishes its speed, set
# beside the defaults of libtpu 0.0.42.1 and jaxlib 0.10.2, which accept all of them
# (tests/devices/test_xla_options.py). No option that aborts the process or is refused for large
# programs only: the probe of `refusal` would miss it.
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
    # MaxText (configs/tpu/v6e/llama2_7b_4096.sh); vector memory reserved for kernels, up to its
    # 128 MiB, is lost to other arrays, which then lie in HBM. Not the three of openxla's
    # docs/flags_guidance.md that gather the weights of a layer during the one before: the memory
    # they need with a large model is not measured.
    "v6e": {"xla_tpu_scoped_vmem_limit_kib": 98304},
    # tpu-recipes (training/ironwood, Llama 3.1 70B) the first two, without its bf16 emission mode,
    # which may round differently; the others are BROKEN, and on by default here.
    "tpu7x": {
        "xla_tpu_scoped_vmem_limit_kib": 61440,
        "xla_tpu_use_single_sparse_core_for_all_gather_offload": True,
        "xla_tpu_enable_sparse_core_collective_offload_all_reduce": False,
        "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": False,
    },
    "h100": HOPPER,
    "h200": HOPPER,
}
# Between slices: axlearn and MaxText, to sum the gradients of a layer during the one before.
SLICES: Options = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": True,
    "xla_tpu_data_parallel_opt_different_sized_ops": True,
}
# Options that make losses wrong when on, and where that is reported: never in the table, and a
# warning when the environment sets one.
BROKEN = {
    "xla_tpu_enable_sparse_core_collective_offload_all_reduce": "axlearn: another quality on v6e, "
    "abnormal losses on tpu7x",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "axlearn: abnormal losses",
    "xla_gpu_enable_host_memory_offloading": "openxla/xla#46231: wrong gradients",
}
VARIABLES = ("LIBTPU_INIT_ARGS", "XLA_FLAGS")


def accepted(mesh: Mesh) -> Options:
    """The `compiler_options` of a program on the devices of `mesh`: those of its chip that this
    compiler accepts. Options set in LIBTPU_INIT_ARGS or XLA_FLAGS take precedence. Prints a line
    for each option that is refused, and for one of the environment that makes losses wrong.
    """
    given = in_environment()
    for name in given.keys() & BROKEN.keys():
        if given[name].lower() not in ("false", "0"):
            print(f"WARNING: {name}={given[name]} is known to fail ({BROKEN[name]})", flush=True)
    kept: Options = {}
    for name, value in wanted(mesh).items():
        if name in given:
            continue
        if why := refusal(mesh, kept | {name: value}):
            print(f"compiler option {name}={value} is left out: {why}", flush=True)
        else:
            kept[name] = value
    return kept


def wanted(mesh: Mesh) -> Options:
    """The rows of the table for the devices of `mesh`."""
    several = len({getattr(device, "slice_index", None) for device in mesh.devices.flat}) > 1
    return TABLE.get(chip_name(mesh), {}) | (SLICES if several else {})


def chip_name(mesh: Mesh) -> str:
    """Name of the chips of `mesh`; "" when they are not in the table of chips."""
    chip = chip_of(getattr(mesh.devices.flat[0], "device_kind", ""))
    return chip.name if chip else ""


def refusal(mesh: Mesh, options: Options) -> str:
    """Reason why the compiler refuses `options`, for a program of one sum; "" when it does not."""
    x = jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        with not_kept():
            jax.jit(lambda x: x + 1).lower(x).compile(compiler_options=options)
    except Exception as error:  # of many types, none of which should stop a run
        return " ".join(str(error).split())[:200]
    return ""


@contextlib.contextmanager
def not_kept() -> Iterator[None]:
    """Keeps compiled programs out of the cache: a program for devices that this machine lacks could
    not be loaded again, and jax would warn of it.
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
