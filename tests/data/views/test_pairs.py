"""Do inputs and targets together give the text back, in rows without waste and in the papers'
shares?
"""

import dataclasses
import itertools
import json
import random

import numpy as np
import pytest

from lm_jax.config import DataConfig
from lm_jax.data.build import prepare
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.writer import Writer
from lm_jax.data.views import by_objective
from lm_jax.data.views.pairs import without_tab
from lm_jax.errors import DataError

KINDS = ("decoder", "encoder_decoder")


def pairs(batch, i):
    """[(ids that are read, ids that are said)] of each piece of a row."""
    found = []
    if "inputs" in batch:
        numbers = range(1, batch["segment_ids"][i].max() + 1)
        for s in numbers:
            there, said = batch["input_segment_ids"][i] == s, batch["segment_ids"][i] == s
            assert batch["input_positions"][i][there].tolist() == list(range(there.sum()))
            assert batch["positions"][i][said].tolist() == list(range(said.sum()))
            tokens, targets = batch["tokens"][i][said], batch["targets"][i][said]
            assert tokens[1:].tolist() == targets[:-1].tolist()
            assert tokens[0] == 1  # bos
            assert (batch["weights"][i] == (batch["segment_ids"][i] > 0)).all()
            found.append((batch["inputs"][i][there].tolist(), targets.tolist()))
        return found
    segments = batch["segment_ids"][i]
    for s in range(1, segments.max() + 1):
        there = segments == s
        read = batch["tokens"][i][there & (batch["prefix"][i] > 0)]
        said = batch["targets"][i][there & (batch["weights"][i] > 0)]
        assert batch["positions"][i][there].tolist() == list(range(there.sum()))
        assert there.sum() - (len(read) + len(said)) in (-1, 0)
        found.append((read.tolist(), said.tolist()))
    return found


def filled(read, said, specials, eos):
    """The text of inputs whose sentinels stand for what the targets hold."""
    assert read[-1] == said[-1] == eos
    first, last = specials.last_sentinel - specials.sentinels + 1, specials.last_sentinel
    hidden, sentinels = {}, []
    for token in said[:-1]:
        if first <= token <= last:
            sentinels.append(token)
            hidden[token] = []
        else:
            hidden[sentinels[-1]].append(token)
    assert sentinels == [last - k for k in range(len(sentinels))]
    assert [t for t in read if first <= t <= last] == sentinels
    text = []
    for token in read[:-1]:
        text += hidden.get(token, [token])
    return text, list(hidden.values())


def texts(found, store):
    """Parts of documents without bos and eos, those of a token or none left out."""
    specials = (store.tokenizer.bos_id, store.tokenizer.eos_id)
    return [text for part in found if len(text := [t for t in part if t not in specials]) > 1]


@pytest.mark.parametrize("architecture", KINDS)
def test_spans_and_sentinels_give_the_text_back(library, view, parts, architecture):
    windows = view(library, "span_corruption", 64, architecture)
    batch, lost, count = windows.batch(1, 300), 0, 0
    for i, example in enumerate(batch["example"].tolist()):
        expected = texts(parts(library, example * windows.length, windows.length), library)
        found = [
            filled(*pair, windows.specials, library.tokenizer.eos_id)[0] for pair in pairs(batch, i)
        ]
        assert found[:-1] == expected[: len(found) - 1]
        assert found[-1] == expected[len(found) - 1][: len(found[-1])]
        lost += sum(map(len, expected)) - sum(map(len, found))
        count += len(expected) - 1
    assert lost <= 8 * count


@pytest.mark.parametrize("architecture", KINDS)
def test_a_window_in_one_document_fills_its_row(library, view, architecture):
    windows = view(library, "span_corruption", 64, architecture)
    batch, length = windows.batch(0, 500), windows.length
    raw = library.gather("train", batch["example"] * length, length)
    inside = ~np.isin(raw, (library.tokenizer.bos_id, library.tokenizer.eos_id)).any(1)
    assert inside.mean() > 0.5
    short = 0 if architecture == "encoder_decoder" else 1
    for name in ("segment_ids", "input_segment_ids"):
        if name in batch:
            assert (batch[name][inside].sum(1) >= batch[name].shape[1] - short).all()
            assert (batch[name] > 0).mean() > 0.93


def test_512_inputs_take_568_tokens_and_114_targets(library, view):
    windows = view(library, "span_corruption", 512, "encoder_decoder")
    assert (windows.length, windows.target_length()) == (568, 114)


