"""Options of each decoder family have the meaning that they have in `transformers`."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from lm_jax.convert import pattern, registry
from lm_jax.convert.families import gemma, llama, mistral, qwen, rope
from lm_jax.convert.mapping import effective
from lm_jax.errors import UserError
from lm_jax.models import ModelConfig

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
LOCAL, FULL = "sliding_attention", "full_attention"


def options(name: str, **changes) -> ModelConfig:
    """What the config.json of a golden model means, with changes; None leaves a key out."""
    values = json.loads((GOLDEN / name / "config.json").read_text())
    values |= changes
    values = {key: value for key, value in values.items() if value is not ABSENT}
    return registry.family_named(values["model_type"]).read_config(values, "config.json")


ABSENT = object()


@pytest.mark.parametrize(
    ("name", "changes", "window", "layers"),
    [
        ("mistral", {}, 7, "ll"),
        ("mistral", {"sliding_window": ABSENT}, 4096, "ll"),
        ("mistral", {"sliding_window": None}, 0, "gg"),
        ("mixtral", {"sliding_window": ABSENT}, 0, "gg"),
        ("qwen2", {}, 6, "gll"),
        ("qwen2", {"layer_types": ABSENT, "max_window_layers": 2}, 6, "ggl"),
        ("qwen2", {"layer_types": ABSENT, "max_window_layers": ABSENT}, 0, "ggg"),
        ("qwen2", {"layer_types": ABSENT, "use_sliding_window": False}, 0, "ggg"),
        ("qwen2", {"layer_types": ABSENT, "use_sliding_window": ABSENT}, 0, "ggg"),
        ("qwen3_tied", {}, 6, "gl"),
        ("gemma2", {"layer_types": ABSENT}, 5, "lgl"),
        ("gemma2", {"layer_types": ABSENT, "sliding_window": ABSENT}, 4096, "lgl"),
        ("gemma3", {"layer_types": ABSENT}, 5, "lllllgll"),
        ("gemma3", {"layer_types": ABSENT, "sliding_window_pattern": 2}, 5, "lglglglg"),
    ],
)
def test_windows_stand_at_the_layers_where_transformers_has_them(name, changes, window, layers):
    config = options(name, **changes)
    assert (config.window, pattern.repeated(config.kinds, config.num_layers)) == (window, layers)


def test_a_pattern_is_as_short_as_it_can_be():
    assert options("gemma3").layer_pattern == "lllllg"
    assert options("qwen2_irregular").layer_pattern == "lgg"
    assert [pattern.shortest(x) for x in ("lglgl", "lll", "gll", "l")] == ["lg", "l", "gll", "l"]


def test_gemma_scales_are_those_of_its_sizes():
    config = options("gemma2")
    assert (config.embed_scale, config.norm_offset) == (4.0, 1.0)
    assert math.isclose(config.attn_scale, 10**-0.5)
    assert (config.attn_softcap, config.logit_softcap) == (2.0, 3.0)
    absent = options("gemma2", attn_logit_softcapping=ABSENT, final_logit_softcapping=ABSENT)
    assert (absent.attn_softcap, absent.logit_softcap) == (50.0, 30.0)
    null = options("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (null.attn_softcap, null.logit_softcap) == (0.0, 0.0)


def test_a_root_with_nine_digits_is_that_root_in_an_export():
    config = options("gemma3")
    wide = dataclasses.replace(config, dim=20, embed_scale=20**0.5)
    written = dataclasses.replace(wide, embed_scale=4.47213595)
    assert registry.family_of(written).write_config(written) == registry.family_of(
        wide
    ).write_config(wide)
    with pytest.raises(UserError, match=r"embed_scale=4\.472: Gemma3ForCausalLM has 4\.4721359"):
        registry.family_named("gemma3_text").write_config(
            dataclasses.replace(wide, embed_scale=4.472)
        )


def test_the_rotary_options_of_a_gemma_3_of_transformers_4_mean_the_same():
    new = options("gemma3")
    old = options(
        "gemma3", rope_parameters=ABSENT, rope_theta=1000.0, rope_local_base_freq=50.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )  # fmt: skip
    assert old == new
    bare = options("gemma3", rope_parameters=ABSENT)
    assert (bare.rope_theta, bare.rope_local_theta, bare.rope_scaling) == (1e6, 1e4, "none")


def test_yarn_has_its_own_options_and_their_defaults():
    form = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    found = rope.read({"rope_theta": 5.0, "rope_scaling": form}, "")
    assert found == {
        "rope_theta": 5.0, "rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 16,
    }  # fmt: skip
    more = {"beta_fast": 16, "beta_slow": None, "attention_factor": 1.5, "truncate": True}
    found = rope.read({"rope_parameters": form | more}, "")
    assert (found["rope_beta_fast"], found["rope_attention_factor"]) == (16.0, 1.5)
    assert "rope_beta_slow" not in found
    with pytest.raises(UserError, match=r"mscale=0\.7: not supported"):
        rope.read({"rope_parameters": form | {"mscale": 0.7}}, "")
    with pytest.raises(UserError, match="truncate=False: not supported"):
        rope.read({"rope_parameters": form | {"truncate": False}}, "")


@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.iterdir()))
def test_what_is_written_means_what_was_read(name):
    config = options(name)
    kind = json.loads((GOLDEN / name / "config.json").read_text())["model_type"]
    for family in (registry.family_named(kind), registry.family_of(config)):
        assert effective(family.read_config(family.write_config(config), "")) == effective(config)


@pytest.mark.parametrize(
    ("changes", "family"),
    [
        ({}, "llama"),
        ({"bias": True}, "llama"),
        ({"window": 8}, "mistral"),
        ({"dim": 18, "head_dim": 4}, "mistral"),
        ({"num_experts": 4}, "mixtral"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qk_norm": True, "window": 8, "layer_pattern": "lg"}, "qwen3"),
    ],
)
def test_a_model_goes_out_as_the_first_family_that_has_its_options(changes, family):
    config = dataclasses.replace(ModelConfig(num_layers=2, dim=16), **changes)
    assert registry.family_of(config).model_type == family


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (llama.FAMILY, {"window": 8}, "window=8: LlamaForCausalLM has 0 only"),
        (llama.FAMILY, {"qk_norm": True}, "qk_norm=True: LlamaForCausalLM has False only"),
        (llama.FAMILY, {"logit_softcap": 3.0}, r"logit_softcap=3\.0"),
        (llama.FAMILY, {"embed_scale": 4.0}, r"embed_scale=4\.0"),
        (llama.FAMILY, {"norm_order": "sandwich"}, "norm_order='sandwich'"),
        (mistral.MISTRAL, {"window": 8, "layer_pattern": "lg"}, "layer_pattern='lg'"),
        (mistral.MISTRAL, {"bias": True}, "bias=True: MistralForCausalLM has False only"),
        (mistral.MIXTRAL, {}, "num_experts=0"),
        (mistral.MIXTRAL, {"num_experts": 4, "shared_experts": 1}, "shared_experts=1"),
        (mistral.MIXTRAL, {"num_experts": 4, "capacity_factor": 2.0}, r"capacity_factor=2\.0"),
        (qwen.QWEN2, {}, "qkv_bias=False: Qwen2ForCausalLM has True only"),
        (qwen.QWEN3, {"qk_norm": True, "rope_local_theta": 5.0, "window": 4}, "rope_local_theta"),
    ],
)
def test_no_option_is_lost_on_the_way_out(family, changes, message):
    config = dataclasses.replace(ModelConfig(num_layers=2, dim=16), **changes)
    with pytest.raises(UserError, match=message):
        family.write_config(config)


GEMMA = {"embed_scale": 3.0, "attn_scale": 0.3, "attn_softcap": 1.0, "rope_local_theta": 0.0}


@pytest.mark.parametrize("field", GEMMA)
def test_gemma_3_is_not_written_from_scales_that_it_has_not(field):
    config = dataclasses.replace(options("gemma3"), **{field: GEMMA[field]})
    with pytest.raises(UserError, match=f"{field}={GEMMA[field]}: Gemma3ForCausalLM has"):
        gemma.GEMMA3.write_config(config)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window=0: must be at least 1"),
        ("mistral", {"layer_types": [LOCAL, FULL]}, "not supported in a mistral: its layers"),
        ("mistral", {"num_key_value_heads": ABSENT}, "num_key_value_heads: is missing"),
        ("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window='yes': expected bool"),
        ("qwen2", {"use_sliding_window": False}, "layer_types: has sliding_attention"),
        ("qwen2", {"layer_types": [FULL]}, "expected a list of 3"),
        ("qwen2", {"layer_types": [FULL, LOCAL, "chunked_attention"]}, "'chunked_attention' is"),
        ("qwen2", {"layer_types": [FULL, LOCAL, [1]]}, r"\[1\] is not supported"),
        ("qwen2", {"max_window_layers": 10**30}, "max_window_layers=1000"),
        ("qwen3", {"attention_bias": 1}, "attention_bias=1: expected bool"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar=0: must be above 0"),
        ("gemma2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping=0.0: must be above"),
        ("gemma2", {"sliding_window": None}, "layer_types: has sliding_attention"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0: not supported"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "expected sliding_attention and"),
        ("gemma3", {"rope_parameters": [1]}, r"rope_parameters=\[1\]: expected"),
        ("gemma3", {"rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 2.0}}},
         "rope_type='linear' is not supported, only 'default'"),
        ("gemma3", {"layer_types": ABSENT, "sliding_window_pattern": 0}, "pattern=0: must be"),
        ("mixtral", {"num_experts_per_tok": 4}, "experts_per_token=4: must be 1 to 3"),
    ],
)  # fmt: skip
def test_one_line_names_the_option_that_is_not_ours(name, changes, message):
    with pytest.raises(UserError, match=message) as error:
        options(name, **changes)
    assert "\n" not in str(error.value)


def test_the_refusal_of_a_model_without_a_family_is_that_of_the_nearest():
    with pytest.raises(UserError, match="layer_pattern='lg'"):
        registry.family_of(ModelConfig(num_layers=2, window=8, layer_pattern="lg"))
    with pytest.raises(
        UserError, match=r"model_type='gema2': not supported\. Did you mean 'gemma2"
    ):
        registry.family_named("gema2")
