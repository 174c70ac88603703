"""Is a folder that belongs to another run left alone, and does one's own tell what is in it?"""

import dataclasses
import json
import os
import types

import jax
import pytest
from small_stores import CONFIG, write_store

from lm_jax.config import Config, DataConfig, MeshConfig
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.devices import sharding
from lm_jax.errors import CheckpointError, DataError, MachineError, UserError
from lm_jax.run import rundir


def changed(**fields):
    """CONFIG with fields of its groups changed: model={"dim": 32}."""
    parts = {}
    for name, value in fields.items():
        group = getattr(CONFIG, name)
        parts[name] = dataclasses.replace(group, **value) if isinstance(value, dict) else value
    return dataclasses.replace(CONFIG, **parts)


def test_a_new_or_empty_folder_or_one_with_data_alone_is_free(tmp_path):
    rundir.check(tmp_path / "new" / "deep", CONFIG)
    rundir.check(tmp_path, CONFIG)
    (tmp_path / "data").mkdir()
    rundir.check(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_folder_with_anything_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds 'thesis\.tex' but no run; name a new or empty"):
        rundir.check(tmp_path, CONFIG)


@pytest.mark.parametrize("fields", [
    {"model": {"dim": 32}}, {"steps": 2000}, {"seed": 1}, {"batch_size": 64},
    {"optimizer": {"learning_rate": 1e-4}}, {"loss": {"z_loss": 1e-4}},
    {"data": {"sequence_length": 32}}, {"data": {"packed": False}},
])  # fmt: skip
def test_a_run_that_would_learn_something_else_is_refused(tmp_path, fields):
    rundir.create(tmp_path, CONFIG)
    with pytest.raises(UserError, match=r"is of another run: config\.\S+ is \S+ there, \S+ here"):
        rundir.check(tmp_path, changed(**fields))


def test_what_does_not_change_the_learning_may_change(tmp_path):
    rundir.create(tmp_path, CONFIG)
    rundir.check(tmp_path, CONFIG)
    free = changed(name="again", log_every=1, microbatches=2, mesh={"fsdp": 2}, eval={"every": 7},
                   checkpoint={"keep": 9}, loss={"chunk_size": 8},
                   optimizer={"shard_state": True},
                   model={"remat": "full", "scan_unroll": 2, "attention": "xla"})  # fmt: skip
    rundir.check(tmp_path, free)


def test_the_config_comes_back_and_is_written_only_when_it_changes(tmp_path):
    rundir.create(tmp_path / "run", CONFIG)
    path = tmp_path / "run" / "config.json"
    assert Config.parse(json.loads(path.read_text())) == CONFIG
    before = path.stat().st_mtime_ns
    rundir.create(tmp_path / "run", CONFIG)
    assert path.stat().st_mtime_ns == before
    rundir.create(tmp_path / "run", changed(name="other"))
    assert json.loads(path.read_text())["name"] == "other"
    assert [p.name for p in path.parent.iterdir()] == ["config.json"]


def test_a_file_that_cannot_be_written_is_named_and_stays(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text("before")
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            rundir.replace_text(path, "after this")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "before"
    (tmp_path / "report.html").mkdir()
    with pytest.raises(IsADirectoryError, match=r"Is a directory: '\S+/report\.html'$"):
        rundir.replace_text(tmp_path / "report.html", "page")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "summary.json"]


@pytest.mark.parametrize("text", ["", "{", '{"stepz": 3}', '{"steps": "many"}', "[]",
                                  pytest.param("[" * 100_000, id="deep")])  # fmt: skip
def test_a_config_that_cannot_be_read_is_refused_and_kept(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json: cannot be read .* Name another --workdir"):
        rundir.check(tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_text() == text


def test_a_name_that_no_checkpoint_can_have_is_refused(tmp_path, monkeypatch):
    strange = tmp_path / os.fsdecode(b"bad\xff")
    with pytest.raises(MachineError, match=r"bad\?/run: is not in UTF-8"):
        rundir.check(strange / "run", CONFIG)
    strange.mkdir()
    monkeypatch.chdir(strange)
    with pytest.raises(MachineError, match=r"bad\?/run: is not in UTF-8"):
        rundir.check("run", CONFIG)


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(MachineError, match="is a file; name a folder"):
            rundir.check(place, CONFIG)
    with pytest.raises(MachineError, match="name another folder"):
        rundir.create("/proc/lm_jax", CONFIG)


def test_a_store_is_found_where_it_is_named_or_in_the_run(tmp_path):
    store = write_store(tmp_path / "run" / "data", CONFIG.data)
    assert (
        rundir.open_store(tmp_path / "run", CONFIG, prepare=True).fingerprint == store.fingerprint
    )
    named = changed(data={"store": str(tmp_path / "run" / "data"), "input": ""})
    assert rundir.open_store(tmp_path / "elsewhere", named, prepare=True).path == named.data.store
    (tmp_path / "text.txt").write_text("some text")
    new = changed(data={"input": str(tmp_path / "text.txt")})
    assert rundir.open_store(tmp_path / "elsewhere", new, prepare=False) is None
    with pytest.raises(DataError, match=r"no token store at .*; make one with"):
        rundir.open_store(tmp_path / "elsewhere", changed(data={"input": ""}), prepare=True)


@pytest.mark.parametrize("prepare", [True, False])
def test_a_place_that_holds_no_store_is_refused_with_what_it_is(tmp_path, prepare):
    write_store(tmp_path / "run" / "data", CONFIG.data)
    (tmp_path / "text.txt").write_text("some text")
    there = sorted(tmp_path.rglob("*"))
    for name, why in [
        ("run", r"run: is a run, whose store is \S+/run/data; set config\.data\.store to that"),
        ("run/data/tokenizer", r"tokenizer: holds 'tokenizer\.json' but no token store .*; name a"),
        ("text.txt", r"text\.txt: is a file; name a folder"),
    ]:
        data = {"store": str(tmp_path / name), "input": str(tmp_path / "text.txt")}
        with pytest.raises(DataError, match=why):
            rundir.open_store(tmp_path / "new", changed(data=data), prepare)
    assert sorted(tmp_path.rglob("*")) == there
    (tmp_path / "run" / "data" / "store.json").unlink()
    with pytest.raises(DataError, match=r"run/data: holds .* but no token store .*; put back"):
        rundir.open_store(tmp_path / "run", changed(data={"input": str(tmp_path)}), prepare)


@pytest.mark.parametrize(("field", "value"), [
    ("input", "other.txt"), ("tokenizer", "bpe"), ("vocab_size", 300), ("heldout_fraction", 0.5),
])  # fmt: skip
def test_a_store_of_another_text_is_never_trained_on_in_silence(tmp_path, field, value):
    write_store(tmp_path / "data", CONFIG.data)
    other = changed(data={field: value})
    with pytest.raises(DataError, match=rf"config\.data\.{field}={value!r}: .* was made with"):
        rundir.open_store(tmp_path, other, prepare=True)
    named = changed(data={field: value, "store": str(tmp_path / "data")})
    assert rundir.open_store(tmp_path, named, prepare=True)


def test_a_store_that_does_not_fit_the_model_is_refused(tmp_path):
    write_store(tmp_path / "data", CONFIG.data)
    with pytest.raises(DataError, match=r"smaller than the 259 tokens .* set it to 384"):
        rundir.open_store(tmp_path, changed(model={"vocab_size": 256}), prepare=True)
    long = {"model": {"max_length": 1024}, "data": {"sequence_length": 1024}}
    with pytest.raises(DataError, match="do not fill one window"):
        rundir.open_store(tmp_path, changed(**long), prepare=True)
    # Examples of pairs are documents.
    pairs = changed(**long, loss={"objective": "seq2seq"})
    assert rundir.open_store(tmp_path, pairs, prepare=True)
    write_store(tmp_path / "none" / "data", CONFIG.data, held=0)
    with pytest.raises(DataError, match=r"0 held-out tokens do not fill .*=0\.02 in a new --w"):
        rundir.open_store(tmp_path / "none", CONFIG, prepare=True)
    # A store that is named was made with a fraction of its own.
    named = {"store": str(tmp_path / "none" / "data"), "heldout_fraction": 0.5}
    with pytest.raises(DataError, match=r"heldout_fraction=0\.02 in a new store \(python -m"):
        rundir.open_store(tmp_path / "other", changed(data=named), prepare=True)


def test_a_checkpoint_says_what_it_was_trained_on_and_is_not_continued_on_other_data(tmp_path):
    store = write_store(tmp_path / "data", CONFIG.data)
    rundir.create(tmp_path, CONFIG)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    about = rundir.metadata(CONFIG, tmp_path, store, mesh)
    assert json.loads(json.dumps(about)) == about
    assert Config.parse(about["config"]) == CONFIG
    assert about["tokenizer_hash"] == store.tokenizer_hash
    assert about["mesh"] == dict.fromkeys(sharding.AXES, 1)
    assert {"python", "jax", "flax", "lm_jax", "numpy"} <= about["versions"].keys()
    rundir.check_checkpoint(about, CONFIG, store, mesh.shape)
    for name in ("fingerprint", "tokenizer_hash"):
        other = types.SimpleNamespace(
            fingerprint=store.fingerprint, tokenizer_hash=store.tokenizer_hash
        )
        setattr(other, name, "0" * 64)
        with pytest.raises(CheckpointError, match=r"restore config\.data\.store=.*/data"):
            rundir.check_checkpoint(about, CONFIG, other, mesh.shape)


def test_a_checkpoint_of_another_run_is_refused(tmp_path, capsys):
    store = write_store(tmp_path / "data", CONFIG.data)
    rundir.create(tmp_path, CONFIG)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    about, check = rundir.metadata(CONFIG, tmp_path, store, mesh), rundir.check_checkpoint
    with pytest.raises(CheckpointError, match=r"another run: config\.seed is 0 there, 1 here\. "):
        check(about, changed(seed=1), store, mesh.shape)
    with pytest.raises(CheckpointError, match="newest checkpoint: cannot be read"):
        check({**about, "config": {"sed": 1}}, CONFIG, store, mesh.shape)
    check(about, changed(log_every=1, microbatches=2), store, mesh.shape)
    assert capsys.readouterr().out == ""


STAGES = {"stage": 2, "data": 2}


@pytest.mark.parametrize(("old", "new", "changed_field"), [
    ({}, {"microbatches": 2}, "config.microbatches=2: was 1"),
    ({}, {"mesh": {"stage": 2}}, "config.mesh.stage=2: was 1"),
    ({"mesh": STAGES}, {"mesh": STAGES, "model": {"pipeline_parts": 8}},
     "config.model.pipeline_parts=8: was 0"),
    ({"mesh": STAGES}, {"mesh": {"stage": 2, "data": 4}}, "config.mesh.data=4: was 2"),
    ({"mesh": {"data": 2}}, {"mesh": {"data": 4}}, ""),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["dropout", "attention_dropout", "output_dropout"])
def test_other_draws_of_dropout_after_a_resume_are_announced(
    tmp_path, capsys, kind, old, new, changed_field
):
    def config(fields):
        return changed(
            **{**fields, "model": {kind: 0.1, "num_layers": 2, **fields.get("model", {})}}
        )

    def mesh(fields):
        return dict.fromkeys(sharding.AXES, 1) | fields.get("mesh", {})

    store = write_store(tmp_path / "data", CONFIG.data)
    about = {
        "config": config(old).to_dict(), "mesh": mesh(old),
        "tokenizer_hash": store.tokenizer_hash, "data_fingerprint": store.fingerprint,
    }  # fmt: skip
    rundir.check_checkpoint(about, config(old), store, mesh(old))
    assert capsys.readouterr().out == ""
    rundir.check_checkpoint(about, config(new), store, mesh(new))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == bool(changed_field)
    assert all(line.startswith(f"WARNING: {changed_field} when the checkpoint") for line in lines)


@pytest.mark.parametrize("fields", [
    {"context_attention": "ring"}, {"pipeline_parts": 4}, {"pipeline_rounds": 2},
])  # fmt: skip
def test_how_devices_share_a_model_may_change_on_resume(tmp_path, fields):
    rundir.create(tmp_path, CONFIG)
    rundir.check(tmp_path, changed(model=fields))


def test_the_tokenizer_lies_in_each_checkpoint_as_files(tmp_path):
    store = write_store(tmp_path / "data", CONFIG.data)
    for name, content in rundir.tokenizer_files(store.tokenizer).items():
        (tmp_path / name).write_bytes(content)
    assert load_tokenizer(tmp_path).hash == store.tokenizer_hash


def test_a_run_without_held_out_text_is_refused_before_the_text_is_read(tmp_path):
    config = changed(data={"input": str(tmp_path / "not there"), "heldout_fraction": 0.0})
    for prepare in (True, False):
        with pytest.raises(
            UserError, match=r"heldout_fraction=0\.0: a run is evaluated on held-out"
        ):
            rundir.open_store(tmp_path / "run", config, prepare)


def test_what_contradicts_an_explicit_store_is_said(tmp_path, capsys):
    write_store(tmp_path / "store", DataConfig(input="other.txt", vocab_size=259))
    explicit = {"store": str(tmp_path / "store"), "tokenizer": "unigram"}
    rundir.open_store(tmp_path / "run", changed(data=explicit), True)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2, "the vocabulary is the store's"
    assert said[0].startswith("WARNING: config.data.input='text.txt': not used; config.data.store=")
    assert said[0].endswith("was made with 'other.txt'.")
    assert "config.data.tokenizer='unigram': not used" in said[1]
    rundir.open_store(tmp_path / "run", dataclasses.replace(
        CONFIG, data=DataConfig(store=explicit["store"], sequence_length=16)), True)  # fmt: skip
    assert capsys.readouterr().out == "", "defaults contradict nothing"


def test_text_that_was_edited_since_is_said_when_the_run_goes_on(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("some text\n" * 200)
    config = changed(data={"input": str(text), "heldout_fraction": 0.2})
    rundir.open_store(tmp_path / "run", config, True)
    rundir.open_store(tmp_path / "run", config, True)
    assert "WARNING" not in capsys.readouterr().out
    text.write_text("more text\n" * 201)
    rundir.open_store(tmp_path / "run", config, True)
    assert f"{text} has changed; {tmp_path}/run/data was made before" in capsys.readouterr().out
