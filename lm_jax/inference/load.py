"""Language models of checkpoints: load and save."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from lm_jax.config import Config, ModelConfig
from lm_jax.data.tokens.files import path_of
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.devices.resolve import resolved
from lm_jax.errors import CheckpointError, UserError
from lm_jax.inference.language_model import LanguageModel
from lm_jax.models import NGram, create
from lm_jax.run import rundir
from lm_jax.run.checkpoint import Checkpoints
from lm_jax.run.restore import Step


def load(path: Any, step: int | None = None) -> LanguageModel:
    """The language model of a run or of one checkpoint of it; see lm_jax.load."""
    if not path_of(path).exists():
        raise CheckpointError(f"{path}: no such path; name a run directory or a checkpoint in it.")

    def read(saved: Step) -> tuple[Config, Tokenizer | None, Any]:
        """Reads all of one step: never the weights of one and the tokenizer of another."""
        if "config" not in saved.metadata:
            raise CheckpointError(f"{path}: holds no config; it was not saved by lm_jax.train.")
        config = Config.parse(saved.metadata["config"])
        tokenizer = tokenizer_of(path, saved.files(), saved.metadata)
        return config, tokenizer, model_of(config.model, saved)

    with Checkpoints(path, read_only=True) as checkpoints:
        (config, tokenizer, model), metadata = checkpoints.newest(step, read)
    return LanguageModel(model, tokenizer, config, metadata["step"], str(path), metadata)


def model_of(config: ModelConfig, saved: Step) -> Any:
    """The model of a saved step."""
    if config.architecture == "ngram":
        tables = {name.removeprefix("model/"): table for name, table in saved.arrays().items()}
        return NGram.from_tables(config, tables, saved.metadata["bos_id"])
    config = portable(config)
    return saved.model(jax.eval_shape(lambda: create(config, rngs=nnx.Rngs(0))))


def portable(config: ModelConfig) -> ModelConfig:
    """The model as it runs here: an attention backend of other devices becomes this one's. Products
    in eight bits and attention's dropout, which decide about the backend too, are of training.
    """
    config = dataclasses.replace(config.without_dropout(), quantization="none")
    try:
        return resolved(config, jax.default_backend())
    except UserError:
        return resolved(dataclasses.replace(config, attention="auto"), jax.default_backend())


def tokenizer_of(path: Any, files: dict[str, bytes], metadata: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer in a checkpoint; raises CheckpointError when it is not the model's.

    None where the model was imported without one.
    """
    if not files and "family" in metadata and "tokenizer_hash" not in metadata:
        return None
    if not files:
        raise CheckpointError(f"{path}: holds no tokenizer; it was not saved by lm_jax.train.")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / Path(name).name).write_bytes(data)
        tokenizer = load_tokenizer(folder)
    expected = metadata.get("tokenizer_hash", tokenizer.hash)
    if tokenizer.hash != expected:
        raise CheckpointError(
            f"{path}: its tokenizer ({tokenizer.hash[:12]}) is not the one that the model was "
            f"trained with ({expected[:12]}); restore the checkpoint from where it was copied."
        )
    return tokenizer


def save(lm: LanguageModel, directory: str) -> None:
    """A checkpoint of step 0 that `load`, evaluate and generate read."""
    metadata = {"step": 0, "config": lm.config.to_dict(), "versions": rundir.installed(),
                **lm.metadata}  # fmt: skip
    files = {}
    if lm.tokenizer is not None:
        metadata["tokenizer_hash"] = lm.tokenizer.hash
        files = rundir.tokenizer_files(lm.tokenizer)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(0, {"model": lm.model}, metadata, files)
