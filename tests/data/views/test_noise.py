"""Random numbers are the same everywhere, and the shares are those of the papers."""

import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest

from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.views import noise

KEY = noise.keys(3, np.zeros(2000, np.int64), np.arange(2000))


def split_mix(x):
    """The finaliser of SplitMix64 over Python's integers."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_the_words_are_those_of_the_formula_and_always_were():
    start = int.from_bytes(hashlib.sha512(b"lm_jax noise 1/3").digest()[:8], "little")
    golden = 0x9E3779B97F4A7C15
    for epoch, example in ((0, 0), (5, 2), (1, 10**12)):
        key = noise.keys(3, np.array([epoch]), np.array([example]))
        expected = split_mix((start + golden * epoch) % 2**64)
        expected = split_mix((expected + golden * example) % 2**64)
        assert key.tolist() == [expected]
        fork = split_mix(expected ^ (noise.KIND + 1))
        words = [split_mix((fork + golden * (number + 1)) % 2**64) for number in range(3)]
        assert noise.words(key, noise.KIND, np.arange(3)).tolist() == words
    assert words == [12359159953590841389, 8202057829728756929, 3123302207195872431]


def test_a_word_depends_on_nothing_but_key_stream_and_number():
    every = noise.words(KEY[:, None], noise.KIND, np.arange(50))
    assert noise.words(KEY[7:8], noise.KIND, np.array([31]))[0] == every[7, 31]
    assert len(np.unique(every)) == every.size
    other = noise.words(KEY[:, None], noise.VALUE, np.arange(50))
    a, b = noise.uniform(every), noise.uniform(other)
    for x, y in ((a, b), (a[1:], a[:-1]), (a[:, 1:], a[:, :-1])):  # streams, rows, numbers
        assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 5 / np.sqrt(x.size)
    assert abs(a.mean() - 0.5) < 5 * np.sqrt(1 / 12 / a.size)


def test_keys_of_seeds_epochs_and_examples_are_all_different():
    grid = [
        noise.keys(seed, np.full(100, epoch), np.arange(100)) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len(np.unique(np.concatenate(grid))) == 400


def test_below_is_uniform_up_to_its_limit():
    drawn = noise.below(noise.words(KEY[:, None], 0, np.arange(30)), 7)
    counts = np.bincount(drawn.ravel(), minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - drawn.size / 7).max() < 5 * np.sqrt(drawn.size / 7)


def test_pick_takes_the_share_of_each_row_and_never_what_is_not_there():
    there = noise.uniform(noise.words(KEY[:, None], 99, np.arange(64))) < 0.7
    there[0] = False
    chosen = noise.pick(there, 0.15, KEY)
    assert not (chosen & ~there).any()
    expected = 0.15 * there.sum(1)
    assert (np.abs(chosen.sum(1) - expected) < 1).all()
    assert abs(chosen.sum() - expected.sum()) < 5 * np.sqrt(0.25 * len(KEY))
    places = chosen.sum(0) / np.maximum(there.sum(0), 1)
    assert np.abs(places - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 1300)


def test_a_mask_is_80_10_10():
    ids = np.tile(np.arange(100), (2000, 1)).astype(np.int32)
    chosen = np.ones_like(ids, bool)
    noised = noise.mask(ids, chosen, KEY, 1000, np.arange(100, 200))
    masked, same = noised == 1000, noised == ids
    assert ((noised >= 100) & (noised < 200) | masked | same).all()
    for share, expected in ((masked, 0.8), (same, 0.1)):
        assert abs(share.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / ids.size)
    drawn = noised[~masked & ~same]
    assert np.abs(np.bincount(drawn - 100) / drawn.size - 0.01).max() < 5 * np.sqrt(
        0.01 / drawn.size
    )


def test_the_spans_of_a_text_are_t5s():
    tokens, spans = noise.span_counts(600, 0.15, 3, 100)
    # arXiv:1910.10683, section 3.1.4: of 512 inputs, 568 tokens, 114 targets with the eos.
    assert (tokens[568], spans[568]) == (85, 28)
    assert (568 - 85 + 28 + 1, 85 + 28 + 1) == (512, 114)
    assert tokens[:4].tolist() == [0, 0, 1, 1]
    n = np.arange(2, 601)
    assert ((spans[2:] >= 1) & (spans[2:] <= tokens[2:]) & (spans[2:] <= n - tokens[2:])).all()
    assert noise.span_counts(600, 0.5, 1, 100)[1].max() == 100


def test_every_segmentation_is_as_likely():
    totals, parts = np.tile([6, 1, 4], 2000), np.tile([3, 1, 4], 2000)
    word = noise.words(KEY[:1], 0, np.arange((totals - 1).sum()))
    lengths = noise.segmentation(totals, parts, word).reshape(2000, 8)
    assert (lengths > 0).all()
    assert (lengths[:, 3:] == 1).all()
    found = Counter(map(tuple, lengths[:, :3].tolist()))
    possible = [c for c in itertools.product(range(1, 5), repeat=3) if sum(c) == 6]
    assert found.keys() == set(possible)
    assert max(abs(found[c] - 200) for c in possible) < 5 * np.sqrt(200)


@pytest.mark.parametrize("text", ["one two  three\n\tfour", " lead", "x"])
def test_a_word_of_bytes_begins_with_its_white_space(text):
    tokenizer = Tokenizer.byte_level()
    ids = np.array([[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]])
    starts = noise.word_starts(ids, ids < 256, *noise.word_tables(tokenizer))[0]
    expected = [i for i, c in enumerate(text, 1) if c.isspace() or i == 1]
    assert np.flatnonzero(starts).tolist() == expected


def test_a_piece_that_ends_with_a_space_ends_a_word():
    class Pieces:
        pieces = [b"return ", b"x", b" ", b"\n    ", b"y"]

    begins, ends = noise.word_tables(Pieces)
    ids = np.array([[0, 1, 2, 4, 3, 4, 1]])
    starts = noise.word_starts(ids, np.ones_like(ids, bool), begins, ends)
    assert starts.tolist() == [[True, True, True, False, True, False, False]]
