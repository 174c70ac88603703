"""SIGTERM, SIGHUP and Ctrl-C as requests: while a run trains, it saves first; at any other moment
it ends at once, in one line, also inside a call of minutes to C++. Imports no jax.
"""

import atexit
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NoReturn

from lm_jax.errors import EXIT_PREEMPTED

EXIT_KEYBOARD = 130  # of a process that SIGINT ended, as shells count
SOON = 2.0  # seconds for a step and its save, after which a line explains the wait
# SIGHUP: the terminal is closed. Windows has none.
ALL = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))


class Stopped(BaseException):
    """SIGTERM or SIGHUP where there is nothing to be saved; the text is the line to print."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the text is what is on disk."""


class Break(BaseException):
    """A stop was requested: an evaluation need not be finished."""


class Requests:
    """`with Requests() as requests:` handles `signals` in the main thread; in others, where Python
    has no signals, nothing changes; nor do signals that are ignored.

    deferred: True (set by the loop while it has something to save): a signal sets `pending`, for
    the loop to save and end; a second Ctrl-C ends at once. False: every signal does. In a process
    that is the command's (`owner`), it ends then and there: an exception would be lost where it
    comes up in the import of a library, or in what is called at a collection of garbage. Elsewhere,
    as in a notebook, Stopped or Interrupted is raised.
    pending: the signal to be obeyed; 0: none. kept: what is on disk, for the line at the end.
    forward: called too, where the processes of a run agree in another way when to stop. cleanup:
    called before a process ends at once. resumes: whether the same command goes on from what is on
    disk; False: what is not Ctrl-C ends it without a line, with the code that shells count.
    """

    owner = False  # see `own`
    obeyed = 0  # the signal that the process is ending for: what comes then has nothing to say

    def __init__(self, signals: Sequence[int] = ALL, forward: Callable[[], None] | None = None,
                 resumes: bool = True):  # fmt: skip
        self.signals, self.forward, self.resumes = signals, forward, resumes
        self.pending, self.deferred, self.kept = 0, False, ""
        self.cleanup: Callable[[], None] | None = None
        self.previous: dict[int, Any] = {}
        self.over, self.ending = threading.Event(), threading.Lock()
        self.ends = (-1, -1)

    def __enter__(self) -> "Requests":
        if threading.current_thread() is threading.main_thread():
            # The C handler writes the signal's number here at once, whatever the main thread does.
            self.ends = os.pipe()
            for end in self.ends:
                os.set_blocking(end, end == self.ends[0])
            self.old_wakeup = signal.set_wakeup_fd(self.ends[1], warn_on_full_buffer=False)
            handled = [n for n in self.signals if signal.getsignal(n) != signal.SIG_IGN]
            self.previous = {number: signal.signal(number, self.handle) for number in handled}
            threading.Thread(target=self.watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.over.set()
        if not self.ending.acquire(blocking=False):  # a second Ctrl-C is ending the process
            threading.Event().wait()
        if self.owner and self.pending:
            Requests.obeyed = self.pending
        if self.ends[1] >= 0:
            for number, handler in self.previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self.old_wakeup)
            os.close(self.ends[1])  # which ends the thread

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler; runs in the main thread, between two of its instructions."""
        del frame
        if self.over.is_set():  # between two lines of __exit__, which leaves no one to wait for
            return
        if not self.deferred or (self.pending and number == signal.SIGINT):
            if self.owner:
                self.end(number)
            raise (Interrupted if number == signal.SIGINT else Stopped)(self.line(number))
        if not self.pending:  # some launchers send SIGTERM more than once
            self.pending = number
            if self.forward is not None:
                self.forward()

    def watch(self) -> None:
        """Acts on signals in a thread, while the main thread is in a call and runs no handler."""
        interrupts = 0
        while (data := os.read(self.ends[0], 1)) and not self.over.is_set():
            number = data[0]
            interrupts += number == signal.SIGINT
            if number not in self.previous or not self.owner:
                continue
            if not self.deferred or (number == signal.SIGINT and interrupts > 1):
                self.end(number)
            elif number == signal.SIGINT and not self.over.wait(SOON):
                write_line(
                    "stopping: the step under way is saved first; Ctrl-C again ends at once."
                )
        os.close(self.ends[0])

    def line(self, number: int) -> str:
        """Message about a signal that ends the run at once."""
        if number == signal.SIGINT:
            return f"stopped by the keyboard{': ' * bool(self.kept)}{self.kept}."
        goes, kept = "goes on" if self.kept else "starts again", self.kept or "nothing is saved yet"
        return f"{signal.Signals(number).name}: {kept}; the same command {goes}."

    def end(self, number: int) -> NoReturn:
        """Ends the process, once, from whichever thread comes first."""
        if not self.ending.acquire(blocking=False):  # or the command is over, and says the rest
            threading.Event().wait()
        if self.cleanup is not None:
            with contextlib.suppress(Exception):
                self.cleanup()
        if not self.resumes and number != signal.SIGINT:
            os._exit(128 + number)
        end(self.line(number), number)


def own() -> None:
    """Declares this process the run's alone: signals may end it at once."""
    Requests.owner = True
    # The first process of a job that ends makes srun terminate the others, which by then have saved
    # and are about to end with the same code. Registered before jax's own, this runs after them.
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)


def write_line(line: str, descriptor: int = 2) -> None:
    """A line, by the descriptor: the interrupted code may hold the lock of sys.stderr."""
    with contextlib.suppress(OSError):
        os.write(descriptor, f"{line}\n".encode())


def end(line: str, number: int) -> NoReturn:
    """Ends the process at once, with `line` and the exit code of a signal."""
    keyboard = (Requests.obeyed or number) == signal.SIGINT
    if not Requests.obeyed:  # its line is printed already
        write_line(f"error: {line}") if keyboard else write_line(line, 1)
    os._exit(EXIT_KEYBOARD if keyboard else EXIT_PREEMPTED)


def quietly_until_started(module: str) -> None:
    """Handlers for the first tenths of a second of `python -m MODULE` and for its end: one line, no
    traceback of an import.
    """
    signals = ALL if module == "lm_jax.train" else (signal.SIGINT,)
    for number in signals:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, lambda number, frame: end(Requests().line(number), number))
    # From before the command was started anew (devices/runtime.py), and what came meanwhile.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)


def module_run() -> str:
    """The package's command that this process runs, "" for none: `python -m lm_jax.train`."""
    named = [b for a, b in zip(sys.orig_argv, sys.orig_argv[1:], strict=False) if a == "-m"]
    return next((name for name in named if name.startswith("lm_jax.")), "")
