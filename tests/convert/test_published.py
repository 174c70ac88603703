"""The published models of each family are read from the config.json that they have on the Hub.

published/ holds keys and values as published; tests/parity/test_published_live.py compares the
logits of small models of these configurations with those of transformers.
"""

import json
import math

import pytest
from published_models import PARAMETERS, PUBLISHED, REFUSED

from lm_jax.convert import registry, rows
from lm_jax.errors import UserError

BERT_POOLER = ["pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
               "pooler_size_per_head", "pooler_type"]  # fmt: skip
UNREAD = {  # of the others, transformers reads every key
    "DeepSeek-R1-Distill-Qwen-1.5B": ["use_mrope"],
    "Llama-3.2-1B-Instruct-unsloth": ["unsloth_fixed"],
    "Qwen2.5-Math-1.5B": ["use_mrope"],
    "SmolLM2-1.7B-Instruct": ["transformers.js_config"],
    "SmolLM2-135M-Instruct": ["is_llama_config", "rope_interleaved", "transformers.js_config",
                              "unk_token_id"],
    "bert-base-chinese": ["directionality", *BERT_POOLER],
    "flan-t5-base": ["output_past"],
    "gemma-2-2b": ["hidden_act"],
    "distilgpt2": ["n_ctx"],
    "gpt2": ["n_ctx"],
    "gpt2-xl": ["n_ctx", "output_past"],
    "t5-small": ["output_past"],
    "xlm-roberta-base": ["output_past"],
}  # fmt: skip


def values_of(name: str) -> dict:
    return json.loads((PUBLISHED / f"{name}.json").read_text())


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_configuration_means_the_published_model(name):
    values = values_of(name)
    family = registry.family_named(values["model_type"])
    config = family.read_config(values, "config.json")
    assert family.unread(values) == UNREAD.get(name, [])
    if name == "flan-t5-base":  # of which only the files say that the head is another tensor
        assert (config.tie_embeddings, config.logit_scale) == (False, 1.0)
    tensors, sizes = rows.rows_by_tensor(family.rows(config), config), rows.sizes_of(config)
    shapes = [rows.tensor_shape(parts, sizes) for _, parts in tensors.values()]
    assert sum(math.prod(shape) for shape in shapes) == PARAMETERS[name]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_is_refused_for_a_reason_that_holds(name):
    values = values_of(name)
    with pytest.raises(UserError, match=REFUSED[name]) as error:
        registry.family_named(values["model_type"]).read_config(values, "config.json")
    assert "Did you mean" not in str(error.value)


def test_every_published_configuration_is_in_a_table():
    assert {path.stem for path in PUBLISHED.glob("*.json")} == PARAMETERS.keys() | REFUSED.keys()


@pytest.mark.parametrize(
    ("name", "changes", "wanted"),
    [
        ("Llama-2-7b-hf", {"quantization_config": None, "neftune_noise_alpha": 5}, {}),
        ("Llama-2-7b-hf", {"attention_bias": True}, {"attn_bias": True, "bias": False}),
        ("Llama-2-7b-hf", {"attention_bias": True, "mlp_bias": True}, {"bias": True}),
        ("Qwen3-0.6B", {"attention_bias": True}, {"attn_bias": True}),
        ("Llama-2-7b-hf", {"sliding_window": 4096}, {"window": 0}),
        ("Llama-2-7b-hf", {"layer_types": ["full_attention"] * 32}, {"window": 0}),
        ("Llama-2-7b-hf", {"partial_rotary_factor": 1.0, "per_layer_config": {}}, {}),
        ("Mixtral-8x7B-v0.1", {"num_experts": 8}, {"num_experts": 8}),
        ("gpt2", {"hidden_size": 768, "num_hidden_layers": 12}, {"dim": 768}),
        ("t5-small", {"head_dim": 64}, {"head_dim": 64}),
        ("Qwen2.5-7B-Instruct", {"rope_scaling": {"type": "yarn", "factor": 4.0}},
         {"rope_scaling": "yarn", "rope_original_length": 32768}),
        ("Qwen2.5-7B-Instruct", {"rope_scaling": {"type": "yarn", "factor": 4.0},
         "original_max_position_embeddings": 8192}, {"rope_original_length": 8192}),
    ],
)  # fmt: skip
def test_a_key_without_effect_at_its_value_is_taken(name, changes, wanted):
    values = values_of(name)
    config = registry.family_named(values["model_type"]).read_config(
        values | changes, "config.json"
    )
    assert {field: getattr(config, field) for field in wanted} == wanted


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gpt2", {"hidden_size": 512}, "hidden_size=512: is another name for n_embd, which is 768"),
        ("Llama-2-7b-hf", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: not suppor"),
        ("Llama-2-7b-hf", {"per_layer_config": {"0": {}}}, "layers would have options of their"),
        ("bert-base-uncased", {"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ("roberta-base", {"is_decoder": True}, "is_decoder=True: not supported"),
        ("Qwen2.5-7B-Instruct", {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
         "rope_type='mrope': not supported"),
    ],
)  # fmt: skip
def test_a_key_with_an_effect_that_is_not_here_is_refused_by_name(name, changes, message):
    values = values_of(name)
    with pytest.raises(UserError, match=message):
        registry.family_named(values["model_type"]).read_config(values | changes, "config.json")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("bart", r"not supported\. Supported: gpt2"),
        ("gemma", "not supported: a Gemma 1"),
        ("olmo", "Supported: gpt2"),
        ("lama", "Did you mean 'llama'"),
        ("xlm_roberta", "Did you mean 'xlm-roberta'"),
    ],
)
def test_only_a_misspelling_is_answered_by_a_name(kind, message):
    with pytest.raises(UserError, match=message):
        registry.family_named(kind)
