"""Duplicates are found, and near-duplicates stay on one side of the split."""

import numpy as np
import pytest

from lm_jax.data.text import clean, duplicates


def words(n, seed=0):
    random = np.random.default_rng(seed)
    return ["".join(chr(97 + c) for c in random.integers(0, 26, 6)) for _ in range(n)]


def jaccard(a, b, run=16):
    a, b = ("".join(t.split()).lower() for t in (a, b))
    a, b = ({t[i : i + run] for i in range(len(t) - run + 1)} for t in (a, b))
    return len(a & b) / len(a | b)


def test_the_estimate_is_near_the_true_similarity():
    base = words(400)
    errors = []
    for changed in (0, 4, 12, 25, 60, 150):
        other = base.copy()
        for i, word in zip(np.linspace(0, 399, changed, dtype=int), words(changed, 1), strict=True):
            other[i] = word
        a, b = " ".join(base), "\n\t".join(other).upper()
        found = (duplicates.signature(a.encode()) == duplicates.signature(b.encode())).mean()
        errors.append(abs(found - jaccard(a, b)))
    assert np.mean(errors) < 0.05
    assert max(errors) < 0.15


def test_similar_documents_are_found_among_many_and_others_are_not():
    texts = [" ".join(words(200, s)) for s in range(300)]
    for i in (3, 70, 200):
        texts.append(texts[i].replace(texts[i][:40], "something else"))
    found, similarity = duplicates.pairs(
        np.stack([duplicates.signature(t.encode()) for t in texts])
    )
    assert found.tolist() == [[3, 300], [70, 301], [200, 302]]
    assert (similarity > 0.8).all()


def test_texts_too_short_to_compare_are_never_similar():
    texts = [b"", b"a", b"short", b"x" * 15, b" \n " * 100] * 2
    found, _ = duplicates.pairs(np.stack([duplicates.signature(t) for t in texts]))
    assert found.shape == (0, 2)
    assert duplicates.signature(b"x" * 17)[0] != duplicates.EMPTY


def test_groups_are_the_connected_ones():
    links = np.array([[4, 2], [2, 0], [5, 6], [6, 5]])
    assert duplicates.groups(8, links).tolist() == [0, 1, 0, 3, 0, 5, 5, 7]
    assert duplicates.groups(2, np.empty((0, 2), int)).tolist() == [0, 1]


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.5])
def test_the_split_takes_whole_groups_near_the_fraction_and_does_not_depend_on_order(fraction):
    random = np.random.default_rng(0)
    sizes = random.integers(100, 2000, 500)
    group = np.arange(500)
    group[100:400] = np.repeat(np.arange(100, 400, 3), 3)
    keys = [clean.digest(bytes(str(i), "ascii")) for i in range(500)]
    chosen = clean.choose_heldout(sizes, group, keys, fraction)
    assert 0.85 * fraction < sizes[chosen].sum() / sizes.sum() < 1.3 * fraction
    for g in np.unique(group):
        assert len(set(chosen[group == g])) == 1
    order = random.permutation(500)
    again = clean.choose_heldout(sizes[order], group[order], [keys[i] for i in order], fraction)
    if fraction < 0.3:  # beyond, groups of several are needed, whose first member depends on order
        np.testing.assert_array_equal(chosen[order], again)


def test_nothing_is_chosen_where_every_document_is_too_large():
    sizes, group = np.array([1000, 900]), np.arange(2)
    assert not clean.choose_heldout(sizes, group, [b"a", b"b"], 0.1).any()
    assert not clean.choose_heldout(sizes, group, [b"a", b"b"], 0.0).any()


def test_tidying_touches_line_ends_and_the_byte_order_mark_only():
    assert clean.tidy("\ufeffa\r\nb\rc\n\t \0é  \n") == "a\nb\nc\n\t \0é  \n"
    assert clean.tidy("a\ufeff\u2028") == "a\ufeff\u2028"
