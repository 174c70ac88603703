"""launch/tpu_vm.sh starts, follows, resumes and ends a run; fake_gcloud.py plays the cloud,
folders play the workers: what is sent to one is really run there, with a stub for Python.
"""

import shutil
import subprocess

import pytest
from fake_gcloud import CUT, typed
from fake_tpu_vm import Vm, make_clone

SPOT = ("--name=run", "--zone=us-west4-a", "--type=v5litepod-16", "--spot")
RUN = ("--config=configs/c.py", "--workdir=/shared/run")
PLACE = "--zone=us-west4-a --quiet"
WORKER = "bash lm_jax/launch/tpu_worker.sh"
FLAGS = "--config=configs/c.py --workdir=/shared/run"
FIELDS = "state.state,state.stateInitiator,state.failedData.error.message"


def on_all(command):
    return f"tpu-vm ssh run --command={command} --worker=all {PLACE}"


def log(line):
    ssh = "tpu-vm ssh run --worker=0 --ssh-flag=-oServerAliveInterval=15"
    return f"{ssh} --command={WORKER} log {line} 300 {PLACE}"


CREATE = (
    "queued-resources create run --node-id=run --accelerator-type=v5litepod-16 "
    f"--runtime-version=v2-alpha-tpuv5-lite --spot {PLACE}"
)
DESCRIBE = f"queued-resources describe run --format=value[separator='|']({FIELDS}) {PLACE}"
DELETE = f"queued-resources delete run --force {PLACE}"
STATUS = on_all(f"{WORKER} status {FLAGS} 2>/dev/null || echo lm_jax worker new")
LAUNCH = [
    f"tpu-vm scp TEMP/lm_jax.tar.gz run: --worker=all {PLACE}",
    on_all("mkdir -p lm_jax && tar -xzf lm_jax.tar.gz -C lm_jax && "
           f"{WORKER} install tpu shared /shared/run ''"),
    on_all(f"{WORKER} start {FLAGS}"),
]  # fmt: skip
LOOK = [DESCRIBE, STATUS]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    clone = tmp_path_factory.mktemp("repository") / "clone"
    make_clone(clone)
    return clone


@pytest.fixture
def vm(tmp_path, repository):
    vm = Vm(tmp_path, repository)
    yield vm
    vm.close()


