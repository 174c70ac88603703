"""launch/gpu_slurm.sbatch starts, requeues and ends a run, on SLURM where it is installed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from host_processes import DEVICES, begin, codes, make_folder, rows, same_run
from quick_xla import xla_flags
from slurm_cluster import Cluster, missing
from small_training import final_bits

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "gpu_slurm.sbatch"
RUN = ("--config=c.py", "--workdir=w")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("slurm"))


def run_script(*arguments, **environment):
    done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True,
                          env={"PATH": os.environ["PATH"], **environment})  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_dry_run_prints_the_command():
    code, out, err = run_script("--dry-run", *RUN, PYTHON="/a/python", SRUN_FLAGS="--overcommit")
    assert (code, err) == (0, "")
    assert out == (
        f"srun --kill-on-bad-exit=1 --overcommit /a/python -m lm_jax.train {' '.join(RUN)}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        (["--config=c.py"], {}, 2, "error: --config and --workdir: missing"),
        (RUN, {}, 2, "error: not under SLURM"),
        (RUN, {"SLURM_JOB_ID": "1", "PYTHON": "/no/python"}, 4, "error: /no/python: no such"),
        (RUN, {"SLURM_JOB_ID": "1", "PYTHON": sys.executable, "SLURM_SUBMIT_DIR": "/"}, 2,
         "error: /: is not the repository"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_in_one_line(arguments, environment, code, says):
    found, out, err = run_script(*arguments, **environment)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(says)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if why := missing():
        pytest.skip(f"NO SLURM HERE, ITS TEST DID NOT RUN: {why}")
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(cluster, folder, name):
    """The number of a job of two nodes with two processes each; its log is NAME.log."""
    environment = {
        "PYTHON": sys.executable, "SRUN_FLAGS": "--overcommit --mem=0", "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(1),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",
    }  # fmt: skip
    flags = [f"--config={folder}/config.py", f"--workdir={folder}/{name}",
             f"--config.data.input={folder}/text.jsonl", f"--config.data.store={folder}/store",
             "--nopreflight", "--config.steps=60", "--config.batch_size=8"]  # fmt: skip
    done = subprocess.run(
        ["sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=2", "--overcommit",
         f"--output={folder}/{name}.log", SCRIPT, *flags],
        env={**cluster.environment, **environment}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def state(cluster, job):
    shown = cluster("scontrol", "show", "job", job, "--oneliner")
    fields = dict(part.split("=", 1) for part in shown.split() if "=" in part)
    return fields["JobState"], int(fields["Restarts"])


def completed(cluster, folder, name, job):
    """Waits until the job has ended, well or not."""
    goes_on = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
    log = folder / f"{name}.log"
    cluster.until(lambda: state(cluster, job)[0] not in goes_on, f"job {name}", 400, log)


@pytest.fixture(scope="module")
def whole(cluster, folder):
    """A job that nothing happened to."""
    job = submit(cluster, folder, "whole")
    completed(cluster, folder, "whole", job)
    assert state(cluster, job) == ("COMPLETED", 0)
    return final_bits(folder, "whole")


@pytest.mark.slow
def test_a_job_of_two_nodes_is_the_run_of_one_process(folder, whole):
    assert codes(begin(folder, "one", 1, steps=60)) == [0]
    same_run(folder, "whole", "one")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "told"])
def test_a_job_that_is_stopped_goes_back_into_the_queue_and_ends_in_the_same_bits(
    cluster, folder, whole, how
):
    job = submit(cluster, folder, how)
    cluster.until(
        lambda: max(rows(folder, how), default=0) >= 19, "step 19", 400, folder / f"{how}.log"
    )
    if how == "killed":
        os.kill(process_of(folder / how, 2), signal.SIGKILL)
        says = "a process ended with code 137"
    else:  # what SLURM does before the time limit
        cluster("scancel", "--signal=TERM", job)
        says = "told to stop, and saved"
    cluster.until(lambda: state(cluster, job) == ("PENDING", 1), "the queue", 200)
    cluster("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM waits two minutes
    completed(cluster, folder, how, job)
    assert state(cluster, job) == ("COMPLETED", 1)
    assert f"{says}; job {job} goes back" in (folder / f"{how}.log").read_text()
    assert final_bits(folder, how) == whole


def process_of(workdir, index):
    """The id of the process of that number that trains in `workdir`."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            environment = path.read_bytes().split(b"\0")
            command = (path.parent / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        trains = f"--workdir={workdir}".encode() in command and b"lm_jax.train" in command
        if trains and f"SLURM_PROCID={index}".encode() in environment:
            return int(path.parent.name)
    raise AssertionError(f"no process {index} of {DEVICES} trains in {workdir}")
