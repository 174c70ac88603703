"""config.data.tokenizer may be the directory of a tokenizer, for training as for preparing."""

import dataclasses

import pytest

from lm_jax import prepare as prepare_command
from lm_jax.config import Config
from lm_jax.data.build import check_vocabulary, prepare
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.errors import CheckpointError, DataError, UserError
from lm_jax.inference.language_model import LanguageModel
from lm_jax.run import rundir

TEXT = "".join(
    f"line {i} of a text that is long enough to be cut into windows\n" for i in range(99)
)


@pytest.fixture
def asked(tmp_path):
    """A config whose tokenizer is a directory with 300 ids."""
    train("bpe", [TEXT], 300).save(tmp_path / "tok")
    (tmp_path / "text.txt").write_text(TEXT)
    data = {"input": str(tmp_path / "text.txt"), "tokenizer": str(tmp_path / "tok"),
            "vocab_size": 9999, "heldout_fraction": 0.3, "sequence_length": 16}  # fmt: skip
    return Config.parse({"data": data, "model": {"vocab_size": 300, "max_length": 16}})


def test_a_run_takes_the_tokenizer_of_a_directory(asked, tmp_path):
    store = rundir.open_store(tmp_path / "run", asked, prepare=True)
    assert (store.tokenizer.vocab_size, store.tokenizer.kind) == (300, "bpe")
    again = rundir.open_store(tmp_path / "run", asked, prepare=True)
    assert again.fingerprint == store.fingerprint
    made = prepare(asked.data, str(tmp_path / "made"))
    assert TokenStore.open(made).tokenizer_hash == store.tokenizer_hash
    assert prepare_command.prepare is prepare


def test_more_ids_than_rows_are_refused_before_any_text_is_read(asked, tmp_path):
    small = dataclasses.replace(asked, model=dataclasses.replace(asked.model, vocab_size=256))
    for dry in (True, False):
        with pytest.raises(
            DataError, match=r"256: smaller than the 300 ids of .*tok; set it to 384"
        ):
            rundir.open_store(tmp_path / "run", small, prepare=not dry)
    with pytest.raises(DataError, match=r"than the 4096 pieces of config\.data\.tokenizer=bpe"):
        check_vocabulary(dataclasses.replace(asked.data, tokenizer="bpe", vocab_size=4096), 512)
    with pytest.raises(DataError, match="smaller than the 259 ids"):
        check_vocabulary(dataclasses.replace(asked.data, tokenizer="bytes"), 256)
    lost = dataclasses.replace(asked.data, tokenizer=str(tmp_path / "none"))
    with pytest.raises(DataError, match=r"none/tokenizer\.json: no such file"):
        check_vocabulary(lost, 512)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "tok"]
    store = rundir.open_store(tmp_path / "run", asked, prepare=True)
    model = type("Model", (), {"config": small.model})
    with pytest.raises(CheckpointError, match=r"has 300 ids, up to .* and the model 256 rows"):
        LanguageModel(model, store.tokenizer, small)


def test_a_directory_has_a_slash_in_it_so_that_a_mistyped_kind_is_none():
    assert Config.parse({"data": {"tokenizer": "./nowhere"}}).data.tokenizer == "./nowhere"
    with pytest.raises(UserError, match=r"not known. Did you mean 'bpe'\? A directory .*: ./NAME"):
        Config.parse({"data": {"tokenizer": "bppe"}})
