"""Is a work directory written by one run at a time, and free again however that one ended?"""

import os
import signal
import subprocess
import sys

import pytest

from lm_jax.config import Config
from lm_jax.errors import BusyError
from lm_jax.run import lock, rundir

HOLDER = """
import sys, time
from lm_jax.run import lock
with lock.held(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of tmp_path/run."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")],
                               stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_process_is_refused_and_told_who_has_it(holder, tmp_path):
    with pytest.raises(BusyError, match="another process trains here") as caught:
        with lock.held(tmp_path / "run", patience=0):
            pass
    assert f"{os.uname().nodename}, process {holder.pid}, since 20" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_blocks_nobody(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait(30)
    assert (tmp_path / "run" / ".lock").exists(), "it could not remove it"
    rundir.check(tmp_path / "run", Config())
    with lock.held(tmp_path / "run", patience=0):
        pass
    assert (tmp_path / "run").is_dir()
    assert not (tmp_path / "run" / ".lock").exists()


def test_two_runs_of_one_process_exclude_each_other_too(tmp_path):
    with lock.held(tmp_path), pytest.raises(BusyError):
        with lock.held(tmp_path, patience=0):
            pass
    with lock.held(tmp_path, patience=0):
        pass


def test_a_folder_in_which_nothing_was_written_is_not_left_behind(tmp_path):
    with lock.held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with lock.held(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "config.json").write_text("{}")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["config.json"]
