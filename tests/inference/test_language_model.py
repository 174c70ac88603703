"""A run's directory, or one checkpoint in it, is all that `lm_jax.load` needs."""

import dataclasses
import itertools
import json
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from saved_models import CONFIG, make_model, save_run

import lm_jax
from lm_jax import progress
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import CheckpointError, DataError, UserError
from lm_jax.inference.language_model import LanguageModel

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def lm(run):
    return lm_jax.load(run)


def same(model, other):
    pairs = zip(jax.tree.leaves(model), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_the_newest_checkpoint_is_loaded_from_its_directory_alone(lm, run, tmp_path):
    assert lm.step == 20
    assert same(lm.model, make_model(20))
    assert lm.tokenizer.hash == Tokenizer("bytes").hash
    assert lm.config == CONFIG
    assert "step 20" in repr(lm)
    shutil.copytree(run / "checkpoints" / "10", tmp_path / "elsewhere")
    assert same(lm_jax.load(tmp_path / "elsewhere").model, make_model(10))


def test_a_step_is_chosen_by_number_or_by_its_directory(run):
    for lm in (lm_jax.load(str(run), step=10), lm_jax.load(run / "checkpoints" / "10")):
        assert lm.step == 10
        assert same(lm.model, make_model(10))


def test_what_holds_no_checkpoint_is_refused_by_name(run, tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such path"):
        lm_jax.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        lm_jax.load(tmp_path)
    with pytest.raises(CheckpointError, match="15"):
        lm_jax.load(run, step=15)
    with pytest.raises(UserError, match="step='10a': expected a whole number"):
        lm_jax.load(run, step="10a")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"tokenizer_hash": "0123456789abcdef"}, "0123456789ab.*restore"),
        ({"config": {"model": {"vocab_size": 128}}}, "is of another model: .*attn/wk: checkpoint "),
    ],
)
def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        lm_jax.load(save_run(tmp_path, steps=(1,), **metadata))


def test_a_model_of_another_devices_attention_loads_here(tmp_path):
    config = CONFIG.to_dict()
    config["model"] |= {"attention": "splash"}
    lm = lm_jax.load(save_run(tmp_path, steps=(1,), config=json.loads(json.dumps(config))))
    assert lm.model.config.attention == "xla"


def test_generation_gives_text_the_same_for_the_same_seed(lm):
    text = lm.generate("def f(", max_new_tokens=20)
    assert isinstance(text, str)
    assert text
    assert text == lm.generate("def f(", max_new_tokens=20)
    assert text == "".join(lm.stream("def f(", max_new_tokens=20))
    assert text != lm.generate("def f(", max_new_tokens=20, seed=1)


def test_several_samples_are_a_list_whose_first_is_the_single_one(lm):
    found = lm.generate("x", max_new_tokens=20, num_samples=2)
    assert found[0] == lm.generate("x", max_new_tokens=20)
    assert found[0] != found[1]


def test_an_empty_prompt_and_no_number_fill_the_model(lm):
    lengths = [len(lm.tokenizer.encode(lm.generate(seed=seed))) for seed in range(3)]
    assert 0 < max(lengths) <= CONFIG.model.max_length - 1 + 3 * 63


def test_a_prompt_that_does_not_fit_is_refused(lm):
    with pytest.raises(UserError, match=r"max_new_tokens=20 after a prompt of 51 tokens.* 64 "):
        lm.generate("a" * 50, max_new_tokens=20)
    with pytest.raises(UserError, match="num_samples=0"):
        lm.generate("a", num_samples=0)


def test_loss_is_that_of_the_logits(lm):
    text = "for each of the 32 é"
    ids = np.array([256, *text.encode(), 257])
    logits = np.asarray(lm.logits(ids[:-1]), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    nats = log_z - logits[np.arange(len(ids) - 1), ids[1:]]
    found = lm.loss(text)
    assert found.tokens == len(ids) - 1
    assert found.bytes == len(text.encode())
    np.testing.assert_allclose(found.loss, nats.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.perplexity, np.exp(nats.mean()), rtol=1e-4)
    np.testing.assert_allclose(found.bits_per_byte, nats.sum() / np.log(2) / 21, rtol=1e-5)
    assert "bits per byte" in str(found)


def test_losses_of_a_list_are_those_of_its_texts_and_show_no_progress(lm, capsys, monkeypatch):
    clock = itertools.count(step=60.0)  # a minute between two looks: a line would be due
    fast = types.SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr(progress, "time", fast)
    texts = ["def f(", "x" * 100, "é"]
    found = lm.loss(texts)
    assert [(one.nats, one.tokens) for one in found] == [
        (lm.loss(text).nats, lm.loss(text).tokens) for text in texts
    ]
    assert lm.loss([]) == []
    assert capsys.readouterr() == ("", "")


def test_logits_of_rows_and_of_wrong_ids(lm):
    assert lm.logits([[1, 2, 3]]).shape == (1, 3, 384)
    for ids in ([], [400], [-1], [0] * 65, [[[1]]]):
        with pytest.raises(UserError, match="ids"):
            lm.logits(ids)
    # No number is cut to a whole one, or to 32 bits.
    for ids in ([1.5], np.array([2**32 + 5]), [2**70], "abc", [[1, 2], [3]], [True], None):
        with pytest.raises(UserError, match=r"^ids"):
            lm.logits(ids)


def test_the_loss_of_what_is_no_text_is_refused(lm):
    for text in (5, b"abc", [1, 2], ["a", None]):
        with pytest.raises(UserError, match="expected a text, or a list of texts"):
            lm.loss(text)


def test_padding_changes_no_logits_of_the_text(lm):
    ids = np.array([[5, 6, 7, 8], [0, 0, 9, 10]])
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1]])
    found = lm.logits(ids, mask=mask)
    alone = lm.logits(np.array([[5, 6, 7, 8], [3, 2, 9, 10]]), mask=mask)
    np.testing.assert_allclose(found[mask == 1], alone[mask == 1], atol=1e-6)
    assert not np.allclose(found[1, 2:], lm.logits(ids)[1, 2:])
    for wrong in ([[1, 1]], [[1, 1, 1, 2]] * 2):
        with pytest.raises(UserError, match="mask: expected 0 and 1"):
            lm.logits(ids, mask=wrong)
    with pytest.raises(UserError, match="target_ids: an encoder_decoder needs them, and no other"):
        lm.logits(ids, [[1]])


