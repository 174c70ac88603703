"""The entry point for Python: `lm = lm_jax.load("runs/q")` or `lm_jax.load("hf:DIR")`."""

import os

from lm_jax.config.values import expand_home, number
from lm_jax.devices import runtime
from lm_jax.errors import CheckpointError
from lm_jax.inference import load as checkpoints
from lm_jax.inference.language_model import LanguageModel


def load(path: str | os.PathLike, step: int | None = None, new_head: bool = False) -> LanguageModel:
    """Loads the language model of a run (runs/q), of one checkpoint (runs/q/checkpoints/2000), or
    of a Hugging Face directory (hf:DIR, or hf:NAME of one in the Hub's local cache).

    Everything comes from the checkpoint, local or gs://: config, tokenizer, weights.

    Args:
      path: the run, checkpoint or Hugging Face directory.
      step: the checkpoint of a run; the newest intact one by default.
      new_head: a Hugging Face body without its head is given a new one; it has none by default.

    Returns the model on the default device, or laid out over the mesh of jax.set_mesh. Raises
    CheckpointError.
    """
    runtime.start()
    step = None if step is None else number("step", step, whole=True)
    path = expand_home(str(path))
    if path.startswith("hf:"):
        from lm_jax.convert.load import load_hf

        if step is not None:
            raise CheckpointError(f"step={step}: {path} has one state; a run has steps.")
        return load_hf(path.removeprefix("hf:"), new_head)
    if is_hugging_face(path):
        raise CheckpointError(f"{path}: is a Hugging Face directory: write hf:{path}")
    return checkpoints.load(path, step)


def is_hugging_face(path: str) -> bool:
    """Whether a path looks like a directory that transformers wrote."""
    names = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    has_config = os.path.isfile(os.path.join(path, "config.json"))
    return has_config and any(os.path.lexists(os.path.join(path, name)) for name in names)
