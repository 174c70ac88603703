"""Every token is counted once, with the context that the stride promises."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from saved_models import CONFIG, make_model

from lm_jax.config import MeshConfig
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.devices import sharding
from lm_jax.errors import DataError, UserError
from lm_jax.inference.scoring import cut, evaluate, evaluate_tokens, masking_of, packed

WINDOW, ROWS = 16, 4


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def documents():
    """Lengths around those of a window, and some that share a row."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, n).astype(np.int32) for n in (2, 3, 17, 18, 41, 5, 16, 33, 4)]


def exact(model, document, window, stride):
    """Nats of each target, one forward pass each, with the context that `stride` gives it."""
    found = []
    for target in range(1, len(document)):
        start = max(0, -(-(target - window) // stride) * stride)
        row = np.zeros((1, window), np.int32)
        row[0, : target - start] = document[start:target]
        logits = np.asarray(forward(model, row), np.float64)[0, target - start - 1]
        found.append(np.log(np.exp(logits).sum()) - logits[document[target]])
    return found


forward = jax.jit(lambda model, ids: model(ids))


@pytest.mark.parametrize("stride", [1, 5, WINDOW])
def test_strided_evaluation_equals_the_exact_context_of_each_token(model, documents, stride):
    expected = [exact(model, document, WINDOW, stride) for document in documents]
    found = evaluate_tokens(model, documents, 100, WINDOW, stride, ROWS)
    assert found.tokens == sum(len(document) - 1 for document in documents)
    assert found.documents == len(documents)
    np.testing.assert_allclose(found.nats, np.sum(np.concatenate(expected)), rtol=1e-5)
    np.testing.assert_allclose(found.bits_per_byte, found.nats / np.log(2) / 100)


def test_more_context_changes_the_figure(model, documents):
    losses = {s: evaluate_tokens(model, documents, 1, WINDOW, s, ROWS).loss for s in (1, WINDOW)}
    assert abs(losses[1] - losses[WINDOW]) > 1e-3


@pytest.mark.parametrize("stride", [1, 3, 8, WINDOW])
@pytest.mark.parametrize("length", [2, 15, 16, 17, 18, 33, 50])
def test_each_target_is_counted_once_whatever_the_length(length, stride):
    document = np.arange(length)
    counted = []
    for inputs, targets, count in cut(document, WINDOW, stride):
        assert len(inputs) <= WINDOW
        np.testing.assert_array_equal(targets, inputs + 1)
        counted += targets[len(targets) - count :].tolist()
    assert counted == list(range(1, length))


def test_packed_rows_hold_every_piece_once(documents):
    pieces = [piece for document in documents for piece in cut(document, WINDOW, WINDOW)]
    batches = list(packed(iter(pieces), WINDOW, ROWS))
    found = []
    for batch in batches:
        assert {x.shape[1] for x in batch.values()} == {WINDOW}
        for ids, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
            found += [ids[segments == s].tolist() for s in range(1, segments.max() + 1)]
    assert sorted(found) == sorted(piece[0].tolist() for piece in pieces)
    assert sum(batch["weights"].sum() for batch in batches) == sum(piece[2] for piece in pieces)
    assert sum(len(batch["tokens"]) for batch in batches) < len(pieces)


def test_a_short_text_costs_one_row():
    (batch,) = packed(cut(np.arange(5), WINDOW, WINDOW), WINDOW, ROWS)
    assert batch["tokens"].shape == (1, WINDOW)


def test_texts_are_counted_in_utf8_bytes_and_each_ends_once(model):
    found = evaluate(model, Tokenizer("bytes"), ["é", "abc"], WINDOW, 0, ROWS)
    assert (found.bytes, found.tokens, found.documents) == (5, 7, 2)


def test_an_encoder_is_asked_each_token_once_while_it_is_masked():
    config = dataclasses.replace(CONFIG.model, architecture="encoder")
    encoder, tokenizer = make_model(config=config), Tokenizer("bytes")
    masking = masking_of(encoder, tokenizer)
    document = np.array([tokenizer.bos_id, *b"mask me", tokenizer.eos_id], np.int32)
    one_by_one = dataclasses.replace(masking, passes=WINDOW)
    found = evaluate_tokens(encoder, [document], 7, WINDOW, 0, 1, masking=one_by_one)
    nats = 0.0
    for place in range(1, len(document)):
        asked = document.copy()
        asked[place] = masking.mask_id
        logits = np.asarray(forward(encoder, asked[None]), np.float64)[0, place]
        nats += np.log(np.exp(logits).sum()) - logits[document[place]]
    assert found.tokens == len(document) - 1
    np.testing.assert_allclose(found.nats, nats, rtol=1e-5)
    assert np.isnan(found.bits_per_byte), "it is no code of the text"
    assert "pseudo-perplexity" in str(found)
    several = evaluate(encoder, tokenizer, ["mask me", "and me"], WINDOW)
    assert several.tokens == 8 + 7
    with pytest.raises(UserError, match="'encoder': is scored on `masking`"):
        evaluate_tokens(encoder, [document], 7)


def test_the_figure_is_the_same_on_a_mesh(model, documents):
    expected = evaluate_tokens(model, documents, 1, WINDOW, 0, ROWS)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:2])
    with jax.set_mesh(mesh):
        copied = jax.device_put(model, jax.NamedSharding(mesh, jax.P()))
        found = evaluate_tokens(copied, documents, 1, WINDOW, 0, ROWS)
    assert found.tokens == expected.tokens
    np.testing.assert_allclose(found.nats, expected.nats, rtol=1e-6)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [(65, 0, "window=65.*64"), (-1, 0, "window=-1"), (16, 17, "stride=17.*16"), (16, -1, "stride"),
     (16, "3", "stride='3': expected a whole number"), (1.5, 1, "window='1.5': expected")],
)  # fmt: skip
def test_windows_that_cannot_be_are_refused(model, documents, window, stride, message):
    with pytest.raises(UserError, match=message):
        evaluate_tokens(model, documents, 1, window, stride)


@pytest.mark.parametrize(
    ("architecture", "sizes", "message"),
    [
        ("encoder_decoder", {}, "is scored on pairs of texts"),
        ("decoder", {"window": 65}, "window=65"),
        ("decoder", {"batch_size": -1}, "batch_size=-1"),
    ],
)
def test_what_cannot_be_is_refused_before_the_text_is_read(architecture, sizes, message):
    def texts():
        raise AssertionError("a text is read")
        yield

    config = dataclasses.replace(CONFIG.model, architecture=architecture)
    conditional = architecture == "encoder_decoder"
    model = types.SimpleNamespace(config=config, generates=True, conditional=conditional)
    with pytest.raises(UserError, match=message):
        evaluate(model, Tokenizer("bytes"), texts(), **sizes)


def test_no_text_is_refused(model):
    with pytest.raises(DataError, match="no text"):
        evaluate_tokens(model, [], 0)
