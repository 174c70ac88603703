"""Does the certificate of an export prove it, and fail when the export is another model?"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import lm_jax
from lm_jax import convert
from lm_jax.config import Config
from lm_jax.convert.__main__ import export
from lm_jax.convert.certificate import TEXT, greedy
from lm_jax.data.tokens.frame import Frame
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.errors import CheckpointError
from lm_jax.inference.language_model import LanguageModel
from lm_jax.models import Transformer

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def lm():
    return lm_jax.load(f"hf:{GOLDEN / 'qwen3_tied'}")


def test_an_export_is_proven_by_logits_and_greedy_tokens(lm, tmp_path):
    certificate = export(lm, tmp_path / "out", "qwen3")
    assert certificate["verdict"] == "proven"
    assert certificate["logits"]["largest_difference"] < 1e-4
    assert certificate["greedy"] == {"tokens": 50, "equal": 50}
    assert certificate["versions"]["transformers"]
    saved = json.loads((tmp_path / "out" / "certificate.json").read_text())
    assert saved == json.loads(json.dumps(certificate))


def test_an_id_that_pads_elsewhere_is_read_like_any_other(lm):
    # BOS is 0 in many a tokenizer, and pad_token_id of the comparison is 0, too.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / "qwen3_tied").eval()
    ours, other = greedy(lm.model, theirs, np.array([[0, 5, 6, 0, 7]]), None)
    assert ours.tolist() == other.tolist()


def broken_weight(found):
    name = "model.layers.1.self_attn.k_norm.weight"
    return found | {name: found[name] * np.float32(1.5)}


def exchanged_rows(found):
    name = "model.layers.0.mlp.up_proj.weight"
    return found | {name: np.roll(found[name], 1, 0)}


@pytest.mark.parametrize("change", [broken_weight, exchanged_rows])
def test_an_export_that_is_another_model_keeps_a_name_that_says_so(
    lm, tmp_path, monkeypatch, change
):
    def export_broken(model, config, directory, *rest, **more):
        whole(model, config, directory, *rest, **more)
        file = directory / "model.safetensors"
        save_file(change(load_file(file)), file, {"format": "pt"})

    whole = convert.export_hf
    monkeypatch.setattr("lm_jax.convert.hf.export_hf", export_broken)
    with pytest.raises(
        CheckpointError, match="the export is not the model: in transformers"
    ) as why:
        export(lm, tmp_path / "out", "qwen3")
    assert why.value.code == 3
    assert [path.name for path in tmp_path.iterdir()] == ["out.unproven"]
    certificate = json.loads((tmp_path / "out.unproven" / "certificate.json").read_text())
    assert certificate["verdict"] == "failed"


def test_a_wrong_option_fails_too(lm, tmp_path):
    convert.export_hf(lm.model, lm.config.model, tmp_path / "out", family="qwen3")
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sliding_window": 7}))
    with pytest.raises(CheckpointError, match="the export is not the model"):
        convert.certify(tmp_path / "out", lm.model)


def test_files_that_transformers_cannot_read_fail_with_its_words(lm, tmp_path):
    convert.export_hf(lm.model, lm.config.model, tmp_path / "out", family="qwen3")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"12345678")
    with pytest.raises(CheckpointError, match="transformers cannot read it: ") as why:
        convert.certify(tmp_path / "out", lm.model)
    assert "\n" not in str(why.value)


def test_text_is_read_where_there_is_a_tokenizer(tmp_path):
    from lm_jax.convert.certificate import sample_ids

    tokenizer, config = Tokenizer("bytes"), lm_jax.ModelConfig(max_length=2000, window=300)
    ids = sample_ids(config, tokenizer)
    assert ids.shape == (1, 600)
    assert tokenizer.decode(ids[0, 1:300]) == TEXT[:299].encode()[:299].decode(errors="replace")


@pytest.fixture
def instruct(lm, tmp_path):
    """An imported model with a tokenizer that has special tokens and a chat template."""
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizers = pytest.importorskip("tokenizers")
    names = ["<|end|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: lm.model.config.vocab_size - 3]
    vocab = {c: i for i, c in enumerate(alphabet)}
    made = tokenizers.Tokenizer(models.BPE(vocab, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(names)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=names[0],
        eos_token=names[2],
        chat_template="{{ messages }}",
    )
    fast.save_pretrained(tmp_path / "source")
    return dataclasses.replace(lm, tokenizer=load_tokenizer(tmp_path / "source"))


def test_ids_of_special_tokens_and_the_chat_template_are_part_of_the_proof(instruct, tmp_path):
    certificate = export(instruct, tmp_path / "out", "qwen3")
    assert certificate["verdict"] == "proven"
    found = certificate["tokenizer"]
    assert found["equal"] == found["texts"] > 15
    assert found["chat_template"] is True
    there = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert there.chat_template == "{{ messages }}"
    assert there("<|im_start|>")["input_ids"] == [instruct.tokenizer.names["<|im_start|>"]]


@pytest.mark.parametrize("lost", ["chat_template.jinja", "split_special_tokens", "a token"])
def test_an_export_without_them_fails(instruct, tmp_path, lost):
    convert.export_hf(instruct.model, instruct.config.model, tmp_path / "out", family="qwen3")
    convert.export_tokenizer(instruct.tokenizer, tmp_path / "out")
    if lost == "chat_template.jinja":
        (tmp_path / "out" / lost).unlink()
    elif lost == "a token":
        file = tmp_path / "out" / "tokenizer.json"
        file.write_text(file.read_text().replace("<|im_start|>", "<|im_begin|>"))
    else:
        file = tmp_path / "out" / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {lost: True}))
    with pytest.raises(CheckpointError, match=r"not the model: .* texts are equal"):
        convert.certify(tmp_path / "out", instruct.model, instruct.tokenizer)


@pytest.mark.parametrize(("kind", "pieces"), [("bpe", 500), ("unigram", 400), ("bytes", 259)])
def test_a_model_of_ours_reads_prompts_there_as_it_does_here(kind, pieces, tmp_path):
    config = Config.parse(
        {"model": {"vocab_size": 512, "num_layers": 1, "dim": 16, "num_heads": 2}}
    )
    model = Transformer(config.model, rngs=nnx.Rngs(0))
    lm = LanguageModel(model, train(kind, [Path(__file__).read_text()], pieces), config)
    certificate = export(lm, tmp_path / "out", "")
    assert certificate["verdict"] == "proven"
    assert certificate["tokenizer"]["equal"] == certificate["tokenizer"]["texts"] > 10
    there = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = there("def f(x):")["input_ids"]
    assert ids == [lm.tokenizer.bos_id, *lm.tokenizer.encode("def f(x):")]
    again = lm_jax.load(f"hf:{tmp_path / 'out'}")
    assert again.frame == Frame((lm.tokenizer.bos_id,))
    settings = {"max_new_tokens": 20, "temperature": 0}
    assert again.generate("def f(x):", **settings) == lm.generate("def f(x):", **settings)
