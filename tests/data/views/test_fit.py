"""Rows that devices share are refused before a run begins, with a length that divides."""

import dataclasses

import pytest

from lm_jax.config import Config
from lm_jax.data.views.fit import check_rows
from lm_jax.errors import UserError


def config_of(architecture, objective, length=64, **model):
    values = {"architecture": architecture, "vocab_size": 512, "max_length": 256, **model}
    values = {"model": values, "loss": {"objective": objective}}
    return Config.parse(values | {"data": {"sequence_length": length}})


def test_a_model_of_few_ids_has_rows_too():
    config = config_of("encoder", "mlm", vocab_size=128)
    check_rows(config, 2)
    with pytest.raises(UserError, match=r"config\.data\.sequence_length=64: rows of 64 tokens"):
        check_rows(config, 3)


def test_targets_of_an_encoder_decoder_divide_or_the_nearest_length_is_named():
    config = config_of("encoder_decoder", "span_corruption", 512, max_length=1024)
    check_rows(config, 1)
    with pytest.raises(UserError) as error:
        check_rows(config, 4)
    text = str(error.value)
    assert "rows of 114 tokens" in text
    assert "must be a multiple of 8 for config.mesh.context=4" in text
    assert text.count("\n") == 0
    near = int(text.rstrip(".").rpartition("nearest: ")[2])
    check_rows(config_of("encoder_decoder", "span_corruption", near, max_length=1024), 4)


@pytest.mark.parametrize(
    ("architecture", "objective", "length", "context", "refused"),
    [
        ("decoder", "causal", 64, 8, False),
        ("decoder", "causal", 40, 8, True),  # two pieces a device
        ("encoder", "mlm", 40, 8, False),
        ("encoder", "mlm", 36, 8, True),
        ("encoder_decoder", "prefix_lm", 60, 4, True),
        ("lstm", "causal", 37, 1, False),
    ],
)
def test_a_row_divides_into_pieces(architecture, objective, length, context, refused):
    config = config_of(architecture, objective, length)
    if refused:
        with pytest.raises(UserError, match=r"config\.data\.sequence_length="):
            check_rows(config, context)
    else:
        check_rows(config, context)


@pytest.mark.parametrize(
    ("length", "context", "way", "refused"),
    [
        (128, 1, "gather", False),
        (100, 1, "gather", True),
        (256, 2, "gather", False),
        (256, 2, "ring", True),  # pieces of 64
        (256, 4, "gather", True),
    ],
)
def test_a_piece_is_a_whole_number_of_blocks_of_the_kernel(length, context, way, refused):
    config = config_of("decoder", "causal", length, context_attention=way)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, attention="splash")
    )
    if refused:
        with pytest.raises(UserError, match="or set that to xla"):
            check_rows(config, context)
    else:
        check_rows(config, context)
