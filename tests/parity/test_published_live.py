"""Small models of the published configurations give the same logits in transformers and here.

Each config.json is that of the Hub with smaller sizes, made by one rule, and read by both sides.
"""

import json
from typing import Any

import numpy as np
import pytest

from lm_jax import convert

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from encoder_outputs import forward, ours  # noqa: E402
from make_golden import logits, padding  # noqa: E402
from make_golden_encoders import answers, batch_of  # noqa: E402
from published_models import PARAMETERS, PUBLISHED  # noqa: E402

SMALL = {  # sizes of every family, under the names that they have
    "hidden_size": 48, "n_embd": 48, "d_model": 48, "intermediate_size": 40, "d_ff": 40,
    "num_hidden_layers": 8, "n_layer": 3, "num_layers": 2, "num_decoder_layers": 3,
    "num_attention_heads": 6, "n_head": 6, "num_heads": 6, "head_dim": 8, "d_kv": 8,
    "vocab_size": 61, "max_position_embeddings": 48, "n_positions": 48, "n_ctx": 48,
    "sliding_window": 5, "max_window_layers": 2, "query_pre_attn_scalar": 10,
}  # fmt: skip
LENGTH = 40


def small(values: dict[str, Any]) -> dict[str, Any]:
    """The same configuration in small: heads in the same groups, ids within the vocabulary."""
    found = {k: SMALL.get(k, v) if v is not None else None for k, v in values.items()}
    heads, kv = values.get("num_attention_heads"), values.get("num_key_value_heads")
    if kv is not None:
        found["num_key_value_heads"] = 6 if kv == heads else 1 if kv == 1 else 2
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if isinstance(found.get(key), int):
            found[key] = min(found[key], {"bos": 1, "eos": 2, "pad": 3}[key[:3]])
        elif key in found:
            found[key] = None
    scaling = found.get("rope_scaling")
    if scaling and "original_max_position_embeddings" in scaling:
        found["rope_scaling"] = {**scaling, "original_max_position_embeddings": 12}
    return found


def random_model(values: dict[str, Any]) -> Any:
    """The model of transformers of these values, every parameter random."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    plain = {k: v for k, v in values.items() if k not in ("dtype", "torch_dtype")}
    config = transformers.CONFIG_MAPPING[values["model_type"]].from_dict(plain)
    config._attn_implementation = "eager"
    kinds = {"bert": "AutoModelForMaskedLM", "roberta": "AutoModelForMaskedLM",
             "xlm-roberta": "AutoModelForMaskedLM", "t5": "AutoModelForSeq2SeqLM",
             "mt5": "AutoModelForSeq2SeqLM"}  # fmt: skip
    kind = kinds.get(values["model_type"], "AutoModelForCausalLM")
    model = getattr(transformers, kind).from_config(config).eval()
    if "t5" in values["model_type"] and values.get("tie_word_embeddings") is False:
        # transformers 5 ties the head of any T5 until it reads another one.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight")
            centre = float(norm and "gemma" not in values["model_type"])
            parameter.copy_(centre + 0.25 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_published_configuration_gives_the_logits_of_transformers(name, tmp_path):
    values = small(json.loads((PUBLISHED / f"{name}.json").read_text()))
    model = random_model(values)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(json.dumps(values))
    config, here = convert.import_hf(tmp_path / "model")
    if config.architecture == "decoder":
        ids = np.random.default_rng(0).integers(1, config.vocab_size, (2, LENGTH))
        batch = {"ids": ids, "segment_ids": padding(ids)}
        wanted = logits(model, ids, batch["segment_ids"])
    else:
        batch = batch_of(model)
        wanted = answers(model, batch)["logits"]
    real = batch.get("segment_ids", np.ones_like(batch["ids"])) > 0
    found, _ = forward(here, ours(batch))
    np.testing.assert_allclose(found[real], wanted[real], atol=1e-4 * np.abs(wanted).max(), rtol=0)
