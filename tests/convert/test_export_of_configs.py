"""Whatever a config of configs/ trains can be exported, and comes back as the same model."""

import dataclasses

import numpy as np
import pytest
from exported_families import FAMILY, WITHOUT
from scaled import FILES, published

import lm_jax
from lm_jax.config import ModelConfig, from_model
from lm_jax.config.field import with_role
from lm_jax.convert import hf, registry
from lm_jax.convert.__main__ import export
from lm_jax.convert.families import gpt2, llama
from lm_jax.errors import UserError
from lm_jax.inference.language_model import LanguageModel
from lm_jax.training import start


@pytest.mark.parametrize("name", [*FAMILY, *WITHOUT])
def test_every_config_has_its_family(name):
    model = published(name).model
    if name in FAMILY:
        assert registry.family_of(model).model_type == FAMILY[name]
    else:
        with pytest.raises(UserError, match=WITHOUT[name]):
            registry.family_of(model)


def test_every_file_of_configs_is_in_the_table():
    named = {name.partition(":")[0] for name in (*FAMILY, *WITHOUT)}
    assert named == {*FILES}


OTHER = {
    "attention": "xla", "context_attention": "ring", "dtype": "bfloat16",
    "matmul_precision": "bfloat16", "pipeline_parts": 4, "pipeline_rounds": 2,
    "quantization": "int8_full", "quantized": "mlp", "remat": "offload", "scan_unroll": 2,
}  # fmt: skip


@pytest.mark.parametrize("field", with_role(ModelConfig, "execution"))
def test_how_a_run_computes_does_not_stop_its_export(field):
    config = dataclasses.replace(ModelConfig(), **{field: OTHER[field]})
    assert getattr(config, field) != getattr(ModelConfig(), field)
    assert registry.family_of(config).write_config(config) == llama.FAMILY.write_config(
        ModelConfig()
    )


SCALED = {
    "steps": 2, "batch_size": 8, "optimizer.warmup_steps": 1, "log_every": 1, "eval.every": 0,
    "eval.samples": 0, "eval.tokens": 128, "eval.baselines": False, "eval.prompt": "",
    "model.num_layers": 2, "model.dim": 32, "model.scan_unroll": 2,
    "data.sequence_length": 64, "optimizer.name": "adamw",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", ["quickstart", pytest.param("shakespeare", marks=pytest.mark.slow)]
)
def test_what_a_config_trains_goes_out_and_comes_back(name, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(f"{i} men say {i * i}." for i in range(600)))
    small = {"data.input": str(tmp_path / "text.txt")}
    if name == "quickstart":
        small |= {"model.vocab_size": 384, "data.vocab_size": 300}
    config = published(name, **SCALED, **small)
    assert start.train(config, str(tmp_path / "run"), check=False) == 0
    lm = lm_jax.load(tmp_path / "run")
    export(lm, tmp_path / "out", "")
    family, config, model = hf.imported(tmp_path / "out")
    assert family.model_type == FAMILY[name]
    again, ids = LanguageModel(model, None, from_model(config, 64)), np.arange(2, 62)
    np.testing.assert_allclose(again.logits(ids), lm.logits(ids), atol=1e-5)


def test_only_a_gpt2_is_given_the_biases_that_it_lacks():
    bare = ModelConfig(norm="layernorm", positions="learned", gated=False, activation="gelu")
    assert gpt2.FAMILY.completed(bare) == dataclasses.replace(bare, bias=True)
    assert llama.FAMILY.completed(bare) == bare
