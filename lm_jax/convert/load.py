"""Hugging Face directories as language models."""

from pathlib import Path

from lm_jax.config import from_model
from lm_jax.inference.language_model import WINDOW, LanguageModel


def load_hf(directory: str) -> LanguageModel:
    """The language model of a Hugging Face directory, with its tokenizer where it has one."""
    from lm_jax.convert.hf import imported

    family, model_config, model = imported(directory)
    tokenizer = None
    if (Path(directory) / "tokenizer.json").is_file():
        from lm_jax.convert.tokenizer import import_tokenizer

        tokenizer = import_tokenizer(directory)
    config = from_model(model_config, min(model_config.max_length, WINDOW), Path(directory).name)
    metadata = {"family": family.model_type, "source": directory}
    return LanguageModel(model, tokenizer, config, 0, f"hf:{directory}", metadata)
