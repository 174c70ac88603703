"""Hugging Face directories as language models."""

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from lm_jax.config import from_model
from lm_jax.convert.safetensors_file import read_json
from lm_jax.convert.values import GENERATION
from lm_jax.errors import CheckpointError
from lm_jax.inference.language_model import WINDOW, LanguageModel

# Files of a tokenizer that transformers turns into a tokenizer.json as it reads them.
OLDER = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "vocab.txt", "vocab.json")


def load_hf(name: str, new_head: bool = False) -> LanguageModel:
    """The language model of a Hugging Face directory, or of the Hub's name of one that is in the
    local cache, with its tokenizer where it has one. new_head: see `import_hf`.
    """
    from lm_jax.convert.hf import imported

    directory = find(name)
    family, model_config, model = imported(directory, new_head)
    tokenizer = None
    if (Path(directory) / "tokenizer.json").is_file():
        from lm_jax.convert.tokenizer import import_tokenizer

        tokenizer = import_tokenizer(directory)
    elif older := [name for name in OLDER if (Path(directory) / name).is_file()]:
        print(unread_tokenizer(directory, older[0]), file=sys.stderr, flush=True)
    config = from_model(model_config, min(model_config.max_length, WINDOW), Path(directory).name)
    metadata: dict[str, Any] = {"family": family.model_type, "source": directory}
    if ends := stop_ids(Path(directory)):
        metadata["stop_ids"] = ends
    if settings := json_of(Path(directory) / GENERATION):
        metadata["generation"] = settings
    return LanguageModel(model, tokenizer, config, 0, f"hf:{directory}", metadata)


def find(name: str) -> str:
    """The directory of a name; raises CheckpointError with the command that downloads it.

    A name of the Hub (organisation/model) is looked up in its local cache; nothing is downloaded.
    """
    if Path(name).exists() or not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", name):
        return name
    home = os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub")
    model = cache / f"models--{name.replace('/', '--')}"
    with contextlib.suppress(OSError, ValueError):
        revision = (model / "refs" / "main").read_text()[:100].strip()
        snapshot = model / "snapshots" / revision
        if re.fullmatch(r"[0-9a-f]{1,64}", revision) and snapshot.is_dir():
            return str(snapshot)
    raise CheckpointError(
        f"{name}: is not a directory, nor a model in the Hub's cache ({cache}). Nothing is "
        f"downloaded here: run `hf download {name} --local-dir DIR`, and name hf:DIR."
    )


def unread_tokenizer(directory: str, name: str) -> str:
    """The line about a tokenizer without its tokenizer.json."""
    return (
        f"{directory}: no tokenizer.json, so the model knows ids, no text; transformers makes one "
        f"of {name}: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )


def stop_ids(path: Path) -> list[int]:
    """The ids at which generation ends in transformers: those of generation_config.json, else of
    config.json; [] where neither names one.
    """
    for name in (GENERATION, "config.json"):
        found = json_of(path / name).get("eos_token_id")
        ids: list[Any] = found if isinstance(found, list) else [found]
        if ids and all(type(i) is int and i >= 0 for i in ids):
            return ids
    return []


def json_of(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is none that can be read, as in transformers."""
    try:
        return read_json(path)
    except (CheckpointError, OSError):
        return {}
