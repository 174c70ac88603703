"""Is all that is about to happen on one screen, and does --dry_run stop there?"""

import dataclasses
import re

import jax
import pytest
from flax import nnx
from small_stores import CONFIG, write_store

from lm_jax.config import LossConfig, MeshConfig
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.writer import Writer
from lm_jax.devices import runtime, sharding
from lm_jax.devices.resolve import resolved
from lm_jax.errors import DataError
from lm_jax.models import ModelConfig, create
from lm_jax.training import start, summary
from lm_jax.training.train_step import init_state


@pytest.fixture
def screen(tmp_path):
    """The start-up screen on eight devices, as {name: rest of the line}."""
    asked = dataclasses.replace(
        CONFIG, steps=300, mesh=MeshConfig(data=2, fsdp=2, tensor=2),
        model=dataclasses.replace(CONFIG.model, tie_embeddings=False),
    )  # fmt: skip
    config = dataclasses.replace(asked, model=resolved(asked.model, "cpu"))
    mesh = sharding.make_mesh(asked.mesh)
    store = write_store(tmp_path / "data", CONFIG.data)
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: init_state(config))
        text = summary.text(asked, config, str(tmp_path), mesh, abstract, store)
    assert text.count("\n") < 24
    names = ("run", "not default", "parameters", "mesh", "compute", "memory", "FLOPs", "training",
             "data", "outputs")  # fmt: skip
    rows = {name: next(line for line in text.splitlines() if line.startswith(f"{name} "))
            for name in names}  # fmt: skip
    return {name: line[len(name) :].strip() for name, line in rows.items()}


def test_the_screen_has_every_number_that_decides_the_run(screen, tmp_path):
    assert str(tmp_path) in screen["run"]
    for part in ("steps=300", "model.dim=16", "mesh.fsdp=2", "data.input=text.txt"):
        assert part in screen["not default"]
    assert "seed" not in screen["not default"]
    assert screen["mesh"].startswith("data 2 x fsdp 2 x tensor 2 on 8 cpu, 1 process")
    assert "float32, attention xla" in screen["compute"]
    assert "300 steps of 32 x 16" in screen["training"]
    assert "= 384.00 epochs" in screen["training"], "of the 25 windows that 402 tokens hold"
    assert "unknown" not in screen["memory"]
    assert "402 tokens" in screen["data"]  # bos and eos too
    for name in ("checkpoints", "metrics.jsonl", "tb", "report.html"):
        assert name in screen["outputs"]


def test_parameters_are_counted_by_module_and_memory_by_device(screen):
    attention, mlp = 4 * 16 * 16, 3 * 16 * 64
    total = 2 * 384 * 16 + attention + mlp + 3 * 16
    assert screen["parameters"].startswith(f"{total / 1e3:.3g}k: ")
    for part in ("embed 6.14k", "head 6.14k", "attn 1.02k", "mlp 3.07k", "norms 48"):
        assert part in screen["parameters"]
    spread = 3 * 4 * (2 * 384 * 16 + attention + mlp) / 4  # with Adam's moments, over four devices
    assert screen["memory"].startswith(f"{(spread + 3 * 4 * 48) / 1e3:.3g}"[:3])


def test_options_without_effect_are_on_one_line():
    data = dataclasses.replace(CONFIG.data, vocab_size=4096)
    plain = dataclasses.replace(CONFIG, mesh=MeshConfig(data=8), data=data)
    model = dataclasses.replace(plain.model, context_attention="ring", pipeline_parts=2)
    idle = dataclasses.replace(plain, model=model)
    mesh = sharding.make_mesh(plain.mesh)
    lines = lambda asked: summary.text(asked, asked, "runs/q", mesh, None, None).splitlines()
    expected = "no effect    model.context_attention=ring  model.pipeline_parts=2"
    assert expected in lines(idle)
    assert not any(line.startswith("no effect") for line in lines(plain))


@pytest.mark.parametrize("architecture", ["lstm", "hmm"])
def test_a_model_without_attention_shows_none(architecture):
    model = dataclasses.replace(CONFIG.model, architecture=architecture, positions="none")
    config = dataclasses.replace(CONFIG, model=resolved(model, "cpu"))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        abstract = jax.eval_shape(lambda: init_state(config))
        rows = dict(summary.network(config, mesh, abstract))
    assert rows["compute"] == "float32"


def test_parameters_that_are_in_no_module_are_called_by_their_names():
    model = jax.eval_shape(
        lambda: create(ModelConfig("hmm", vocab_size=64, dim=16), rngs=nnx.Rngs(0))
    )
    assert summary.modules(model) == {"emission": 1024, "start": 16, "transition": 256}


def test_a_dry_run_stops_at_the_screen_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime, "start", lambda: None)
    text = tmp_path / "text.txt"
    text.write_text("some text\n")
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, input=str(text)))
    assert start.train(config, tmp_path / "run", dry_run=True) == 0  # a Path, or a text
    assert "not prepared yet" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", "label,text\n1,word\n", "a.csv: a CSV table"),
        ("a.jsonl", '{"body": "word"}\n', "no field"),
        ("a.txt", "", "a.txt: empty file."),
        ("", "", "no such file or folder"),
    ],
)
def test_a_dry_run_refuses_what_holds_no_text(tmp_path, monkeypatch, name, content, why):
    monkeypatch.setattr(runtime, "start", lambda: None)
    path = tmp_path / (name or "nowhere")
    if name:
        path.write_text(content)
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, input=str(path)))
    with pytest.raises(DataError, match=re.escape(why)):
        start.train(config, tmp_path / "run", dry_run=True)


def test_pairs_are_counted_in_pairs(tmp_path):
    config = dataclasses.replace(
        CONFIG, steps=300, loss=LossConfig("seq2seq"),
        model=dataclasses.replace(CONFIG.model, architecture="encoder_decoder"),
    )  # fmt: skip
    with Writer(tmp_path / "store", Tokenizer.byte_level()) as writer:
        for i in range(60):
            writer.add("train", writer.tokenizer.encode(f"{i}\tx"), 4)
        writer.finish({})
    store = TokenStore.open(tmp_path / "store")
    assert summary.amount(config, False, store) == "9.6k pairs: 300 steps of 32 = 160.00 epochs"
    assert summary.amount(config, False, None) == "9.6k pairs: 300 steps of 32"
