"""Do tokenizers give the ids of `transformers`, both ways? On lines of the standard library."""

import functools
import json
import random
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from lm_jax.convert import export_tokenizer, import_tokenizer
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.tokenizer import KINDS
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.errors import UserError

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]
REASON = "not installed; the parity extra has it: pip install 'lm_jax[parity]'"
tokenizers = pytest.importorskip("tokenizers", reason=f"tokenizers is {REASON}")
transformers = pytest.importorskip("transformers", reason=f"transformers is {REASON}")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

STDLIB = Path(sysconfig.get_path("stdlib"))
HARD = [
    "", " ", "  leading,   repeated and trailing  ", "\t\ttabs\t", "\r\n", "\n\n\n", "\0 \a \x7f",
    "<s></s><unk><pad><0x41><0xE6><|endoftext|>[MASK]<extra_id_0>", "<", "<s", "0x41>",
    "emoji 😀👩‍👩‍👧, 東京, naïve, combining e\u0301, שלום, \ufeffBOM, \u2028 \u0085 \u00a0.",
    "the sign \u2581 \u2581\u2581x \u2585, \ufffd, unassigned \u0378, private \ue000 \U0010ffff",
    "=" * 79, "a" * 3000, " " * 77 + "x", "-=-==-===" * 40,
]  # fmt: skip


def source_lines(count: int) -> list[str]:
    """Lines of source files in every script there is, with their indentation; every tenth is the
    start of a whole paragraph.
    """
    files = sorted(file for file in STDLIB.rglob("*.py") if "site-packages" not in file.parts)
    random.Random(0).shuffle(files)
    found: list[str] = []
    for file in files:
        lines = file.read_text("utf-8", errors="ignore").split("\n")
        found += ["\n".join(lines[i : i + 40 * (i % 10 == 0) + 1]) for i in range(len(lines))]
        if len(found) >= count:
            return found[:count]
    raise AssertionError("the standard library is smaller than that")


def training_text() -> list[str]:
    names = ("argparse", "ast", "datetime", "inspect", "pydoc", "tarfile", "typing", "doctest")
    return [(STDLIB / f"{name}.py").read_text("utf-8") for name in names]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", None])
def test_the_class_that_transformers_takes_for_the_model_does_not_matter(model_type, tmp_path):
    ours = train("bpe", training_text(), 600)
    if model_type:
        config = {"model_type": model_type, "vocab_size": 640}
        (tmp_path / "config.json").write_text(json.dumps(config))
    export_tokenizer(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(HARD)["input_ids"] == [ids.tolist() for ids in ours.encode_batch(HARD)]


@pytest.mark.parametrize("kind", KINDS)
def test_ours_gives_the_same_ids_there_on_10_000_lines(kind, tmp_path):
    ours, texts = train(kind, training_text(), 2000), HARD + source_lines(10_000)
    export_tokenizer(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = theirs(texts)["input_ids"]
    for text, one, other in zip(texts, ours.encode_batch(texts), found, strict=True):
        assert one.tolist() == other, text
    assert theirs.batch_decode(found) == texts
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)
    assert (theirs.pad_token_id, len(theirs)) == (ours.pad_id, ours.vocab_size)
    every = [[i] for i in range(ours.vocab_size) if i not in ours.specials.values()]
    assert theirs.batch_decode(every) == [ours.decode(ids) for ids in every]

    again = import_tokenizer(tmp_path)
    assert again.lossless
    np.testing.assert_array_equal(again.byte_lengths, ours.byte_lengths)
    assert all(map(np.array_equal, again.encode_batch(texts), ours.encode_batch(texts)))


def test_overlapping_merges_go_the_way_of_sentencepiece(tmp_path):
    draw = random.Random(0)
    word = lambda letters, n: "".join(draw.choice(letters) for _ in range(n))
    ours = train("bpe", [word(letters, 4000) for letters in ("ab ", "a \n", "-=", "abc")], 700)
    export_tokenizer(ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [word(draw.choice(["ab", "a ", "ab \n", "-=", "abc-"]), 60) for _ in range(5000)]
    assert theirs(texts)["input_ids"] == [ids.tolist() for ids in ours.encode_batch(texts)]


def gpt2():
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    return tokenizer, trainer, {"bos": "<|endoftext|>", "eos": "<|endoftext|>"}


def llama():
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=specials, show_progress=False, limit_alphabet=200
    )
    return tokenizer, trainer, {"unk": "<unk>", "bos": "<s>", "eos": "</s>"}


def bert():
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=1500, special_tokens=specials, show_progress=False, limit_alphabet=200
    )
    return tokenizer, trainer, {name[1:-1].lower(): name for name in specials}


