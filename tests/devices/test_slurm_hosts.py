"""Hosts of a job are those that `scontrol show hostnames` prints, in every form of the list."""

import pytest

from lm_jax.devices import hosts, slurm
from lm_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node001", "node001"),
        ("node001,host2", "node001 host2"),
        ("a[1-3,5],b07", "a1 a2 a3 a5 b07"),
        ("node[001,007-009],host2", "node001 node007 node008 node009 host2"),
        ("n[9-11]", "n9 n10 n11"),
        ("n[09-11]", "n09 n10 n11"),
        ("n[7]", "n7"),
        ("n[001-002]-ib[1-2]", "n001-ib1 n001-ib2 n002-ib1 n002-ib2"),
        ("rack[0-1]n[08,10]", "rack0n08 rack0n10 rack1n08 rack1n10"),
        ("a[1-2].cluster.example,b-3.example", "a1.cluster.example a2.cluster.example b-3.example"),
        ("t[00x11]", "t00 t01 t10 t11"),
        ("dgx-a100-[01-02],cpu", "dgx-a100-01 dgx-a100-02 cpu"),
    ],
)
def test_every_form_of_the_list_is_read(text, names):
    assert slurm.host_names(text) == names.split()


@pytest.mark.parametrize("text", ["", "a[1-3", "a]", "a[x]", "a[1-]", "a,,b", "a[[1]]", "a[01x1]",
                                  "a[5-3]", "t[11x00]", "a[]"])  # fmt: skip
def test_what_is_no_list_is_refused(text):
    with pytest.raises(UserError, match="SLURM's list of hosts"):
        slurm.host_names(text)


def test_a_huge_list_costs_bounded_memory():
    assert len(slurm.host_names("n[1-999999999]")) == slurm.MAX_HOSTS


def test_the_processes_of_a_step_meet_at_its_first_host(monkeypatch):
    step = {"SLURM_JOB_ID": "4100", "SLURM_STEP_NODELIST": "n[002-003]-ib0", "SLURM_NTASKS": "2",
            "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
            "SLURM_JOB_NODELIST": "n[001-003]-ib0", "SLURM_STEP_NUM_TASKS": "2"}  # fmt: skip
    assert slurm.coordinator(step) == "n002-ib0:61444"
    assert slurm.coordinator({}) == ""
    asked = []
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(hosts, "tpu_is_here", lambda: False)
    monkeypatch.setattr(hosts.jax.distributed, "initialize", lambda **named: asked.append(named))
    hosts.join()
    assert asked[0]["coordinator_address"] == "n002-ib0:61444"
    assert "num_processes" not in asked[0], "SLURM tells jax the rest"
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.0.0.1:1234")
    hosts.join()
    assert "coordinator_address" not in asked[1], "a launcher that knows better"


def test_a_shell_with_a_part_of_the_environment_of_a_job_is_told_so(monkeypatch):
    monkeypatch.setattr(hosts, "tpu_is_here", lambda: False)
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    for name in slurm.OF_A_TASK:
        monkeypatch.delenv(name, raising=False)
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_STEP_NUM_TASKS", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(
        UserError, match=r"SLURM_NTASKS, SLURM_PROCID, .* not a task of srun.*unset"
    ):
        hosts.join()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "")
    assert hosts.slurm_tasks() == 1
    hosts.join()
    assert slurm.coordinator({"SLURM_JOB_ID": "", "SLURM_STEP_NODELIST": "a"}) == "a:61440"
