"""config.model.decoder_start begins the decoder's inputs in training, generation and exports."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from lm_jax.config import Config, DataConfig, LossConfig, ModelConfig
from lm_jax.convert.tokenizer import special_ids
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.views import by_objective
from lm_jax.inference import generation

MODEL = ModelConfig(architecture="encoder_decoder", vocab_size=384)
BYTES = Tokenizer.byte_level()
START = {"bos": BYTES.bos_id, "pad": BYTES.pad_id}


@pytest.mark.parametrize("rule", START)
@pytest.mark.parametrize("objective", ["span_corruption", "prefix_lm"])
def test_every_piece_of_the_decoder_begins_with_it(store, rule, objective):
    config = Config(model=dataclasses.replace(MODEL, decoder_start=rule),
                    data=DataConfig(sequence_length=32), loss=LossConfig(objective))  # fmt: skip
    batch = by_objective.make(store, "train", config, 0).rows(np.arange(4))
    begins = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
    assert begins.any()
    assert (batch["tokens"][begins] == START[rule]).all()


@pytest.mark.parametrize("rule", START)
def test_text_is_written_from_it(rule, monkeypatch):
    found = {}

    def generate(model, ids, *rest, **more):
        found.update(ids=ids)
        return iter(())

    monkeypatch.setattr(generation, "generate", generate)
    model = SimpleNamespace(config=dataclasses.replace(MODEL, decoder_start=rule))
    list(generation.texts(model, BYTES, ["abc"], 4))
    assert [x.tolist() for x in found["ids"]] == [[START[rule]]]


@pytest.mark.parametrize("rule", START)
def test_an_export_names_it(rule):
    ids = special_ids(BYTES, dataclasses.replace(MODEL, decoder_start=rule))
    assert ids["decoder_start_token_id"] == START[rule]
    assert special_ids(None, MODEL)["decoder_start_token_id"] is None
