"""Pairs of spans are what they are labelled as, half of them each."""

import numpy as np
import pytest

from lm_jax.errors import DataError

LENGTH = 48


@pytest.fixture(scope="module")
def places(library):
    """{five neighbouring tokens: where they stand}: enough to find most spans."""
    ids, found = library.tokens("train").tolist(), {}
    for i in range(len(ids) - 5):
        found.setdefault(tuple(ids[i : i + 5]), []).append(i)
    return found


def spans(batch, i, specials):
    """(A, B) of a row, as they were before they were masked."""
    ids = batch["targets"][i][batch["segment_ids"][i] > 0].tolist()
    cls, sep = specials.id("<cls>"), specials.id("<sep>")
    assert ids[0] == cls
    assert ids[-1] == sep
    middle = ids.index(sep)
    types = batch["token_types"][i].tolist()
    assert types == [0] * (middle + 1) + [1] * (len(ids) - middle - 1) + [0] * (LENGTH - len(ids))
    return ids[1:middle], ids[middle + 1 : -1]


def where(library, span):
    """All places where a span stands in the text, by its bytes on disk."""
    text = np.asarray(library.tokens("train"), "<u2").tobytes()
    wanted, found, at = np.asarray(span, "<u2").tobytes(), [], -1
    while (at := text.find(wanted, at + 1)) >= 0:
        if at % 2 == 0:
            found.append(at // 2)
    return found


@pytest.mark.parametrize("objective", ["bert", "sop"])
def test_a_pair_is_what_its_label_says(library, view, objective):
    windows = view(library, objective, LENGTH, "encoder")
    batch, ends = windows.batch(0, 150), library.ends("train")
    document = lambda at: np.searchsorted(ends, at, "right")
    for i in range(150):
        a, b = spans(batch, i, windows.specials)
        if objective == "sop" and batch["pair_label"][i]:
            a, b = b, a
        first, second = where(library, a), where(library, b)
        assert first
        assert second
        if objective == "sop" or not batch["pair_label"][i]:
            assert {at + len(a) for at in first} & set(second)
            assert where(library, a + b)  # in one document: nothing else is between them
        elif len(a) > 3 and len(b) > 3 and len(first) == len(second) == 1:
            assert document(first[0]) != document(second[0])


@pytest.mark.parametrize("objective", ["bert", "sop"])
def test_half_of_10000_pairs_are_random_or_swapped_and_a_tenth_short(library, view, objective):
    batch = view(library, objective, LENGTH, "encoder").batch(0, 10_000)
    assert batch["pair_label"].dtype == np.int32
    assert batch["pair_label"].mean() == pytest.approx(0.5, abs=0.025)
    follow = batch["pair_label"] == 0
    sizes = (batch["segment_ids"][follow] > 0).sum(1) - 3
    # Short ones are of 2 to 45 tokens, all as likely; few documents are shorter than a row.
    assert (sizes < LENGTH - 3).mean() == pytest.approx(0.1, abs=0.03)
    assert sizes.min() == 2
    first = (batch["token_types"][follow] == 0) & (batch["segment_ids"][follow] > 0)
    share = (first.sum(1) - 2)[sizes == LENGTH - 3] / (LENGTH - 3)
    assert share.mean() == pytest.approx(0.5, abs=0.025)
    text = library.tokenizer.byte_lengths[
        np.minimum(batch["targets"], library.tokenizer.vocab_size - 1)
    ]
    text = (text > 0) & (batch["targets"] < library.tokenizer.vocab_size)
    chosen = batch["weights"] > 0
    assert not (chosen & ~text).any()
    assert chosen.sum() / text.sum() == pytest.approx(0.15, rel=0.01)


def test_every_token_of_a_long_document_is_in_some_pair(library, view):
    windows = view(library, "sop", LENGTH, "encoder")
    seen = set()
    batch = windows.batch(0, 3 * len(windows))
    for i in range(len(batch["example"])):
        a, b = spans(batch, i, windows.specials)
        seen.update(a, b)
    text = set(library.tokens("train").tolist())
    assert len(text - seen) <= 2 + 2  # bos and eos, and hardly anything else


def test_one_document_has_orders_but_no_other_to_draw_from(tmp_path, write_store, view):
    store = write_store(tmp_path / "one", (500, 1, 0))
    assert set(view(store, "sop", 16, "encoder").batch(0, 50)["pair_label"]) == {0, 1}
    with pytest.raises(DataError, match="has 1 documents of two tokens or more, 2 are needed"):
        view(store, "bert", 16, "encoder")
