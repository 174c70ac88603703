"""Prompts, losses and evaluation follow the tokenizer of an imported model, and the token store of
one that was trained here.
"""

import dataclasses
import json
import re
import sys
import types

import jax
import numpy as np
import pytest
from saved_models import CONFIG, make_model

from lm_jax.convert.load import stop_ids
from lm_jax.data.tokens.frame import Frame
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import UserError
from lm_jax.generate import ids_of
from lm_jax.inference.generation import generate
from lm_jax.inference.language_model import LanguageModel
from lm_jax.inference.prompts import objective_names

WORDS = ["<s>", "</s>", "<|im|>", "a", "b", "c"]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BOS = {"type": "TemplateProcessing",
       "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                  {"Sequence": {"id": "A", "type_id": 0}}],
       "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}  # fmt: skip


class Letters:
    """Letters and, where they are not split, special tokens."""

    from_str = classmethod(lambda cls, text: cls())
    encode_special_tokens = True

    def get_vocab(self, with_added_tokens):
        return {word: i for i, word in enumerate(WORDS)}

    def encode_batch_fast(self, texts, add_special_tokens):
        special = "" if self.encode_special_tokens else "<s>|</s>|<.im.>|"
        parts = lambda text: re.findall(f"{special}[abc]", text)
        return [types.SimpleNamespace(ids=[WORDS.index(p) for p in parts(t)]) for t in texts]

    def id_to_token(self, i):
        return WORDS[i]


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """A model of another library, as `load("hf:...")` makes it, with a post-processor or none."""
    module = types.SimpleNamespace(Tokenizer=Letters, __version__="0")
    monkeypatch.setitem(sys.modules, "tokenizers", module)
    model = make_model(0, dataclasses.replace(CONFIG.model, vocab_size=len(WORDS)))

    def make(processor=None, **metadata):
        added = [{"content": word, "id": i, "special": True, **FLAGS}
                 for i, word in enumerate(WORDS[:3])]  # fmt: skip
        vocab = {word: i for i, word in enumerate(WORDS)}
        model_there = {"type": "BPE", "vocab": vocab, "merges": []}
        made = {"added_tokens": added, "post_processor": processor, "model": model_there,
                "decoder": {"type": "ByteLevel"}}  # fmt: skip
        (tmp_path / "tokenizer.json").write_text(json.dumps(made))
        about = {"family": "llama", **metadata}
        return LanguageModel(model, load_tokenizer(tmp_path), CONFIG, metadata=about)

    return make


def greedy(lm, ids, count=4, **more):
    found = generate(lm.model, [ids], count, jax.random.key(0), temperature=0.0, **more)
    return [int(x[0]) for x in found if x[0] >= 0]


def test_a_prompt_of_an_imported_model_has_the_bos_that_its_tokenizer_says(imported):
    for processor, before in ((None, []), (BOS, [0])):
        lm = imported(processor)
        expected = lm.tokenizer.decode(greedy(lm, [*before, 3, 4], eos_id=1))
        settings = {"max_new_tokens": 4, "temperature": 0}
        assert lm.generate("ab", **settings) == expected
        assert "".join(lm.stream("ab", **settings)) == expected
        assert lm.generate([*before, 3, 4], **settings) == expected
        assert lm.generate(np.array([0, 3, 4]), **settings) == lm.generate(
            "ab", bos=True, **settings
        )
        assert lm.generate([3, 4], **settings) == lm.generate("ab", bos=False, **settings)
        assert repr(" ".join([*["<s>"] * len(before), "TEXT"])) in repr(lm)


def test_special_tokens_are_read_where_a_prompt_may_spell_them(imported):
    lm = imported()
    read = lambda text, spelled: lm.reading(spelled).ids(lm.tokenizer, text, "decoder").tolist()
    assert read("<|im|>a</s>", True) == [2, 3, 1]
    assert read("<|im|>a</s>", False) == [3]
    assert read("", False) == [0]  # a model must be given something
    lm = imported(BOS)
    assert (read("<s>a", True), read("a<s>", True)) == ([0, 3], [0, 3, 0])  # one BOS, not two
    assert read("<s><s>a", True) == [0, 0, 3]  # two, where the prompt says so
    assert read("<s>a", False) == [0, 3]
    own = Tokenizer("bytes")
    assert own.encode_specials("a</s><b", {"<mask>": 260}).tolist() == [97, 257, *b"<b"]
    assert own.encode_specials("<mask>", {"<mask>": 260}).tolist() == [260]
    assert own.encode_specials("").tolist() == []


def test_a_model_of_ours_keeps_bos_and_eos_whatever_its_tokenizer_says(imported):
    lm = imported(data_fingerprint="0")
    assert (lm.frame, lm.framed(False, False)) == (Frame((0,), (1,)), Frame())
    own = LanguageModel(make_model(), Tokenizer("bytes"), CONFIG)
    assert own.frame == Frame((256,), (257,))
    assert "reads '<s> TEXT </s>'" in repr(own)
    names = objective_names(own.tokenizer, 384)
    assert (names["<mask>"], names["<extra_id_0>"], names["<extra_id_99>"]) == (259, 367, 268)


def test_loss_is_over_the_ids_of_the_frame_and_the_bytes_that_are_predicted(imported):
    lm = imported()
    logits = np.asarray(lm.logits([3, 4, 5]), np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    found = lm.loss("abc")
    np.testing.assert_allclose(found.nats, -log_p[0, 4] - log_p[1, 5], rtol=1e-5)
    assert (found.tokens, found.bytes) == (2, 2)
    assert (lm.loss("abc", bos=True).tokens, lm.loss("abc", bos=True).bytes) == (3, 3)
    assert (lm.loss("abc", eos=True).tokens, lm.loss("abc", eos=True).bytes) == (3, 2)
    assert imported(BOS).loss("abc").nats == lm.loss("abc", bos=True).nats


def test_any_of_several_ids_ends_an_answer(imported, tmp_path):
    lm = imported()
    first = greedy(lm, [3, 4])
    assert greedy(lm, [3, 4], eos_id=(99, first[2])) == first[: first.index(first[2]) + 1]
    assert lm.reading().stop_ids == (1,)
    assert imported(stop_ids=[1, 2]).reading().stop_ids == (1, 2)
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert stop_ids(tmp_path) == [5]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert stop_ids(tmp_path) == [1, 2]
    assert stop_ids(tmp_path / "nowhere") == []


def test_a_prompt_that_is_neither_text_nor_ids_is_refused():
    lm = LanguageModel(make_model(), Tokenizer("bytes"), CONFIG)
    for prompt in (["a", "b"], [[1, 2], [3]], [], [1.5], None):
        with pytest.raises(UserError, match="expected a text, or the ids of one"):
            lm.generate(prompt)
    with pytest.raises(UserError, match="id 384 is outside the model's 0 to 383"):
        lm.generate([1, 384])
    with pytest.raises(UserError, match="--prompt_ids=1,x: expected whole numbers"):
        ids_of(["1", "x"])