def test_it_creates_installs_starts_and_shows_the_log(vm):
    waiting = ["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    flags = (*RUN, "--config.name=it's a 'name' $HOME", "--config.data.store=gs://b/tokens")
    assert vm(*SPOT, *flags, states=[waiting]) == (
        0,
        ["run waits: no v5litepod-16 is free in us-west4-a now", "run is PROVISIONING", "step 1",
         "the run is finished"],
        "",
    )  # fmt: skip
    kinds = [" ".join(call.split()[:2]) for call in vm.calls]
    describe, ssh = "queued-resources describe", "tpu-vm ssh"
    assert kinds == [describe, "queued-resources create", *[describe] * 4, ssh, "tpu-vm scp",
                     ssh, ssh, ssh, describe, ssh]  # fmt: skip
    for worker in ("run-w-0", "run-w-1"):
        assert vm.trained(worker) == [f"<-m><lm_jax.train>{''.join(f'<{f}>' for f in flags)}"]
        assert (vm.homes / f"pip-{worker}").read_text().strip().endswith("lm_jax[tpu,gcs]")
    assert vm.said[-1] == f"run is still there and costs money: gcloud compute tpus {DELETE}"


def test_a_dry_run_prints_what_a_run_does(vm):
    code, printed, err = vm(*SPOT, "--delete", "--dry-run", *RUN)
    assert (code, err, vm.calls, vm.cloud.made) == (0, "", [], 0)
    assert printed.pop(1) == "git archive --format=tar.gz --output=TEMP/lm_jax.tar.gz HEAD"
    assert [typed(line) for line in printed] == [CREATE, *LAUNCH, log(1), DELETE]
    vm(*SPOT, "--delete", *RUN)
    assert vm.calls == [DESCRIBE, CREATE, *LOOK, *LAUNCH, log(1), *LOOK, DELETE]


def test_several_slices_are_asked_for_together_and_the_first_one_is_shown(vm):
    slices = ("--name=run", "--zone=us-west4-a", "--type=v4-16", "--slices=2", "--project=p")
    assert vm(*slices, *RUN)[1] == ["step 1", "the run is finished"]
    place = "--zone=us-west4-a --project=p --quiet"
    assert vm.calls[1] == (
        "queued-resources create run --node-count=2 --node-prefix=run --accelerator-type=v4-16 "
        f"--runtime-version=tpu-ubuntu2204-base {place}"
    )
    for i in (0, 1):
        assert f"tpu-vm scp TEMP/lm_jax.tar.gz run-{i}: --worker=all {place}" in vm.calls
        assert len(vm.trained(f"run-{i}-w-0")) == len(vm.trained(f"run-{i}-w-1")) == 1
    assert [call.split()[2] for call in vm.calls if " log 1 " in call] == ["run-0"]


@pytest.mark.parametrize(
    ("name", "kind", "slices"),
    [
        ("v5e-16", "v5litepod-16", 1),
        ("tpu-v5-lite-podslice:4x4", "v5litepod-16", 1),
        ("ct5lp-hightpu-4t", "v5litepod-4", 1),
        ("v5p:4x4x4", "v5p-128", 1),
        ("v6e:8x8*2", "v6e-64", 2),
    ],
)
def test_the_names_that_people_have_are_those_of_gcloud(vm, name, kind, slices):
    _, out, _ = vm(*SPOT[:2], f"--type={name}", *RUN, "--dry-run")
    assert f" --accelerator-type={kind} " in out[0]
    assert (f" --node-count={slices} " in out[0]) == (slices > 1)


def test_what_git_tracks_travels_as_it_is_now(vm):
    (vm.clone / "configs" / "c.py").write_text("changed")
    (vm.clone / "configs" / "secret").write_text("untracked")
    assert vm(*SPOT, *RUN)[0] == 0
    there = vm.homes / "run-w-1" / "lm_jax"
    assert (there / "configs" / "c.py").read_text() == "changed"
    assert not (there / "configs" / "secret").exists()


def test_a_preempted_tpu_is_deleted_created_and_goes_on(vm):
    code, out, _ = vm(*SPOT, "--retries=0", *RUN, events=[(1, "step 1", "preempt")],
                      after=["SUSPENDING", "SUSPENDED"], codes={"run-w-0": "hang"})  # fmt: skip
    assert (code, out) == (0, ["step 1", "run is SUSPENDING", "run was preempted", "deleting run",
                               "step 2", "the run is finished"])  # fmt: skip
    first = [DESCRIBE, CREATE, *LOOK, *LAUNCH, log(1)]
    assert vm.calls == [*first, DESCRIBE, DESCRIBE, DELETE, *first, *LOOK]


def test_a_preemption_that_only_the_workers_show_yet_is_one(vm):
    _, out, _ = vm(*SPOT, "--retries=0", *RUN, events=[(1, "step 1", "preempt")],
                   after=["ACTIVE"], codes={"run-w-0": "hang"})  # fmt: skip
    assert out == ["step 1", "run was preempted", "deleting run", "step 2", "the run is finished"]


def test_a_tpu_that_somebody_deletes_is_not_created_again(vm):
    code, _, err = vm(*SPOT, *RUN, events=[(1, "step 1", "preempt")], who="USER",
                      codes={"run-w-0": "hang"})  # fmt: skip
    assert (code, err[:36], vm.cloud.made) == (4, "error: run: was deleted while it ran", 1)


QUOTA = "Quota limit 'TPUV5s' has been exceeded. Limit: 0 in zone us-west4-a"


@pytest.mark.parametrize(
    ("scenario", "deleted"),
    [({"no_create": [f"{QUOTA}."]}, 0), ({"states": [["FAILED"]], "failed": f"{QUOTA}."}, 1)],
)
def test_no_quota_is_one_line_that_names_it(vm, scenario, deleted):
    code, _, err = vm(*SPOT, *RUN, **scenario)
    assert (code, err.count("\n")) == (4, 1)
    assert err.startswith(f"error: --type=v5litepod-16: {QUOTA}; ask for more (https://")
    assert vm.calls.count(DELETE) == deleted  # one that failed would keep its share


def test_a_stockout_is_waited_for_and_other_failures_are_counted(vm):
    code, out, err = vm(*SPOT, "--retries=1", *RUN, no_create=["There is no more capacity."],
                        states=[["FAILED"]], failed="internal error.")  # fmt: skip
    assert out == ["There is no more capacity; asking again", "deleting run",
                   "run could not be had: internal error; starting again (0 more after this)",
                   "deleting run"]  # fmt: skip
    assert (code, err) == (4, "error: run could not be had: internal error; --retries=1 are used "
                              "up, the log may say more.\n")  # fmt: skip


def test_what_gcloud_refuses_is_one_line(vm):
    why = "You do not currently have an active account selected"
    assert vm(*SPOT, *RUN, no_describe=f"{why}.") == (4, [], f"error: run: {why}.\n")
    assert vm.calls == [DESCRIBE]


def test_when_a_process_is_killed_all_are_started_again(vm):
    vm.env |= {"LOOK": "0.5", "GRACE": "1"}  # the other one hangs: it is waited for, then killed
    code, out, _ = vm(*SPOT, *RUN, codes={"run-w-0": "!hang", "run-w-1": "137"})
    assert out == ["step 1", "a process ended with code 137; starting again (4 more after this)",
                   "step 2", "the run is finished"]  # fmt: skip
    assert (code, vm.calls.count(CREATE), vm.calls.count(LAUNCH[2])) == (0, 1, 2)
    hung = (vm.homes / "run-w-0" / "training").read_text().split()[0]
    assert subprocess.run(["kill", "-0", hung], capture_output=True).returncode == 1


def test_retries_end_with_the_code_of_the_process_that_was_killed(vm):
    code, out, err = vm(*SPOT, "--retries=1", *RUN, codes={"run-w-0": "4 75", "run-w-1": "137 137"})
    assert (code, err.count("\n")) == (137, 1)
    assert err.startswith("error: a process ended with code 137; --retries=1 are used up")
    assert out[-1] == "step 2"


@pytest.mark.parametrize("mistake", [2, 3, 4, 5])
def test_a_mistake_is_not_tried_again(vm, mistake):
    codes = {"run-w-0": str(mistake), "run-w-1": str(mistake if mistake == 4 else 134)}
    code, out, err = vm(*SPOT, "--delete", *RUN, codes=codes)
    why = f"error: the training ended with code {mistake}; its last lines say why.\n"
    assert (code, out, err) == (mistake, ["step 1", "deleting run"], why)
    assert (vm.calls[-1], vm.calls.count(LAUNCH[2])) == (DELETE, 1)


def test_a_run_that_was_told_to_stop_on_a_tpu_that_stays_goes_on(vm):
    _, out, _ = vm(*SPOT, *RUN, codes={"run-w-0": "75", "run-w-1": "75"})
    again = "the run was told to stop, and has saved; starting again (4 more after this)"
    assert out == ["step 1", again, "step 2", "the run is finished"]


def test_when_a_worker_is_lost_the_tpu_is_created_anew(vm):
    code, out, _ = vm(*SPOT, *RUN, events=[(1, "step 1", "lose")], codes={"run-w-0": "hang"})
    assert out == ["step 1", *[f"a worker of run cannot be reached: {CUT[:-1]}"] * 3,
                   "a worker of run is lost; starting again (4 more after this)", "deleting run",
                   "step 2", "the run is finished"]  # fmt: skip
    assert (code, vm.calls.count(CREATE)) == (0, 2)


def test_a_tpu_of_which_no_worker_answers_is_left_alone(vm):
    code, _, err = vm(*SPOT, *RUN, unreachable={"run-w-0", "run-w-1"})
    assert (code, err[:34], vm.cloud.made) == (4, "error: run: no worker answers ssh;", 1)


def test_a_broken_connection_loses_no_line_and_repeats_none(vm):
    code, out, _ = vm(*SPOT, *RUN, events=[(1, "step 1", "cut")], codes={"run-w-0": "!0"})
    assert (code, out, log(2) in vm.calls) == (0, ["step 1", "the run is finished"], True)


def test_the_same_command_finds_the_run_again_and_another_is_refused(vm):
    vm.cloud.codes = {"run-w-0": "!hang", "run-w-1": "hang"}
    for _ in range(2):
        with vm.begin(*SPOT, *RUN) as process:
            while (line := process.stdout.readline()) != "step 1\n":
                assert line
            process.terminate()
            assert process.wait(20) == 130
            assert "the run on run goes on: the same command finds it" in process.stdout.read()
    assert (vm.calls.count(CREATE), vm.calls.count(LAUNCH[2]), vm.calls.count(log(1))) == (1, 1, 2)
    code, _, err = vm(*SPOT, *RUN, "--config.steps=3")
    assert (code, err[:52]) == (2, "error: --name=run: a run with other flags is on this")
    assert len(vm.trained("run-w-0")) == 1


def test_a_workdir_that_goes_with_the_tpu_is_refused_and_a_mount_comes_first(vm):
    local = (RUN[0], f"--workdir={vm.homes}/run")
    code, _, err = vm(*SPOT, *local)
    assert code == 2
    assert err.startswith(f"error: --workdir={vm.homes}/run: is on the disk of run-w-")
    assert vm(*SPOT, "--mount=exit 3", *RUN, "--retries=0")[0] == 4
    assert vm.trained("run-w-0") == []
    assert vm(*SPOT, "--mount=echo $HOSTNAME >>/shared/mounted", *RUN)[0] == 0
    assert sorted((vm.shared / "mounted").read_text().split()) == ["run-w-0", "run-w-1"]


def test_one_host_that_stays_may_keep_the_run_on_its_disk(vm):
    one = ("--name=run", "--zone=us-west4-a", "--type=v5litepod-8")
    assert vm(*one, RUN[0], "--workdir=runs/q", hosts=1)[0] == 0
    assert (vm.homes / "run-w-0" / "lm_jax" / "runs" / "q" / "steps").exists()


def test_a_worker_without_a_right_python_gets_one(vm):
    python = vm.homes.parent / "bin-of-workers"
    (python / "python3.11").rename(python / "python3")
    (python / "python3.old").touch()
    assert vm(*SPOT, *RUN)[0] == 0
    assert "install --quiet --user uv" in (vm.homes / "pip-run-w-1").read_text()


def test_the_number_of_another_process_is_not_taken_for_a_run(vm):
    worker, run = vm.clone / "launch" / "tpu_worker.sh", vm.clone / ".tpu_run"
    run.mkdir()
    with subprocess.Popen(["sleep", "60"]) as other:
        (run / "pid").write_text(str(other.pid))
        done = subprocess.run(["bash", worker, "status"], capture_output=True, text=True)
        other.kill()
    assert done.stdout.split()[2] == "lost"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--name=Run"], "--name=Run: must be lower case"),
        (["--zone=us-west4"], "--zone=us-west4: must be a zone"),
        (["--type=v6e-7"], "--type=v6e-7: no slice of v6e has this size; the nearest is v6e-8."),
        (["--type=v5p:4x4x6"], "--type=v5p:4x4x6: no slice of this API; the nearest is v5p-"),
        (["--type=tpu7x-16"], "--type=tpu7x-16: the Cloud TPU API has no tpu7x; GKE has"),
        (["--type=v9-16"], "--type=v9-16: chip 'v9-16' is not known."),
        (["--type=v4"], "--type=v4: must be a type and its size"),
        (["--type=v5e-16*2", "--slices=3"], "--slices=3: --type says 2."),
        (["--slices=0"], "--slices=0: must be a whole number, at least 1."),
        (["--retries=x"], "--retries=x: must be a whole number, at least 0."),
        (["--slices=08"], "--slices=08: must be a whole number, at least 1."),
        (["--workdir="], "--config and --workdir: missing"),
        (["--workdir=gs://b/run"], "--workdir=gs://b/run: must be a folder; mount the bucket"),
        (["--workdir=runs/q"], "--workdir=runs/q: must be a folder that all hosts see"),
        (["--config=mine.py"], "--config=mine.py: git does not track it in CLONE, so"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_created(vm, words, says):
    code, out, err = vm(*SPOT, *RUN, *words)
    assert (code, out, err.count("\n"), vm.calls) == (2, [], 1, [])
    assert vm.plain(err).startswith(f"error: {says}")


def test_what_is_missing_here_is_one_line(vm):
    (vm.here / "gcloud").unlink()
    code, _, err = vm(*SPOT, *RUN)
    assert (code, err[:38]) == (4, "error: gcloud: not found; install it (")
    shutil.rmtree(vm.clone / ".git")
    code, _, err = vm(*SPOT, *RUN)
    assert (code, vm.plain(err)[:32]) == (4, "error: CLONE: is not a git clone")


@pytest.mark.parametrize(
    ("kind", "image"),
    [("v3-8", "tpu-ubuntu2204-base"), ("v5p-8", "v2-alpha-tpuv5"), ("v6e-4", "v2-alpha-tpuv6e"),
     ("v4-8 --version=mine", "mine"), ("v9-8 --version=mine", "mine")],
)  # fmt: skip
def test_the_image_fits_the_type_or_is_the_one_that_is_asked_for(vm, kind, image):
    _, out, _ = vm(*SPOT[:2], *f"--type={kind}".split(), *RUN, "--dry-run")
    assert f" --runtime-version={image} " in out[0]
