"""Is a run that is stuck ended, with its stacks, and is the one named that the others wait for?"""

import re
import signal
import threading
import time

import pytest
from host_processes import begin, codes, log, make_folder, rows, wait_for

from lm_jax.config import WatchdogConfig
from lm_jax.errors import EXIT_HUNG
from lm_jax.run import watchdog
from lm_jax.run.watchdog import NAMED, TICK, WARM, Heartbeat, Watchdog, verdict

SOON = WatchdogConfig(times=20, least=60, pause=600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("watchdog"))


class Time:
    """A clock that a test sets forward; `watched` does so as the thread would see it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def watched(self, dog, seconds):
        """The first words of the watchdog within `seconds`, and when; else ""."""
        since = self.now
        while self.now - since < seconds:
            self.now += TICK
            if why := dog.check():
                return why, self.now - since
        return "", seconds


def stepping(tmp_path, seconds, steps=50, config=SOON, start=0):
    """A watchdog that has seen `steps` steps of `seconds` after `start`, and its clock."""
    clock = Time()
    dog = Watchdog(tmp_path, config, start, clock)
    for step in range(start + 1, start + steps + 1):
        dog.at("data", step)
        dog.at("step", step)
        assert clock.watched(dog, seconds)[0] == ""
        dog.done(step)
    return dog, clock


def test_the_limit_is_so_many_times_the_median(tmp_path):
    dog, clock = stepping(tmp_path, 6)
    dog.at("data", 51)
    why, after = clock.watched(dog, 1000)
    assert why == "no step finished for 121 s, 20 times the median of 6.0 s"
    assert after == 121
    assert dog.finished == 50


def test_a_few_slow_steps_do_not_move_it_and_quick_ones_have_a_floor(tmp_path):
    dog, clock = stepping(tmp_path, 1)
    for step in range(51, 61):
        dog.at("step", step)
        assert clock.watched(dog, 55) == ("", 55)
        dog.done(step)
    dog.at("step", 61)
    assert clock.watched(dog, 1000)[1] == 61


def test_waiting_for_data_counts_as_the_step_does(tmp_path):
    dog, clock = stepping(tmp_path, 1)
    dog.at("data", 51)
    assert clock.watched(dog, 40) == ("", 40)
    dog.at("step", 51)
    assert clock.watched(dog, 1000)[1] == 21


@pytest.mark.parametrize("phase", ["save", "evaluation", "profile"])
def test_a_pause_has_its_own_limit_and_does_not_count_in_the_step_after(tmp_path, phase):
    dog, clock = stepping(tmp_path, 1)
    dog.at(phase, 50)
    assert clock.watched(dog, 590) == ("", 590)
    dog.at("data", 51)
    assert clock.watched(dog, 55) == ("", 55)
    dog.done(51)
    assert max(dog.seconds) == 55
    dog.at(phase, 51)
    why, after = clock.watched(dog, 1000)
    assert (why, after) == (
        "no step finished for 601 s, longer than config.watchdog.pause=600",
        601,
    )


@pytest.mark.parametrize("start", [0, 1000])
def test_the_first_steps_of_a_start_or_a_resume_are_compiled_and_have_the_long_limit(
    tmp_path, start
):
    dog, clock = stepping(tmp_path, 400, 1, start=start)  # as it compiles
    assert not dog.seconds
    for step in range(start + 2, start + 2 + WARM):
        dog.at("data", step)
        seconds = 1 if step < start + 1 + WARM else 300
        assert clock.watched(dog, seconds) == ("", seconds)
        dog.done(step)
    assert len(dog.seconds) == WARM
    assert clock.watched(dog, 1000)[1] == 61
    dog, clock = stepping(tmp_path, 400, 1, start=start)
    assert clock.watched(dog, 1000)[1] == 601


def test_a_pause_may_be_as_long_as_long_steps(tmp_path):
    dog, clock = stepping(tmp_path, 100)
    dog.at("save", 50)
    assert clock.watched(dog, 9999)[1] == 2001


def test_a_process_that_was_itself_stopped_goes_on(tmp_path):
    dog, clock = stepping(tmp_path, 1)
    dog.at("step", 51)
    clock.now += 5000  # Ctrl-Z and fg, a suspended machine
    assert clock.watched(dog, 55) == ("", 55)
    assert clock.watched(dog, 1000)[1] < 10


def test_where_another_process_ends_the_run_this_one_does_too(tmp_path):
    dog, clock = stepping(tmp_path, 1)
    dog.called = True
    why, after = clock.watched(dog, 1000)
    assert why.startswith("another process saw no step finish")
    assert after == TICK


def test_nothing_is_watched_before_after_or_when_it_is_off(tmp_path):
    alive = lambda: [t.name for t in threading.enumerate() if t.name.startswith("watchdog")]
    dog = Watchdog(tmp_path, WatchdogConfig(), 0)
    assert alive() == []
    with dog:
        assert alive() == ["watchdog watch"]
    assert alive() == []
    with Watchdog(tmp_path, WatchdogConfig(times=0), 0):
        assert alive() == []


def test_a_disk_that_does_not_answer_holds_nothing():
    since = time.monotonic()
    assert watchdog.within(0.1, lambda: time.sleep(60)) is None
    assert watchdog.within(60, lambda: 1 / 0) is None
    assert watchdog.within(60, lambda: "kept") == "kept"
    assert time.monotonic() - since < 30


def test_the_slow_are_those_furthest_behind_and_those_that_do_not_answer():
    ahead = Heartbeat("a", "step", 43)
    behind, hung = Heartbeat("b", "data", 42), Heartbeat("c", "step", 42)
    everyone = {0: ahead, 1: behind, 2: hung}
    assert verdict(everyone, {0, 1, 2}, 3) == (
        "slow: process 1 (b) is waiting for data of step 42; the others wait"
    )
    assert verdict(everyone, {0, 2}, 3) == (
        "slow: process 2 (c) is in step 42, process 1 (b) does not answer, last heard of waiting "
        "for data of step 42; the others wait"
    )
    assert "process 3 has never been heard of" in verdict(everyone, {0, 1, 2}, 4)
    same = dict.fromkeys(range(3), ahead)
    assert verdict(same, {0, 1, 2}, 3) == "no process is behind the others: all are in step 43"
    many = {0: ahead, **dict.fromkeys(range(1, 20), behind)}
    assert verdict(many, set(many), 20).count("(b)") == NAMED
    assert f", and {19 - NAMED} more;" in verdict(many, set(many), 20)


HANGS = """
import runpy, sys, time
{patch}
runpy.run_module("lm_jax.train", run_name="__main__", alter_sys=True)
"""
DATA = """
from lm_jax.data.stream import Batches
calls, real = [], Batches.__next__

