"""Random masks and spans of windows, as pure functions of ids and of a key for each row.

Chance is a SplitMix64 (Steele et al., 2014) that is called by number and not in turn: word i of
stream s of a row depends on the row's key, s and i alone, so that nothing else that was drawn, on
whatever host, changes it. Only integer arithmetic of our own: no library's generator is in it.
"""

import hashlib

import numpy as np

from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.views.windows import mix

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the step of SplitMix64
MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stay as they are (BERT, section 3.1)
# Streams: what is drawn for a row, each from words of its own.
(
    CHOOSE,
    KIND,
    VALUE,
    ORDER,
    CUT_A,
    CUT_B,
    SPANS,
    GAPS,
    PLACE,
    SHORT,
    OTHER,
    OTHER_PLACE,
    MEMBER,
) = range(13)


def keys(seed: int, epoch: np.ndarray, example: np.ndarray) -> np.ndarray:
    """[n] uint64: the key of each of `example` [n] of epochs `epoch` [n]."""
    digest = hashlib.sha512(f"lm_jax noise 1/{seed}".encode()).digest()
    start = np.frombuffer(digest, "<u8", 1)
    epoch, example = epoch.astype(np.uint64), example.astype(np.uint64)
    return mix(mix(start + GOLDEN * epoch) + GOLDEN * example)


def words(key: np.ndarray, stream: int, number: np.ndarray) -> np.ndarray:
    """uint64 words `number` (any shape that broadcasts with that of `key`) of a stream."""
    fork = mix(key ^ np.uint64(stream + 1))
    return mix(fork + GOLDEN * (number.astype(np.uint64) + np.uint64(1)))


def uniform(word: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from words."""
    return (word >> np.uint64(11)) * 2.0**-53


def below(word: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
    """int64 in 0..limit-1 from words, for limits in 1..2^31 (multiply and shift: Lemire, 2019)."""
    high = word >> np.uint64(32)
    return ((high * np.asarray(limit, np.uint64)) >> np.uint64(32)).astype(np.int64)


def pick(there: np.ndarray, rate: float, key: np.ndarray) -> np.ndarray:
    """[n, L] bool: of each row's `there` [n, L], floor(rate * count + u) at random, u uniform: so
    many that the mean share is `rate` exactly.
    """
    n, L = there.shape
    count = np.floor(rate * there.sum(1) + uniform(words(key, CHOOSE, np.array([L]))))
    score = words(key[:, None], CHOOSE, np.arange(L))
    score[~there] = np.iinfo(np.uint64).max
    lowest = np.sort(score, axis=1)[np.arange(n), np.maximum(count.astype(np.int64) - 1, 0)]
    return there & (score <= lowest[:, None]) & (count > 0)[:, None]


def pick_words(text: np.ndarray, starts: np.ndarray, rate: float, key: np.ndarray) -> np.ndarray:
    """[n, L] bool: `pick`, but of words, all of whose tokens are chosen (whole-word masking).

    text [n, L]: what may be chosen. starts [n, L]: the first token of each word.
    """
    column = np.arange(text.shape[1])
    word = np.maximum.accumulate(np.where(starts, column, 0), axis=1)
    return text & np.take_along_axis(pick(starts, rate, key), word, axis=1)


def word_tables(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(begins, ends), each [vocab_size] bool: whether an id's piece begins with white space;
    whether it ends with it, behind something else.
    """
    begins = [piece[:1].isspace() for piece in tokenizer.pieces]
    ends = [piece != piece.rstrip() != b"" for piece in tokenizer.pieces]
    return np.array(begins), np.array(ends)


def word_starts(
    ids: np.ndarray, text: np.ndarray, begins: np.ndarray, ends: np.ndarray
) -> np.ndarray:
    """[n, L] bool: the tokens of `text` [n, L] that begin a word, by the `word_tables`. So does
    what follows something that is no text, such as the begin of a document.
    """
    known = np.where(text, ids, 0)
    after = np.ones_like(text)
    after[:, 1:] = ~text[:, :-1] | ends[known[:, :-1]]
    return text & (begins[known] | after)


def mask(
    ids: np.ndarray, chosen: np.ndarray, key: np.ndarray, mask_id: int, values: np.ndarray
) -> np.ndarray:
    """[n, L] ids whose `chosen` [n, L] are 80 % `mask_id`, 10 % one of `values` [m], 10 % as they
    were (BERT, arXiv:1810.04805, section 3.1).
    """
    row, column = np.nonzero(chosen)
    kind = uniform(words(key[row], KIND, column))
    value = values[below(words(key[row], VALUE, column), len(values))]
    noised = ids.copy()
    kept = np.where(kind < MASKED + RANDOM, value, ids[row, column])
    noised[row, column] = np.where(kind < MASKED, mask_id, kept)
    return noised


def span_counts(longest: int, rate: float, mean: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(noise tokens, spans), each [longest + 1]: of a text of n tokens, at index n.

    T5's (arXiv:1910.10683, section 3.1.4): round(rate n) tokens, at least one and not all, in
    round(tokens / mean) spans, each behind a token that stays; at most `most` spans, since a
    sentinel has a name of its own. A text of one token has none.
    """
    n = np.arange(longest + 1)
    noise = np.clip(np.rint(n * rate).astype(np.int64), 1, np.maximum(n - 1, 1))
    spans = np.rint(noise / mean).astype(np.int64)
    spans = np.clip(spans, 1, np.maximum(np.minimum(np.minimum(noise, n - noise), most), 1))
    return np.where(n > 1, noise, 0), np.where(n > 1, spans, 0)


def segmentation(totals: np.ndarray, parts: np.ndarray, word: np.ndarray) -> np.ndarray:
    """[sum(parts)]: each of `totals` [k] as a sum of `parts` [k] positive numbers, every such sum
    as likely as any other.

    parts - 1 of the total - 1 places between two items are cuts, those whose words are least.
    word [sum(totals - 1)]: a word for each place.
    """
    places = totals - 1
    group = np.repeat(np.arange(len(totals)), places)
    order = np.lexsort((word, group))
    begin = np.cumsum(places) - places
    rank = np.arange(len(group)) - begin[group]
    cuts = np.sort(order[rank < parts[group] - 1])
    ends = np.empty(parts.sum(), np.int64)
    last = np.cumsum(parts) - 1
    ends[last] = totals
    inner = np.ones(len(ends), bool)
    inner[last] = False
    ends[inner] = cuts - begin[group[cuts]] + 1
    first = np.zeros(len(ends), bool)
    first[last - parts + 1] = True
    return ends - np.where(first, 0, np.roll(ends, 1))
