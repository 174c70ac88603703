"""Hugging Face directories as language models."""

import json
from pathlib import Path
from typing import Any

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
    metadata: dict[str, Any] = {"family": family.model_type, "source": directory}
    if ends := stop_ids(Path(directory)):
        metadata["stop_ids"] = ends
    return LanguageModel(model, tokenizer, config, 0, f"hf:{directory}", metadata)


def stop_ids(path: Path) -> list[int]:
    """The ids at which generation ends in transformers: those of generation_config.json, else of
    config.json; [] where neither names one.
    """
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((path / name).read_text())["eos_token_id"]
        except (OSError, ValueError, LookupError, TypeError):
            continue
        ids = found if isinstance(found, list) else [found]
        if ids and all(type(i) is int and i >= 0 for i in ids):
            return ids
    return []
