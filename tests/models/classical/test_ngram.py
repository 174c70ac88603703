"""The n-gram model of Chen and Goodman against hand counting and dictionaries."""

import dataclasses
import inspect
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from real_text import KENLM, LICENSE, documents

from lm_jax.config import ModelConfig
from lm_jax.errors import CheckpointError, DataError, UserError
from lm_jax.models.classical import ngram
from lm_jax.models.classical.counted import NGram
from lm_jax.models.classical.ngram import KneserNey

BEGIN = "<begin>"


def slow_model(documents, order, vocab_size, discount):
    """p(token, context) as the paper writes it, over dictionaries of tuples."""
    plain = [Counter() for _ in range(order + 1)]
    left = [defaultdict(set) for _ in range(order + 1)]
    for document in documents:
        padded = [BEGIN, *document]
        for end in range(1, len(padded)):
            for k in range(1, min(order, end + 1) + 1):
                gram = tuple(padded[end - k + 1 : end + 1])
                plain[k][gram] += 1
                if end - k >= 0:
                    left[k][gram].add(padded[end - k])
    counts = [None] * (order + 1)
    for k in range(1, order + 1):
        counts[k] = {
            gram: c if k == order or gram[0] == BEGIN else len(left[k][gram])
            for gram, c in plain[k].items()
        }
    off = [None] + [discount(list(counts[k].values())) for k in range(1, order + 1)]

    def probability(token, context):
        p = 1 / vocab_size
        for k in range(1, order + 1):
            if k - 1 > len(context):
                break
            tail = tuple(context[len(context) - k + 1 :])
            follow = {g[-1]: c for g, c in counts[k].items() if g[:-1] == tail}
            if not follow:
                continue
            total = sum(follow.values())
            freed = sum(off[k][min(c, 3) - 1] for c in follow.values())
            c = follow.get(token, 0)
            p = (c - (off[k][min(c, 3) - 1] if c else 0)) / total + freed / total * p
        return p

    return probability


def discount_of_the_paper(counts):
    n = Counter(counts)
    if not (n[1] and n[2] and n[3]):
        return (0.5, 1.0, 1.5)
    y = n[1] / (n[1] + 2 * n[2])
    ds = tuple(r - (r + 1) * y * n[r + 1] / n[r] for r in (1, 2, 3))
    return ds if all(0 < d <= r for r, d in enumerate(ds, 1)) else (0.5, 1.0, 1.5)


def some_documents(seed=0, vocab_size=12, sizes=(0, 1, 2, 40, 90, 3, 150)):
    rng = np.random.default_rng(seed)
    return [np.minimum(rng.geometric(0.25, n) - 1, vocab_size - 2) for n in sizes]


