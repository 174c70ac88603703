"""Every window is seen once an epoch, in an order that depends on nothing but the seed."""

import numpy as np
import pytest

from lm_jax.data.views.windows import Windows, permute
from lm_jax.errors import DataError, UserError


@pytest.mark.parametrize("size", [1, 2, 3, 5, 31, 32, 33, 1000, 4097])
def test_an_epoch_sees_every_example_once(size):
    for epoch in range(3):
        order = permute(np.arange(size), size, 7, epoch)
        np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_the_order_is_the_one_it_always_was():
    assert permute(np.arange(10), 10, 0, 0).tolist() == [5, 6, 0, 2, 1, 7, 8, 3, 9, 4]
    large = permute(np.arange(3), 10**12, 1, 2)
    assert large.tolist() == [47728909793, 26240513318, 830896804639]


def test_epochs_and_seeds_have_nothing_in_common():
    size = 5000
    orders = [permute(np.arange(size), size, s, e) for s, e in ((0, 0), (0, 1), (1, 0), (-1, 0))]
    for i, a in enumerate(orders):
        assert np.mean(a == np.arange(size)) < 0.01
        for b in orders[:i]:
            assert np.mean(a == b) < 0.01
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.06


def test_every_order_of_a_few_examples_is_about_as_likely():
    first = np.array([permute(np.arange(5), 5, seed, 0) for seed in range(2000)])
    for column in first.T:
        assert np.bincount(column, minlength=5).min() > 320  # 400 expected, 18 the deviation
    neighbours = np.mean(np.diff(first, axis=1) == 1)
    assert 0.17 < neighbours < 0.23  # a fifth


def test_windows_hold_the_text_and_their_targets(store):
    windows = Windows(store, "train", 32, seed=None)
    ids = store.tokens("train")
    assert len(windows) == (len(ids) - 1) // 32
    batch = windows.batch(0, len(windows))
    np.testing.assert_array_equal(batch["tokens"].ravel(), ids[: 32 * len(windows)])
    np.testing.assert_array_equal(batch["targets"].ravel(), ids[1 : 32 * len(windows) + 1])
    assert {k: v.dtype.name for k, v in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "segment_ids": "int32",
        "positions": "int32",
        "weights": "float32",
        "example": "int64",
    }


@pytest.mark.parametrize("length", [1, 2, 5, 32, 64, 452])
def test_packed_documents_have_their_own_segments_positions_and_no_target_of_another(store, length):
    windows = Windows(store, "train", length, seed=None)
    document = np.searchsorted(store.ends("train"), np.arange(store.num_tokens("train")), "right")
    batch = windows.batch(0, len(windows))
    for w in range(len(windows)):
        inputs = document[w * length : (w + 1) * length]
        targets = document[w * length + 1 : (w + 1) * length + 1]
        segments = inputs - inputs[0] + 1
        places = np.concatenate([np.arange(np.sum(inputs == d)) for d in np.unique(inputs)])
        np.testing.assert_array_equal(batch["segment_ids"][w], segments)
        np.testing.assert_array_equal(batch["positions"][w], places)
        np.testing.assert_array_equal(batch["weights"][w], inputs == targets)


def test_not_packed_is_one_segment(store):
    batch = Windows(store, "train", 64, packed=False).batch(0, 4)
    assert (batch["segment_ids"] == 1).all()
    assert (batch["weights"] == 1).all()
    np.testing.assert_array_equal(batch["positions"], np.tile(np.arange(64), (4, 1)))


def test_a_partial_window_covers_the_rest_and_counts_no_padding(store):
    windows = Windows(store, "train", 64, seed=None, partial=True)
    batch = windows.batch(0, len(windows))
    assert batch["weights"].sum() == store.num_tokens("train") - store.num_documents("train")
    padding = batch["segment_ids"] == 0
    assert padding.sum() == len(windows) * 64 - (store.num_tokens("train") - 1)
    assert batch["weights"][padding].sum() == 0
    assert np.all(batch["targets"][padding] == store.tokenizer.pad_id)


def test_hosts_share_the_one_global_batch(store):
    windows = Windows(store, "train", 16)
    for step in range(12):
        whole = windows.batch(step, 8)
        for hosts in (2, 4, 8):
            parts = [windows.batch(step, 8, (h, hosts)) for h in range(hosts)]
            for name, value in whole.items():
                np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), value)


