"""How is a trained model used from Python? `lm = lm_jax.load("runs/q"); lm.generate("Once")`."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx

from lm_jax import runtime
from lm_jax.checkpoint import Checkpoints
from lm_jax.config import Config, ModelConfig, resolved
from lm_jax.data.tokenizer import Tokenizer
from lm_jax.errors import CheckpointError, UserError
from lm_jax.models import Transformer
from lm_jax.sampling import TEMPERATURE, TOP_P, texts
from lm_jax.scoring import Result, evaluate


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer, what `load` returns. Made by hand it needs no checkpoint."""

    model: Transformer
    tokenizer: Tokenizer
    config: Config
    step: int = 0
    path: str = ""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    def generate(
        self,
        prompt: str = "",
        max_new_tokens: int = 0,
        temperature: float = TEMPERATURE,
        top_k: int = 0,
        top_p: float = TOP_P,
        seed: int = 0,
        num_samples: int = 1,
    ) -> str | list[str]:
        """The continuation of `prompt`, without it; a list of them when num_samples > 1.

        max_new_tokens 0: 256, or fewer where the model's length ends. temperature 0: always the
        likeliest token. top_k, top_p: of the likeliest tokens alone (0 and 1: off). The same seed
        gives the same text. Raises UserError when prompt and max_new_tokens do not fit the model.
        """
        if num_samples < 1:
            raise UserError(f"num_samples={num_samples}: must be at least 1.")
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        steps = texts(
            self.model, self.tokenizer, [prompt] * num_samples, max_new_tokens, seed, **settings
        )
        found = ["".join(parts) for parts in zip(*steps, strict=True)]
        return found[0] if num_samples == 1 else found

    def stream(
        self, prompt: str = "", max_new_tokens: int = 0, seed: int = 0, **settings: Any
    ) -> Iterator[str]:
        """The text of `generate` in pieces, as it is made."""
        steps = texts(self.model, self.tokenizer, [prompt], max_new_tokens, seed, **settings)
        return (added for (added,) in steps if added)

    def loss(self, text: str, stride: int = 0) -> Result:
        """Loss, perplexity, bits per byte and tokens of `text` as one document, its end included.

        stride: targets by which the window of config.data.sequence_length moves on; 0: the window.
        """
        window = self.config.data.sequence_length
        return evaluate(self.model, self.tokenizer, [text], window, stride, 1)

    def logits(self, ids: Any) -> jax.Array:
        """Logits [L, V] float32 of the token after each of `ids` [L]; [B, L, V] of ids [B, L]."""
        ids = np.asarray(ids, np.int32)
        V, limit = self.model.config.vocab_size, self.model.config.max_length
        if ids.ndim not in (1, 2) or not 1 <= ids.shape[-1] <= limit:
            raise UserError(
                f"ids of shape {ids.shape}: expected [L] or [B, L] with L from 1 to {limit}."
            )
        if ids.min() < 0 or ids.max() >= V:
            raise UserError(f"ids from {ids.min()} to {ids.max()}: the model has 0 to {V - 1}.")
        found = forward(self.model, jnp.asarray(np.atleast_2d(ids)))
        return found[0] if ids.ndim == 1 else found

    @property
    def num_parameters(self) -> int:
        """Numbers in the model."""
        return sum(x.size for x in jax.tree.leaves(self.model))

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.path or self.config.name!r}, step {self.step}, "
            f"{self.num_parameters:,} parameters, {self.tokenizer.vocab_size} tokens)"
        )


forward = jax.jit(lambda model, ids: model(ids))


def load(path: Any, step: int | None = None) -> LanguageModel:
    """The language model of a run (runs/q) or of one checkpoint (runs/q/checkpoints/2000).

    All comes from the checkpoint, local or gs://: config, tokenizer, weights. `step`: which one of
    a run, the newest intact one by default. The model goes to the default device, or is laid out
    over the mesh of jax.set_mesh. Raises CheckpointError.
    """
    runtime.start()
    if not epath.Path(path).exists():
        raise CheckpointError(f"{path}: no such path; name a run directory or a checkpoint in it.")
    with Checkpoints(path, read_only=True) as checkpoints:
        metadata = checkpoints.metadata(step)
        if "config" not in metadata:
            raise CheckpointError(f"{path}: holds no config; it was not saved by lm_jax.train.")
        config = Config.parse(metadata["config"])
        model_config = portable(config.model)
        abstract = jax.eval_shape(lambda: Transformer(model_config, rngs=nnx.Rngs(0)))
        tokenizer = tokenizer_of(path, checkpoints.files(step), metadata, config)
        model, metadata = checkpoints.restore_model(abstract, step)
        found = metadata.get("step", checkpoints.steps()[-1] if step is None else step)
    return LanguageModel(model, tokenizer, config, found, str(path), metadata)


def portable(config: ModelConfig) -> ModelConfig:
    """The model as it runs here: an attention backend of other devices becomes this one's."""
    try:
        return resolved(config, jax.default_backend())
    except UserError:
        return resolved(dataclasses.replace(config, attention="auto"), jax.default_backend())


def tokenizer_of(
    path: Any, files: dict[str, bytes], metadata: dict[str, Any], config: Config
) -> Tokenizer:
    """The tokenizer in a checkpoint; raises CheckpointError when it is not the model's."""
    if not files:
        raise CheckpointError(f"{path}: holds no tokenizer; it was not saved by lm_jax.train.")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / Path(name).name).write_bytes(data)
        tokenizer = Tokenizer.load(folder)
    expected = metadata.get("tokenizer_hash", tokenizer.hash)
    if tokenizer.hash != expected:
        raise CheckpointError(
            f"{path}: its tokenizer ({tokenizer.hash[:12]}) is not the one that the model was "
            f"trained with ({expected[:12]}); restore the checkpoint from where it was copied."
        )
    if tokenizer.vocab_size > config.model.vocab_size:
        raise CheckpointError(
            f"{path}: a tokenizer of {tokenizer.vocab_size} tokens and a model of "
            f"config.model.vocab_size={config.model.vocab_size} do not belong together."
        )
    return tokenizer
