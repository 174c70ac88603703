"""Files of an imported tokenizer are kept: chat template, special tokens, rules."""

import json
import sys
import types

import pytest
from tokenizer_rules import ids_of

from lm_jax.config import ModelConfig
from lm_jax.convert import export_tokenizer
from lm_jax.convert.__main__ import keep_generation
from lm_jax.convert.same_tokenizer import texts_with_specials
from lm_jax.convert.tokenizer import prompt_frame, special_ids
from lm_jax.convert.values import GENERATION
from lm_jax.data.tokens.frame import Frame, frame_of
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import UserError

WORDS = ["<|start|>", "<|end|>", "a", "b"]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
CONFIG = {"chat_template": "{{ messages }}", "split_special_tokens": False,
          "bos_token": "<|start|>", "eos_token": {"content": "<|end|>"}, "extra": 1}  # fmt: skip


class Letters:
    """A tokenizer of letters."""

    from_str = classmethod(lambda cls, text: cls())

    def get_vocab(self, with_added_tokens):
        return {word: i for i, word in enumerate(WORDS)}

    def encode_batch_fast(self, texts, add_special_tokens):
        ids = lambda text: [WORDS.index(c) for c in text if c in "ab"]
        return [types.SimpleNamespace(ids=ids(text)) for text in texts]

    def id_to_token(self, i):
        return WORDS[i]


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "tokenizers", types.SimpleNamespace(Tokenizer=Letters, __version__="0")
    )
    path = tmp_path / "source"
    path.mkdir()
    added = [{"content": word, "id": i, "special": True, **FLAGS} for i, word in
             enumerate(WORDS[:2])]  # fmt: skip
    vocab = {word: i for i, word in enumerate(WORDS)}
    made = {"added_tokens": added, "model": {"type": "BPE", "vocab": vocab, "merges": []},
            "decoder": {"type": "ByteLevel"}, "post_processor": {"type": "ByteLevel"}}  # fmt: skip
    files = {"tokenizer.json": made, "tokenizer_config.json": CONFIG,
             "special_tokens_map.json": {"bos_token": "<|start|>"}}  # fmt: skip
    for name, values in files.items():
        (path / name).write_text(json.dumps(values, indent=3))
    (path / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m }}{% endfor %}")
    return path


def test_every_file_comes_back_as_it_was_through_a_checkpoint_and_an_export(source, tmp_path):
    load_tokenizer(source).save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    export_tokenizer(loaded, tmp_path / "out")
    for path in source.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in source.iterdir()
    )
    assert (loaded.splits_specials, loaded.frame) == (False, Frame())
    with pytest.raises(UserError, match=r"tokenizer\.json: exists"):
        export_tokenizer(loaded, tmp_path / "out")


def test_the_chat_template_is_that_of_its_file_or_of_the_config(source):
    assert load_tokenizer(source).chat_template.startswith("{% for m")
    (source / "chat_template.jinja").unlink()
    assert load_tokenizer(source).chat_template == "{{ messages }}"
    named = [{"name": "default", "template": "x"}, {"name": "tool", "template": "y"}]
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_tokenizer(source).chat_template == {"default": "x", "tool": "y"}
    (source / "tokenizer_config.json").unlink()
    assert load_tokenizer(source).chat_template == ""


def test_a_model_of_ours_says_there_what_its_prompts_begin_with(source, tmp_path):
    tokenizer = load_tokenizer(source)
    export_tokenizer(tokenizer, tmp_path / "theirs", prompt_frame(Frame((0,), (1,)), "decoder"))
    own = Tokenizer.byte_level()
    export_tokenizer(own, tmp_path / "ours", prompt_frame(own.document_frame, "encoder"))
    for name, expected in (("theirs", Frame((0,))), ("ours", Frame((256,), (257,)))):
        made = json.loads((tmp_path / name / "tokenizer.json").read_text("utf-8"))
        assert frame_of(made["post_processor"]) == expected
    made["post_processor"] = None
    assert ids_of(made, "ab\n") == [97, 98, 10]


def test_texts_of_the_certificate_spell_every_special_token(source):
    texts = list(texts_with_specials(load_tokenizer(source)))
    assert texts[:2] == WORDS[:2]
    assert texts[2] == "<|start|>user\nHow are you?<|end|>user\nHow are you?"


@pytest.mark.parametrize(("ends", "expected"), [([5], 5), ([1, 5], [1, 5]), ([], 1)])
def test_the_ids_that_end_an_answer_and_the_settings_of_generation_are_kept(
    tmp_path, ends, expected
):
    ours = {"eos_token_id": 1, "pad_token_id": None}
    for name in ("config.json", GENERATION):
        (tmp_path / name).write_text(json.dumps(ours))
    keep_generation(tmp_path, {"stop_ids": ends, "generation": {"temperature": 0.6}})
    found = [json.loads((tmp_path / name).read_text()) for name in ("config.json", GENERATION)]
    kept = ours | {"eos_token_id": expected}
    assert found == [kept, kept | {"temperature": 0.6}]


def test_the_end_of_a_text_does_not_pad_where_it_goes_out(source):
    # torch gives the embedding of pad_token_id no gradient.
    tokenizer = load_tokenizer(source)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (1, 1)
    ids = special_ids(tokenizer, ModelConfig())
    assert ids == {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    own = special_ids(Tokenizer.byte_level(), ModelConfig())
    assert own == {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
