"""The files of a Hugging Face tokenizer's directory, and the special tokens that they name."""

import json
from collections.abc import Mapping
from typing import Any

from lm_jax.data.tokens.tokenizer import MAX_FILE_BYTES
from lm_jax.errors import DataError

ABOUT = "lm_jax_tokenizer.json"  # ours, beside their tokenizer.json
# Other files of the tokenizer, which are copied with it.
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
              "chat_template.json")  # fmt: skip
ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
# Names in the tokenizer classes of transformers, for directories that give none.
USUAL = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
}


def companions(folder: Any) -> dict[str, bytes]:
    """The COMPANIONS in a directory; raises DataError."""
    found = {}
    for name in COMPANIONS:
        if name.endswith(".json"):
            read_object(folder / name)
        if (folder / name).exists():
            if (folder / name).stat().length > MAX_FILE_BYTES:
                raise DataError(f"{name}: over {MAX_FILE_BYTES >> 20} MiB.")
            found[name] = (folder / name).read_bytes()
    return found


def read_object(path: Any) -> dict[str, Any]:
    """The JSON object in a file, {} when there is none; raises DataError."""
    if not path.exists():
        return {}
    if path.stat().length > MAX_FILE_BYTES:
        raise DataError(f"{path.name}: over {MAX_FILE_BYTES >> 20} MiB.")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{path.name}: expected a JSON object.")
    return values


def roles_in(folder: Any) -> dict[str, str | int]:
    """Token or id of each role, from tokenizer_config.json, special_tokens_map.json or
    config.json.
    """
    found: dict[str, str | int] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = read_object(folder / name)
        for role in ROLES:
            token = values.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found.setdefault(role, token)
    values = read_object(folder / "config.json")
    for role in (*ROLES, "decoder_start"):
        number = values.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int:
            found.setdefault(role, number)
    return found


def known_roles(
    roles: Mapping[str, str | int], vocabulary: Mapping[str, int], special: Mapping[str, int]
) -> dict[str, int]:
    """The roles whose token or id the vocabulary has; those not given by their USUAL names."""
    found = {}
    for role, value in roles.items():
        number = vocabulary.get(value) if isinstance(value, str) else value
        if number is not None and 0 <= number <= max(vocabulary.values()):
            found[role] = number
    for role, names in USUAL.items():
        usual = [special[name] for name in names if name in special]
        if role not in roles and usual:
            found[role] = usual[0]
    return found
