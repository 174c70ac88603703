"""The scripts in launch/ set up once and refuse in one line; a stub plays Python."""

import os
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from lm_jax.errors import EXIT_HUNG

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), *(ROOT / "launch").glob("*.sbatch"),
           ROOT / ".ci" / "run"]  # fmt: skip
WITH_USAGE = [path.name for path in SCRIPTS if "usage=" in path.read_text("utf-8")]
TOOLS = ["awk", "basename", "bash", "cat", "cksum", "cp", "cut", "dirname", "flock", "grep",
         "head", "mkdir", "mv", "sleep", "tail", "tee", "tr"]  # fmt: skip

# Answers what the scripts ask a Python, and records what it is to run.
STUB = """#!/usr/bin/env bash
case "$*" in
    *version_info*) [ -z "${STUB_OLD:-}" ] ;;
    *socket*) echo 12345 ;;
    *runtime*) echo "${STUB_ACCELERATOR:-}" ;;
    *default_backend*) echo "${STUB_BACKEND:-cpu}" ;;
    -V*) echo Python 3.11.9 ;;
    "-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    "-m pip"*) sleep "${STUB_PIP_SECONDS:-0}"; echo "$*" >>"$STUB_LOG"
        if [ -n "${STUB_PIP_FAILS:-}" ]; then echo "ERROR: No matching wheel" >&2; exit 1; fi ;;
    *lm_jax.train*) echo "$*" >>"$STUB_LOG"
        [[ $* =~ --workdir=([^ ]*) ]] && mkdir -p "${BASH_REMATCH[1]}"
        if [[ $* = *--process_id=${STUB_KILLED:-none} ]] && [ ! -e "$STUB_LOG.killed" ]; then
            cat /dev/null >"$STUB_LOG.killed"
            kill -9 $$
        fi
        if [ -n "${STUB_TRAIN_SECONDS:-}" ]; then exec sleep "$STUB_TRAIN_SECONDS"; fi
        exit "${STUB_TRAIN_CODE:-0}" ;;
    *) echo "$*" >>"$STUB_LOG"; echo "output of $2" ;;
esac
"""