@pytest.mark.parametrize(
    ("order", "spread"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (5, 80_000)]
)
def test_equals_the_dictionary_model(order, spread):
    """`spread` makes the ids those of a large vocabulary."""
    train = [spread * d for d in some_documents(0)]
    held = [spread * d for d in some_documents(1, sizes=(1, 30, 0, 12))]
    model = KneserNey(order, 12 * spread).fit(train)
    p = slow_model([d.tolist() for d in train], order, 12 * spread, discount_of_the_paper)
    expected = [
        math.log(p(int(token), [BEGIN, *document[:i].tolist()]))
        for document in held
        for i, token in enumerate(document)
    ]
    np.testing.assert_allclose(model.log_prob(held), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", [2, 5])
def test_equals_the_dictionary_model_on_real_text(order):
    """Letters of Python's own source, a line a document."""
    text = inspect.getsource(inspect.getdoc) + inspect.getsource(inspect.cleandoc)
    lines = [np.frombuffer(line.encode(), np.uint8) for line in text.splitlines()]
    train, held = [line for i, line in enumerate(lines) if i % 8], lines[::8]
    model = KneserNey(order, 256).fit(train)
    p = slow_model([d.tolist() for d in train], order, 256, discount_of_the_paper)
    expected = [
        math.log(p(int(token), [BEGIN, *document[:i].tolist()]))
        for document in held
        for i, token in enumerate(document)
    ]
    np.testing.assert_allclose(model.log_prob(held), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_estimates_are_those_of_kenlm(order):
    train, held, words = documents(LICENSE)
    model = KneserNey(order, len(words)).fit(train)
    expected = np.load(KENLM)[f"order_{order}"]
    np.testing.assert_allclose(model.log_prob(held), expected, rtol=0, atol=1e-4)


def test_equals_a_case_counted_by_hand():
    # Bigrams: B0, 01 twice, 10 twice, 02; too few counts of counts: discounts 0.5, 1, 1.5.
    model = KneserNey(2, 3).fit(np.array([0, 1, 0, 1, 0, 2]))
    # 0 is preceded by {B, 1}, 1 by {0}, 2 by {0}: counts 2, 1, 1; freed 1 + 0.5 + 0.5 of 4.
    unigram = np.array([1 + 2 / 3, 0.5 + 2 / 3, 0.5 + 2 / 3]) / 4
    np.testing.assert_allclose(model.unigram, unigram, atol=1e-12)
    # After 0: 1 twice, 2 once; (1 + 0.5) of 3 freed.
    after_0 = np.array([0, 2 - 1, 1 - 0.5]) / 3 + 1.5 / 3 * unigram
    np.testing.assert_allclose(model.next_probabilities([0]), after_0, atol=1e-12)
    # After 2 nothing ever came: the unigram.
    np.testing.assert_allclose(model.next_probabilities([2]), unigram, atol=1e-12)


def test_discounts_are_those_of_the_paper():
    counts = np.array([1] * 10 + [2] * 5 + [3] * 3 + [4] * 2 + [9])
    y = 10 / 20
    expected = (1 - 2 * y * 5 / 10, 2 - 3 * y * 3 / 5, 3 - 4 * y * 2 / 3)
    np.testing.assert_allclose(ngram.modified_discounts(counts), expected)


@pytest.mark.parametrize("order", [1, 2, 4, 6])
def test_probabilities_of_all_tokens_sum_to_one(order):
    model = KneserNey(order, 12).fit(some_documents())
    for context in ([], [0], [11], [0, 0], [1, 0, 2, 0, 0, 1, 0], [11, 11, 0], [9, 9, 9, 9, 9, 9]):
        p = model.next_probabilities(context)
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-12)


def test_an_untrained_model_is_uniform():
    np.testing.assert_allclose(
        KneserNey(3, 7).fit([]).next_probabilities([1, 2]), np.full(7, 1 / 7)
    )


def test_contexts_do_not_cross_documents():
    model = KneserNey(4, 12).fit(some_documents())
    a, b = np.array([0, 1, 0, 2]), np.array([3, 0, 0, 1, 1])
    apart = np.concatenate([model.log_prob([a]), model.log_prob([b])])
    np.testing.assert_array_equal(model.log_prob([a, b]), apart)
    joined = model.log_prob([np.concatenate([a, b])])
    np.testing.assert_array_equal(joined[:4], apart[:4])
    assert abs(joined[4] - apart[4]) > 1e-6
    again = KneserNey(4, 12).fit([np.concatenate(some_documents())])
    assert len(again.levels[0].keys) != len(model.levels[0].keys)


def test_flat_tokens_with_ends_equal_a_list_of_documents():
    documents = some_documents()
    flat, ends = np.concatenate(documents), np.cumsum([len(d) for d in documents])
    a, b = KneserNey(3, 12).fit(documents), KneserNey(3, 12).fit(flat, ends)
    np.testing.assert_array_equal(a.log_prob(documents), b.log_prob(flat, ends))


def test_keys_too_wide_to_carry_their_place_are_counted_the_same():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 50, 400)
    wide = small << 50
    for narrow, broad in zip(ngram._ranked(small), ngram._ranked(wide), strict=True):
        np.testing.assert_array_equal(narrow, broad >> 50 if broad.max() > 2**40 else broad)


def test_bits_per_byte_is_the_cost_over_the_bytes():
    model = KneserNey(1, 256)
    assert model.bits_per_byte(np.zeros(10, int), None, 10) == pytest.approx(8)
    assert model.bits_per_byte(np.zeros(10, int), None, 40) == pytest.approx(2)


def test_a_higher_order_predicts_text_with_structure_better():
    text = np.frombuffer(b"the cat sat on the mat; the dog sat on the log; " * 40, np.uint8)
    costs = [KneserNey(n, 256).fit(text).bits_per_byte(text, None, len(text)) for n in (1, 2, 3, 5)]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.5


