"""Several processes make the same run as one; real processes, on this machine."""

import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from host_processes import (
    STEPS,
    begin,
    codes,
    free_port,
    log,
    make_folder,
    rows,
    same_run,
    wait_for,
)
from small_training import final_bits

from lm_jax.devices import hosts, sharding
from lm_jax.errors import EXIT_PREEMPTED, AbsentError, UserError
from lm_jax.run.checkpoint import SavedSteps

LOCAL = Path(__file__).parents[2] / "launch" / "local.sh"
MESHES = {"data": [], "tensor": ["--config.mesh.data=2", "--config.mesh.tensor=2"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("hosts"))


@pytest.mark.jax10
def test_two_processes_make_the_run_of_one_stop_together_and_go_on_as_one(folder):
    assert codes(begin(folder, "one", 1)) == [0], log(folder, "one")
    processes = begin(folder, "two", 2)
    wait_for(folder, "two", 9, processes)
    processes[1].send_signal(signal.SIGTERM)  # one of them is told, both stop after the same step
    assert codes(processes) == [EXIT_PREEMPTED] * 2, log(folder, "two")
    last = max(rows(folder, "two"))
    assert 9 <= last < STEPS
    assert SavedSteps(folder / "two").steps()[-1] == last
    assert (folder / "two.1.log").read_text().count("step ") == 0, "one of them speaks"
    assert codes(begin(folder, "two", 1)) == [0], log(folder, "two")
    same_run(folder, "two", "one")


# A mesh in which the devices of a host are not neighbours, as on most TPU slices.
APART = """
from lm_jax import cli, train
from lm_jax.devices import sharding
make = sharding.make_mesh
order = lambda device: (device.id % 2, device.id)
sharding.make_mesh = lambda config, devices: make(config, sorted(devices, key=order))
cli.run(train.main)
"""


@pytest.mark.slow
def test_a_mesh_that_takes_hosts_apart_makes_the_same_run(folder):
    if not (folder / "one").exists():
        assert codes(begin(folder, "one", 1)) == [0], log(folder, "one")
    (folder / "apart.py").write_text(APART)
    assert codes(begin(folder, "apart", 2, program=["apart.py"])) == [0, 0], log(folder, "apart")
    same_run(folder, "apart", "one")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_makes_the_same_run(folder, count, mesh):
    if not (folder / f"one_{mesh}").exists():
        assert codes(begin(folder, f"one_{mesh}", 1, *MESHES[mesh])) == [0]
    name = f"{mesh}_of_{count}"
    assert codes(begin(folder, name, count, *MESHES[mesh])) == [0] * count, log(folder, name)
    same_run(folder, name, f"one_{mesh}")


@pytest.mark.slow
def test_a_lost_process_stops_the_others_and_a_new_start_ends_in_the_same_bits(folder):
    steps = 60
    whole = begin(folder, "whole4", 4, steps=steps)
    assert codes(whole) == [0] * 4, log(folder, "whole4")
    processes = begin(folder, "lost", 4, steps=steps)
    wait_for(folder, "lost", 19, processes)
    processes[2].kill()
    since = time.monotonic()
    found = codes(processes, 60)
    assert all(found), found
    assert time.monotonic() - since < 60
    assert codes(begin(folder, "lost", 4, steps=steps)) == [0] * 4, log(folder, "lost")
    assert final_bits(folder, "lost") == final_bits(folder, "whole4")
    wanted = rows(folder, "whole4")
    assert {s: (r["batch_crc"], r["loss"]) for s, r in rows(folder, "lost").items()} == {
        s: (r["batch_crc"], r["loss"]) for s, r in wanted.items()
    }


ALONE = """
import sys, time
from lm_jax.devices import hosts
address, index = sys.argv[1], int(sys.argv[2])
hosts.join(address, 2, index)
hosts.on_first_process(lambda: time.sleep(40), "text")
"""


@pytest.mark.slow
def test_what_the_first_does_alone_may_take_longer_than_a_collective_waits(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    run = lambda index: [sys.executable, "-c", ALONE, address, str(index)]
    processes = [subprocess.Popen(run(index), cwd=tmp_path) for index in range(2)]
    assert codes(processes) == [0, 0]


@pytest.mark.slow
def test_a_checkpoint_of_four_goes_on_with_two(folder):
    processes = begin(folder, "fewer", 4)
    wait_for(folder, "fewer", 9, processes)
    processes[0].send_signal(signal.SIGTERM)
    assert codes(processes) == [EXIT_PREEMPTED] * 4, log(folder, "fewer")
    assert codes(begin(folder, "fewer", 2)) == [0] * 2, log(folder, "fewer")
    if not (folder / "one_data").exists():
        assert codes(begin(folder, "one_data", 1)) == [0]
    same_run(folder, "fewer", "one_data")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("host:1", 0, -1), "give all three"),
        (("", 2, 0), "give all three"),
        (("host:1", 2, 2), "process_id=2: must be below --num_processes=2"),
    ],
)
def test_flags_that_do_not_fit_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        hosts.join(*given)


