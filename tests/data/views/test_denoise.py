"""Do masked and infilled windows give their text back, document by document, in the papers'
shares?
"""

import itertools

import numpy as np
import pytest

from lm_jax.data.views.windows import Windows

LENGTH = 64


def sequences(batch, i):
    """[ids] of each segment of a decoder's row, the last target included."""
    ids = np.append(batch["tokens"][i], batch["targets"][i, -1])
    segments = batch["segment_ids"][i]
    last = segments[-1] if batch["weights"][i, -1] else segments[-1] + 1
    segments = np.append(segments, last)
    return [ids[segments == s].tolist() for s in range(1, segments.max() + 1)]


@pytest.mark.parametrize("whole_word", [False, True])
def test_masked_windows_are_the_windows_and_their_targets_the_text(library, view, whole_word):
    masked = view(library, "mlm", LENGTH, "encoder", whole_word=whole_word)
    plain = Windows(library, "train", LENGTH)
    assert len(masked) == len(plain)
    batch, text = masked.batch(2, 200), plain.batch(2, 200)
    np.testing.assert_array_equal(batch["targets"], text["tokens"])
    for name in ("segment_ids", "positions", "example"):
        np.testing.assert_array_equal(batch[name], text[name])
    chosen = batch["weights"] > 0
    np.testing.assert_array_equal(batch["tokens"][~chosen], text["tokens"][~chosen])
    assert library.tokenizer.byte_lengths[text["tokens"][chosen]].min() > 0  # no special


@pytest.mark.parametrize("whole_word", [False, True])
def test_of_10000_windows_15_percent_are_chosen_and_these_80_10_10(library, view, whole_word):
    masked = view(library, "mlm", LENGTH, "encoder", whole_word=whole_word)
    batch = masked.batch(0, 10_000)
    text = library.tokenizer.byte_lengths[batch["targets"]] > 0
    chosen = batch["weights"] > 0
    if not whole_word:
        assert (np.abs(chosen.sum(1) - 0.15 * text.sum(1)) < 1).all()
    assert chosen.sum() / text.sum() == pytest.approx(0.15, rel=0.01)
    hidden, now = batch["targets"][chosen], batch["tokens"][chosen]
    mask_id = library.tokenizer.vocab_size
    assert (now == mask_id).mean() == pytest.approx(0.8, rel=0.01)
    assert (now == hidden).mean() == pytest.approx(0.1, rel=0.05)
    others = now[(now != mask_id) & (now != hidden)]
    assert library.tokenizer.byte_lengths[others].min() > 0
    drawn = np.unique(others)
    assert len(drawn) == (library.tokenizer.byte_lengths > 0).sum()


def test_whole_words_are_chosen_whole(library, view):
    batch = view(library, "mlm", LENGTH, "encoder", whole_word=True).batch(0, 500)
    pieces = library.tokenizer.pieces
    inside = np.array([len(p) > 0 and not p[:1].isspace() for p in pieces])
    ended = np.array([len(p) == 0 or p[-1:].isspace() for p in pieces])
    blank = np.array([len(p) > 0 and p.isspace() for p in pieces])
    ids, chosen = batch["targets"], batch["weights"] > 0
    joined = inside[ids[:, 1:]] & (~ended | blank)[ids[:, :-1]]  # a token and the next: one word
    assert joined.mean() > 0.3
    np.testing.assert_array_equal(chosen[:, 1:][joined], chosen[:, :-1][joined])


def test_the_mask_of_a_window_is_another_in_each_epoch_and_with_each_seed(library, view):
    masked = view(library, "mlm", LENGTH, "encoder", seed=1)
    size = len(masked)
    epochs = [masked.batch(epoch, size) for epoch in range(2)]
    a, b = (batch["weights"][np.argsort(batch["example"])] for batch in epochs)
    c = view(library, "mlm", LENGTH, "encoder", seed=2).windows(np.arange(size))["weights"]
    np.testing.assert_array_equal(masked.windows(np.arange(size))["weights"], a)
    for other in (b, c):
        assert (a * other).sum() / a.sum() == pytest.approx(0.15, abs=0.01)


