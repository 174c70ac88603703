"""Are the batches the same for any number of workers and from any step, and is everything
closed?
"""

import multiprocessing
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from lm_jax.data.stream import batches
from lm_jax.data.views.windows import Windows
from lm_jax.errors import UserError


def take(windows, count, batch_size=4, **options):
    with batches(windows, batch_size=batch_size, **options) as stream:
        return [{k: v.tobytes() for k, v in next(stream).items()} for _ in range(count)]


def test_batches_0_to_99_are_the_same_after_a_seek_and_for_any_hosts(store):
    windows = Windows(store, "train", 16, seed=1)
    every = take(windows, 100, 8)
    assert take(windows, 43, 8, start_step=57) == every[57:]
    for hosts in (2, 4, 8):
        shards = [take(windows, 100, 8, shard=(h, hosts)) for h in range(hosts)]
        for step in range(100):
            for name, value in every[step].items():
                assert b"".join(s[step][name] for s in shards) == value


def test_worker_processes_give_the_same_bytes_and_end(store):
    windows = Windows(store, "train", 16, seed=1)
    every = take(windows, 100)
    before = multiprocessing.active_children()
    assert take(windows, 100, workers=4) == every
    assert take(windows, 20, workers=2, start_step=57) == every[57:77]
    deadline = time.time() + 20
    while multiprocessing.active_children() != before and time.time() < deadline:
        time.sleep(0.1)
    assert multiprocessing.active_children() == before


def test_threads_end_with_close(store):
    before = threading.active_count()
    stream = batches(Windows(store, "train", 16), batch_size=4)
    next(stream)
    stream.close()
    stream.close()
    deadline = time.time() + 20
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_microbatches_lead_always(store):
    windows = Windows(store, "train", 16)
    for microbatches in (1, 2):
        with batches(windows, 5, batch_size=4, microbatches=microbatches) as stream:
            batch = next(stream)
        assert batch["tokens"].shape == (microbatches, 4 // microbatches, 16)
        assert batch["example"].shape == (microbatches, 4 // microbatches)
        np.testing.assert_array_equal(
            batch["targets"].reshape(4, 16), windows.batch(5, 4)["targets"]
        )


def test_what_does_not_divide_is_refused_at_once(store):
    with pytest.raises(UserError, match=r"config\.batch_size=4"):
        batches(Windows(store, "train", 16), batch_size=4, shard=(0, 3))


def test_workers_die_with_a_killed_parent(tmp_path, store):
    script = (
        "import multiprocessing, os, signal, sys\n"
        "from lm_jax.data.tokens.store import TokenStore\n"
        "from lm_jax.data.views.windows import Windows\n"
        "from lm_jax.data.stream import batches\n"
        "if __name__ == '__main__':\n"
        f"    stream = batches(Windows(TokenStore.open({store.path!r}), 'train', 16), workers=1)\n"
        "    next(stream)\n"
        "    print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    (tmp_path / "killed.py").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, timeout=120, check=False
    )
    pids = done.stdout.split()
    assert len(pids) == 1
    deadline = time.time() + 10
    while alive(pids[0].decode()) and time.time() < deadline:
        time.sleep(0.1)
    assert not alive(pids[0].decode())


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
