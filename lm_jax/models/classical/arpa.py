r"""The ARPA file format of n-gram models, as SRILM and KenLM read and write it.

    \data\            \1-grams:                       \2-grams:
    ngram 1=3         -99    <s>    -0.301029996      -0.2    <s> a
    ngram 2=1         -0.5   a      -0.1
                      -0.5   </s>                     \end\

A row is log10 p(last word | those before), the words, and log10 of the backoff weight of longer
n-grams that begin with them. <s> is the begin symbol. Special words with p <= 10^-99, and <s> with
p = 1 (KenLM), exist only because of the format and are not tokens of the model.
"""

import gzip
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lm_jax.errors import DataError, UserError
from lm_jax.models.classical.ngram import MAX_ORDER, KneserNey, Level, find

BEGIN, SPECIAL = "<s>", ("<s>", "</s>", "<unk>")
LOG_ZERO = -99.0  # log10 of a probability of 0


def write(model: KneserNey, path: str | os.PathLike, words: Sequence[str]) -> None:
    """Writes `model` to `path`, compressed when it ends in .gz; words[i] is the name of token i.

    Words are unique, not empty and without white space; the word of bos_id, and no other, is <s>.
    </s> and <unk> are added where no token has these names. Raises UserError.
    """
    check_words(model, words)
    added = [name for name in SPECIAL if name not in words]
    above = [level.backoff for level in model.levels]
    name = os.fspath(path)
    opened = gzip.open if name.endswith(".gz") else open
    with opened(name, "wt", encoding="utf-8", newline="\n") as file:
        sizes = [len(words) + len(added), *(len(level.keys) for level in model.levels)]
        file.write("\\data\\\n")
        file.writelines(f"ngram {k}={size}\n" for k, size in enumerate(sizes, 1))

        grams, backoff = [*words, *added], None
        prob = np.append(np.log10(model.unigram), np.full(len(added), LOG_ZERO))
        if above:
            backoff = np.append(above[0][:-1], np.ones(len(added)))
            backoff[grams.index(BEGIN)] = above[0][-1]
        section(file, 1, grams, prob, backoff)
        grams = [*words, BEGIN]  # by rank
        for k, level in enumerate(model.levels, 2):
            context, last = np.divmod(level.keys, model.base)
            pairs = zip(context.tolist(), last.tolist(), strict=True)
            grams = [f"{grams[c]} {words[w]}" for c, w in pairs]
            section(file, k, grams, np.log10(level.prob), above[k - 1] if k <= len(above) else None)
        file.write("\n\\end\\\n")


def section(file, k: int, grams: list[str], prob: np.ndarray, backoff: np.ndarray | None) -> None:
    """The rows of order k. prob: log10 p. backoff: weights; None for the highest order."""
    file.write(f"\n\\{k}-grams:\n")
    if backoff is None:
        file.writelines(f"{p:.9g}\t{gram}\n" for p, gram in zip(prob, grams, strict=True))
        return
    rows = zip(prob, grams, np.log10(backoff), strict=True)
    file.writelines(f"{p:.9g}\t{gram}\t{b:.9g}\n" for p, gram, b in rows)


def check_words(model: KneserNey, words: Sequence[str]) -> None:
    """Raises UserError at the first word that an ARPA file cannot represent."""
    if len(words) != model.vocab_size:
        raise UserError(f"{len(words)} words for a model of vocab_size={model.vocab_size}.")
    places: dict[str, int] = {}
    for i, word in enumerate(words):
        if word.encode().split() != [word.encode()]:
            raise UserError(f"words[{i}]={word!r}: must not be empty, nor have white space.")
        if (word == BEGIN) != (i == model.bos_id):
            raise UserError(f"words[{i}]={word!r}: {BEGIN} must name bos_id={model.bos_id} only.")
        if places.setdefault(word, i) != i:
            raise UserError(f"words[{i}]={word!r}: the name of token {places[word]} already.")