def infilled(ids, specials):
    """(prefix, middle, suffix, was it SPM) of an infilled piece without bos; None: it is plain.

    An SPM's middle begins with the prefix, and a PSM without a prefix looks like it.
    """
    pre, suf, mid = (specials.id(name) for name in ("<pre>", "<suf>", "<mid>"))
    if pre not in ids:
        return None
    s, m = ids.index(suf), ids.index(mid)
    assert ids[0] == pre
    if s == 1:
        return [], ids[m + 1 : -1], ids[s + 1 : m], True
    return ids[1:s], ids[m + 1 : -1], ids[s + 1 : m], False


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("fim_rate", "spm_rate"), [(0.0, 0.5), (1.0, 0.0), (1.0, 1.0)])
def test_infilled_documents_give_their_text_back(library, view, parts, packed, fim_rate, spm_rate):
    windows = view(library, "fim", LENGTH, "decoder", packed, fim_rate=fim_rate, spm_rate=spm_rate)
    tokenizer, specials = library.tokenizer, windows.specials
    batch, lost, count = windows.batch(0, 400), 0, 0
    assert (batch["segment_ids"] > 0).all()
    for i, example in enumerate(batch["example"].tolist()):
        expected = parts(library, example * LENGTH, LENGTH + 1)
        expected = expected if packed else [[*itertools.chain(*expected)]]
        found = sequences(batch, i)
        count, lost = count + len(found), lost + LENGTH + 1
        for number, (ids, whole) in enumerate(zip(found, expected, strict=False)):
            opens = packed and whole[0] == tokenizer.bos_id
            cut = infilled(ids[opens:], specials)
            closed = packed and whole[-1] == tokenizer.eos_id
            if cut is None:
                text = ids
            else:
                assert cut[3] or not spm_rate
                assert ids[-1] == tokenizer.eos_id
                text = cut[0] + cut[1] + cut[2]
                text = [tokenizer.bos_id] * opens + text
                text += [tokenizer.eos_id] * (closed and len(text) == len(whole) - 1)
            if number < len(found) - 1:
                assert text == whole
            else:
                assert text == whole[: len(text)]
            lost -= len(text)
    assert lost <= 4.5 * count * fim_rate + 1


def test_infilling_nothing_is_the_causal_batch(library, view):
    plain = view(library, "causal", LENGTH).batch(3, 50)
    batch = view(library, "fim", LENGTH, fim_rate=0.0).batch(3, 50)
    assert batch.keys() == plain.keys()
    for name, value in plain.items():
        assert batch[name].tobytes() == value.tobytes()


def test_fim_rates_and_cuts_are_those_of_the_paper(library, view):
    windows = view(library, "fim", 32, "decoder", True)
    batch = windows.batch(0, 10_000)
    bounds = [windows.specials.id(name) for name in ("<pre>", "<suf>", "<mid>")]
    first, shares, orders = [], [], []
    for i in range(10_000):
        ids = sequences(batch, i)[0]
        cut = infilled(ids[ids[0] == library.tokenizer.bos_id :], windows.specials)
        first.append(cut is not None)
        if cut and len(ids) == 33:
            orders.append(cut[3])
            if not cut[3]:
                shares.append([len(part) for part in cut[:3]])
    assert set(bounds) & set(batch["tokens"].ravel().tolist()) == set(bounds)
    assert np.mean(first) == pytest.approx(0.5, abs=0.025)
    alike = 1 - (29 / 30) ** 2  # of the PSM: of 29 tokens, the first cut is before them all
    assert np.mean(orders) == pytest.approx(0.5 + 0.5 * alike, abs=0.03)
    shares = np.array(shares) / np.sum(shares, 1, keepdims=True)
    np.testing.assert_allclose(shares.mean(0), 1 / 3, atol=0.03)  # two uniform cuts
