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
