"""Options that change nothing are named, and no others."""

import pytest
from scaled import NAMES, published

from lm_jax.config import Config
from lm_jax.config.effect import without_effect


def idle(model=None, loss=None, optimizer=None, **more):
    values = {"model": model or {}, "loss": loss or {}, "optimizer": optimizer or {}, **more}
    return {text.partition("=")[0] for text in without_effect(Config.parse(values))}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"model": {"architecture": "hmm", "dropout": 0.1, "num_experts": 4, "remat": "full"},
          "loss": {"z_loss": 1e-4, "label_smoothing": 0.1, "chunk_size": 8}},
         {"model.dropout", "model.num_experts", "model.remat", "loss.z_loss",
          "loss.label_smoothing", "loss.chunk_size"}),
        ({"model": {"architecture": "lstm", "window": 8, "scan_unroll": 2, "dropout": 0.1}},
         {"model.window", "model.scan_unroll"}),
        ({"model": {"architecture": "lstm", "activation": "relu", "head_transform": True}}, set()),
        ({"model": {"architecture": "ngram"}, "optimizer": {"learning_rate": 0.5}},
         {"optimizer.learning_rate"}),
        ({"model": {"architecture": "ngram"}, "mesh": {"data": 2, "fsdp": 4}},
         {"mesh.data", "mesh.fsdp"}),
        ({"loss": {"balance_loss": 0.5, "mask_rate": 0.5}},
         {"loss.balance_loss", "loss.mask_rate"}),
        ({"model": {"num_experts": 4}, "loss": {"balance_loss": 0.5}}, set()),
        ({"optimizer": {"name": "adafactor", "b1": 0.5, "eps": 1e-6}},
         {"optimizer.b1", "optimizer.eps"}),
        ({"optimizer": {"name": "muon", "muon_learning_rate": 0.5, "schedule": "constant",
                        "end_fraction": 0.5}}, {"optimizer.end_fraction"}),
        ({"model": {"context_attention": "ring", "pipeline_rounds": 2, "pipeline_parts": 2}},
         {"model.context_attention", "model.pipeline_rounds", "model.pipeline_parts"}),
        ({"model": {"context_attention": "ring"}, "mesh": {"context": 2}}, set()),
        ({"model": {"rope_factor": 2.0, "layer_pattern": "lg"}},
         {"model.rope_factor", "model.layer_pattern"}),
        ({"data": {"tokenizer": "./DIR", "vocab_size": 512}}, {"data.vocab_size"}),
        ({"model": {"architecture": "encoder"}, "loss": {"objective": "mlm"},
          "eval": {"samples": 2, "prompt": "a"}}, {"eval.samples", "eval.prompt"}),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_named(fields, names):
    assert idle(**fields) == names


def test_what_turns_something_off_is_honoured_where_there_is_nothing():
    assert idle({"architecture": "lstm", "positions": "none", "gated": False}) == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_the_configs_here_has_an_effect(name):
    assert without_effect(published(name)) == []