def t5():
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(100))]
    trainer = trainers.UnigramTrainer(
        vocab_size=1500, unk_token="<unk>", show_progress=False,
        special_tokens=["<pad>", "</s>", "<unk>", *sentinels],
    )  # fmt: skip
    return tokenizer, trainer, {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}


def llama5():
    """Llama as transformers 5 writes it: the same pieces, and no space before a space."""
    tokenizer, roles = trained(llama)
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return tokenizer, None, roles


@functools.cache
def learned(family):
    tokenizer, trainer, roles = family()
    if trainer:
        tokenizer.train_from_iterator(training_text(), trainer)
    definition = json.loads(tokenizer.to_str())
    if family is llama:  # bytes are pieces there, no specials
        definition["added_tokens"] = definition["added_tokens"][:3]
    return json.dumps(definition), roles


def trained(family):
    """Their tokenizer, and its special tokens by role."""
    definition, roles = learned(family)
    tokenizer = tokenizers.Tokenizer.from_str(definition)
    if family is bert:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(7)  # as in files that were saved after a call
    return tokenizer, roles


@pytest.mark.parametrize("family", [gpt2, llama, llama5, bert, t5])
def test_theirs_give_the_same_ids_here_on_1_000_lines(family, tmp_path):
    tokenizer, roles = trained(family)
    names = {f"{role}_token": name for role, name in roles.items()}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours, lines = import_tokenizer(tmp_path), source_lines(1000)
    found = theirs(lines, add_special_tokens=False, truncation=False)["input_ids"]
    for line, one, other in zip(lines, ours.encode_batch(lines), found, strict=True):
        assert one.tolist() == other, line
    split = theirs(HARD, add_special_tokens=False, split_special_tokens=True, truncation=False)
    assert [ids.tolist() for ids in ours.encode_batch(HARD)] == split["input_ids"]
    assert ours.vocab_size == len(theirs)
    for role, name in roles.items():
        assert ours.specials[role] == ours.specials[name] == theirs.convert_tokens_to_ids(name)
        assert ours.byte_lengths[ours.specials[role]] == 0
    assert ours.lossless == (family is gpt2)

    ours.save(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert (loaded.hash, loaded.specials) == (ours.hash, ours.specials)
    export_tokenizer(ours, tmp_path / "exported")
    back = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert back(lines, add_special_tokens=False)["input_ids"] == found


@pytest.mark.parametrize("family", [gpt2, llama])
def test_text_comes_back_from_them_byte_for_byte(family, tmp_path):
    trained(family)[0].save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token_id": 0, "eos_token_id": [0, 1]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = import_tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_id) == (0, 0)
    for text in HARD + source_lines(1000):
        ids = ours.encode(text)
        if family is llama and "\u2581" in text:  # to it that is a space
            assert not ours.restores(text.encode(), ids)
            continue
        assert ours.decode(ids) == text
        assert ours.byte_lengths[ids].sum() - len(text.encode()) in (0, len(ours.prefix))
        assert ours.restores(text.encode(), ids)
        stream = ours.decoder()
        whole = "".join(map(stream.push, ids)) + stream.flush()
        assert whole.removeprefix(ours.prefix.decode()) == text


def test_pieces_of_wordpiece_and_metaspace_are_the_words_with_their_spaces(tmp_path):
    for family, text in ((bert, "import the modules"), (t5, "import the modules")):
        path = tmp_path / family.__name__
        path.mkdir()
        trained(family)[0].save(str(path / "tokenizer.json"))
        ours = import_tokenizer(path)
        ids = ours.encode(text)
        assert ours.decode_bytes(ids) == b" " + text.encode()
        assert ours.decode(ids) == text
        assert ours.decode_bytes(ids) == b"".join(ours.pieces[i] for i in ids)


def test_roles_are_found_by_their_usual_names(tmp_path):
    trained(t5)[0].save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"decoder_start_token_id": 0}')
    ours = import_tokenizer(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (0, 1, 0)  # T5's decoder begins with pad
    assert ours.specials["<extra_id_99>"] == 3
    assert ours.specials["<extra_id_0>"] == 102


def test_a_file_that_the_library_cannot_read_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Nothing"}}')
    with pytest.raises(UserError, match=r"tokenizers .* cannot read it") as error:
        import_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