def wait_for_a_dead_disk():
    time.sleep(10**6)

def next_batch(self):
    calls.append(1)
    if len(calls) == {step} and "--process_id={who}" in [*sys.argv, "--process_id=None"]:
        wait_for_a_dead_disk()
    return real(self)

Batches.__next__ = next_batch
"""
SAVE = """
from lm_jax.run.checkpoint import Checkpoints

def save_on_a_dead_disk(*arguments):
    time.sleep(10**6)

Checkpoints.save = save_on_a_dead_disk
"""
SMALL = ("--config.model.num_layers=1", "--config.model.dropout=0", "--config.microbatches=1")
QUICK = (*SMALL, "--config.watchdog.least=3", "--config.watchdog.times=2")


def hanging(folder, name, count, patch, *more):
    """Starts `count` processes of the run `name`, with `patch` in them."""
    program = folder / f"{name}.py"
    program.write_text(HANGS.format(patch=patch))
    return begin(folder, name, count, *QUICK, *more, program=(str(program),))


def test_a_process_that_waits_for_data_for_ever_ends_with_its_stacks(folder):
    processes = hanging(folder, "alone", 1, DATA.format(step=12, who=None))
    assert codes(processes) == [EXIT_HUNG], log(folder, "alone")
    (line,) = [x for x in log(folder, "alone").splitlines() if x.startswith("error: ")]
    assert re.fullmatch(
        r"error: no step finished for \d+ s, \d+ times the median of \S+ s; last finished step 10; "
        r"waiting for data of step 12; stacks: alone/hang-0\.txt",
        line,
    )
    stacks = (folder / "alone" / "hang-0.txt").read_text()
    for text in (stacks, log(folder, "alone")):
        assert "in wait_for_a_dead_disk" in text
        assert "in next_batch" in text
    assert stacks.count("Thread 0x") > 1
    assert "process 0: no step finished for" in stacks.splitlines()[0]


def ended_and_named(folder, name, processes, says, workdir):
    """Both processes have ended as hung, and say who was slow."""
    assert codes(processes) == [EXIT_HUNG] * 2, log(folder, name)
    for index in (0, 1):
        lines = (folder / f"{name}.{index}.log").read_text().splitlines()
        (line,) = [x for x in lines if x.startswith("error: ")]
        assert re.search(says, line), line
        stacks = (folder / workdir / f"hang-{index}.txt").read_text()
        assert ("in wait_for_a_dead_disk" in stacks) == (f"process {index} " in says)


TALK = """
import ctypes, sys, time
from lm_jax.devices import hosts
from lm_jax.config import WatchdogConfig
from lm_jax.run.watchdog import Watchdog
flags = dict(flag[2:].split("=") for flag in sys.argv[1:] if "=" in flag)
index = int(flags["process_id"])
hosts.join(flags["coordinator_address"], 2, index)

