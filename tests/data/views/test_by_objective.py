"""Is every objective a pure function of seed, epoch and example, of one shape, and refused where
it cannot be?
"""

import numpy as np
import pytest

from lm_jax.config import check
from lm_jax.config.check import OBJECTIVES
from lm_jax.data.stream import batches
from lm_jax.data.views import by_objective
from lm_jax.data.views.mixture import Mixture
from lm_jax.data.views.windows import Windows
from lm_jax.errors import DataError, UserError

CASES = [
    ("causal", "decoder"),
    ("prefix_lm", "decoder"),
    ("fim", "lstm"),
    ("span_corruption", "decoder"),
    ("ul2", "decoder"),
    ("fim:2,causal,span_corruption:0.5", "decoder"),
    ("mlm", "encoder"),
    ("bert", "encoder"),
    ("sop", "encoder"),
    ("prefix_lm", "encoder_decoder"),
    ("span_corruption", "encoder_decoder"),
    ("ul2", "encoder_decoder"),
    ("span_corruption:3,prefix_lm:1", "encoder_decoder"),
]
PAD = {"tokens", "targets", "inputs"}


def test_every_objective_has_a_view():
    objectives = {name for names in OBJECTIVES.values() for name in names}
    assert set(by_objective.VIEWS) == objectives
    assert {name for name, _ in CASES} | {"seq2seq"} >= objectives


@pytest.mark.parametrize(("objective", "architecture"), CASES)
def test_batches_are_the_same_for_any_hosts_and_after_a_seek(
    library, view, objective, architecture
):
    windows = view(library, objective, 32, architecture, seed=1)
    every = [windows.batch(step, 8, microbatches=2) for step in range(12)]
    fresh = view(library, objective, 32, architecture, seed=1)
    for step in (11, 3, 7):
        for hosts in (1, 2, 4):
            shards = [fresh.batch(step, 8, (host, hosts), 2) for host in range(hosts)]
            assert all(shard.keys() == every[step].keys() for shard in shards)
            for name, value in every[step].items():
                together = np.concatenate([shard[name] for shard in shards], axis=1)
                assert together.dtype == value.dtype
                assert together.tobytes() == value.tobytes()


class InTurn:
    """Batch s is of the view number s: so one pool of processes serves them all."""

    def __init__(self, members):
        self.members = members

    def batch(self, step, *options):
        return self.members[step % len(self.members)].batch(step, *options)


def test_worker_processes_give_the_same_bytes_of_every_objective(library, view):
    windows = InTurn([view(library, name, 32, architecture) for name, architecture in CASES])
    with batches(windows, 3, batch_size=8, workers=4) as stream:
        for step in range(3, 3 + 2 * len(CASES)):
            batch, expected = next(stream), windows.batch(step, 8, (0, 1), 1)
            assert batch.keys() == expected.keys()
            for name, value in expected.items():
                assert batch[name][0].tobytes() == value.tobytes()


@pytest.mark.parametrize(("objective", "architecture"), CASES)
def test_shapes_and_types_are_those_of_the_contract(library, view, objective, architecture):
    windows = view(library, objective, 32, architecture)
    batch, again = windows.batch(0, 16), windows.batch(9, 16)
    kinds = {"weights": "float32", "example": "int64"}
    for name, value in batch.items():
        assert value.dtype.name == kinds.get(name, "int32")
        assert value.shape == again[name].shape
        assert value.ndim == 1 if name in ("example", "pair_label") else value.ndim == 2
        assert value.flags["C_CONTIGUOUS"]
        assert value.min() >= 0
    assert batch["tokens"].shape == batch["targets"].shape == batch["weights"].shape
    assert ("inputs" in batch) == (architecture == "encoder_decoder")
    side = batch["inputs"] if "inputs" in batch else batch["tokens"]
    assert side.shape == (16, 32)
    assert batch["tokens"].shape[1] <= 32
    assert max(batch[name].max() for name in PAD & batch.keys()) < 768
    assert (batch["weights"].sum(1) > 0).all()
    assert not batch["weights"][batch["segment_ids"] == 0].any()


@pytest.mark.parametrize(("objective", "architecture"), CASES)
def test_the_shapes_of_an_example_are_known_without_a_store(
    library, config_of, view, objective, architecture
):
    row = view(library, objective, 32, architecture).batch(0, 1)
    real = {name: (value.shape[1:], value.dtype) for name, value in row.items()}
    del real["example"]
    assert by_objective.shapes(config_of(objective, 32, architecture)) == real