@pytest.fixture
def launch(tmp_path):
    """launch(script, *arguments, **environment) in a copy of the repository; .log(), .clone."""
    clone, tools = tmp_path / "a clone", tmp_path / "bin"
    shutil.copytree(ROOT / "launch", clone / "launch")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    tools.mkdir()
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tools / tool).symlink_to(found)
    python = tools / "python3.11"
    python.write_text(STUB)
    python.chmod(0o755)
    log = tmp_path / "log"
    log.touch()

    plain = {"PATH": str(tools), "HOME": str(tmp_path), "STUB_LOG": str(log)}

    def call(script, *arguments, cwd=tmp_path, **env):
        env = {**plain, **env}
        command = [str(tools / "bash"), str(clone / "launch" / script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=60)
        return done.returncode, done.stdout, done.stderr

    call.clone, call.folder, call.python, call.bash = clone, tmp_path, python, tools / "bash"
    call.env = plain
    call.log = lambda: log.read_text().splitlines()
    call.logged = lambda word: [line for line in call.log() if word in line]
    return call


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_valid_bash(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_script_that_a_user_starts_has_a_usage():
    called = {"setup.sh", "tpu_worker.sh", "run"}  # by other scripts
    assert {path.name for path in SCRIPTS} - called == set(WITH_USAGE)


@pytest.mark.parametrize("option", ["--help", "-h"])
@pytest.mark.parametrize("script", WITH_USAGE)
def test_help_is_the_usage_alone_and_sets_nothing_up(launch, script, option):
    """A quotation mark within the text of a usage ends it, and the rest is run as commands."""
    code, out, err = launch(script, option)
    assert (code, err) == (0, "")
    text = (ROOT / "launch" / script).read_text("utf-8")
    assert out == re.search(r'^usage="(.*?)"$', text, re.MULTILINE | re.DOTALL)[1] + "\n"
    assert re.match(rf"usage: (bash|sbatch) .*launch/{re.escape(script)} ", out)
    assert not (launch.clone / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["nowhere"], 3, "error: nowhere: no such file or folder."),
        (["no*where"], 3, "error: no*where: no such file or folder."),
        ([""], 2, "error: the path is empty"),
        (["a", "b"], 2, "error: one path at most, got 2"),
        (["--steps=3"], 2, "error: --steps=3: no such option"),
    ],
)
def test_a_wrong_argument_is_one_line_before_any_setup(launch, arguments, code, says):
    found, out, err = launch("quickstart.sh", *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith(says)
    assert not (launch.clone / ".venv").exists()


def test_no_supported_python_is_one_line(launch):
    code, out, err = launch("quickstart.sh", STUB_OLD="1")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert "no Python 3.11, 3.12 or 3.13" in err
    launch.python.unlink()
    assert launch("quickstart.sh")[0] == 4


def test_a_python_that_is_asked_for_is_taken_or_refused(launch):
    other = launch.folder / "mine"
    shutil.copy(launch.python, other)
    launch.python.unlink()
    assert launch("quickstart.sh", PYTHON=str(other))[0] == 0
    shutil.rmtree(launch.clone / ".venv")
    code, _, err = launch("quickstart.sh", PYTHON="/no/python")
    assert (code, err.count("\n")) == (2, 1)


def test_the_second_run_installs_nothing(launch):
    code, out, _ = launch("quickstart.sh")
    assert code == 0
    assert "installing lm_jax into" in out
    (installed,) = launch.logged("pip")
    assert installed.endswith(f"--editable {launch.clone}")  # the core alone
    code, out, _ = launch("quickstart.sh")
    assert (code, "installing" in out, len(launch.logged("pip"))) == (0, False, 1)


def test_a_changed_setup_cfg_or_a_moved_clone_is_installed_again(launch):
    launch("quickstart.sh")
    with (launch.clone / "setup.cfg").open("a") as file:
        file.write("# another bound\n")
    launch("quickstart.sh")
    assert len(launch.logged("pip")) == 2
    moved = launch.folder / "moved"
    launch.clone.rename(moved)
    command = [launch.bash, moved / "launch" / "quickstart.sh"]
    subprocess.run(command, env=launch.env, check=True, capture_output=True)
    assert launch.logged("pip")[2].endswith(str(moved))


def test_a_failed_install_is_one_line_and_tried_again(launch):
    code, _, err = launch("quickstart.sh", STUB_PIP_FAILS="1")
    assert (code, err.count("\n")) == (4, 1)
    assert "No matching wheel" in err
    assert "install.log" in err
    assert not launch.logged("train")
    assert launch("quickstart.sh")[0] == 0
    assert len(launch.logged("pip")) == 2


@pytest.mark.skipif(not shutil.which("flock"), reason="flock keeps two scripts apart")
def test_two_scripts_at_once_install_once(launch):
    env = {**launch.env, "STUB_PIP_SECONDS": "0.5"}
    command = [launch.bash, launch.clone / "launch" / "quickstart.sh"]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert len(launch.logged("pip")) == 1


def test_another_text_is_another_run(launch):
    for folder in ("one", "two"):
        (launch.folder / folder).mkdir()
        (launch.folder / folder / "my text.txt").write_text("a")
        assert launch("quickstart.sh", f"{folder}/my text.txt")[0] == 0
    launch("quickstart.sh", "my text.txt", cwd=launch.folder / "one")  # the first one again
    launch("quickstart.sh", "tfds:lm1b")
    launch("quickstart.sh")
    runs = [line.split("--workdir=")[1].split(" --")[0] for line in launch.logged("train")]
    assert runs[0].startswith("runs/quickstart-my_text-")
    assert runs[0] == runs[2]
    assert len(set(runs)) == 4
    assert runs[4] == "runs/quickstart"
    inputs = [line.partition("--config.data.input=")[2] for line in launch.logged("train")]
    assert inputs[0] == str(launch.folder / "one" / "my text.txt")
    assert inputs[3:] == ["tfds:lm1b", ""]


def test_the_larger_config_is_taken_where_jax_sees_the_accelerator(launch):
    launch("quickstart.sh", STUB_ACCELERATOR="tpu", STUB_BACKEND="tpu")
    assert launch.logged("pip")[-1].endswith("[tpu]")
    assert "quickstart.py:accelerator " in launch.logged("train")[-1]
    code, out, _ = launch("quickstart.sh", STUB_ACCELERATOR="cuda")  # a driver that jax cannot use
    assert code == 0
    assert "warning: a cuda device is here" in out
    assert ":accelerator" not in launch.logged("train")[-1]
    launch("quickstart.sh", STUB_ACCELERATOR="cuda", STUB_BACKEND="gpu", JAX_PLATFORMS="cpu")
    assert ":accelerator" not in launch.logged("train")[-1]


def test_a_training_that_stops_stops_the_script_with_its_code(launch):
    code, _, _ = launch("quickstart.sh", STUB_TRAIN_CODE="75")
    assert code == 75
    assert not launch.logged("generate")


def test_samples_are_made_anew_only_after_more_training(launch):
    run = launch.clone / "runs" / "quickstart"
    run.mkdir(parents=True)
    (run / "summary.json").write_text("{}")
    os.utime(run / "summary.json", (1, 1))
    for _ in range(2):
        _, out, _ = launch("quickstart.sh")
        assert "output of lm_jax.generate" in out
        assert out.splitlines()[-1].endswith("runs/quickstart/report.html")
    assert len(launch.logged("generate")) == 1
    os.utime(run / "samples.txt", (0, 0))
    launch("quickstart.sh")
    assert len(launch.logged("generate")) == 2


def test_colabs_pins_are_tested_without_what_they_do_not_allow(launch):
    (launch.python.parent / "python3.13").symlink_to(launch.python)
    assert launch("matrix.sh")[0] == 0
    newest, colab = launch.logged("pip")
    assert newest.endswith("[test,quantization]")
    assert "--constraint launch/constraints/colab.txt" in colab
    assert colab.endswith("[test]")  # Qwix needs a newer flax
    assert len(launch.logged("-m pytest")) == 2


def test_the_whole_check_runs_style_types_and_suite(launch):
    assert launch("test.sh")[0] == 0
    asked = [line.split("-m ")[1].split()[0] for line in launch.log()]
    assert asked == ["pip", "ruff", "ruff", "mypy", "pytest"]
    assert launch.logged("pip")[0].endswith("[test,quantization]")
    launch("test.sh", "tests/test_x.py", "-k", "one")
    assert launch.log()[-1].endswith("tests/test_x.py -k one")
    launch("test.sh", "--slow")
    assert launch.log()[-1] == "-m pytest -m slow -n 2 --dist loadfile"
    launch("test.sh", "--parity")
    assert launch.logged("pip")[-1].endswith("[parity]")
    assert launch.log()[-1] == "-m pytest tests/parity -m parity and not slow"
    assert (launch.clone / ".venv-parity").is_dir()


RUN = ("--config=c.py", "--workdir=runs/w")


def test_a_dry_run_prints_what_would_run_and_does_nothing(launch):
    code, out, err = launch("local.sh", "--hosts=2", "--devices=4", "--dry-run", *RUN)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith("JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4")
    assert "-m lm_jax.train --config=c.py --workdir=runs/w --coordinator_address=" in first
    assert first.endswith("--num_processes=2 --process_id=0")
    assert second.endswith("--num_processes=2 --process_id=1")
    assert (
        launch("local.sh", "--dry-run", *RUN)[1]
        == f".venv/bin/python -m lm_jax.train {' '.join(RUN)}\n"
    )
    one = launch("local.sh", "--devices=4", "--dry-run", *RUN)[1]  # not ignored without --hosts
    assert one == f"{first.partition(' --coordinator_address')[0]}\n"
    spaced = ("--config=c.py", "--workdir=runs/my 'w'\n[1]")  # as one would type it
    line = launch("local.sh", *spaced, "--dry-run", XLA_FLAGS="--a --b")[1]
    assert shlex.split(line)[1:] == ["-m", "lm_jax.train", *spaced]
    line = launch("local.sh", *spaced, "--devices=4", "--dry-run", XLA_FLAGS="--a --b")[1]
    assert shlex.split(line)[1] == "XLA_FLAGS=--a --b --xla_force_host_platform_device_count=4"
    assert launch.log() == []
    assert not (launch.clone / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--hosts=two", *RUN], "error: --hosts=two: must be a whole number, at least 1."),
        (["--hosts=0", *RUN], "error: --hosts=0"),
        (["--retries=-1", *RUN], "error: --retries=-1"),
        (["--hosts=2", RUN[0]], "error: --config and --workdir: missing"),
        # bash would read these as octal, or not at all: a run of no process would end with 0.
        (["--hosts=08", *RUN], "error: --hosts=08: must be a whole number, at least 1."),
        (["--devices=010", *RUN], "error: --devices=010"),
        (["--hosts=99999999999999999999", *RUN], "error: --hosts=99999999999999999999"),
        ([*RUN, "--retries=0x1"], "error: --retries=0x1"),  # options stand anywhere
    ],
)
def test_local_refuses_before_any_setup(launch, arguments, says):
    code, out, err = launch("local.sh", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(says)
    assert not (launch.clone / ".venv").exists()


def test_hosts_are_started_together_and_again_when_one_was_killed(launch):
    code, out, _ = launch("local.sh", "--hosts=3", *RUN)
    assert code == 0
    assert sorted(line[-1] for line in launch.logged("train")) == ["0", "1", "2"]
    assert len({line.split("address=")[1].split()[0] for line in launch.logged("train")}) == 1
    assert launch("local.sh", "--hosts=3", *RUN, STUB_KILLED="1")[0] == 137
    (launch.folder / "log.killed").unlink()
    code, out, _ = launch("local.sh", "--hosts=3", "--retries=1", *RUN, STUB_KILLED="1")
    assert code == 0
    assert out.splitlines()[-1].startswith("a process ended with code 137; starting again")
    assert len(launch.logged("train")) == 3 * 4


@pytest.mark.parametrize("code", [2, 5, 75])
def test_what_a_new_start_cannot_help_is_not_started_again(launch, code):
    assert launch("local.sh", "--retries=3", *RUN, STUB_TRAIN_CODE=str(code))[0] == code
    assert len(launch.logged("train")) == 1


def test_a_run_that_was_stuck_is_started_again(launch):
    code, out, _ = launch("local.sh", "--retries=1", *RUN, STUB_TRAIN_CODE=str(EXIT_HUNG))
    assert code == EXIT_HUNG
    assert out.splitlines()[-1].startswith(f"a process ended with code {EXIT_HUNG}; starting again")
    assert len(launch.logged("train")) == 2
    job = (ROOT / "launch" / "gpu_slurm.sbatch").read_text()
    assert re.findall(r"^    ([\d |]+)\)", job, re.MULTILINE) == ["0 | 2 | 3 | 4 | 5", "75"]


def test_a_run_that_is_told_to_stop_is_not_started_again(launch):
    script = launch.clone / "launch" / "local.sh"
    environment = {**launch.env, "STUB_TRAIN_SECONDS": "30"}
    process = subprocess.Popen(
        [launch.bash, script, "--retries=3", *RUN], env=environment, stdout=subprocess.DEVNULL
    )
    while not launch.logged("train"):
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 128 + 15
    assert len(launch.logged("train")) == 1
