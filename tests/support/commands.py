"""Commands in processes of their own: new ones, or forks of one that has imported the package.

A fork runs `python -m MODULE FLAGS` as a new process would, without the seconds of imports.
"""

import json
import os
import subprocess
import sys
from typing import Any

from quick_xla import xla_flags

SERVER = """
import json, os, runpy, signal, sys
import lm_jax.inference.load, lm_jax.training.start, lm_jax.inference.scoring
import lm_jax.data.text.corpus, lm_jax.data.tokens.writer, lm_jax.data.inspect
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if not child:
        signal.alarm(300)  # a command that should have been refused may train for hours
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(asked["env"])
        sys.argv = [asked["module"], *asked["flags"]]
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_module(module: str, *flags: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `python -m MODULE FLAGS` in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", module, *flags], capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


class Commands:
    """`with Commands(folder) as run: code, out, err = run("lm_jax.train", "--workdir=...")`."""

    def __init__(self, folder: Any):
        self.folder = folder
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(self, module: str, *flags: Any, **env: str) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        out, err = self.folder / "out", self.folder / "err"
        asked = {"module": module, "flags": [str(flag) for flag in flags], "env": env}
        assert self.server.stdin
        assert self.server.stdout
        print(
            json.dumps({**asked, "out": str(out), "err": str(err)}),
            file=self.server.stdin,
            flush=True,
        )
        code = int(self.server.stdout.readline())
        return code, out.read_text(), err.read_text()

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *exception: Any) -> None:
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.close()
        self.server.wait(30)
        self.server.stdout.close()


EIGHT, ONE = {"XLA_FLAGS": xla_flags(8)}, {"XLA_FLAGS": xla_flags(1)}
PLATFORM = {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
