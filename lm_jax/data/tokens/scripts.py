"""Scripts that put no spaces between words: where their text is cut before pieces are learned."""

import re
from collections.abc import Iterable, Iterator

# Letters and their marks of Thai and Lao, Tibetan, Burmese, Khmer, Tai Tham; Chinese characters and
# radicals, kana, Bopomofo, Yi-like iteration marks; not their digits and sentence marks, and not
# Hangul, which has spaces.
LETTERS = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u0edc-\u0f00\u0f3e-\u0f84\u0f86-\u0fbc"
    "\u1000-\u103f\u1050-\u108f\u1780-\u17d3\u17d7\u17dc-\u17dd\u1a20-\u1a7f\u2e80-\u2fd5"
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b\u3041-\u309f\u30a1-\u30fa\u30fc-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufad9\uff66-\uff9f"
    "\U0001b000-\U0001b167\U00020000-\U000323af"
)
UNSPACED = re.compile(f"[{LETTERS}]")
PARTS = re.compile(f"[{LETTERS}]+|[^{LETTERS}]+")
MIN_SHARE = 0.1  # of a text's characters, above which its vocabulary is advised on
PIECES_A_CHARACTER = 4  # that such a text wants: 3,500 Chinese characters, 16,384 pieces
MAX_ADVICE = 32_768


def parts(line: str) -> Iterator[str]:
    """Runs of letters of these scripts, and what stands between them: sentence marks, digits, line
    ends, other scripts. No piece of a tokenizer holds letters of a run and anything else.
    """
    if UNSPACED.search(line):
        yield from PARTS.findall(line)
    else:
        yield line


def advice(texts: Iterable[str], vocab_size: int) -> str:
    """A line about the vocabulary that `texts` want; "" where they have few letters of these
    scripts, or `vocab_size` is enough.
    """
    total, letters, distinct = 0, 0, set()
    for text in texts:
        found = UNSPACED.findall(text)
        total, letters = total + len(text), letters + len(found)
        distinct.update(found)
    wanted = min(MAX_ADVICE, 1 << (PIECES_A_CHARACTER * len(distinct) - 1).bit_length())
    if letters < MIN_SHARE * total or vocab_size >= wanted or not letters:
        return ""
    return (
        f"{100 * letters / total:.0f} % of the text is in scripts without spaces between words"
        f" (Chinese, Japanese, Thai), with {len(distinct):,} characters: config.data.vocab_size="
        f"{vocab_size} leaves few pieces for words; {wanted} is better, in"
        " config.model.vocab_size as well."
    )