def test_of_10000_windows_15_percent_are_noise_in_spans_of_3(library, view):
    windows = view(library, "span_corruption", 64, "encoder_decoder", False)
    batch = windows.batch(0, 10_000)
    assert (batch["segment_ids"] == 1).all()
    assert (batch["input_segment_ids"] == 1).all()
    lengths, hidden = [], np.zeros(windows.length)
    first = windows.specials.last_sentinel - windows.specials.sentinels + 1
    for i in range(10_000):
        ((read, said),) = pairs(batch, i)
        spans = np.split(said[:-1], np.flatnonzero(np.array(said) >= first))[1:]
        lengths.append([len(span) - 1 for span in spans])
        if i < 2000:
            text, _ = filled(read, said, windows.specials, library.tokenizer.eos_id)
            assert len(text) == windows.length
            place = 0
            for token in read[:-1]:
                size = lengths[-1][windows.specials.last_sentinel - token] if token >= first else 1
                hidden[place : place + size] += token >= first
                place += size
    # 70 tokens, of which round(10.5) = 10 in round(10 / 3) = 3 spans: 64 inputs with the eos.
    lengths = np.array(lengths)
    assert windows.length == 70
    assert lengths.shape == (10_000, 3)
    assert (lengths.sum(1) == 10).all()
    # Of the 36 sums of three to 10, 9 - k begin with k; so does each of the three.
    share = np.bincount(lengths.ravel(), minlength=9)[1:] / lengths.size
    np.testing.assert_allclose(share, (9 - np.arange(1, 9)) / 36, atol=5 * 0.5 / 100)
    hidden /= 2000
    assert (hidden[0], hidden[-1]) == (0, 1)  # T5's begin with what stays and end with noise
    assert hidden[10:50].mean() == pytest.approx(0.12, abs=0.03)


@pytest.mark.parametrize("architecture", KINDS)
def test_prefix_and_rest_are_the_text(library, view, parts, architecture):
    windows = view(library, "prefix_lm", 64, architecture)
    batch, alone = windows.batch(0, 300), architecture == "decoder"
    for i, example in enumerate(batch["example"].tolist()):
        expected = parts(library, example * 64, 64 + alone)
        found = pairs(batch, i)
        if alone:
            whole = [read + said for read, said in found]
            assert whole[:-1] == expected[: len(whole) - 1]
            assert whole[-1] == expected[len(whole) - 1][: len(whole[-1])]
            assert sum(map(len, whole)) >= 64
        else:
            assert all(read[-1] == library.tokenizer.eos_id for read, _ in found)
            bos = library.tokenizer.bos_id
            stripped = [part[part[0] == bos :] for part in expected]
            assert [read[:-1] + said for read, said in found] == [
                part for part in stripped if len(part) > 1
            ]


def test_a_decoders_prefix_lm_is_the_causal_batch_with_a_prefix(library, view):
    batch = view(library, "prefix_lm", 64).batch(3, 100)
    plain = view(library, "causal", 64).batch(3, 100)
    for name in ("tokens", "targets", "segment_ids", "positions", "example"):
        np.testing.assert_array_equal(batch[name], plain[name])
    counts = batch["weights"] > 0
    assert (counts <= (plain["weights"] > 0)).all()
    # The last of the prefix sees all of it and says what is behind it.
    assert (batch["prefix"][counts] > 0).sum() == (
        np.diff(batch["prefix"], axis=1)[counts[:, :-1]] == -1
    ).sum() + (batch["prefix"][:, -1] * counts[:, -1]).sum()


def test_a_prefix_is_as_long_as_any_other(library, view):
    batch = view(library, "prefix_lm", 64, "decoder", False).batch(0, 10_000)
    sizes = np.bincount(batch["prefix"].sum(1), minlength=65)
    assert sizes[0] == 0
    assert np.abs(sizes[1:] - 10_000 / 64).max() < 5 * np.sqrt(10_000 / 64)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("architecture", KINDS)
def test_ul2s_seven_denoisers_give_the_text_back(library, view, parts, architecture, packed):
    mixture = view(library, "ul2", 128, architecture, packed)
    tokenizer, apart = library.tokenizer, architecture == "encoder_decoder"
    # arXiv:2205.05131, table 1: mode, rate, mean span.
    table = [("[R]", 0.15, 3), ("[R]", 0.15, 8), ("[S]", 0.25, 0), ("[X]", 0.5, 3),
             ("[X]", 0.5, 8), ("[X]", 0.15, 64), ("[X]", 0.5, 64)]  # fmt: skip
    for member, (mode, rate, mean) in zip(mixture.members, table, strict=True):
        batch, specials, shares = member.batch(0, 60), member.specials, []
        for i, example in enumerate(batch["example"].tolist()):
            whole = parts(library, example * member.length, member.length + (mode == "[S]"))
            if not packed:
                whole = [[*itertools.chain(*whole)]]
            elif mode != "[S]":
                whole = texts(whole, library)
            elif apart:
                whole = [part[part[0] == tokenizer.bos_id :] for part in whole]
                whole = [part for part in whole if len(part) > 1]
            for number, (read, said) in enumerate(pairs(batch, i)):
                assert read[0] == specials.id(mode)
                if mode == "[S]":
                    text = read[1 : len(read) - apart] + said
                    shares.append(len(said) / len(text))
                else:
                    text, hidden = filled(read[1:], said, specials, tokenizer.eos_id)
                    noise = round(len(text) * rate)
                    assert len(text) < 4 or sum(map(len, hidden)) == noise
                    assert len(text) < 4 or len(hidden) == max(1, round(noise / mean))
                assert text == whole[number][: len(text)]
        if shares and not packed:
            assert np.mean(shares) == pytest.approx(0.25, abs=5 * 0.15 / np.sqrt(60))


