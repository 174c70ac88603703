"""What does a command say and return when something is wrong, and what with --debug?"""

import errno
import os
import pathlib
import subprocess
import sys

import pytest

from lm_jax import cli
from lm_jax.errors import CheckpointError, DataError, DivergedError, MachineError, UserError

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = """
import os, sys
from absl import flags
from lm_jax import cli, errors
NUMBER = flags.DEFINE_integer("number", 3, "A number.")
def main(argv):
    {body}
cli.run(main)
"""


def command(body, *flags, **env):
    """(exit code, output, errors) of a command whose main is `body`."""
    done = subprocess.run([sys.executable, "-c", COMMAND.format(body=body), *flags],
                          capture_output=True, text=True, timeout=60, cwd=ROOT,
                          env=os.environ | env)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_tilde_in_a_flag_is_the_home_folder_and_one_in_a_prompt_is_text(monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    words = ["--output=~/a", "--config.data.input=tfds:~/d", "--prompt=~/a", "--dry_run", "--to=~"]
    assert [cli.with_home(word) for word in words] == [
        "--output=/home/x/a", "--config.data.input=tfds:/home/x/d", "--prompt=~/a", "--dry_run",
        "--to=/home/x",
    ]  # fmt: skip


def test_an_error_is_one_line_and_its_code_and_with_debug_a_traceback():
    body = "raise errors.DivergedError('a\\n  b')"
    assert command(body) == (5, "", "error: a b\n")
    code, _, err = command(body, "--debug")
    assert code != 0
    assert "Traceback" in err
    assert "DivergedError" in err


def test_a_wrong_flag_is_one_line_and_with_debug_a_traceback():
    code, out, err = command("pass", "--number=few")
    assert (code, out) == (2, "")
    assert err.startswith("error: flag --number=few")
    assert len(err.splitlines()) == 1
    assert "Traceback" in command("pass", "--number=few", "--debug")[2]


def test_a_bug_of_ours_is_never_hidden():
    code, _, err = command("raise ValueError('ours')")
    assert code == 1
    assert "Traceback" in err


def test_what_main_returns_is_the_exit_code():
    assert command("return 75") == (75, "", "")
    assert command("raise KeyboardInterrupt") == (130, "", "error: stopped by the keyboard.\n")


def test_what_a_terminal_cannot_show_ends_no_command():
    body = "print(chr(0xfffd), chr(0xdcff), 'on')"  # of a sample; of a name that is no UTF-8
    assert command(body, PYTHONIOENCODING="latin-1") == (0, "? ? on\n", "")
    assert command(body, PYTHONIOENCODING="utf-8") == (0, "\ufffd ? on\n", "")
    shown = "\\ufffd \\udcff on\n"  # as the user has it
    assert command(body, PYTHONIOENCODING="latin-1:backslashreplace") == (0, shown, "")


def test_a_reader_that_leaves_the_pipe_is_no_error():
    code = COMMAND.format(body="sys.stdin.readline(); print('x' * 10**6, flush=True)")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write(b"now\n")
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


FAILING = {"full": ">/dev/full 2>&1", "no reader": "2>&1 | true", "closed": ">&- 2>&-",
           "all closed": "<&- >&- 2>&-"}  # fmt: skip
PRINTING = """
    for _ in range(3):
        print('x' * 10**5, flush=True)
        print('y' * 10**5, file=sys.stderr)
    print('buffered')
    with open('data', 'w') as file:
        file.write('whole')
    assert file.closed
    {end}
"""


def shell(body, streams, folder, run="cli.run(main)"):
    """The exit code of a command whose streams the shell has redirected."""
    (folder / "command.py").write_text(COMMAND.replace("cli.run(main)", run).format(body=body))
    words = f"{sys.executable} command.py {streams}; exit ${{PIPESTATUS[0]}}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.run(["bash", "-c", words], cwd=folder, timeout=60, env=env).returncode


@pytest.mark.parametrize("streams", FAILING.values(), ids=FAILING)
@pytest.mark.parametrize(
    ("end", "code"),
    [("return 75", 75), ("raise errors.DataError('a')", 3), ("raise KeyboardInterrupt", 130)],
)
def test_no_stream_that_fails_ends_a_run(streams, end, code, tmp_path):
    run = "cli.run(main, needs_output=False)"
    assert shell(PRINTING.format(end=end), streams, tmp_path, run) == code
    assert (tmp_path / "data").read_text() == "whole"


@pytest.mark.parametrize("streams", ["2>/dev/full", "2>&-", "2> >(true)"])
def test_no_stderr_that_fails_ends_a_command(streams, tmp_path):
    body = "print('a' * 10**5, file=sys.stderr); sys.stderr.flush(); return 7"
    assert shell(body, streams, tmp_path) == 7
    assert shell("raise errors.DataError('a')", streams, tmp_path) == 3
    assert shell("pass", f"--number=few {streams}", tmp_path) == 2
    undefined = "cli.define_config('config', None, 'A file.')"  # reads --flagfile
    assert shell("pass", f"--flagfile=none {streams}", tmp_path, undefined) == 2


@pytest.mark.parametrize("flush", [True, False])
def test_a_full_disk_under_the_result_is_one_line(flush, tmp_path):
    assert shell(f"print('a', flush={flush}); return 7", ">/dev/full 2>err", tmp_path) == 4
    line = "error: standard output: the disk is full; make room or name another folder (--debug"
    assert (tmp_path / "err").read_text().startswith(line)
    assert (tmp_path / "err").read_text().count("\n") == 1


def test_a_reader_that_left_before_the_end_is_no_error(tmp_path):
    wait = "import time; time.sleep(1); print('a')"
    assert shell(wait, "2>err | true", tmp_path) == 0
    assert (tmp_path / "err").read_text() == ""


def test_what_the_shell_closed_is_no_place_for_data(tmp_path):
    body = "file = open('data', 'w'); print(1); os.write(1, b'2'); assert file.fileno() > 2"
    assert shell(body, "<&- >&- 2>&-", tmp_path) == 0
    assert (tmp_path / "data").read_text() == ""


def test_each_kind_of_error_has_its_code():
    kinds = (UserError, DataError, CheckpointError, MachineError, DivergedError)
    assert [kind.code for kind in kinds] == [2, 3, 3, 4, 5]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/d/x"), "/d/x: the disk is full; make"),
        (PermissionError(errno.EACCES, "Permission denied", "/d/x"), "/d/x: Permission denied; "),
        (MemoryError(), "out of memory; lower config.batch_size"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory of 9 bytes"), "out of memory; lower "),
        (RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem."), ""),
        (RuntimeError("Unable to initialize backend 'tpu': no (you may)"), "Unable to initialize "),
        (RuntimeError("anything else"), ""),
        (ValueError("a bug"), ""),
    ],
)  # fmt: skip
def test_trouble_of_the_machine_is_told_from_a_bug(error, line):
    assert cli.machine_trouble(error).startswith(line)
    assert bool(cli.machine_trouble(error)) == bool(line)


def test_an_unknown_field_is_found_at_any_depth():
    assert cli.unknown("config.model.num_layers") is None
    assert cli.unknown("config.modle.dim")[:2] == ("config.modle", "modle")
    assert cli.unknown("config.model.dmi")[:2] == ("config.model.dmi", "dmi")
    assert cli.unknown("config.steps.x")[0] == "config.steps.x"
