"""Settings that must be made before jax looks at the machine: platform, page size, and the folder
of compiled programs.
"""

import glob
import hashlib
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

from lm_jax.devices.versions import installed, satisfies
from lm_jax.errors import MachineError

TPU_PCI_IDS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # as jax's


def start() -> None:
    """Chooses the platform and turns the persistent compilation cache on. Environment variables
    take precedence.
    """
    # libtpu is installed for its compiler on many machines without a TPU: jax would search for one
    # for seconds, and print twenty lines of it.
    if not (tpu_is_here() or gpu_is_here()):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    settings: Any = jax.config
    if settings.jax_platforms is None:  # jax may have been imported before the variable was set
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS"))

    if settings.jax_compilation_cache_dir is None:
        try:
            folder = cache_folder()
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except (OSError, RuntimeError):
            return  # no home, or one that cannot be written: compiled anew, which is only slower
        jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def huge_pages() -> None:
    """Starts this process anew with huge pages for its large arrays, once, where Linux gives them
    only on request.

    On CPU, XLA allocates the temporary arrays of a program in one piece at every run, and the
    kernel clears each page of it at its first use: of 4 KiB pages, that was a fifth to a quarter of
    the time of a small model's training step. glibc (2.35) reads its setting at the start alone.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    on_request = "[madvise]" in read("/sys/kernel/mm/transparent_hugepage/enabled")
    if not on_request or "glibc.malloc.hugetlb" in tunables or tpu_is_here() or gpu_is_here():
        return
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:glibc.malloc.hugetlb=1".lstrip(":")
    # A signal meanwhile waits for the new process (interrupts.quietly_until_started).
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def devices() -> list[Any]:
    """All devices; raises MachineError when there are none of the platform in JAX_PLATFORMS."""
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError):
        requested = os.environ.get("JAX_PLATFORMS")
        raise MachineError(
            f"JAX_PLATFORMS={requested}: no such device can be used here; unset it, or see "
            "python -m lm_jax.doctor."
        ) from None


def cache_folder() -> str:
    """The folder of compiled programs. Raises RuntimeError for a user without a home directory."""
    if given := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return given
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache")
    return os.path.join(root, "lm_jax", "xla", processor())


def processor() -> str:
    """A name shared by processors that can run each other's compiled programs: number of cores and
    instruction sets. XLA's own key has neither, so a program compiled on one core would use one
    core on every machine, and one compiled for a newer processor that shares the home directory
    would crash.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    kind = f"{platform.machine()} {platform.processor()} {instructions()}"
    return f"{cores}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}"


def instructions() -> str:
    """Instruction sets of the processor, as Linux lists them; "" elsewhere."""
    lines = read("/proc/cpuinfo").splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def bfloat16_is_faster() -> bool:
    """Whether products in bfloat16 are faster than in float32 on this processor: with AMX (Intel's
    for servers, from 2023 on), by the kernels that XLA has since jax 0.10.
    """
    return "amx_bf16" in instructions() and satisfies(installed("jax") or "0", ">=0.10")


def tpu_is_here() -> bool:
    """Whether a TPU is attached, by its device files or Google's PCI ids."""
    if glob.glob("/dev/accel*"):
        return True
    for vendor in glob.glob("/sys/bus/pci/devices/*/vendor"):
        if read(vendor) == "0x1ae0" and read(Path(vendor).with_name("device")) in TPU_PCI_IDS:
            return True
    return False


def gpu_is_here() -> bool:
    """Whether an NVIDIA driver has a device on this machine."""
    return any(map(os.path.exists, ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg")))


def read(path: str | Path) -> str:
    """Text of a system file; "" when it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
