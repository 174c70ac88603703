"""The watchdog: a thread in each process checks that steps still end; when they do not, it reports
where, and ends the process, for the launcher to start the run again.

jax notices that a process is dead or frozen, not that one lives and waits for ever: for data, a
disk, a collective. All stand still then, and wait for the one that is furthest behind: each sends
the others its position. One whose interpreter is locked by a call does not answer, and is named for
that; alone, it is not seen, for no thread can check. Nor is what comes before the first step and
after the last: a restore, the figures of the end.
"""

import contextlib
import faulthandler
import functools
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lm_jax.config import WatchdogConfig
from lm_jax.devices import hosts
from lm_jax.errors import EXIT_HUNG

TICK = 1.0  # seconds between two checks
AWAY = 10.0  # between two checks: the process itself was stopped (Ctrl-Z), and nothing is wrong
RECENT = 100  # steps that make the median
WARM = 5  # of them before it counts: more than the first step may be compiled
DISK = 3.0  # seconds for the file of stacks: the disk may be what hangs
ANSWER = 5.0  # seconds for the others to send their position, once called, with stacks written
LINGER = 2.0  # seconds that process 0, through which all talk, outlives its verdict
NAMED = 8  # slow processes in the verdict
PLACES = {  # in the order of a step
    "start": "starting after step {}",
    "data": "waiting for data of step {}",
    "profile": "at the profile of step {}",
    "step": "in step {}",
    "save": "saving step {}",
    "evaluation": "evaluating step {}",
}
ORDER = tuple(PLACES)
PACED = ("data", "step")  # what the median limits; the rest may take config.watchdog.pause


class Place(NamedTuple):
    """Position of the main thread; `since`: when a step last ended, or a pause began or ended."""

    phase: str
    step: int
    since: float


class Heartbeat(NamedTuple):
    """Message of a process to the others: its host and position."""

    host: str
    phase: str
    step: int

    def __str__(self) -> str:
        return PLACES[self.phase].format(self.step)


