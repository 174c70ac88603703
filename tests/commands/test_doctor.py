"""Does the doctor see what is wrong, and say what to do?"""

import json
import os
import subprocess
import sys
import tempfile

import jax
import pytest

import lm_jax
from lm_jax import doctor
from lm_jax.devices import checks, versions


def by_name(rows):
    return {row.name: row for row in rows}


def pretend(monkeypatch, changed):
    """Installed versions other than those that are."""
    real = versions.installed
    monkeypatch.setattr(checks, "installed", lambda name: changed.get(name, real(name)))


def test_the_machine_of_the_tests_is_all_right(tmp_path):
    rows = lm_jax.diagnose(tmp_path)
    assert not rows.broken, str(rows)
    found = by_name(rows)
    assert {"python", "packages", "jaxlib", "libtpu", "devices", "matmul", "disk"} <= set(found)
    assert "8 x cpu" in found["devices"].found
    assert "FLOP/s" in found["matmul"].found
    assert list(tmp_path.iterdir()) == []
    assert all(row.fix for row in rows if row.status != "ok")


@pytest.mark.parametrize(("here", "status"), [(True, "fail"), (False, "warn")])
def test_a_libtpu_that_jax_is_not_made_for_is_named(monkeypatch, here, status):
    pretend(monkeypatch, {"libtpu": "0.0.21.1"})
    monkeypatch.setattr(checks, "tpu_is_here", lambda: here)
    (row,) = checks.libtpu()
    assert row.status == status
    assert "0.0.21.1" in row.found
    assert "pip install 'libtpu==" in row.fix


def test_a_package_below_its_bound_fails(monkeypatch):
    pretend(monkeypatch, {"flax": "0.8.1", "jaxlib": "0.4.0", "optax": None})
    (row,) = checks.packages()
    assert row.status == "fail"
    assert "flax>=0.11.2 (found 0.8.1)" in row.found
    assert "(found none)" in row.found
    assert next(checks.jax_and_jaxlib()).status == "fail"


@pytest.mark.parametrize(("platforms", "status"), [("cpu", "warn"), ("", "fail")])
def test_an_accelerator_that_jax_does_not_use_is_seen(monkeypatch, platforms, status):
    monkeypatch.setattr(checks, "gpu_is_here", lambda: True)
    monkeypatch.setattr(checks, "tpu_is_here", lambda: False)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    row = by_name(checks.devices())["accelerator"]
    assert row.status == status
    assert ("JAX_PLATFORMS" in row.fix) == (platforms == "cpu")


def test_a_folder_that_cannot_be_written_fails(monkeypatch, tmp_path):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)  # root may write everywhere
    row = checks.writable("work directory", tmp_path / "runs" / "q")
    assert row.status == "fail"
    assert "Permission denied" in row.found


def test_a_compile_cache_that_others_can_write_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "cache_folder", lambda: str(tmp_path))
    before = jax.config.jax_compilation_cache_dir  # another test may have loaded a model
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        os.chmod(tmp_path, 0o700)
        assert next(checks.compilation_cache()).status == "ok"
        os.chmod(tmp_path, 0o777)
        assert next(checks.compilation_cache()).status == "warn"
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_check_that_breaks_is_a_row_that_fails(monkeypatch, tmp_path):
    def devices():
        raise RuntimeError("no\nbackend")

    monkeypatch.setattr(checks, "devices", devices)
    rows = checks.diagnose(tmp_path)
    assert rows.broken
    assert by_name(rows)["devices"].found == "RuntimeError: no backend"


@pytest.mark.parametrize(
    ("version", "bounds", "fits"),
    [
        ("0.10.2", "<=0.10.2,>=0.10.1", True),
        ("0.10.10", ">=0.10.2", True),
        ("0.9", ">=0.10", False),
        ("0.0.42.1", "==0.0.42.*", True),
        ("0.0.21.1", "==0.0.42.*", False),
        ("2.0", ">=2.0.0", True),
        ("0.7.2.dev3", ">=0.7.2", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version, bounds, fits):
    assert versions.satisfies(version, bounds) is fits


def test_command_prints_a_row_a_line_and_json(tmp_path):
    command = [sys.executable, "-m", "lm_jax.doctor", f"--workdir={tmp_path}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"name", "status", "found", "fix"} == set(json.loads(done.stdout)[0])


def test_exit_code_is_4_when_something_is_broken(monkeypatch):
    from absl import flags

    broken = checks.Rows([checks.Row("disk", "fail", "0 GiB", "free some")])
    monkeypatch.setattr(doctor, "diagnose", lambda workdir: broken)
    monkeypatch.setattr(flags, "FLAGS", type("Flags", (), {"workdir": ".", "json": False}))
    assert doctor.main([]) == 4
