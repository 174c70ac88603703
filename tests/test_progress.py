"""Does progress tell rate and time left, and stay silent when it is quick?"""

import io
import time

from lm_jax.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_tells_share_rate_and_time_left():
    progress = Progress("reading", 30e6, out=io.StringIO())
    progress.done = 12e6
    assert progress.line(4) == "reading  40%  12.0 of 30.0 MB  3.0 MB/s  6s left"
    unknown = Progress("reading", None, out=io.StringIO())
    unknown.done = 12e6
    assert unknown.line(4) == "reading  12.0 MB  3.0 MB/s"


def test_quick_work_says_nothing_and_long_work_ends_with_a_line():
    for out, begin in ((Terminal(), "\r"), (io.StringIO(), "")):
        with Progress("p", 10, out=out) as progress:
            progress.add(5)
            assert out.getvalue() == ""
            progress.next = time.monotonic()
            progress.add(5)
        lines = out.getvalue().strip("\n").splitlines()
        assert out.getvalue().startswith(begin + "p  100%")
        assert out.getvalue().endswith("\n")
        assert lines


def test_durations_are_short():
    assert [duration(s) for s in (0.4, 59.4, 725, 3599, 3725, 360_000)] == [
        "0s", "59s", "12m", "59m", "1h02m", "100h00m"]  # fmt: skip


def test_one_that_is_quiet_shows_nothing():
    out = io.StringIO()
    with Progress("reading", 10, out=out, quiet=True) as progress:
        progress.next = min(progress.next, float("inf"))
        progress.start -= 100
        progress.add(5)
    assert out.getvalue() == ""


def test_without_a_terminal_there_is_no_progress(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)  # as pythonw has it, and 2>&-
    with Progress("reading", 10) as progress:
        progress.start -= 100
        progress.add(5)