class Watchdog:
    """`with Watchdog(workdir, config, step) as dog:` around the steps after `step`; the loop then
    reports its position by `dog.at` and `dog.done`, which cost microseconds and hold nothing up.
    """

    def __init__(self, workdir: str | os.PathLike, config: WatchdogConfig, step: int,
                 clock: Callable[[], float] = time.monotonic):  # fmt: skip
        self.config, self.clock, self.first = config, clock, step + 1
        self.index, self.count = jax.process_index(), jax.process_count()
        self.every = 2 + self.count / 500  # seconds between two heartbeats
        self.file = Path(workdir) / f"hang-{self.index}.txt"
        self.finished, self.seconds = step, deque[float](maxlen=RECENT)
        self.place = Place("start", step, clock())
        self.checked, self.since, self.away = clock(), 0.0, 0.0
        self.called = self.ending = False
        self.over, self.lock = threading.Event(), threading.Lock()
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> "Watchdog":
        self.checked = self.clock()
        self.place = self.place._replace(since=self.checked)
        work = [self.watch, self.heartbeat] if self.count > 1 else [self.watch]
        for target in work if self.config.times else []:
            thread = threading.Thread(
                target=target, name=f"watchdog {target.__name__}", daemon=True
            )
            self.threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        with self.lock:
            self.over.set()
        if self.ending:  # too late: what comes now is a consequence, and would hide the cause
            threading.Event().wait()
        for thread in self.threads:
            thread.join(self.every)

    def at(self, phase: str, step: int) -> None:
        """The main thread begins `phase`, one of PLACES, of `step`."""
        paused = phase not in PACED or self.place.phase not in PACED
        self.place = Place(phase, step, self.clock() if paused else self.place.since)

    def done(self, step: int) -> None:
        """The devices have finished `step`: its metrics have been read."""
        now = self.clock()
        if step > self.first:  # which was compiled
            self.seconds.append(now - self.place.since)
        self.finished, self.place = step, self.place._replace(since=now)

    def check(self) -> str:
        """Describes what is wrong, or returns "". To be called every TICK seconds."""
        now, place = self.clock(), self.place
        gap, self.checked = now - self.checked, now
        if place.since != self.since:
            self.since, self.away = place.since, 0.0
        self.away += gap if gap > AWAY else 0.0
        waited = now - place.since - self.away
        limit, why = self.limit(place.phase, waited)
        if waited > limit:
            return f"no step finished for {waited:.0f} s, {why}"
        if self.called:
            return f"another process saw no step finish; here none did for {waited:.0f} s"
        return ""

    def limit(self, phase: str, waited: float) -> tuple[float, str]:
        """Seconds that `phase` may take, and the description of a longer wait."""
        pause, usual = self.config.pause, f"longer than config.watchdog.pause={self.config.pause:g}"
        if len(self.seconds) < WARM:
            return pause, f"{usual}, the limit of the first ones"
        median = statistics.median(list(self.seconds))
        limit = max(self.config.least, self.config.times * median)
        if phase in PACED:
            times = waited / max(median, 1e-9)
            return (
                limit,
                f"{times:.0f} times the median of {median:{'.1f' if median > 1 else '.2g'}} s",
            )
        return max(pause, limit), usual

    def watch(self) -> None:
        """The thread that checks, and ends the process."""
        while not self.over.wait(TICK):
            why = self.check()
            if not why:
                continue
            with self.lock:
                if self.over.is_set():
                    return
                self.ending = True
            within(60 + 4 * self.every, functools.partial(self.report, why))
            os._exit(EXIT_HUNG)  # the main thread handles no exception or signal now

    def heartbeat(self) -> None:
        """The thread that sends this process's position, and learns when another ends the run.

        Not the one that checks: where process 0 is frozen, these calls hang too.
        """
        while not self.over.is_set():
            with contextlib.suppress(Exception):  # jax reports it when it has lost the others
                hosts.publish(f"watchdog/heartbeat/{self.index}", self.here())
                self.called = self.called or bool(hosts.read_keys("watchdog/call"))
            self.over.wait(self.every)

    def here(self) -> str:
        """The Heartbeat of this process, as JSON."""
        return json.dumps([socket.gethostname(), self.place.phase, self.place.step])

    def report(self, why: str) -> None:
        """Writes stacks to the terminal and to a file, then a line that names who is waited for."""
        if self.count > 1:
            within(ANSWER, lambda: hosts.publish(f"watchdog/call/{self.index}", why))
        faulthandler.dump_traceback(2)  # a descriptor: whatever sys.stderr is
        kept = within(DISK, lambda: self.write_stacks(why)) or "above, the disk did not take them"
        who = str(Heartbeat("", *self.place[:2]))
        if self.count > 1:
            silent = "process 0 does not answer" if self.index else "the others cannot be reached"
            who = within(30 + 2 * self.every, self.agree) or f"{who}; {silent}"
        line = f"{why}; last finished step {self.finished}; {who}; stacks: {kept}"
        print(f"error: {line}", file=sys.stderr, flush=True)
        if self.count > 1 and not self.index:
            time.sleep(LINGER)

    def write_stacks(self, why: str) -> str:
        """Writes the stacks of all threads to a file and returns its path."""
        with self.file.open("w") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {socket.gethostname()} process "
                       f"{self.index}: {why}; last finished step {self.finished}\n")  # fmt: skip
            file.flush()
            faulthandler.dump_traceback(file)
        return str(self.file)

    def agree(self) -> str:
        """Announces that this process has its stacks; returns the verdict of process 0."""
        hosts.publish(f"watchdog/answer/{self.index}", self.here())
        if self.index:
            return hosts.wait_for_key("watchdog/verdict", ANSWER + 10 + 2 * self.every)
        until = time.monotonic() + self.every + ANSWER
        while (
            len(answers := hosts.read_keys("watchdog/answer")) < self.count
            and time.monotonic() < until
        ):
            time.sleep(0.2)
        beats = {int(i): Heartbeat(*json.loads(text)) for i, text in
                 (hosts.read_keys("watchdog/heartbeat") | answers).items()}  # fmt: skip
        named = verdict(beats, {int(i) for i in answers}, self.count)
        hosts.publish("watchdog/verdict", named)
        return named


def verdict(beats: dict[int, Heartbeat], answered: set[int], count: int) -> str:
    """Names the processes that the others wait for: without an answer, or furthest behind."""
    where = {i: (beats[i].step, ORDER.index(beats[i].phase)) for i in answered}
    least, most = min(where.values()), max(where.values())
    slow = {i: "is" for i in sorted(where) if where[i] == least < most}
    for i in sorted(set(range(count)) - answered):
        slow[i] = "does not answer, last heard of"
    if not slow:
        return f"no process is behind the others: all are {beats[min(answered)]}"
    named = []
    for i in list(slow)[:NAMED]:
        beat = beats.get(i)
        named.append(f"process {i} ({beat.host}) {slow[i]} {beat}" if beat
                     else f"process {i} has never been heard of")  # fmt: skip
    more = f", and {len(slow) - NAMED} more" if len(slow) > NAMED else ""
    return f"slow: {', '.join(named)}{more}; the others wait"


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """`work()`, or None where it fails or takes longer: nothing may hold what is to end."""
    results: list[Any] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            results.append(work())

    thread = threading.Thread(target=run, name="watchdog report", daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
