"""Comparison of an exported tokenizer with ours: read again with transformers, ids of texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.data.tokens.frame import Frame
from lm_jax.data.tokens.tokenizer import Tokenizer

MAX_SPELLED = 100  # special tokens in a text
TEXT = """A lighthouse keeper writes down the weather every evening: wind, clouds, the height of the
waves. In 1912 there were 366 lines in the book. "Nothing new," says the last one; the ink has run.

def mean(values):
    return sum(values) / len(values)  # of an empty list: ZeroDivisionError

Die Straße war naß, l'été fut court, \u6771\u4eac is far, and 3.14 is not \u03c0.
"""
TEXTS = ("", " ", TEXT, *TEXT.splitlines(), "  two  spaces\t ", "\r\n\n\n", "don't , stop .",
         "naïve e\u0301 東京 😀 \ufeff \u2581 \0", "a" * 300, "</s> [MASK] <0x41>")  # fmt: skip


def texts_with_specials(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that contain the names of the tokenizer's special tokens, alone and between words."""
    names = list(tokenizer.names)[:MAX_SPELLED]
    yield from names
    yield "".join(f"{name}user\nHow are you?" for name in names)
    yield " and ".join(names)


def compare_tokenizer(path: Path, tokenizer: Tokenizer, frame: Frame) -> dict[str, Any]:
    """{"same", "why", "texts", "equal", "chat_template", "class"} of the tokenizer in `path`.

    It is the same when the ids of every text of TEXTS, and of those that spell special tokens, are
    `tokenizer`'s with `frame` around them, and the chat template is. Some classes of transformers
    (LlamaTokenizer) have rules of their own instead of a tokenizer.json: where the `tokenizers`
    library has our ids for that file, it counts as the same, and "why" notes it.
    """
    import tokenizers
    import transformers

    try:
        theirs = transformers.AutoTokenizer.from_pretrained(path)
        library = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # of any kind
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return {"same": False, "why": f"transformers cannot read its tokenizer: {why}"}
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = bool(theirs.split_special_tokens)
    texts = [*TEXTS, *texts_with_specials(tokenizer)]
    equal = alike = 0
    for text in texts:
        inside = tokenizer.encode(text) if tokenizer.splits_specials else (
            tokenizer.encode_specials(text))  # fmt: skip
        ours = frame.around(inside)
        found = theirs(text, truncation=False)["input_ids"]
        equal += np.array_equal(found, ours)
        alike += np.array_equal(library.encode(text).ids, ours)
    kept = (theirs.chat_template or "") == getattr(tokenizer, "chat_template", "")
    why = f"ids of {equal} of {len(texts)} texts are equal"
    if equal < alike == len(texts):
        why += f" ({type(theirs).__name__} has rules of its own beside tokenizer.json)"
    if not kept:
        why += ", and the chat template is another"
    return {
        "same": kept and max(equal, alike) == len(texts), "why": why, "texts": len(texts),
        "equal": equal, "chat_template": bool(theirs.chat_template) and kept,
        "class": type(theirs).__name__,
    }  # fmt: skip
