"""`prepare --show` prints what the model will see."""

import dataclasses
import re
import sys
import types

import pytest
from word_tokenizer import BERT, Words, write_tokenizer

from lm_jax.data import inspect
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.specials import Specials


@pytest.mark.parametrize(
    ("objective", "architecture", "words"),
    [
        ("mlm", "encoder", ["<mask>"]),
        ("bert", "encoder", ["<cls>", "<sep>", "pair_label "]),
        ("fim", "decoder", ["<pre>", "<suf>", "<mid>", "<eos>"]),
        ("prefix_lm", "decoder", ["{prefix}"]),
        ("span_corruption", "decoder", ["{<extra_id_0>}", " <extra_id_0>", "{<eos>}"]),
        ("ul2", "encoder_decoder", ["encoder [", "<bos>"]),
    ],
)
def test_specials_are_named(library, config_of, objective, architecture, words):
    config = config_of(objective, 32, architecture, fim_rate=1.0)
    texts = list(inspect.examples(library, config, 3))
    assert len(texts) == 3
    for text in texts:
        assert max(map(len, text.splitlines())) <= 100
        for word in words:
            assert word in text


def test_what_the_encoder_reads_is_above_what_the_decoder_says(library, config_of):
    config = config_of("span_corruption", 32, "encoder_decoder")
    for text in inspect.examples(library, config, 3):
        lines = [re.sub(r" +", " ", line) for line in text.splitlines()[2:]]
        kinds = [line.split(" ")[0] for line in lines if line and not line.startswith(" ")]
        assert kinds == ["encoder", "inputs", "targets"]
        assert "<extra_id_0>" in " ".join(lines[: lines.index("")])
        assert lines[lines.index("") + 1].startswith("inputs <bos> <extra_id_0>")


def test_every_id_of_the_model_has_a_name(library):
    names = inspect.Names(library.tokenizer, Specials(library.tokenizer.vocab_size, 768))
    found = [names(i) for i in range(709)]
    assert all(found)
    assert names(0) == "<unk>"
    assert names(708) == "<extra_id_0>"


def test_a_tokenizers_own_special_tokens_have_their_names(tmp_path, monkeypatch):
    module = types.SimpleNamespace(Tokenizer=Words, __version__="0")
    monkeypatch.setitem(sys.modules, "tokenizers", module)
    path = write_tokenizer(
        tmp_path / "bert", BERT, tokenizer_config={"bos_token": "[SEP]", "eos_token": "[SEP]"}
    )
    names = inspect.Names(tokenizer := load_tokenizer(path), Specials.from_tokenizer(tokenizer, 11))
    # One id is bos and eos: it is neither alone.
    assert [names(i) for i in range(6)] == [
        "<pad>",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "\u00b7the",
    ]


def test_windows_that_follow_each_other_are_shown_in_the_order_of_the_run(library, config_of):
    config = config_of("causal", 32, "lstm")
    config = dataclasses.replace(
        config, batch_size=4, data=dataclasses.replace(config.data, carry=True)
    )
    starts = [
        re.search(r"window (\d+) of", text)[1] for text in inspect.examples(library, config, 6)
    ]
    stretch = int(starts[1])
    assert starts == [str(n) for n in (0, stretch, 2 * stretch, 3 * stretch, 1, stretch + 1)]
