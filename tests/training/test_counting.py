"""Does a model that counts go through the same commands as one that learns?"""

import dataclasses
import inspect
import json
import os
import signal
import textwrap

import jax
import numpy as np
import pytest

from lm_jax.config import Config
from lm_jax.data.tokens.store import TokenStore, token_documents
from lm_jax.errors import CheckpointError
from lm_jax.inference import language_model, load
from lm_jax.inference.generation import generate
from lm_jax.inference.scoring import evaluate_heldout
from lm_jax.models.classical.counted import NGram
from lm_jax.models.classical.ngram import KneserNey
from lm_jax.run.checkpoint import SavedSteps
from lm_jax.training import counting, loop, start

WINDOW, ORDER = 64, 4


def config_of(folder, **more):
    return Config.parse(
        {
            "steps": 10**6,
            "model": {
                "architecture": "ngram", "order": ORDER, "vocab_size": 384, "max_length": WINDOW
            },
            "data": {
                "input": str(folder / "text"), "tokenizer": "bytes", "vocab_size": 259,
                "heldout_fraction": 0.3, "sequence_length": WINDOW,
            },
            "eval": {"baselines": True, "samples": 0},
            **more,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("counting")
    (folder / "text").mkdir()
    for number, module in enumerate((inspect, json, textwrap, pytest, loop, language_model)):
        (folder / "text" / f"{number}.txt").write_text(inspect.getsource(module))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    """A run that is finished."""
    assert start.train(config_of(folder), str(folder / "run")) == 0
    return folder / "run"


def test_a_mesh_has_no_effect_on_it_and_is_said_to(folder, run, capsys):
    spread = config_of(folder, mesh={"data": 2, "expert": -1, "fsdp": 4}, microbatches=4)
    for steps in range(2):  # from the beginning, and when it is finished
        assert start.train(spread, str(folder / "spread")) == 0, steps
    out = capsys.readouterr().out
    assert "microbatches=4  data.vocab_size=259  mesh.data=2  mesh.fsdp=4  mesh.expert=-1\n" in out
    assert "is finished" in out
    results = [json.loads((path / "summary.json").read_text()) for path in (run, folder / "spread")]
    assert results[0]["model"] == results[1]["model"]


def test_a_run_reports_what_the_baseline_of_the_same_order_does(run):
    store, lm = TokenStore.open(str(run / "data")), load.load(run)
    summary = json.loads((run / "summary.json").read_text())
    expected = KneserNey(ORDER, 384).fit(*token_documents(store, "train"))
    bits = expected.bits_per_byte(*token_documents(store, "heldout"), store.num_bytes("heldout"))
    # Half a window before each token is more than the order looks back.
    assert summary["model"]["bpb"] == pytest.approx(bits, rel=1e-6)
    assert summary["model"]["stride"] == WINDOW // 2
    assert summary["parameters"] == lm.num_parameters > 10_000
    assert (run / "report.html").exists()
    found = evaluate_heldout(lm.model, store, WINDOW, WINDOW // 2)
    assert found.bits_per_byte == pytest.approx(bits, rel=1e-6)


def test_a_checkpoint_holds_the_very_numbers(run):
    store, lm = TokenStore.open(str(run / "data")), load.load(run)
    counts = KneserNey(ORDER, 384, store.tokenizer.bos_id).fit(*token_documents(store, "train"))
    wanted = NGram(lm.config.model, counts).tables()
    found = lm.model.tables()
    assert found.keys() == wanted.keys()
    for name, table in wanted.items():
        assert found[name].tobytes() == table.tobytes(), name
    other = dataclasses.replace(lm.config.model, order=5)
    with pytest.raises(CheckpointError, match="no table 'above_5'"):
        NGram.from_tables(other, found, 256)


def test_its_loss_logits_and_text_agree(run):
    lm = load.load(run)
    ids = np.concatenate([[lm.tokenizer.bos_id], lm.tokenizer.encode("def load(")])
    logits = np.asarray(lm.logits(ids), np.float64)
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1, rtol=1e-5)
    following = [*ids[1:], lm.tokenizer.eos_id]
    nats = -logits[np.arange(len(ids)), following].sum()
    assert lm.loss("def load(").nats == pytest.approx(nats, rel=1e-5)
    (greedy,) = np.stack([*generate(lm.model, [ids], 6, jax.random.key(0), temperature=0.0)], 1)
    for token in greedy:
        assert token == np.argmax(lm.logits(ids)[-1])
        ids = np.append(ids, token)
    texts = lm.generate("def ", max_new_tokens=12, num_samples=2, seed=3)
    assert texts == lm.generate("def ", max_new_tokens=12, num_samples=2, seed=3)
    assert texts[0] != texts[1]


def test_a_finished_run_is_left_alone_and_a_budget_counts_less(run, folder, capsys):
    before = (run / "summary.json").read_bytes()
    assert start.train(config_of(folder), str(run)) == 0
    assert "is finished" in capsys.readouterr().out
    assert (run / "summary.json").read_bytes() == before
    few = config_of(folder, steps=10, batch_size=4, optimizer={"warmup_steps": 1})
    assert start.train(few, str(folder / "few")) == 0
    assert load.load(folder / "few").num_parameters < load.load(run).num_parameters
    bits = [json.loads((folder / name / "summary.json").read_text())["model"]["bpb"]
            for name in ("few", "run")]  # fmt: skip
    assert bits[0] > bits[1] + 0.2


def test_a_run_that_was_killed_after_its_save_is_evaluated_when_it_is_started_again(
    folder, monkeypatch, capsys
):
    config, workdir = config_of(folder, eval={"baselines": False, "samples": 0}), folder / "killed"

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(counting, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            start.train(config, str(workdir))
    assert SavedSteps(workdir).steps() == [1]
    assert not (workdir / "report.html").exists()
    assert start.train(config, str(workdir)) == 0
    assert SavedSteps(workdir).steps() == [1]
    (workdir / "report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(counting, "finish", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert start.train(config, str(workdir)) == 75
    assert "SIGTERM: step 1 is saved, and the same command" in capsys.readouterr().out
    assert start.train(config, str(workdir)) == 0
    assert "model" in json.loads((workdir / "summary.json").read_text())