def wait_for_a_dead_disk():
    time.sleep(10**6)

def keep_the_lock():
    ctypes.PyDLL(None).sleep(10**6)

# Process 1 would wait for hours: it ends because process 0 does.
with Watchdog(".", WatchdogConfig(times=2, least=10_000 if index else 3), 0) as dog:
    for step in range(1, 1000):
        dog.at("data", step)
        if (index, step) == (1, 12):
            {hang}()
        dog.at("step", step)
        hosts.publish(f"{{step}}/{{index}}", "")
        # As a collective: with the other or never.
        hosts.wait_for_key(f"{{step}}/{{1 - index}}", 1000)
        dog.done(step)
"""


def talking(folder, hang):
    """Two processes with a watchdog and no model, of which 1 hangs in step 12."""
    (folder / f"{hang}.py").write_text(TALK.format(hang=hang))
    return begin(folder, hang, 2, program=(str(folder / f"{hang}.py"),))


def test_processes_tell_each_other_which_one_is_waited_for(folder):
    says = r"slow: process 1 \(\S+\) is waiting for data of step 12; the others wait;"
    name = "wait_for_a_dead_disk"
    ended_and_named(folder, name, talking(folder, name), says, ".")
    assert "error: another process saw no step finish" in (folder / f"{name}.1.log").read_text()


def test_one_whose_interpreter_is_locked_is_named_and_ends_too(folder):
    first, second = codes(talking(folder, "keep_the_lock"))
    assert first == EXIT_HUNG
    assert second not in (0, 2, 3, 4, 5, 75), "jax ends it once process 0 is gone"
    says = r"slow: process 1 \(\S+\) does not answer, last heard of .* step \d+; the others wait;"
    assert re.search(says, (folder / "keep_the_lock.0.log").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_both_end_when_one_waits_for_data_and_it_is_named(folder, who):
    processes = hanging(folder, f"slow{who}", 2, DATA.format(step=12, who=who))
    says = rf"slow: process {who} \(\S+\) is waiting for data of step 12; the others wait;"
    ended_and_named(folder, f"slow{who}", processes, says, f"slow{who}")


@pytest.mark.slow
def test_a_frozen_process_ends_the_other_by_whichever_sees_it_first(folder):
    processes = begin(folder, "frozen", 2, *QUICK, steps=100_000)
    try:
        wait_for(folder, "frozen", 20, processes)
        processes[1].send_signal(signal.SIGSTOP)
        assert processes[0].wait(60) in (EXIT_HUNG, -signal.SIGABRT), log(folder, "frozen")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    named = r"slow: process 1 \(\S+\) does not answer, last heard of"  # or jax, by its heartbeat
    assert re.search(rf"{named}|stopped sending heartbeats", log(folder, "frozen"))


@pytest.mark.slow
def test_a_save_that_hangs_ends_the_run_and_the_same_command_goes_on(folder):
    processes = hanging(folder, "save", 1, SAVE, "--config.watchdog.pause=20")
    assert codes(processes) == [EXIT_HUNG], log(folder, "save")
    assert "longer than config.watchdog.pause=20; last finished step 8; saving step 8;" in log(
        folder, "save"
    )
    assert "in save_on_a_dead_disk" in (folder / "save" / "hang-0.txt").read_text()
    assert codes(begin(folder, "save", 1, *SMALL)) == [0], log(folder, "save")
    assert max(rows(folder, "save")) == 24
