"""Training of lossless tokenizers: SentencePiece, with its scores made exact."""

import io
import re
import struct
from collections.abc import Iterable, Iterator

from lm_jax.data.tokens import scripts
from lm_jax.data.tokens.tokenizer import KINDS, SPACE, Tokenizer
from lm_jax.errors import DataError, nearest

SPECIALS = 4  # unk, bos, eos, pad: ids 0..3 of a SentencePiece tokenizer, before its 256 bytes
THREADS = 2  # of training: the unigram pieces depend on it
SAMPLE_BYTES = 8_000_000  # text that training needs; more changes little and costs seconds
# Scores of unigram pieces are multiples of 1 / SCORE_STEPS: a sum of them is exact in float32 over
# a whole chunk, so that pieces of equal score are chosen alike by any other implementation.
SCORE_STEPS = 64
# A piece holds a newline only at its start, with the indentation that follows it ("\n    return").
LINE = re.compile(r"\n+[^\n]*|[^\n]+")


def train(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` ids learned from `texts` (some megabytes are enough);
    raises DataError.

    Spaces, tabs, newlines and every other character are kept as they are (identity normalisation,
    no dummy prefix), and whatever has no piece becomes bytes. BPE pieces may span words
    ("SuperBPE", arXiv:2503.13423): on source code 12 % fewer tokens than pieces within words. In
    scripts without spaces (Chinese, Japanese, Thai) they end at sentence marks, digits, line ends
    and other scripts; such text wants about four pieces for each of its characters: 16,384 for
    usual Chinese.
    """
    if kind == "bytes":
        return Tokenizer.byte_level()
    if kind not in KINDS:
        raise DataError(f"config.data.tokenizer={kind!r}: not known.{nearest(kind, KINDS)}")
    if vocab_size < 256 + SPECIALS + 1:
        raise DataError(
            f"config.data.vocab_size={vocab_size}: must be at least {257 + SPECIALS}"
            " (bytes, specials, and a piece); or config.data.tokenizer=bytes."
        )
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=with_a_space(training_lines(texts)),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            character_coverage=0.9995,
            required_chars=SPACE,  # rare in Chinese, and its bytes would be those of the sign
            # Unigram starts from every substring: across words that takes minutes a megabyte.
            split_by_whitespace=kind == "unigram",
            allow_whitespace_only_pieces=True,
            split_by_unicode_script=False,
            split_by_number=False,
            max_sentencepiece_length=32,
            max_sentence_length=1 << 20,
            num_threads=THREADS,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(explain(str(error), vocab_size)) from None
    return Tokenizer(kind, rounded(model.getvalue()) if kind == "unigram" else model.getvalue())


def rounded(model: bytes) -> bytes:
    """A SentencePiece model with its scores at multiples of 1 / SCORE_STEPS.

    Its pieces come first, each a message (0x0A, length) of its text (0x0A, length) and its score
    (0x15, float32) and more. Read by hand: SentencePiece's classes want the newest protobuf.
    """
    data, at = bytearray(model), 0
    while at < len(data) and data[at] == 0x0A:
        length, start = varint(data, at + 1)
        text, at = varint(data, start + 1)
        if data[at + text] == 0x15:
            (score,) = struct.unpack_from("<f", data, at + text + 1)
            struct.pack_into("<f", data, at + text + 1, round(score * SCORE_STEPS) / SCORE_STEPS)
        at = start + length
    return bytes(data)


def varint(data: bytearray, at: int) -> tuple[int, int]:
    """(the number at `at`, in groups of 7 bits, the lowest first; where it ends)."""
    value, shift = 0, 0
    while data[at] & 0x80:
        value, shift, at = value | (data[at] & 0x7F) << shift, shift + 7, at + 1
    return value | data[at] << shift, at + 1


def explain(message: str, vocab_size: int) -> str:
    """SentencePiece's complaint in words of the config."""
    most = re.search(r"value <= (\d+)", message)
    if most:
        return (
            f"config.data.vocab_size={vocab_size}: this text is too small for so many pieces;"
            f" at most {most[1]}, or config.data.tokenizer=bytes."
        )
    least = re.search(r"required_chars\. \d+ vs (\d+)", message)
    if least:
        return (
            f"config.data.vocab_size={vocab_size}: must be at least {least[1]} for this text"
            " (bytes, specials, and its characters); or config.data.tokenizer=bytes."
        )
    if "sentences_" in message or "empty" in message.lower():
        return "no text to train a tokenizer on; or config.data.tokenizer=bytes."
    return f"SentencePiece: {' '.join(message.split())}"


def with_a_space(lines: Iterable[str]) -> Iterator[str]:
    """`lines`, and a space behind them where they have none: SentencePiece 0.2.2 aborts the process
    at a required character that is not in the text (BPE).
    """
    lines_seen = spaces_seen = False
    for line in lines:
        lines_seen, spaces_seen = True, spaces_seen or " " in line
        yield line
    if lines_seen and not spaces_seen:
        yield " "


def training_lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines of at most 4096 characters, so that SentencePiece drops none for its length; cut where
    no piece is to reach across (scripts.parts).
    """
    for text in texts:
        text = text.replace("\0", "")  # no piece may hold it
        for line in LINE.findall(text):
            for part in scripts.parts(line):
                for start in range(0, len(part), 4096):
                    yield part[start : start + 4096]
