"""Is every held-out example evaluated exactly once, and are bits per byte over its own bytes?"""

import dataclasses
import math

import numpy as np
import pytest

from lm_jax.config import Config, DataConfig, EvalConfig, LossConfig, ModelConfig
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.data.tokens.writer import Writer
from lm_jax.evaluation.heldout import Heldout

NATS = 0.7  # of each target, by the stand-in for a model


def store_of(path, texts, tokenizer=None, train_texts=("a\tb" * 20,)):
    with Writer(path, tokenizer or Tokenizer.byte_level()) as writer:
        for split, documents in (("train", train_texts), ("heldout", texts)):
            for text in documents:
                writer.add(split, writer.tokenizer.encode(text), len(text.encode()))
        writer.finish({})
    return TokenStore.open(path)


def config_of(objective="causal", batch_size=64, length=16, **model):
    model = ModelConfig(vocab_size=384, num_layers=1, dim=16, num_heads=2, max_length=64, **model)
    return Config(batch_size=batch_size, model=model, data=DataConfig(sequence_length=length),
                  loss=LossConfig(objective))  # fmt: skip


def asked(heldout, most):
    """(the loss, rows with a target of the batches that the model was asked about)."""
    rows = []

    def sums(model, batch):
        rows.extend(np.concatenate([batch["targets"], batch["positions"]], 1)[
            batch["weights"].any(1)].tolist())  # fmt: skip
        count = batch["weights"].sum()
        return {"nll": NATS * count, "tokens": count}

    heldout.sums = sums
    return heldout.loss(None, most), rows


@pytest.mark.parametrize("rows", [1, 7, 25, 64])
def test_every_window_is_evaluated_once_the_last_tokens_too(tmp_path, rows):
    random = np.random.default_rng(0)
    texts = ["".join(map(chr, random.integers(97, 123, n))) for n in (50, 200, 1, 139)]
    store = store_of(tmp_path / "store", texts)
    heldout = Heldout(config_of(batch_size=rows), store, None)
    found, seen = asked(heldout, store.num_tokens("heldout"))
    # 397 targets are 24 windows of 16 and a part of one.
    assert found.examples == len(seen) == len({tuple(row) for row in seen}) == 25
    assert found.tokens == sum(map(len, texts)) + 4, "all of the text, and the end of each document"
    assert found.loss == pytest.approx(NATS)


def test_bits_per_byte_are_over_the_bytes_of_the_held_out_text(tmp_path):
    # Training text whose tokens are long, held-out text whose tokens are short.
    long, short = "the same few words again and again\n" * 40, "qz xj éü 東 kv\n" * 12
    tokenizer = train("bpe", [long], 300)
    store = store_of(tmp_path / "store", [short], tokenizer, [long])
    heldout = Heldout(config_of(batch_size=4), store, None)
    found, _ = asked(heldout, store.num_tokens("heldout"))
    expected = NATS / math.log(2) * (store.num_tokens("heldout") - 1) / len(short.encode())
    assert found.bits_per_byte == pytest.approx(expected)
    part, rows = asked(heldout, store.num_tokens("heldout") // 3)
    targets = np.concatenate([row[:16] for row in rows])
    size = len(tokenizer.decode_bytes(targets))
    assert part.tokens < found.tokens
    assert part.bits_per_byte == pytest.approx(NATS / math.log(2) * part.tokens / size)
    # The training line's: no token for the begin of each document, which nobody predicts.
    assert store.bytes_per_target("train", True) == len(long) / (store.num_tokens("train") - 1)


def test_all_pairs_are_evaluated_and_have_no_bits_per_byte(tmp_path):
    texts = [f"question {i}\tanswer {i}" for i in range(110)]
    store = store_of(tmp_path / "store", texts)
    config = config_of("seq2seq", 16, 64, architecture="encoder_decoder")
    found, rows = asked(Heldout(config, store, None), store.num_tokens("heldout"))
    assert found.examples == len(rows) == len({tuple(row) for row in rows}) == 110
    assert math.isnan(found.bits_per_byte)


def test_an_evaluation_reads_about_as_much_text_as_the_config_says(tmp_path):
    store = store_of(tmp_path / "store", ["x" * 16_000])
    config = dataclasses.replace(config_of(batch_size=8), eval=EvalConfig(tokens=1000))
    heldout = Heldout(config, store, None)
    assert asked(heldout, config.eval.tokens)[0].examples == 64  # 63 windows, in batches of 8
    assert asked(heldout, 1)[0].examples == 8


@pytest.mark.parametrize("objective", ["causal", "mlm"])
def test_the_parts_of_a_batch_share_its_padding(tmp_path, objective):
    store = store_of(tmp_path / "store", ["y" * 200])
    kind = "encoder" if objective == "mlm" else "decoder"
    windows = Heldout(config_of(objective, 8, architecture=kind), store, None).windows
    whole = windows.batch(1, 8, stop=10)
    halves = [windows.batch(1, 8, (part, 2), stop=10) for part in (0, 1)]
    for name, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]))
    assert whole["weights"].any(1).tolist() == [True, True] + [False] * 6
