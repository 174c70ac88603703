"""Files of BERT and RoBERTa of all years are imported, or refused."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lm_jax import convert
from lm_jax.convert.families import bert
from lm_jax.errors import UserError

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
WORDS = "bert.embeddings.word_embeddings.weight"


def equal(one, other) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def without(*words):
    """The tensors whose names have none of these words."""
    return lambda found: {
        name: x for name, x in found.items() if not any(word in name for word in words)
    }


def test_the_names_of_the_first_files_are_read(copy):
    def old(found):
        older = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )
        buffer = {"bert.embeddings.position_ids": np.arange(26)[None]}
        return {older(name): x for name, x in found.items()} | buffer

    # As bert-base-uncased: all of BertForPreTraining, under the name of the other class.
    masked = lambda values: values | {"architectures": ["BertForMaskedLM"]}
    config, model = convert.import_hf(copy("bert", old, masked))
    assert config.pooler
    assert equal(model, convert.import_hf(GOLDEN / "bert")[1])


def test_a_tied_head_may_be_there_twice_but_not_differ(copy):
    def twice(by):
        return lambda found: (
            found
            | {
                "cls.predictions.decoder.weight": found[WORDS],
                "cls.predictions.decoder.bias": found["cls.predictions.bias"] + np.float32(by),
            }
        )

    assert equal(
        convert.import_hf(copy("bert", twice(0)))[1], convert.import_hf(GOLDEN / "bert")[1]
    )
    with pytest.raises(UserError, match=r"decoder\.bias differs from cls\.predictions\.bias"):
        convert.import_hf(copy("bert", twice(1)))


def test_an_untied_head_has_its_own_bias_or_that_of_transformers_4(copy):
    held = load_file(GOLDEN / "bert_untied" / "model.safetensors")
    _, model = convert.import_hf(GOLDEN / "bert_untied")
    np.testing.assert_array_equal(model.head_bias[...], held["cls.predictions.decoder.bias"])
    _, model = convert.import_hf(copy("bert_untied", without("decoder.bias")))
    np.testing.assert_array_equal(model.head_bias[...], held["cls.predictions.bias"])


def test_a_model_without_its_head_has_none_and_a_pooler_without_pairs_is_left_out(copy, capsys):
    def alone(found):
        return {name.removeprefix("bert."): x for name, x in without("cls.")(found).items()}

    masked = lambda values: values | {"architectures": ["BertModel"]}
    config, _ = convert.import_hf(copy("bert", alone, masked))
    assert not config.head
    assert "head" in capsys.readouterr().err
    config, model = convert.import_hf(copy("bert", without("seq_relationship"), masked))
    assert not config.pooler
    assert not hasattr(model, "pooler")


def test_the_positions_of_roberta_begin_after_the_padding(copy):
    config, model = convert.import_hf(GOLDEN / "xlm_roberta")
    assert (config.position_offset, config.max_length) == (4, 24)
    assert model.embed.positions.shape == (28, 16)
    for change, message in (
        ({"pad_token_id": 27}, "max_position_embeddings=28"),
        ({"pad_token_id": -1}, "pad_token_id=-1"),
        ({"hidden_act": "relu"}, "hidden_act='relu': not supported, only 'gelu'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type="),
    ):
        with pytest.raises(UserError, match=message):
            convert.import_hf(copy("xlm_roberta", options=lambda values: values | change))  # noqa: B023


@pytest.mark.parametrize("pad", [0, 3, 9])
def test_positions_of_roberta_go_out_behind_the_padding_of_any_tokenizer(pad, tmp_path):
    config, model = convert.import_hf(GOLDEN / "xlm_roberta")
    tokenizer = type("Tokenizer", (), {"bos_id": 1, "eos_id": 2, "pad_id": pad})()
    convert.export_hf(model, config, tmp_path / "out", tokenizer)
    found, again = convert.import_hf(tmp_path / "out")
    assert found == dataclasses.replace(config, position_offset=pad + 1)
    ids = np.arange(3, 27)[None]
    np.testing.assert_array_equal(again(ids), model(ids))


def test_the_config_of_multilingual_bert_of_2019_is_read():
    config = bert.BERT.read_config(
        {
            "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
            "directionality": "bidi", "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
            "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
            "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
            "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
            "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
            "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
            "type_vocab_size": 2, "vocab_size": 119547,
        },
        "config.json",
    )  # fmt: skip
    assert (config.vocab_size, config.token_types, config.max_length) == (119547, 2, 512)
    assert config.norm_eps == 1e-12
    assert config.tie_embeddings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "decoder"}, "architecture='decoder'"),
        ({"norm_order": "pre"}, "norm_order='pre'"),
        ({"token_types": 0}, "token_types=0"),
        ({"position_offset": 2}, "position_offset=2"),
        ({"window": 4}, "window=4"),
        ({"num_kv_heads": 2}, "num_kv_heads=2"),
        ({"value_dim": 5}, "value_dim=5"),
        ({"attn_scale": 1.0}, r"attn_scale=1\.0"),
        ({"embed_scale": 4.0}, r"embed_scale=4\.0"),
    ],
)
def test_bert_is_not_written_from_options_that_it_has_not(change, message):
    config, _ = convert.hf.read_config(GOLDEN / "bert")[::-1]
    with pytest.raises(UserError, match=message):
        bert.BERT.write_config(dataclasses.replace(config, **change))
