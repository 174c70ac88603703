"""Settings that must be made before jax starts, and their effects."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from lm_jax.devices import runtime

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
FAULTS = """
import os, resource
os.environ["JAX_PLATFORMS"] = "cpu"
from lm_jax.devices import runtime
runtime.huge_pages()
import jax, jax.numpy as jnp
product = jax.jit(lambda x: (x @ x.T) @ x)  # 256 MiB of temporary array, 65,536 pages of 4 KiB
x = jnp.ones((8192, 16))
product(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
product(x).block_until_ready()
print(os.getpid(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    not THP.exists() or "[never]" in THP.read_text() or platform.libc_ver()[0] != "glibc",
    reason="this system has no transparent huge pages",
)
def test_a_program_that_runs_again_takes_its_memory_in_huge_pages():
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", FAULTS], env=environment, stdout=subprocess.PIPE, text=True
    )
    pid, faults = map(int, process.communicate()[0].split())
    assert process.returncode == 0
    assert pid == process.pid, "signals must reach the process that was started"
    assert faults < 5000  # 65,536 without


def test_programs_of_other_processors_are_kept_elsewhere(monkeypatch):
    """XLA's key has no number of cores: a program of one core would run on one core for ever."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    folders = {runtime.cache_folder()}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(97)), raising=False)
    folders.add(runtime.cache_folder())
    monkeypatch.setattr(runtime, "read", lambda _: "flags : fpu avx2")
    folders.add(runtime.cache_folder())
    monkeypatch.setattr(runtime, "read", lambda _: "flags : fpu avx2 avx512f")
    folders.add(runtime.cache_folder())
    assert len(folders) == 4
    assert not runtime.bfloat16_is_faster()
    monkeypatch.setattr(runtime, "read", lambda _: "flags : fpu avx512f amx_bf16")
    monkeypatch.setattr(runtime, "installed", lambda _: "0.10.2")
    assert runtime.bfloat16_is_faster()
    monkeypatch.setattr(runtime, "installed", lambda _: "0.7.2")
    assert not runtime.bfloat16_is_faster()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    assert runtime.cache_folder() == "/mine"


def test_a_user_without_a_home_compiles_without_a_cache(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime.Path, "home", home)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        runtime.start()
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    assert runtime.cache_folder() == "/mine"
