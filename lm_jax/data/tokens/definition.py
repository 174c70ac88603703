"""Checks of a tokenizer.json before anything is built of it: sizes, ids, growth, dropout."""

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from typing import Any

from lm_jax.errors import DataError

MAX_IDS = 1 << 22  # of a vocabulary; the largest published have a million
MAX_PIECE_BYTES = 1 << 16  # that one id stands for
MAX_GROWTH = 1024.0  # characters that a normalizer may make of one
# Steps of a normalizer or pre-tokenizer whose time and memory are known to be linear in the text.
LINEAR = {
    "Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt",
    "Prepend", "Replace", "ByteLevel", "BertNormalizer", "BertPreTokenizer", "Digits", "Metaspace",
    "Punctuation", "Split", "UnicodeScripts", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit",
}  # fmt: skip


def check(definition: Mapping[str, Any]) -> None:
    """Raises DataError at what no lossless, bounded tokenizer has: dropout, an id that is too large
    or is two tokens, a normalizer that makes a long text of a short one.
    """
    model = definition["model"]
    if dropout := model.get("dropout"):
        raise DataError(
            f"model.dropout={dropout!r}: it encodes a text otherwise each time; set it to null in"
            " tokenizer.json."
        )
    if model.get("vocab") in ({}, []):
        raise DataError("model.vocab: holds no token.")
    names: dict[int, str] = {}
    for piece, i in entries(definition):
        if not 0 <= i < MAX_IDS:
            raise DataError(f"token {piece[:40]!r} has id {i}; allowed: 0 to {MAX_IDS - 1}.")
        if names.setdefault(i, piece) != piece:
            raise DataError(f"id {i} is two tokens: {names[i][:40]!r} and {piece[:40]!r}.")
    if (growth := growth_of(definition.get("normalizer"))) > MAX_GROWTH:
        raise DataError(
            f"its normalizer makes up to {growth:.3g} characters of one; at most {MAX_GROWTH:g}"
            " are allowed."
        )


def entries(definition: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """(token, id) of the model's vocabulary and of the added tokens."""
    vocab = definition["model"].get("vocab")
    if isinstance(vocab, dict):
        yield from vocab.items()
    elif isinstance(vocab, list):
        if len(vocab) > MAX_IDS:
            raise DataError(f"{len(vocab)} tokens; at most {MAX_IDS} are allowed.")
        yield from ((piece, i) for i, (piece, _) in enumerate(vocab))
    for token in definition.get("added_tokens") or []:
        yield token["content"], token["id"]


def steps_of(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, those of a sequence one by one."""
    if part is None:
        return
    inner = part.get("normalizers") or part.get("pretokenizers") or []
    if part.get("type") == "Sequence":
        for each in inner:
            yield from steps_of(each)
    else:
        yield part


def growth_of(normalizer: Any) -> float:
    """Characters that a normalizer makes of one, at most, its Unicode forms aside (NFKD: 18)."""
    growth = 1.0
    for step in steps_of(normalizer):
        if step["type"] == "Replace":
            pattern, content = step["pattern"], len(step["content"])
            # A regular expression may match nothing at every place.
            matched = len(pattern.get("String", ""))
            growth *= max(1.0, content / matched if matched else content + 1)
        elif step["type"] == "Prepend":
            growth *= max(1.0, 1 + len(step["prepend"]))
        elif step["type"] == "Precompiled":
            growth *= max(1.0, longest_replacement(step["precompiled_charsmap"] or ""))
        if not math.isfinite(growth):
            break
    return growth


def longest_replacement(charsmap: str) -> int:
    """Bytes of the longest string in the character map of SentencePiece (base64: the size of a
    trie, the trie, and strings that end in NUL).
    """
    try:
        blob = base64.b64decode(charsmap, validate=True)
    except binascii.Error:
        raise DataError("its precompiled_charsmap is not base64.") from None
    size = int.from_bytes(blob[:4], "little")
    return max(map(len, blob[4 + size :].split(b"\0")), default=0)


def patterns_of(definition: Mapping[str, Any]) -> list[str]:
    """The regular expressions of the normalizer and the pre-tokenizer."""
    steps = [*steps_of(definition.get("normalizer")), *steps_of(definition.get("pre_tokenizer"))]
    found = [step["pattern"] for step in steps if isinstance(step.get("pattern"), dict)]
    return [pattern["Regex"] for pattern in found if "Regex" in pattern]


def is_linear(definition: Mapping[str, Any]) -> bool:
    """Whether every step before the model is one of LINEAR, without a regular expression of the
    file's own.
    """
    steps = [*steps_of(definition.get("normalizer")), *steps_of(definition.get("pre_tokenizer"))]
    return not patterns_of(definition) and all(step.get("type") in LINEAR for step in steps)
