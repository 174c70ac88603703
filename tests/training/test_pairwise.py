"""Every pair of options either runs through all verbs or is refused by name, before anything is
written.

A seeded sample of combinations, in which every pair of values of 26 options occurs, trains on eight
devices with the self-check, is killed, goes on with another mesh, is evaluated, exported and read
again; losses are those of one device.
"""

import functools
import json
import random

import combinations
import pairwise
import pytest
import whole_runs

from lm_jax.config import Config
from lm_jax.data.build import prepare
from lm_jax.devices import runtime
from lm_jax.errors import UserError
from lm_jax.training import start

SEED, BLOCKS = 0, 21


@functools.cache
def sampled():
    """(rows, pairs that are refused)."""
    return pairwise.sample(combinations.NAMES, combinations.blamed, SEED)


@functools.cache
def exchanged():
    """Rows of one model that transformers has, with every pair of options of its training."""
    names = {name: combinations.NAMES[name] for name in combinations.TRAINED}
    blamed = lambda row: combinations.blamed(combinations.PLAIN | row) & set(names)
    return [combinations.PLAIN | row for row in pairwise.sample(names, blamed, SEED)[0]]


def fields_of(pair):
    """The fields that each of two options sets."""
    return [set(combinations.OPTIONS[name][value]) for name, value in pair]


def test_every_pair_of_options_is_in_the_sample_or_refused_in_one_line_that_names_both():
    rows, refused = sampled()
    assert 100 < len(rows) < 180
    assert len(refused) < 60
    for pair in refused:
        with pytest.raises(UserError) as error:
            combinations.checked(combinations.PLAIN | dict(pair))
        text = str(error.value)
        assert text.startswith("config.")
        assert "\n" not in text
        for fields in fields_of(pair):
            assert any(field in text for field in fields), (pair, text)


def test_what_is_exported_is_trained_in_every_way():
    assert {"mesh", "quantization", "remat", "optimizer", "dtype"} <= set(combinations.TRAINED)
    assert not {"family", "positions", "norm", "experts"} & set(combinations.TRAINED)
    assert 40 < len(exchanged()) < 90


def test_rows_that_do_not_divide_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda: None)
    row = combinations.PLAIN | {"family": "t5", "mesh": "context 4 tensor 2"}
    values = combinations.values_of(row)
    values["data"] |= {"sequence_length": 36, "input": "no such text"}
    with pytest.raises(UserError, match=r"config\.data\.sequence_length=36: .*nearest: \d+"):
        start.train(Config.parse(values), str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Token stores by the kind of tokenizer, of pairs of made-up sentences."""
    folder = tmp_path_factory.mktemp("stores")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(200)]
    some = lambda least, most: " ".join(draw.choices(words, k=draw.randint(least, most)))
    texts = [f"{some(5, 60)}\t{some(3, 12)}" for _ in range(150)]
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = {}
    for kind in combinations.NAMES["tokenizer"]:
        values = {"input": str(path), "tokenizer": kind, "vocab_size": 384}
        data = Config.parse({"data": values | {"heldout_fraction": 0.1}}).data
        found[kind] = prepare(data, str(folder / kind))
    return found


@pytest.fixture(scope="module")
def forks():
    with whole_runs.Forks() as forks:
        yield forks


def tolerance(row, meshes):
    """(of losses, of gradient norms): relative differences that are rounding."""
    apart = any(axis in mesh for mesh in meshes for axis in ("stage", "context"))
    if row["family"] in ("hmm", "ngram", "lstm", "gru", "rnn"):  # no stages, no kernels
        apart = False
    if row["dropout"] != "0" and apart:
        return 0.05, 1.0  # other numbers are drawn there than on one device
    if row["experts"] == "capacity" and any("stage" in mesh for mesh in meshes):
        return 0.05, 1.0  # an expert's tokens are counted by part of the batch
    if row["quantization"] != "none" or row["dtype"] == "bfloat16":
        return 0.02, 0.2
    if row["precision"] != "default":
        return 0.005, 0.1
    return 1e-4, 1e-2


def run(row, forks, stores, folder, exported=False):
    """Takes one row through every verb; exported: an export is not refused."""
    folder.mkdir()
    other, store = combinations.other_mesh(row), {"data.store": stores[row["tokenizer"]]}
    log, found = folder / "log", folder / "found.json"
    shown = lambda: f"{row}\nthen {other['mesh']}\n{log.read_text()[-3000:]}"
    values = combinations.values_of(row, **store)
    assert forks.run("killed", values, folder / "run", log) == -9, shown()
    values = combinations.values_of(other, **store)
    assert forks.run("resumed", values, folder / "run", log, found) == 0, shown()
    answer = json.loads(found.read_text())
    loss_limit, norm_limit = tolerance(row, (row["mesh"], other["mesh"]))
    for step, alone in answer["alone"].items():
        loss, norm = answer["steps"][step]
        assert whole_runs.gap(loss, alone[0]) <= loss_limit, (step, loss, alone, shown())
        assert whole_runs.gap(norm, alone[1]) <= norm_limit, (step, norm, alone, shown())
    assert whole_runs.gap(answer["heldout"], answer["evaluate"]) <= loss_limit, shown()
    refusal = answer["export"]
    assert not refusal or (not exported and refusal.startswith("config.model.")), shown()
    assert "Traceback" not in log.read_text(), shown()


@pytest.mark.parametrize("exported", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_combination_goes_through_every_verb(exported, forks, stores, tmp_path):
    row = exchanged()[0] if exported else sampled()[0][0]
    run(row, forks, stores, tmp_path / "row", exported)


def run_block(rows, block, forks, stores, folder, exported=False):
    """Every BLOCKS-th row from `block` on; those that fail are named together."""
    failed = []
    for number in range(block, len(rows), BLOCKS):
        try:
            run(rows[number], forks, stores, folder / f"row{number}", exported)
        except AssertionError as error:
            failed.append(f"row {number}: {error}")
    assert not failed, "\n\n".join(failed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_combination_goes_through_every_verb(block, forks, stores, tmp_path):
    run_block(sampled()[0], block, forks, stores, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", range(BLOCKS))
def test_a_model_that_can_be_exported_is_however_it_was_trained(block, forks, stores, tmp_path):
    run_block(exchanged(), block, forks, stores, tmp_path, exported=True)