def test_pairs_of_the_text_itself_have_shapes_too(config_of):
    assert by_objective.shapes(config_of("seq2seq", 32, "encoder_decoder"))["inputs"][0] == (32,)
    assert by_objective.shapes(config_of("seq2seq", 32))["prefix"][0] == (32,)


def test_only_a_decoder_alone_has_a_prefix(config_of):
    assert check.has_prefix(config_of("causal:1,prefix_lm:1", 32))
    assert not check.has_prefix(config_of("fim", 32))
    assert not check.has_prefix(config_of("prefix_lm", 32, "encoder_decoder"))


@pytest.mark.parametrize(("objective", "architecture"), CASES)
def test_held_out_windows_are_always_the_same(library, view, objective, architecture):
    windows = view(library, objective, 16, architecture, seed=None, split="heldout")
    some = np.arange(4)
    a, b = (
        windows.batch(0, 4),
        view(library, objective, 16, architecture, seed=None, split="heldout").batch(0, 4),
    )
    for name, value in a.items():
        assert value.tobytes() == b[name].tobytes()
    if not isinstance(windows, Mixture):
        assert a["example"].tolist() == some.tolist()
        again = windows.rows(some + 3 * len(windows))
        assert again["tokens"].tobytes() == a["tokens"].tobytes()


def test_causal_is_the_plain_windows(library, view):
    made = view(library, "causal", 32, seed=5)
    assert type(made) is Windows
    plain = Windows(library, "train", 32, 5)
    for step in (0, 77):
        for name, value in plain.batch(step, 8).items():
            assert made.batch(step, 8)[name].tobytes() == value.tobytes()


def test_a_mixture_has_its_shares_and_repeats_no_window_in_an_epoch(library, view):
    mixture = view(library, "span_corruption:3,causal:1", 32)
    member = mixture.member(np.arange(10_000))
    assert (member == 0).mean() == pytest.approx(0.75, abs=5 * np.sqrt(0.75 * 0.25 / 10_000))
    batch = mixture.batch(0, 2000)
    for number, view_of_it in enumerate(mixture.members):
        where = np.flatnonzero(member[:2000] == number)
        assert len(np.unique(batch["example"][where])) == len(where)
        own = view_of_it.rows(where)
        for name, value in own.items():
            np.testing.assert_array_equal(batch[name][where], value)
    causal = member[:2000] == 1
    assert not batch["prefix"][causal].any()
    assert batch["prefix"][~causal].any(1).all()


def test_ul2_draws_each_denoiser_as_often(library, view):
    counts = np.bincount(view(library, "ul2", 32).member(np.arange(10_000)), minlength=7)
    assert np.abs(counts - 10_000 / 7).max() < 5 * np.sqrt(10_000 / 7)
    mixed = view(library, "ul2:1,causal:1", 32).member(np.arange(10_000))
    assert (mixed == 7).mean() == pytest.approx(0.5, abs=0.025)


@pytest.mark.parametrize(
    ("objective", "architecture", "options", "error", "words"),
    [
        ("mlm", "decoder", {}, UserError, "'decoder' cannot have mlm. Allowed: causal, fim"),
        ("causal", "encoder", {}, UserError, "cannot have causal. Allowed: mlm, bert, sop"),
        ("fim", "encoder_decoder", {}, UserError, "cannot have fim"),
        ("bert:2,mlm:1", "encoder", {}, UserError, "pairs to tell apart, and cannot be mixed"),
        ("mlm", "encoder", {"vocab_size": 600}, UserError, r"vocab_size=600: .* set it to 640"),
        (
            "span_corruption",
            "decoder",
            {"vocab_size": 610, "length": 64},
            UserError,
            "3 sentinels above them; set it to 640",
        ),
        ("span_corruption", "encoder_decoder", {"length": 2}, UserError, "too short for"),
        ("bert", "encoder", {"length": 4}, UserError, "sequence_length=4: too short for"),
        (
            "ul2",
            "encoder_decoder",
            {"length": 8192, "split": "heldout"},
            DataError,
            "one window needs",
        ),
    ],
)
def test_what_cannot_be_is_refused(library, view, objective, architecture, options, error, words):
    length, size = options.pop("length", 32), options.pop("vocab_size", 768)
    with pytest.raises(error, match=words):
        view(library, objective, length, architecture, True, size, **options)
