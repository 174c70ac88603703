"""Reads a tokenizer directory: one that lm_jax wrote, or one of Hugging Face."""

import json
from typing import Any

from lm_jax.data.tokens import hf_tokenizer
from lm_jax.data.tokens.tokenizer import KINDS, MAX_FILE_BYTES, Tokenizer
from lm_jax.errors import DataError, nearest


def load_tokenizer(directory: Any) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote, or the tokenizer.json of a Hugging Face directory (the
    `hf` extra).

    Raises DataError when it is missing, damaged, or not the tokenizer whose hash it holds.
    """
    from etils import epath

    folder = epath.Path(directory)
    where = folder / "tokenizer.json"
    if not where.exists():
        raise DataError(
            f"{where}: no such file; a tokenizer directory holds tokenizer.json"
            " (transformers writes it by save_pretrained)."
        )
    try:
        if where.stat().length > MAX_FILE_BYTES:
            raise DataError(f"{where}: over {MAX_FILE_BYTES >> 20} MiB.")
        about = json.loads(where.read_text())
        if "model" in about:
            return hf_tokenizer.load(folder)
        kind, expected = about["kind"], about["hash"]
        if kind not in KINDS:
            raise DataError(f"{where}: kind {kind!r} is not known.{nearest(kind, KINDS)}")
        model = b""
        if kind != "bytes":
            if (folder / "tokenizer.model").stat().length > MAX_FILE_BYTES:
                raise DataError(f"{folder}/tokenizer.model: over {MAX_FILE_BYTES >> 20} MiB.")
            model = (folder / "tokenizer.model").read_bytes()
        tokenizer = Tokenizer(kind, model)
    except (ValueError, LookupError, TypeError, OSError, RuntimeError, RecursionError) as error:
        raise DataError(f"{folder}: damaged tokenizer ({error!s:.200}).") from None
    except DataError as error:
        known = str(error).startswith(str(folder))
        raise error if known else DataError(f"{folder}: {error}") from None
    tokenizer.check_hash(folder, expected)
    return tokenizer
