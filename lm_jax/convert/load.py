"""Hugging Face directories as language models."""

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

from lm_jax.config import from_model
from lm_jax.convert.safetensors_file import read_json
from lm_jax.convert.tokenizer import import_tokenizer
from lm_jax.convert.values import GENERATION, short
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import CheckpointError
from lm_jax.inference.language_model import WINDOW, LanguageModel

# Files of a tokenizer that transformers turns into a tokenizer.json as it reads them.
OTHER_TOKENIZERS = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "tekken.json",
                    "vocab.txt", "vocab.json")  # fmt: skip

# Settings of generation_config.json that change greedy texts and that nothing here applies, with
# the value that asks for nothing.
UNAPPLIED: dict[str, Any] = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
    "min_new_tokens": 0, "num_beams": 1, "bad_words_ids": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "sequence_bias": None, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "exponential_decay_length_penalty": None, "penalty_alpha": None,
    "guidance_scale": None, "constraints": None, "force_words_ids": None,
}  # fmt: skip


def load_hf(name: str, new_head: bool = False) -> LanguageModel:
    """The language model of a Hugging Face directory, or of the Hub's name of one that is in the
    local cache, with its tokenizer where it has one. new_head: see `import_hf`.
    """
    from lm_jax.convert.hf import imported

    directory = find(name)
    family, model_config, model = imported(directory, new_head)
    tokenizer = find_tokenizer(Path(directory))
    config = from_model(model_config, min(model_config.max_length, WINDOW), Path(directory).name)
    metadata: dict[str, Any] = {"family": family.model_type, "source": directory}
    if ends := stop_ids(Path(directory)):
        metadata["stop_ids"] = ends
    if (settings := Path(directory) / GENERATION).is_file():
        metadata["generation"] = read_json(settings)
        if left := unapplied(metadata["generation"]):
            print(f"{settings}: {left}: not applied here, so texts may differ from those of "
                  "transformers", file=sys.stderr, flush=True)  # fmt: skip
    return LanguageModel(model, tokenizer, config, 0, f"hf:{directory}", metadata)


def unapplied(settings: dict[str, Any]) -> str:
    """The settings of UNAPPLIED that ask for something, as text; "" for none."""
    asked = {
        n: settings[n] for n, off in UNAPPLIED.items() if settings.get(n) not in (off, None, [])
    }
    return ", ".join(f"{name}={short(value)}" for name, value in asked.items())


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


def find_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in `path`, or None, with a line where its files are of another kind."""
    if (path / "tokenizer.json").is_file():
        return import_tokenizer(path)
    other = [name for name in OTHER_TOKENIZERS if (path / name).is_file()]
    if other:
        print(
            f"{path}: no tokenizer.json, so the model takes ids, no text; transformers makes one "
            f"of {other[0]}: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            file=sys.stderr,
            flush=True,
        )
    return None


def stop_ids(path: Path) -> list[int]:
    """The ids at which generation ends in transformers: those of generation_config.json, else of
    config.json; [] where neither names one. Raises CheckpointError at what is no id.
    """
    for file in (path / GENERATION, path / "config.json"):
        found = read_json(file).get("eos_token_id") if file.is_file() else None
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if any(type(i) is not int for i in ids):
            raise CheckpointError(
                f"{file}: eos_token_id={short(found)}: must be an id, a list of ids, or null."
            )
        if ids := [i for i in ids if i >= 0]:
            return ids
    return []