def read(path: str | os.PathLike) -> tuple[KneserNey, list[str]]:
    """The model of an ARPA file, plain or .gz, and the names of its tokens in the file's order.

    bos_id is the place of <s> where that is a token. Raises DataError that names file and line.
    """
    lines = Lines(os.fspath(path))
    sizes = lines.sizes()
    names, prob, backoff, numbers = lines.section(1, sizes[0])
    ids: dict[str, int] = {}
    repeated = [ids.setdefault(name, i) != i for i, name in enumerate(names)]
    lines.refuse(repeated, numbers, "a word comes twice")
    format_only = {name for name in SPECIAL if name in ids and prob[ids[name]] <= LOG_ZERO}
    if BEGIN in ids and prob[ids[BEGIN]] == 0:
        format_only.add(BEGIN)
    words = [name for name in names if name not in format_only]
    if not words:
        raise lines.error("there is no token")

    model = KneserNey(len(sizes), len(words), words.index(BEGIN) if BEGIN in words else None)
    kept = [ids[word] for word in words]
    model.unigram = 10 ** prob[kept]
    above = 10 ** np.append(backoff[kept], backoff[ids[BEGIN]] if BEGIN in ids else 0.0)
    ids = {word: i for i, word in enumerate(words)} | {BEGIN: model.vocab_size}
    for k, size in enumerate(sizes[1:], 2):
        flat, prob, backoff, numbers = lines.section(k, size)
        grams = np.fromiter((ids.get(word, -1) for word in flat), np.int64, len(flat))
        grams = grams.reshape(-1, k)
        lines.refuse((grams < 0).any(1), numbers, "a word is not among the 1-grams")
        ranks = grams[:, 0]
        for level, token in zip(model.levels, grams[:, 1:-1].T, strict=True):
            ranks = find(level.keys, ranks * model.base + token)
        lines.refuse(ranks < 0, numbers, f"its first words are not among the {k - 1}-grams")
        keys = ranks * model.base + grams[:, -1]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        lines.refuse(keys[1:] == keys[:-1], numbers[order[1:]], "an n-gram comes twice")
        model.levels.append(Level(keys, 10 ** prob[order], above))
        above = 10 ** backoff[order]
    lines.expect("\\end\\")
    return model, words


class Lines:
    """The lines of a file that are not blank; raises DataError, with the number of the line."""

    def __init__(self, path: str):
        self.path, self.number = path, 0
        self.rest = self.opened()

    def opened(self) -> Iterator[bytes]:
        """Yields the lines without white space at their ends; raises DataError after the last one.

        Split as bytes: white space other than ASCII's may be part of a word.
        """
        try:
            with (gzip.open if self.path.endswith(".gz") else open)(self.path, "rb") as file:
                for line in file:
                    self.number += 1
                    if line := line.strip():
                        yield line
        except (OSError, EOFError, zlib.error) as error:
            raise self.error(f"cannot be read: {error}") from None
        raise self.error("the file ends here; an ARPA file goes from \\data\\ to \\end\\")

    def error(self, why: str) -> DataError:
        """An error about the line that was read last."""
        return DataError(f"{self.path}:{self.number}: {why}.")

    def refuse(self, wrong: Any, numbers: np.ndarray, why: str) -> None:
        """Raises DataError about the first of the lines `numbers` that is `wrong`."""
        if np.any(wrong):
            self.number = int(numbers[np.flatnonzero(wrong)[0]])
            raise self.error(why)

    def expect(self, wanted: str) -> None:
        """Reads the next line; raises DataError unless it is `wanted`."""
        if (line := next(self.rest)) != wanted.encode():
            raise self.error(f"expected {wanted}, found {line[:40].decode(errors='replace')!r}")

    def sizes(self) -> list[int]:
        """The number of n-grams of each order, from the head of the file."""
        while next(self.rest) != b"\\data\\":
            pass
        sizes: list[int] = []
        while found := re.fullmatch(rb"ngram\s+(\d+)\s*=\s*(\d+)", line := next(self.rest)):
            if int(found[1]) != len(sizes) + 1 or len(sizes) == MAX_ORDER:
                raise self.error(f"orders must be 1, 2, ... and at most {MAX_ORDER}")
            sizes.append(int(found[2]))
        self.rest = itertools.chain([line], self.rest)
        if not sizes:
            raise self.error("expected ngram 1=, the number of 1-grams")
        return sizes

    def section(self, k: int, size: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """The rows of order k: words [size * k], log10 p and backoff weights, numbers of lines."""
        self.expect(f"\\{k}-grams:")
        words: list[str] = []
        prob, backoff, numbers = [], [], []
        for line in itertools.islice(self.rest, size):
            fields = line.split()
            try:
                words += b" ".join(fields[1 : k + 1]).decode().split(" ")
                prob.append(float(fields[0]))
                backoff.append(float(fields[k + 1]) if len(fields) == k + 2 else 0.0)
            except ValueError as error:
                raise self.error(f"not a row of {k}-grams: {error}") from None
            if not (k < len(fields) < k + 3 and prob[-1] <= 0 and math.isfinite(backoff[-1])):
                raise self.error(
                    f"not a row of {k}-grams: log10 p <= 0, {k} words, and log10 of the backoff "
                    "weight if there is one"
                )
            numbers.append(self.number)
        return words, np.maximum(prob, LOG_ZERO), np.array(backoff), np.array(numbers, np.int64)
