"""The command evaluates the held-out text of a run, or any text, and says what is missing."""

import dataclasses
import json
import types

import numpy as np
import pytest
from absl import flags
from commands import run_module as command
from saved_models import CONFIG, save_run

import lm_jax
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.data.tokens.writer import Writer
from lm_jax.errors import DataError
from lm_jax.evaluate import table, without_effect
from lm_jax.evaluation.perplexity import on_heldout, on_text

TEXTS = ["def f(x):\n    return x\n" * 3, "naïve", "a"]
SIZES = {"window": 32, "stride": 32, "batch_size": 4}


def save_store(path, tokenizer, texts):
    with Writer(path, tokenizer) as writer:
        for text in texts:
            writer.add("heldout", tokenizer.encode(text), len(text.encode()))
        writer.add("train", tokenizer.encode("x"), 1)
        writer.finish({})
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with its store where the train loop puts it."""
    run = tmp_path_factory.mktemp("run")
    store = save_store(run / "data", Tokenizer("bytes"), TEXTS)
    return save_run(run, steps=(20,), store=str(store))


@pytest.fixture(scope="module")
def lm(run):
    return lm_jax.load(run)


def test_json_is_all_that_the_command_prints_and_equals_the_loss_of_each_text(run, lm):
    code, out, err = command("lm_jax.evaluate", f"--checkpoint={run}", "--json")
    assert code == 0, err
    found = json.loads(out)
    each = [lm.loss(text) for text in TEXTS]
    nats, tokens = sum(x.nats for x in each), sum(x.tokens for x in each)
    assert found["tokens"] == tokens == sum(len(text.encode()) + 1 for text in TEXTS)
    assert found["bytes"] == sum(len(text.encode()) for text in TEXTS)
    np.testing.assert_allclose(found["loss"], nats / tokens, rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], np.exp(nats / tokens), rtol=1e-4)
    np.testing.assert_allclose(found["bits_per_byte"] * found["bytes"], nats / np.log(2), rtol=1e-5)
    assert (found["step"], found["window"], found["stride"]) == (20, 32, 32)
    assert found["seconds"] > 0


def test_a_missing_run_is_one_line_and_an_exit_code(tmp_path):
    code, out, err = command("lm_jax.evaluate", f"--checkpoint={tmp_path / 'nowhere'}")
    assert (code, out) == (3, "")
    assert err.startswith("error:")
    assert "nowhere: no such path" in err
    assert len(err.strip().splitlines()) == 1


def test_a_run_that_was_moved_finds_its_store_beside_it(run, tmp_path):
    moved = save_run(tmp_path, steps=(1,), store="/no/longer/there")
    with pytest.raises(DataError, match=r"/no/longer/there.* gone.*--data"):
        on_heldout(lm_jax.load(moved), str(moved), SIZES)
    save_store(moved / "data", Tokenizer("bytes"), TEXTS)
    step = moved / "checkpoints" / "1"
    path, found = on_heldout(lm_jax.load(step), str(step), SIZES)
    assert found.documents == len(TEXTS)
    assert path.endswith("data")


def test_a_model_of_pairs_is_not_sent_to_text_that_it_is_then_refused(lm):
    config = dataclasses.replace(CONFIG.model, architecture="encoder_decoder")
    model = types.SimpleNamespace(config=config, conditional=True)
    imported = dataclasses.replace(lm, model=model, metadata={})
    with pytest.raises(DataError, match="scored on the pairs of its run's store alone"):
        on_heldout(imported, "hf:t5", SIZES)


@pytest.mark.parametrize(("words", "pairs", "idle"), [
    (["--text_field=x"], False, ["--text_field"]),
    (["--text_field=x", "--data=p", "--window=8"], False, []),
    (["--window=8", "--batch_size=2"], True, ["--window", "--batch_size"]),
    ([], True, []),
])  # fmt: skip
def test_flags_without_effect_are_named(words, pairs, idle):
    values = flags.FlagValues()
    for name in ("data", "text_field", "max_bad_fraction", "window", "stride", "batch_size"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    values(["evaluate", *words])
    assert without_effect(values, pairs) == idle


def test_a_store_of_another_tokenizer_is_refused(tmp_path):
    tokenizer = train("bpe", ["some text to learn a few pieces from, some more text"] * 9, 280)
    store = save_store(tmp_path / "data", tokenizer, TEXTS)
    run = save_run(tmp_path, steps=(1,), store=str(store))
    with pytest.raises(DataError, match="another tokenizer"):
        on_heldout(lm_jax.load(run), str(run), SIZES)


def test_a_store_that_changed_since_training_is_refused(tmp_path):
    store = save_store(tmp_path / "data", Tokenizer("bytes"), TEXTS)
    run = save_run(tmp_path, steps=(1,), store=str(store), data_fingerprint="of another")
    with pytest.raises(DataError, match=r"changed.*learned"):
        on_heldout(lm_jax.load(run), str(run), SIZES)


def test_a_store_without_heldout_text_is_refused(tmp_path):
    run = save_run(
        tmp_path, steps=(1,), store=str(save_store(tmp_path / "s", Tokenizer("bytes"), []))
    )
    with pytest.raises(DataError, match="no held-out text"):
        on_heldout(lm_jax.load(run), str(run), SIZES)


def test_any_text_can_be_evaluated(lm, tmp_path):
    lines = [json.dumps({CONFIG.data.text_field: text}) for text in TEXTS]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines) + "\n")
    found = on_text(lm, str(tmp_path / "texts.jsonl"), None, SIZES)
    np.testing.assert_allclose(found.nats, sum(lm.loss(text).nats for text in TEXTS), rtol=1e-5)
    with pytest.raises(DataError, match=r"--data.*nothing"):
        on_text(lm, str(tmp_path / "nothing"), None, SIZES)


def test_text_that_cannot_be_used_counts_against_a_threshold_of_the_command(lm, tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "x" * 90}) + '\n{"text": null}\n')
    with pytest.raises(
        DataError, match=r"1 of 2 records .* --max_bad_fraction=0\.01 allows: .*:2:"
    ):
        on_text(lm, str(path), "text", SIZES)
    assert on_text(lm, str(path), "text", SIZES, 0.5).documents == 1
    assert "left out 15 of 118 bytes" in capsys.readouterr().err


def test_line_ends_and_a_byte_order_mark_are_tidied_as_in_training(lm, tmp_path):
    text = "First line.\nSecond line.\n" * 3
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    found = on_text(lm, str(tmp_path / "a.txt"), None, SIZES)
    assert found.bytes == len(text)
    np.testing.assert_allclose(found.nats, lm.loss(text).nats, rtol=1e-6)
    assert lm.loss(text.replace("\n", "\r")).nats == lm.loss(text).nats
    assert lm.generate(text[:25].replace("\n", "\r\n"), 4) == lm.generate(text[:25], 4)


def test_the_table_has_a_row_for_each_figure():
    found = table({"step": 20, "tokens": 1234567, "loss": 1.23456, "data": None})
    assert found.splitlines()[1].split() == ["tokens", "1,234,567"]
    assert found.splitlines()[2].endswith("1.2346")
    assert found.splitlines()[3].endswith("n/a")


def test_bos_and_eos_of_a_text_are_shown_and_switched(run, lm, tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    data = [f"--checkpoint={run}", f"--data={tmp_path / 'a.txt'}", "--json"]
    code, out, err = command("lm_jax.evaluate", *data, "--nobos", "--eos")
    assert code == 0, err
    found, expected = json.loads(out), lm.loss("hello", bos=False)
    assert found["frame"] == "TEXT </s>"
    assert (found["tokens"], found["bytes"]) == (expected.tokens, expected.bytes) == (5, 4)
    np.testing.assert_allclose(found["loss"], expected.loss, rtol=1e-5)
    code, _, err = command("lm_jax.evaluate", f"--checkpoint={run}", "--nobos")
    assert (code, err.count("\n")) == (2, 1)
    assert "--bos, --eos: the held-out text of a run has both" in err
