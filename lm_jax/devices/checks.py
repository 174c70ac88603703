"""Checks of a machine: versions, devices, rates, folders. Each row is ok, warn or fail, with
advice on what to do.
"""

import dataclasses
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lm_jax.devices.runtime import cache_folder, gpu_is_here, tpu_is_here
from lm_jax.devices.versions import installed, requirements, satisfies
from lm_jax.progress import human

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclasses.dataclass(frozen=True)
class Row:
    """Result of one check: `status` is ok, warn or fail; `found` describes it; `fix` is advice."""

    name: str
    status: str
    found: str
    fix: str = ""


class Rows(list):
    """A list of Row that prints as a table."""

    @property
    def broken(self) -> bool:
        """Whether any row fails."""
        return any(row.status == FAIL for row in self)

    def __str__(self) -> str:
        width = max((len(row.name) for row in self), default=0)
        lines = []
        for row in self:
            lines.append(f"{row.status:<4}  {row.name:<{width}}  {row.found}".rstrip())
            if row.fix:
                lines.append(f"{'':<4}  {'':<{width}}  -> {row.fix}")
        return "\n".join(lines)

    __repr__ = __str__


def diagnose(workdir: str | os.PathLike = "runs") -> Rows:
    """Runs all checks; changes nothing on the machine, and never raises for what a check finds."""
    checks: list[Callable[[], Iterable[Row]]] = [
        python,
        packages,
        jax_and_jaxlib,
        libtpu,
        devices,
        matmul,
        extras,
        lambda: [writable("work directory", Path(workdir))],
        compilation_cache,
        lambda: [disk(Path(workdir))],
    ]
    rows = Rows()
    for check in checks:
        try:
            rows += check()
        except Exception as error:  # a check that fails is a result too
            name = getattr(check, "__name__", "check").replace("_", " ")
            found = " ".join(str(error).split())[:200]
            rows.append(Row(name, FAIL, f"{type(error).__name__}: {found}", "see above"))
    return rows


def python() -> Iterator[Row]:
    """Checks the version of the interpreter."""
    good = sys.version_info >= (3, 11)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Row("python", OK if good else FAIL, found, "" if good else "install Python 3.11 or later")


def packages() -> Iterator[Row]:
    """Checks the core's requirements against their lower bounds."""
    if installed("lm_jax") is None:
        yield Row(
            "packages", WARN, "lm_jax itself is not installed", "pip install -e . in its folder"
        )
    found, wrong, specs = [], [], []
    for name, bounds, extra in requirements("lm_jax"):
        if extra:
            continue
        have = installed(name)
        if have is None or not satisfies(have, bounds):
            wrong.append(f"{name}{bounds} (found {have or 'none'})")
            specs.append(f"'{name}{bounds}'")
        elif name in ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
            found.append(f"{name} {have}")
    fix = f"pip install {' '.join(specs)}" if specs else ""
    yield Row("packages", FAIL if wrong else OK, ", ".join(wrong or found), fix)


def jax_and_jaxlib() -> Iterator[Row]:
    """Checks jaxlib against the requirement of the installed jax."""
    have = installed("jaxlib")
    bounds = next(
        (b for name, b, extra in requirements("jax") if name == "jaxlib" and not extra), ""
    )
    good = have is not None and satisfies(have, bounds)
    yield Row("jaxlib", OK if good else FAIL, f"{have}, jax {installed('jax')} asks for {bounds}",
              "" if good else f"pip install 'jaxlib{bounds}'")  # fmt: skip


def libtpu() -> Iterator[Row]:
    """Checks libtpu against the pin of the installed jax: a mismatch fails when the TPU starts."""
    pin = next((b for n, b, extra in requirements("jax") if n == "libtpu" and extra == "tpu"), "")
    have, here = installed("libtpu"), tpu_is_here()
    fix = f"pip install 'libtpu{pin}' (what jax {installed('jax')} is made for)"
    if have is None:
        yield Row("libtpu", FAIL if here else OK, "not installed", fix if here else "")
    elif satisfies(have, pin):
        yield Row("libtpu", OK, f"{have}, jax asks for {pin or 'any'}")
    else:
        yield Row("libtpu", FAIL if here else WARN, f"{have}, jax asks for {pin}", fix)


