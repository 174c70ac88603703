"""Commands in the process of the tests: no second start of jax, and programs stay compiled."""

import contextlib
import io
import runpy
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
from absl import flags

import lm_jax.cli  # noqa: F401  whose flags, and those of absl.app, stay
from lm_jax.devices import runtime
from lm_jax.run.interrupts import ALL, Requests


class Ended(NamedTuple):
    """The end of a command: its exit code, what it wrote to stdout and to stderr."""

    code: int
    out: str
    err: str


class Terminal(io.TextIOWrapper):
    """Text that a command writes; `seen` hears each piece."""

    def __init__(self, seen: Callable[[str], None] = lambda text: None):
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self.seen = seen

    def write(self, text: str) -> int:
        self.seen(text)
        return super().write(text)

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()


def command(
    module: str,
    *arguments: Any,
    devices: int | None = None,
    seen: Callable[[str], None] = lambda text: None,
) -> Ended:
    """Runs `python -m MODULE ARGUMENTS` here, on all devices of this process or the first few.

    seen: called with whatever the command prints, before it goes on.
    """
    known, argv = set(flags.FLAGS), sys.argv
    handlers = {number: signal.getsignal(number) for number in ALL}
    out, err = Terminal(seen), Terminal()
    sys.argv = [module, *map(str, arguments)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
            mock.patch.object(runtime, "devices", return_value=jax.devices()[:devices]),
            # A command owns its process, which a signal may end then: not that of the tests.
            mock.patch.object(Requests, "owner", False),
            mock.patch.object(Requests, "obeyed", 0),
        ):
            # Of ml_collections; and of runpy, where a test has imported the command.
            warnings.filterwarnings("ignore", "the load_module|.* found in sys.modules")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        raise AssertionError(f"{module} did not exit")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return Ended(code, out.text(), err.text())
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in set(flags.FLAGS) - known:
            home = flags.FLAGS.find_module_defining_flag(name, "")
            if home not in sys.modules or home.startswith(("ml_collections", "absl", "lm_jax")):
                delattr(flags.FLAGS, name)  # the command's own; what it imported keeps its own