BOS = 11  # no token of some_documents


def packed_batch():
    """Two rows of segments: documents that start with BOS, one that goes on, and padding."""
    documents = some_documents(1, sizes=(4, 3, 5))
    tokens, targets, segments = np.zeros((3, 2, 12), np.int32)
    tokens[0, :9] = [BOS, *documents[0], BOS, *documents[1]]
    targets[0, :9] = [*documents[0], 0, *documents[1], 0]
    segments[0, :9] = [1] * 5 + [2] * 4
    tokens[1, 1:6], targets[1, 1:6] = documents[2], [*documents[2][1:], 0]
    segments[1, 1:6] = 3
    return {"tokens": tokens, "targets": targets, "segment_ids": segments}, documents


@pytest.mark.parametrize("order", [1, 2, 4])
def test_a_batch_is_scored_by_segments(order):
    batch, (first, second, third) = packed_batch()
    model = KneserNey(order, 12, bos_id=BOS).fit(some_documents())
    found = model.log_probs(batch)
    np.testing.assert_allclose(found[0, :4], model.log_prob([first]), rtol=1e-6)
    np.testing.assert_allclose(found[0, 5:8], model.log_prob([second]), rtol=1e-6)
    # Without BOS before it a segment goes on in a document: no begin symbol is seen.
    for i in range(4):
        p = model.next_probabilities(third[: i + 1])
        assert found[1, 1 + i] == pytest.approx(np.log(p[third[i + 1]]), rel=1e-6)
    assert (found[batch["segment_ids"] == 0] == 0).all()
    assert found.dtype == np.float32


def test_without_a_begin_token_each_segment_starts_a_document():
    batch, (*_, third) = packed_batch()
    model = KneserNey(3, 12).fit(some_documents())
    np.testing.assert_allclose(model.log_probs(batch)[1, 1:5], model.log_prob([third])[1:], 1e-6)
    batch = {name: x[:, :0] for name, x in batch.items()}
    assert model.log_probs(batch).shape == (2, 0)


def test_a_begin_token_is_the_begin_symbol():
    documents = some_documents()
    plain, model = KneserNey(3, 12).fit(documents), KneserNey(3, 12, bos_id=BOS).fit(documents)
    for context in ([], [0], [0, 0, 1], [5, 4]):
        expected = plain.next_probabilities(context)
        np.testing.assert_allclose(model.next_probabilities([BOS, *context]), expected)
    np.testing.assert_allclose(model.next_probabilities([]), model.unigram)
    p = slow_model([d.tolist() for d in documents], 3, 12, discount_of_the_paper)
    assert model.next_probabilities([0])[1] == pytest.approx(p(1, [0]))
    assert model.next_probabilities([0])[1] != pytest.approx(p(1, [BEGIN, 0]))
    with pytest.raises(DataError, match=f"bos_id={BOS}"):
        model.fit([np.array([BOS, 1])])
    with pytest.raises(UserError, match="bos_id=12"):
        KneserNey(3, 12, bos_id=12)


@pytest.mark.parametrize("order", [0, 7])
def test_an_order_that_cannot_be_is_refused(order):
    with pytest.raises(UserError, match=f"order={order}"):
        KneserNey(order, 10)


def test_an_id_outside_the_vocabulary_is_refused():
    with pytest.raises(DataError, match="vocab_size=10"):
        KneserNey(2, 10).fit(np.array([3, 10]))
    with pytest.raises(DataError, match="document ends"):
        KneserNey(2, 10).fit(np.array([3, 4]), np.array([1]))


def test_tables_of_another_order_are_refused():
    documents = [np.array([0, 1, 2, 3, 1, 2])]
    config = ModelConfig(architecture="ngram", order=3, vocab_size=4)
    tables = NGram(config, KneserNey(3, 4).fit(documents)).tables()
    assert len(NGram.from_tables(config, tables, None).counts.levels) == 2
    for order, message in ((2, "it has table 'above_3'"), (4, "it has no table 'above_4'")):
        with pytest.raises(CheckpointError, match=rf"config\.model\.order={order}: {message}"):
            NGram.from_tables(dataclasses.replace(config, order=order), tables, None)