def test_slurm_tells_how_many(monkeypatch):
    assert hosts.slurm_tasks() == 1
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert hosts.slurm_tasks() == 1, "a job's script, seen so on SLURM 22.05"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert hosts.slurm_tasks() == 4


def test_processes_that_do_not_meet_are_told_from_a_host_that_is_alone(monkeypatch, capsys):
    def never(**_):
        raise RuntimeError("Failed to recognize\ncoordinator address")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    with pytest.raises(AbsentError, match="did not meet: Failed to recognize coordinator") as found:
        hosts.join("host:1", 2, 0)
    assert found.value.code == 69, "not one of those that a new start cannot help"
    monkeypatch.setattr(hosts, "tpu_is_here", lambda: True)
    for names, slices in (("a,b", ""), ("a", "2")):  # as GKE tells the pods of TPU slices
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", names)
        monkeypatch.setenv("MEGASCALE_NUM_SLICES", slices)
        with pytest.raises(AbsentError):
            hosts.join()
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "")
    hosts.join()
    assert capsys.readouterr().err.startswith("WARNING: only this host: ")


@pytest.mark.parametrize(
    ("sizes", "owners", "expected"),
    [
        ({"data": 8}, [0, 0, 0, 0, 1, 1, 1, 1], [(0, 1, 2, 3), (4, 5, 6, 7)]),
        ({"data": 2, "fsdp": 2, "tensor": 2}, [0, 0, 1, 1, 2, 2, 3, 3], [(i,) for i in range(4)]),
        ({"data": 2, "tensor": 4}, [0, 0, 1, 1, 2, 2, 3, 3], [(0,), (0,), (1,), (1,)]),
        ({"data": 1, "tensor": 8}, [0, 0, 0, 0, 1, 1, 1, 1], [(0,), (0,)]),
        ({"data": 4, "tensor": 2}, [0, 0, 1, 1, 1, 1, 0, 0], [(0, 3), (1, 2)]),
        ({"data": 2, "fsdp": 4}, [0, 0, 1, 1, 1, 1, 0, 0], [(0, 1, 6, 7), (2, 3, 4, 5)]),
        ({"data": 4, "tensor": 2}, [0, 1, 1, 2, 2, 3, 3, 0], None),
        ({"data": 8}, [0, 0, 0, 0, 0, 0, 1, 1], None),
    ],
)
def test_a_process_has_the_rows_of_its_devices(monkeypatch, sizes, owners, expected):
    owner = [types.SimpleNamespace(process_index=i, platform="cpu") for i in owners]
    shape = [sizes.get(axis, 1) for axis in sharding.AXES]
    devices = np.array(owner, object).reshape(shape)
    mesh = types.SimpleNamespace(axis_names=sharding.AXES, devices=devices)
    count = max(owners) + 1
    monkeypatch.setattr(jax, "process_count", lambda: count)
    for index in range(count):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        if expected is None:
            with pytest.raises(UserError, match="others only some of them"):
                hosts.share(mesh)
            return
        parts = sizes.get("data", 1) * sizes.get("fsdp", 1)
        assert hosts.share(mesh) == (expected[index], parts)
