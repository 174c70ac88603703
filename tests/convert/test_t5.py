"""Files of T5 of all years are imported, or refused."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from host_memory import peaks, zeros

from lm_jax import convert
from lm_jax.convert.families import t5
from lm_jax.errors import UserError
from lm_jax.run.checkpoint import flatten

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
SIZES = {"vocab_size": 8, "d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 4}


def read(kind="t5", **more):
    return t5.T5.read_config({"model_type": kind, **SIZES, **more}, "config.json")


def equal(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_copies_of_the_embeddings_may_be_there_but_not_differ(copy):
    _, wanted = convert.import_hf(GOLDEN / "t5")
    add = lambda name, by=0.0: lambda found: found | {name: found["shared.weight"] + np.float32(by)}
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        assert equal(convert.import_hf(copy("t5", add(name)))[1], wanted)
    with pytest.raises(UserError, match=r"encoder\.embed_tokens\.weight differs from shared"):
        convert.import_hf(copy("t5", add("encoder.embed_tokens.weight", 1)))

    def renamed(found):
        unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        return {
            name.replace("shared.", "decoder.embed_tokens."): x for name, x in found.items()
        } | {unused: np.zeros((10, 4), np.float32)}

    assert equal(convert.import_hf(copy("t5", renamed))[1], wanted)


def test_the_head_is_tied_unless_the_files_or_the_options_hold_another(copy, capsys):
    # transformers 5 says of every T5 that its head is tied.
    config, _ = convert.import_hf(GOLDEN / "t5_1_1")
    assert not config.tie_embeddings
    same = lambda found: found | {"lm_head.weight": found["shared.weight"]}
    assert convert.import_hf(copy("t5_1_1", same))[0].tie_embeddings
    untied = lambda values: values | {"tie_word_embeddings": False}
    assert not convert.import_hf(copy("t5", options=untied))[0].head
    assert "lm_head.weight" in capsys.readouterr().err


def test_what_the_head_reads_is_scaled_in_t5_1_0_alone():
    scale = lambda *kind, **more: read(*kind, **more).logit_scale
    assert scale() == scale(tie_word_embeddings=True) == 0.25
    assert scale(tie_word_embeddings=False) == 1.0
    assert scale(tie_word_embeddings=True, scale_decoder_outputs=False) == 1.0
    assert scale("mt5", tie_word_embeddings=True) == 1.0


def test_the_words_for_the_feed_forward_layer():
    found = lambda **more: dataclasses.astuple(read(**more))
    both = lambda word: (
        read(feed_forward_proj=word).activation,
        read(feed_forward_proj=word).gated,
    )
    assert both("relu") == ("relu", False)
    assert both("gated-gelu") == ("gelu_tanh", True)
    assert both("gelu") == ("gelu", False)
    assert both("gated-silu") == ("silu", True)
    assert found() == found(feed_forward_proj="relu", dense_act_fn="relu", is_gated_act=False)
    assert found(kind="mt5") == found(kind="mt5", feed_forward_proj="gated-gelu")


def test_the_config_of_t5_small_of_2020_is_read():
    config = t5.T5.read_config(
        {
            "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
            "initializer_factor": 1.0, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06,
            "model_type": "t5", "n_positions": 512, "num_heads": 8, "num_layers": 6,
            "output_past": True, "pad_token_id": 0, "relative_attention_num_buckets": 32,
            "task_specific_params": {"summarization": {"num_beams": 4}}, "vocab_size": 32128,
        },
        "config.json",
    )  # fmt: skip
    assert (config.encoder_layers, config.num_layers, config.max_length) == (6, 6, 512)
    assert (config.relative_distance, config.activation, config.gated) == (128, "relu", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-xielu"}, "feed_forward_proj='xielu': not supported"),
        ({"feed_forward_proj": 3}, "feed_forward_proj=3: not supported"),
        ({"is_gated_act": True}, "differs from dense_act_fn"),
        ({"dense_act_fn": "gelu"}, "differs from dense_act_fn"),
        ({"d_model": 0}, "dim=0"),
        ({"relative_attention_max_distance": 16}, "relative_distance=16: must be above 16"),
        ({"relative_attention_num_buckets": 3}, "relative_buckets=3: must be at least 4"),
        ({"num_decoder_layers": "2"}, "num_decoder_layers='2': expected int"),
        ({"num_decoder_layers": 10**6}, "1000000 layers"),
        ({"num_layers": 10**6, "num_decoder_layers": 1}, "1000000 layers"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder=False"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1: expected bool"),
    ],
)
def test_options_that_cannot_be_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        read(**change)


def test_umt5_is_refused_with_the_reason(copy):
    with pytest.raises(UserError, match="umt5': not supported: each of its layers has"):
        convert.import_hf(copy("t5", options=lambda values: values | {"model_type": "umt5"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu", "gated": True}, "activation='gelu'"),  # theirs is the other one
        ({"logit_scale": 0.5}, r"logit_scale=0\.5"),
        ({"attn_scale": 0.0}, r"attn_scale=0\.0"),
        ({"num_kv_heads": 2}, "num_kv_heads=2"),
        ({"norm_order": "sandwich"}, "norm_order='sandwich'"),
        ({"positions": "rope"}, "positions='rope'"),
        ({"token_types": 2}, "token_types=2"),
    ],
)
def test_t5_is_not_written_from_options_that_it_has_not(change, message):
    with pytest.raises(UserError, match=message):
        t5.T5.write_config(dataclasses.replace(read(), **change))


def test_the_host_holds_less_than_two_tensors_of_two_stacks_at_a_time(tmp_path):
    # 80 MB of weights in tensors of at most 2 MB.
    config = dataclasses.replace(
        read(), vocab_size=64, num_layers=12, encoder_layers=8, dim=128, mlp_dim=4096,
        logit_scale=1.0,
    )  # fmt: skip
    largest = 128 * 4096 * 4
    assert sum(leaf.nbytes for leaf in flatten(zeros(config)).values()) > 20 * largest
    small = dataclasses.replace(config, num_layers=1, encoder_layers=1, mlp_dim=8)
    written, read_peak = peaks(config, small, tmp_path)
    assert written < 2 * largest, written / largest
    assert read_peak < 2 * largest, read_peak / largest