@pytest.fixture
def translations(tmp_path):
    with Writer(tmp_path / "pairs", Tokenizer.byte_level()) as writer:
        for i in range(20):
            text = f"in {i}\tout {'x' * i}\t{i}"
            writer.add("train", writer.tokenizer.encode(text), len(text))
        writer.finish({})
    return TokenStore.open(tmp_path / "pairs")


@pytest.mark.parametrize("architecture", KINDS)
def test_a_document_with_a_tab_is_a_pair(translations, view, architecture):
    windows = view(translations, "seq2seq", 40, architecture, True, 512)
    batch, decode = windows.batch(0, 20), translations.tokenizer.decode
    assert len(windows) == 20
    assert sorted(batch["example"].tolist()) == list(range(20))
    for i, example in enumerate(batch["example"].tolist()):
        if architecture == "decoder":
            read, said = (
                batch["tokens"][i][batch["prefix"][i] > 0],
                batch["targets"][i][batch["weights"][i] > 0],
            )
        else:
            read, said = batch["inputs"][i], batch["targets"][i]
        assert decode(read) == f"in {example}"
        out = f"out {'x' * example}\t{example}"
        assert decode(said) == (out[:20] if architecture == "decoder" else out)


@pytest.mark.parametrize("architecture", KINDS)
def test_pairs_need_no_window_of_text(translations, view, architecture):
    windows = view(translations, "seq2seq", 4096, architecture, True, 512)
    assert sorted(windows.batch(0, 20)["example"].tolist()) == list(range(20))


def test_a_document_without_a_tab_is_named(library, view):
    with pytest.raises(DataError, match=r"document \d+ of train has no tab"):
        view(library, "seq2seq", 64).batch(0, 100)


def mixed_pairs(folder, bad, total=200, **options):
    """A store of `total` documents of which every (total / bad)th is no pair."""
    draw = random.Random(0)
    word = lambda: "".join(draw.choices("abcdefghijklm", k=12))
    lines = [f"{word()}\t{word()}" if i % (total // bad) else f"no pair {word()}"
             for i in range(total)]  # fmt: skip
    text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    (folder / "p.jsonl").write_text(text)
    data = {"input": str(folder / "p.jsonl"), "tokenizer": "bytes", "heldout_fraction": 0.2}
    return TokenStore.open(prepare(DataConfig(**data, **options), str(folder / "mixed")))


def allowing(config, fraction, store, split):
    """The view of a split under config.data.max_bad_fraction."""
    data = dataclasses.replace(config.data, max_bad_fraction=fraction)
    return by_objective.make(store, split, dataclasses.replace(config, data=data), 0)


def test_documents_that_are_no_pairs_are_left_out_and_counted_when_prepared(tmp_path, config_of):
    store = mixed_pairs(tmp_path, bad=2)
    found = {split: without_tab(store, split) for split in store.splits}
    assert sum(about["count"] for about in found.values() if about) == 2
    for split, about in found.items():
        total = store.num_documents(split)
        if not about:
            continue
        numbers = about["documents"]
        texts = [store.tokenizer.decode(store.document(split, n)) for n in numbers]
        assert all(text.startswith("no pair") for text in texts)
        assert about["first"].startswith(f"{tmp_path}/p.jsonl:")
        windows = allowing(config_of("seq2seq", 32), 0.1, store, split)
        assert len(windows) == total - len(numbers)
        read = windows.batch(0, len(windows))["tokens"]
        assert not any("no pair" in store.tokenizer.decode(row) for row in read)


@pytest.mark.parametrize("bad", [100, 20, 2])
def test_too_many_documents_that_are_no_pairs_are_refused_at_once(tmp_path, config_of, bad):
    store = mixed_pairs(tmp_path, bad)
    split = next(split for split in store.splits if without_tab(store, split))
    count = without_tab(store, split)["count"]
    with pytest.raises(
        DataError, match=rf"{count} of \d+ documents of {split} have no tab \(.*p\.j"
    ):
        allowing(config_of("seq2seq", 32), 0.001, store, split)