@pytest.mark.parametrize(
    ("architecture", "positions"),
    [("decoder", "learned"), ("decoder", "rope"), ("decoder", "alibi"), ("encoder", "learned"),
     ("encoder_decoder", "learned"), ("lstm", "none"), ("hmm", "none")],
)  # fmt: skip
def test_padding_on_either_side_gives_the_logits_of_the_text_alone(architecture, positions):
    shape = {"architecture": architecture, "positions": positions, "vocab_size": 259}
    config = dataclasses.replace(CONFIG.model, **shape)
    lm = LanguageModel(make_model(0, config), Tokenizer("bytes"), CONFIG)
    text, said = [9, 10, 4, 7, 9], ([[256, 4]] if lm.model.conditional else None)
    alone = lm.logits([text], said)[0]
    for before, after in ((3, 0), (0, 3), (2, 1)):
        ids, mask = [0] * before + text + [0] * after, [0] * before + [1] * 5 + [0] * after
        found = lm.logits([ids], said, mask=[mask])[0]
        found = found if said else found[before : before + 5]
        np.testing.assert_allclose(found, alone, atol=1e-5)


def test_an_encoder_decoder_has_logits_of_its_targets():
    config = dataclasses.replace(CONFIG.model, architecture="encoder_decoder", vocab_size=259)
    lm = LanguageModel(make_model(0, config), Tokenizer("bytes"), CONFIG)
    assert lm.logits([1, 2, 3], [256, 4]).shape == (2, 259)
    ids, said = [[1, 2, 3], [4, 5, 0]], [[256, 4], [256, 6]]
    found = lm.logits(ids, said, mask=[[1, 1, 1], [1, 1, 0]])
    np.testing.assert_allclose(found[1], lm.logits([4, 5], said[1]), atol=1e-5)
    with pytest.raises(UserError, match="target_ids: an encoder_decoder needs them"):
        lm.logits(ids)
    with pytest.raises(UserError, match="not as many rows"):
        lm.logits(ids, said[:1])


def test_a_hugging_face_directory_is_loaded_with_its_family():
    lm = lm_jax.load(f"hf:{GOLDEN / 'mistral'}")
    with pytest.raises(CheckpointError, match=r"step=3: hf:.*mistral has one state"):
        lm_jax.load(f"hf:{GOLDEN / 'mistral'}", step=3)
    assert lm.metadata["family"] == "mistral"
    assert lm.config.model.window == 7
    expected = load_file(GOLDEN / "mistral" / "expected.safetensors")
    mask = expected["segment_ids"]
    logits = lm.logits(expected["ids"], mask=mask)
    np.testing.assert_allclose(logits[mask == 1], expected["logits"][mask == 1], atol=1e-4)
    assert "no tokenizer" in repr(lm)
    for use in (lm.generate, lm.stream, lambda: lm.loss("a")):
        with pytest.raises(UserError, match="mistral: has no tokenizer: it knows ids only"):
            use()
    with pytest.raises(CheckpointError, match="nowhere: is not a directory"):
        lm_jax.load("hf:nowhere")


def test_text_that_is_no_unicode_is_refused(lm):
    with pytest.raises(DataError, match="surrogate"):
        lm.loss("a\ud800")


def test_numbers_are_those_of_any_library_and_nothing_else(lm):
    expected = lm.generate("a", max_new_tokens=3, num_samples=2, top_k=4)
    given = {"max_new_tokens": np.int64(3), "num_samples": jnp.array(2), "top_k": np.float32(4)}
    assert lm.generate("a", **given) == expected
    for samples in ("2", 1.5, None, True):
        with pytest.raises(UserError, match=r"num_samples=.*: expected a whole number"):
            lm.generate("a", num_samples=samples)


def test_an_end_that_the_model_does_not_have_ends_no_answer(lm):
    odd = dataclasses.replace(lm, metadata={**lm.metadata, "stop_ids": [2**40]})
    assert odd.generate("a", max_new_tokens=3) == lm.generate("a", max_new_tokens=3)


def test_a_model_in_a_notebook_needs_no_checkpoint(lm):
    lm = LanguageModel(lm.model, Tokenizer("bytes"), CONFIG)
    assert isinstance(lm.generate("a", max_new_tokens=4), str)
