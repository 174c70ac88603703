"""A command's standard streams: there, whatever the shell closed, and without power to end what is
under way. Imports no jax.
"""

import contextlib
import io
import os
import sys
from typing import Any, TextIO

NAMES = ("stdin", "stdout", "stderr")


class ReaderGone(BrokenPipeError):
    """The reader of stdout left (| head), and what is printed was all there is to do."""


class Screen(io.FileIO):
    """A descriptor that drops what cannot be written: the disk of a log is full, the reader of a
    pipe gone, the terminal closed.

    strict: the first failure is raised, for a command whose output is its result; no other is, so
    that the end, which flushes what is left, says nothing twice.
    """

    strict = False

    def write(self, data: Any) -> int:
        """The number of bytes that are written or dropped."""
        try:
            return super().write(data) or memoryview(data).nbytes  # None where it would wait
        except OSError as error:
            if not self.strict:
                return memoryview(data).nbytes
            self.strict = False
            if isinstance(error, BrokenPipeError):
                raise ReaderGone(*error.args) from None
            error.filename = "standard output"
            raise


def take() -> None:
    """Opens what the shell closed (`2>&-`) as /dev/null, lest a file of data becomes stdout, and
    writes the standard streams through a Screen; safe to call again.
    """
    for number, name in enumerate(NAMES):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    # A sample, or a folder's name, may hold what the terminal's encoding does not: it costs a "?",
    # not the run.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")
    sys.stdout, sys.stderr = screened(sys.stdout), screened(sys.stderr)


def screened(stream: TextIO) -> TextIO:
    """`stream` through a Screen; itself where it is one, or has no descriptor (a notebook's)."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # io.UnsupportedOperation is both
        return stream
    if not isinstance(stream, io.TextIOWrapper) or screen_of(stream):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    raw: Any = Screen(number, "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw), stream.encoding, stream.errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


def screen_of(stream: TextIO) -> Screen | None:
    """The Screen below a stream."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    return raw if isinstance(raw, Screen) else None


def need_output(needed: bool) -> None:
    """Whether stdout is a command's result, whose loss ends it."""
    if screen := screen_of(sys.stdout):
        screen.strict = needed
