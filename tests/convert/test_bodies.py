"""A body without its head is imported as such, said to be one, and given a new head on request."""

import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import lm_jax
from lm_jax import convert
from lm_jax.convert import hf, registry
from lm_jax.convert.bodies import missing_head
from lm_jax.convert.load import find, stop_ids
from lm_jax.errors import CheckpointError, UserError
from lm_jax.inference.language_model import LanguageModel
from lm_jax.inference.load import save
from lm_jax.run.checkpoint import flatten
from lm_jax.training import start

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
HEADS = {"llama": "lm_head.", "gpt2_untied": "lm_head.", "bert": "cls."}
IDS = np.arange(3, 15)[None]
hidden = jax.jit(lambda model: model.hidden(IDS))


def body(copy, name):
    """A golden model as LlamaModel, BertModel and so on save it: no head, no prefix."""
    prefix = {"llama": "model.", "gpt2_untied": "transformer.", "bert": "bert."}[name]
    tensors = lambda found: {
        key.removeprefix(prefix): x for key, x in found.items() if not key.startswith(HEADS[name])
    }
    return copy(name, tensors)


@pytest.mark.parametrize("name", HEADS)
def test_a_body_has_the_hidden_states_of_the_whole_model(name, copy, capsys):
    path = body(copy, name)
    config, model = convert.import_hf(path)
    _, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert f"a body without its head ({HEADS[name]}" in err
    assert not config.head
    whole = convert.import_hf(GOLDEN / name)[1]
    np.testing.assert_allclose(hidden(model), hidden(whole), atol=1e-6)
    with pytest.raises(UserError, match="a body without an output head") as error:
        model(IDS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_new_head_is_born_on_request_and_the_rest_is_the_body(name, copy, capsys):
    config, model = convert.import_hf(body(copy, name), new_head=True)
    assert "has a new one, not trained" in capsys.readouterr().err
    assert config.head
    whole, found = flatten(convert.import_hf(GOLDEN / name)[1]), flatten(model)
    of_head = [x for x in found if x.startswith(("head", "pooler"))]
    assert found.keys() == whole.keys()
    assert all(np.array_equal(found[x], whole[x]) for x in found if x not in of_head)
    kernel = next(x for x in of_head if x in ("head", "head_transform/kernel"))
    assert np.std(found[kernel]) == pytest.approx(0.02, rel=0.2)


def test_a_part_of_a_head_is_a_damaged_file(copy):
    part = lambda found: {k: x for k, x in found.items() if k != "cls.predictions.bias"}
    with pytest.raises(CheckpointError, match=r"cls\.predictions.*is missing"):
        convert.import_hf(copy("bert", part))


def test_a_bias_of_a_head_that_is_missing_is_not_part_of_a_body(copy):
    name = "cls.predictions.decoder.bias"
    part = lambda found: (
        {k: x for k, x in found.items() if not k.startswith("cls.")}
        | {name: np.zeros(found["cls.predictions.bias"].shape, np.float32)}
    )
    with pytest.raises(CheckpointError, match=rf"tensor {name} is not part of the bert"):
        convert.import_hf(copy("bert", part))


def test_a_body_keeps_to_what_it_has(copy, tmp_path):
    config, model = convert.import_hf(body(copy, "llama"))
    lm = LanguageModel(
        model, None, lm_jax.config.from_model(config, 16), 0, "", {"family": "llama"}
    )
    save(lm, str(tmp_path / "kept"))
    again = lm_jax.load(tmp_path / "kept")
    np.testing.assert_allclose(hidden(again.model), hidden(model), atol=1e-6)
    with pytest.raises(UserError, match="body without an output head"):
        again.logits(IDS)
    with pytest.raises(UserError, match="body without an output head"):
        convert.export_hf(model, config, tmp_path / "out")
    with pytest.raises(UserError, match="head=False: a body without an output head learns nothing"):
        start.train(lm.config, str(tmp_path / "run"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "kept"]


def test_a_directory_or_a_name_that_is_not_here_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"llama: is a Hugging Face directory: write hf:"):
        lm_jax.load(GOLDEN / "llama")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"not a directory, nor .* run `hf download org/name"):
        lm_jax.load("hf:org/name")
    with pytest.raises(CheckpointError, match="is not a directory"):
        lm_jax.load(f"hf:{tmp_path / 'nothing'}")


def test_a_model_in_the_cache_of_the_hub_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--org--name"
    shutil.copytree(GOLDEN / "llama", model / "snapshots" / "0a1b")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0a1b")
    assert find("org/name") == str(model / "snapshots" / "0a1b")
    assert hf.read_config(Path(find("org/name")))[0].model_type == "llama"
    (model / "refs" / "main").write_text("../../..")
    with pytest.raises(CheckpointError, match="hf download"):
        find("org/name")
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with pytest.raises(CheckpointError, match=os.path.join("home", "hub")):
        find("org/name")


@pytest.mark.parametrize(
    ("text", "expected"),
    [('{"eos_token_id": [3, 2]}', [3, 2]), ('{"eos_token_id": -1}', [7]), ("{}", [7]),
     ('{"eos_token_id": "</s>"}', "must be an id, a list"), ("{", "not valid JSON")],
)  # fmt: skip
def test_ids_that_end_a_text_are_read_or_refused(tmp_path, text, expected):
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert stop_ids(tmp_path) == [7]
    (tmp_path / "generation_config.json").write_text(text)
    if isinstance(expected, list):
        assert stop_ids(tmp_path) == expected
    else:
        with pytest.raises(CheckpointError, match=f"generation_config.json: .*{expected}"):
            stop_ids(tmp_path)


def test_the_published_body_is_one(tmp_path):
    published = Path(__file__).parent / "published" / "all-MiniLM-L6-v2.json"
    values = json.loads(published.read_text())
    family = registry.family_named(values["model_type"])
    config = family.read_config(values, "")
    assert missing_head(family, config, {}) == [
        "cls.predictions.transform.dense.weight", "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.bias",
        "cls.predictions.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"repetition_penalty": 1.05, "suppress_tokens": [3, 4]},
         "repetition_penalty=1.05, suppress_tokens=[3, 4]: not applied here"),
        ({"num_beams": 4}, "num_beams=4: not applied here"),
        ({"repetition_penalty": 1, "suppress_tokens": [], "num_beams": None, "min_length": 0,
          "temperature": 0.6, "eos_token_id": 2}, ""),
    ],
)  # fmt: skip
def test_settings_of_generation_that_are_not_applied_are_said(tmp_path, capsys, settings, said):
    shutil.copytree(GOLDEN / "llama", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    lm_jax.load(f"hf:{tmp_path / 'model'}")
    lines = [line for line in capsys.readouterr().err.splitlines() if "not applied" in line]
    assert [said in line for line in lines] == ([True] if said else [])