def devices() -> Iterator[Row]:
    """Lists the devices of jax, and warns of an accelerator of this machine that is not used."""
    import jax

    from lm_jax.devices.sharding import memory_limit

    kinds: dict[str, list[Any]] = {}
    for device in jax.local_devices():
        kinds.setdefault(device.device_kind, []).append(device)
    found = []
    for kind, same in kinds.items():
        limit = memory_limit(same[0])
        found.append(f"{len(same)} x {kind}" + (f", {limit / 2**30:.1f} GiB each" if limit else ""))
    found[-1] += f", backend {jax.default_backend()}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Row("devices", OK, "; ".join(found) + f"; {cores} CPU cores{memory()}")
    unused = [name for name, here in (("tpu", tpu_is_here()), ("gpu", gpu_is_here())) if here]
    if jax.default_backend() != "cpu" or not unused:
        return
    if chosen := os.environ.get("JAX_PLATFORMS"):
        fix = f"unset JAX_PLATFORMS (it is {chosen})"
        yield Row("accelerator", WARN, f"a {unused[0].upper()} is here, not used", fix)
    else:
        extra = "tpu" if unused[0] == "tpu" else "cuda"
        yield Row("accelerator", FAIL, f"a {unused[0].upper()} is here, but jax runs on the CPU",
                  f"pip install 'lm_jax[{extra}]'")  # fmt: skip


def matmul() -> Iterator[Row]:
    """Measures a square matrix product in float32 and bfloat16, and checks its result."""
    import jax
    import jax.numpy as jnp

    size = 1024 if jax.default_backend() == "cpu" else 8192
    rates, wrong = [], []
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.ones((size, size), dtype)
        product = jax.jit(lambda x: x @ x)
        if float(product(x)[size // 2, 1]) != size:
            wrong.append(dtype.__name__)
        best = min(seconds(product, x) for _ in range(3))
        rates.append(f"{dtype.__name__} {human(2 * size**3 / best)}FLOP/s")
    fix = f"{', '.join(wrong)}: wrong product; the device or its driver is faulty" if wrong else ""
    yield Row("matmul", FAIL if wrong else OK, ", ".join(rates), fix)


def extras() -> Iterator[Row]:
    """Lists which optional dependencies are installed; never a failure."""
    parts: dict[str, bool] = {}
    for name, _, extra in requirements("lm_jax"):
        if extra:
            present = installed(name) is not None
            if name == "jax":  # jax[tpu] (test has it too), jax[cuda13], jax[cuda12]
                plugins = {"cuda": "jax-cuda13-plugin", "cuda12": "jax-cuda12-plugin"}
                present = installed(plugins.get(extra, "libtpu")) is not None
            parts[extra] = parts.get(extra, True) and present
    text = ", ".join(f"{extra} {'yes' if here else 'no'}" for extra, here in parts.items())
    yield Row("extras", OK, text or "none declared")


def writable(name: str, folder: Path) -> Row:
    """Checks that a file can be written in `folder`, or in its nearest parent that exists."""
    there = existing(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=there) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        fix = f"choose another folder, or make {there} writable"
        return Row(name, FAIL, f"{folder}: {error.strerror or error}", fix)
    return Row(name, OK, f"{folder.absolute()} is writable")


def compilation_cache() -> Iterator[Row]:
    """Checks the compilation cache: who can write there can run code in this account."""
    import jax

    folder = getattr(jax.config, "jax_compilation_cache_dir", None) or cache_folder()
    if "://" in str(folder):
        yield Row("compile cache", OK, str(folder))
        return
    row = writable("compile cache", Path(folder))
    there = Path(folder)
    if row.status == OK and there.is_dir() and hasattr(os, "getuid"):
        about = there.stat()
        if about.st_uid != os.getuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            fix = f"chmod 700 {there}, or set JAX_COMPILATION_CACHE_DIR to a folder of yours"
            row = Row("compile cache", WARN, f"{there}: others can write programs into it", fix)
    yield row


def disk(folder: Path) -> Row:
    """Checks the free space of the file system of `folder`."""
    free = shutil.disk_usage(existing(folder)).free
    status = FAIL if free < 1 << 30 else WARN if free < 10 << 30 else OK
    fix = "free some space, or choose another --workdir: checkpoints need room" * (status != OK)
    return Row("disk", status, f"{free / 2**30:.1f} GiB free for {folder}", fix)


def existing(folder: Path) -> Path:
    """`folder`, or its nearest parent that exists."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def memory() -> str:
    """', 23 GiB of memory'; "" where the system does not report it."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return ""
    return f", {size / 2**30:.0f} GiB of memory"


def seconds(function: Callable[[Any], Any], x: Any) -> float:
    """Time of `function(x)` on its device."""
    since = time.perf_counter()
    function(x).block_until_ready()
    return time.perf_counter() - since
