"""Lines of real text as ids, and the probabilities that KenLM estimated from them."""

import re
from pathlib import Path

import numpy as np

LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text("utf-8")
# order_2 .. order_6: log p [tokens] that kenlm.Model gives the held-out lines of LICENSE, for the
# model that lmplz makes of the others; tests/parity/test_statistical.py makes them again.
KENLM = Path(__file__).parents[1] / "models" / "kenlm_license.npz"


def documents(text: str) -> tuple[list[np.ndarray], list[np.ndarray], list[str]]:
    """(lines to count, every tenth line, the words): ids, </s> at the end of each line; 0 is a word
    that is not among those to count.
    """
    lines = [words for line in text.splitlines() if (words := re.findall(r"\w+|[^\w\s]", line))]
    train = [line for i, line in enumerate(lines) if i % 10]
    words = ["<unk>", "</s>", *sorted({word for line in train for word in line})]
    ids = {word: i for i, word in enumerate(words)}
    numbered = lambda lines: [np.array([ids.get(word, 0) for word in line] + [1]) for line in lines]
    return numbered(train), numbered(lines[::10]), words
