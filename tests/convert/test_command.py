"""`python -m lm_jax.convert` imports and exports, and refuses in one line."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from commands import Commands
from in_process import command
from safetensors.numpy import load_file

import lm_jax
from lm_jax.config import Config
from lm_jax.convert.__main__ import export
from lm_jax.convert.hf import read_config
from lm_jax.errors import UserError
from lm_jax.inference.language_model import LanguageModel

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with Commands(tmp_path_factory.mktemp("commands")) as commands:
        yield lambda *flags: commands("lm_jax.convert", *flags)


@pytest.fixture(scope="module")
def checkpoint(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "qwen"
    code, out, err = run(f"--from={GOLDEN / 'qwen2'}", f"--to={path}")
    assert (code, err) == (0, "")
    assert f"lm_jax.generate --checkpoint={path}" in out
    return path


def test_a_checkpoint_is_made_that_load_reads(checkpoint):
    lm = lm_jax.load(checkpoint)
    expected = load_file(GOLDEN / "qwen2" / "expected.safetensors")
    mask = expected["segment_ids"]
    logits = lm.logits(expected["ids"], mask=mask)
    np.testing.assert_allclose(logits[mask == 1], expected["logits"][mask == 1], atol=1e-4)
    assert (lm.step, lm.tokenizer, lm.metadata["family"]) == (0, None, "qwen2")


def test_the_same_files_come_back(run, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert run(f"--from={checkpoint}", f"--to={out}")[0] == 0
    mine, theirs = (load_file(path / "model.safetensors") for path in (out, GOLDEN / "qwen2"))
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in theirs)
    assert read_config(out)[0].model_type == "qwen2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_ends_an_answer_and_how_to_generate_come_back(run, copy, tmp_path):
    # An instruct model ends its turns with another token than the tokenizer's texts.
    source = copy("qwen2", options=lambda values: values | {"eos_token_id": 7})
    settings = {"do_sample": True, "eos_token_id": 7, "temperature": 0.6}
    (source / "generation_config.json").write_text(json.dumps(settings))
    assert run(f"--from={source}", f"--to={tmp_path / 'made'}")[0] == 0
    assert run(f"--from={tmp_path / 'made'}", f"--to={tmp_path / 'out'}")[0] == 0
    config, found = (
        json.loads((tmp_path / "out" / name).read_text())
        for name in ("config.json", "generation_config.json")
    )
    assert config["eos_token_id"] == 7
    assert settings.items() <= found.items()


def test_a_tokenizer_of_an_older_form_is_not_passed_over_in_silence(copy, capsys):
    source = copy("t5")
    assert lm_jax.load(f"hf:{source}").tokenizer is None
    assert "tokenizer.json" not in capsys.readouterr().err
    (source / "spiece.model").write_bytes(b"")
    assert lm_jax.load(f"hf:{source}").tokenizer is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "no tokenizer.json, so the model takes ids, no text" in line
    assert "of spiece.model: AutoTokenizer" in line


@pytest.mark.skipif(
    bool(importlib.util.find_spec("transformers")), reason="transformers is installed here"
)
def test_without_transformers_a_loud_line_says_that_nothing_was_proven(run, checkpoint, tmp_path):
    _, out, err = run(f"--from={checkpoint}", f"--to={tmp_path / 'out'}")
    assert "NOTHING WAS PROVEN" in err
    assert "certificate not proven" in out
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert certificate["verdict"] == "not proven"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--to=x"], 2, "--from: missing"),
        ([f"--from={GOLDEN / 'qwen2'}"], 2, "--to: missing"),
        (["--from=nowhere", "--to=x"], 3, "nowhere: is not a directory"),
        ([f"--from={GOLDEN}", "--to=x"], 3, "config.json: no such file"),
        ([f"--from={GOLDEN / 'qwen2'}", f"--to={GOLDEN}"], 2, "not an empty directory"),
        ([f"--from={GOLDEN / 'qwen2'}", "--to=x", "--family=llama"], 2, "--family: only an export"),
        ([f"--from={GOLDEN / 'qwen2'}", "--to=x", "--step=3"], 2, "--step=3: only a run has"),
        (["--from=CHECKPOINT", "--to=x", "--new_head"], 2, "--new_head: only a Hugging Face"),
        (["--from=CHECKPOINT", "--to=/"], 2, "--to=/: exists and is not an empty directory"),
        (["--from=CHECKPOINT", "--to=x", "--family=llama"], 2, "window=6: LlamaForCausalLM"),
        (["--from=CHECKPOINT", "--to=x", "--family=lama"], 2, "Did you mean 'llama'"),
    ],
)
def test_one_line_and_a_code(run, checkpoint, tmp_path, flags, code, message):
    flags = [flag.replace("CHECKPOINT", str(checkpoint)) for flag in flags]
    flags = [flag.replace("--to=x", f"--to={tmp_path / 'x'}") for flag in flags]
    found, _, err = run(*flags)
    assert found == code
    assert message in err
    assert len(err.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_an_empty_folder_that_is_the_current_one_is_refused(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    code, _, err = command("lm_jax.convert", f"--from={checkpoint}", "--to=.")
    assert (code, err.count("\n")) == (2, 1)
    assert "--to=.: is the current directory; name a new one inside it" in err


@pytest.mark.parametrize(("name", "objective"), [("bert", "mlm"), ("t5", "span_corruption")])
def test_an_imported_model_has_an_objective_that_it_can_have(run, tmp_path, name, objective):
    assert run(f"--from={GOLDEN / name}", f"--to={tmp_path / 'made'}")[0] == 0
    lm = lm_jax.load(tmp_path / "made")
    assert (lm.config.loss.objective, lm.metadata["family"]) == (objective, name)


@pytest.mark.parametrize(
    ("kind", "hint"), [("ngram", "lm_jax.models.classical.arpa"), ("lstm", "no family")]
)
def test_what_transformers_has_not_is_refused_before_anything_is_written(tmp_path, kind, hint):
    config = Config.parse({"model": {"architecture": kind}})
    with pytest.raises(UserError, match=f"architecture='{kind}': has no family.*") as error:
        export(LanguageModel(None, None, config), tmp_path / "out", "")
    assert hint in str(error.value)
    assert not any(tmp_path.iterdir())