def test_microbatches_hold_the_same_rows_for_any_number_of_hosts(store):
    windows = Windows(store, "train", 16)
    whole = windows.batch(3, 8, microbatches=2)
    np.testing.assert_array_equal(whole["tokens"].reshape(8, 16), windows.batch(3, 8)["tokens"])
    for hosts in (2, 4):
        parts = [windows.batch(3, 8, (h, hosts), microbatches=2) for h in range(hosts)]
        for name, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([p[name] for p in parts], axis=1), value)


def test_a_host_may_have_parts_that_are_not_neighbours(store):
    windows = Windows(store, "train", 16)
    whole = windows.batch(3, 8, microbatches=2)
    mine = windows.batch(3, 8, ((0, 3), 4), microbatches=2)
    for name, value in whole.items():
        np.testing.assert_array_equal(mine[name], value[:, [0, 3]])


def test_batches_run_on_over_the_end_of_an_epoch(store):
    windows = Windows(store, "train", 64, seed=3)
    size = len(windows)
    seen = np.concatenate([windows.batch(s, 4)["example"] for s in range(size)])
    for epoch in range(4):
        part = seen[epoch * size : (epoch + 1) * size]
        np.testing.assert_array_equal(np.sort(part), np.arange(size))
    large = windows.batch(0, 4 * size)["example"]
    np.testing.assert_array_equal(large, seen)


@pytest.mark.parametrize("shifted", [False, True])
def test_a_batch_depends_on_nothing_but_its_step(store, shifted):
    windows, fresh = (Windows(store, "train", 16, seed=5, shifted=shifted) for _ in range(2))
    steps = [windows.batch(s, 4) for s in range(100)]
    for s in (57, 99, 0, 3):
        for name, value in fresh.batch(s, 4).items():
            assert value.tobytes() == steps[s][name].tobytes()


def test_shifted_windows_begin_elsewhere_in_each_epoch(store):
    windows = Windows(store, "train", 32, seed=3, shifted=True)
    ids, size, shifts = store.tokens("train"), len(windows), []
    assert size == (len(ids) - 1) // 32 - 1
    for epoch in range(8):
        batch = windows.batch(epoch, size)
        order = np.argsort(batch["example"])
        text = batch["tokens"][order].ravel()
        [shift] = [s for s in range(32) if np.array_equal(text, ids[s : s + len(text)])]
        targets = batch["targets"][order].ravel()
        np.testing.assert_array_equal(targets, ids[shift + 1 : shift + 1 + len(text)])
        shifts.append(shift)
    assert len(set(shifts)) > 4
    other = Windows(store, "train", 32, seed=4, shifted=True)
    assert other.shift(np.arange(8)).tolist() != shifts == windows.shift(np.arange(8)).tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_consecutive_windows_go_on_where_the_row_before_them_ended(store, packed):
    windows, rows, length = Windows(store, "train", 4, packed=packed, consecutive=3), 3, 4
    whole = Windows(store, "train", 4).size
    steps = whole // rows
    assert len(windows) == steps * rows > whole - rows
    ids, ends = store.tokens("train"), store.ends("train")
    first = set(np.arange(rows) * steps * length)  # where each row begins: its state is new
    new = first | set(ends.tolist()) if packed else first
    seen = []
    for step in range(steps):
        batch = windows.batch(step, rows)
        seen += batch["example"].tolist()
        for row in range(rows):
            start = (row * steps + step) * length
            np.testing.assert_array_equal(batch["tokens"][row], ids[start : start + length])
            for place, position in enumerate(batch["positions"][row], start):
                assert (position == 0) == (place in new)
                assert place - position in new
    assert sorted(seen) == list(range(steps * rows))
    for step in (0, 5, steps - 1):  # another epoch is the same, a pure function of the step
        for name, value in windows.batch(step, rows).items():
            np.testing.assert_array_equal(windows.batch(step + 7 * steps, rows)[name], value)
    parts = [windows.batch(5, rows, (host, 3))["tokens"] for host in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), windows.batch(5, rows)["tokens"])


def test_what_cannot_be_is_refused(store):
    with pytest.raises(DataError, match="one for each of config"):
        Windows(store, "train", 64, consecutive=64)
    with pytest.raises(UserError, match="batch_size=4: the order is for 2"):
        Windows(store, "train", 8, consecutive=2).batch(0, 4)
    with pytest.raises(DataError, match="one window needs 1001"):
        Windows(store, "train", 1000)
    with pytest.raises(DataError, match="no test text"):
        Windows(store, "test", 8)
    with pytest.raises(UserError, match="must be divisible by 3 parts times 2 microbatches"):
        Windows(store, "train", 8).batch(0, 8, (0, 3), microbatches=2)
