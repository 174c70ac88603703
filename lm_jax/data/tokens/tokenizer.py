"""Text to token ids and back, without losing a byte: SentencePiece (BPE, unigram) and plain bytes;
hf_tokenizer.py has those of Hugging Face.

Decoding is a concatenation of byte strings, one per id, so that it is exact, needs no library, and
can be streamed.
"""

import codecs
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lm_jax.data.tokens.frame import Frame
from lm_jax.errors import DataError

KINDS = ("bpe", "unigram", "bytes")
MAX_FILE_BYTES = 64 << 20
MAX_CHUNK = 1 << 16  # characters that are encoded in one go

# Pieces hold a newline only at their start (tokenizer_training.LINE): so a text can be cut before
# any run of newlines and the parts encoded separately, with the same ids as the whole.
CUT = re.compile(r"(?<!\n)\n")
SPACE = "\u2581"  # SentencePiece writes a space so; the sign itself is kept as three bytes
NAMES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}  # of special tokens


class Tokenizer:
    """Lossless text <-> int32 ids. Make one with tokenizer_training.train, `load_tokenizer` or
    `Tokenizer.byte_level()`.

    Attributes: kind, vocab_size, bos_id, eos_id, pad_id, hash (sha256 of the definition: pieces,
    scores and options, not of the file), byte_lengths [vocab_size] (UTF-8 bytes that an id stands
    for, 0 for specials), specials (ids by name: bos, eos, pad ...), lossless (whether every text
    comes back from its ids), prefix (bytes that encoding puts before a text), frame (the special
    tokens that belong around a text), names (ids of the special tokens by their text: "<s>"),
    splits_specials (whether text that spells a special token is text, wherever else it is encoded).
    """

    lossless = True
    prefix = b""
    splits_specials = True

    def __init__(self, kind: str, model: bytes = b""):
        self.kind, self.model = kind, model
        self.specials: dict[str, int]
        if kind == "bytes":
            self.processor: Any = None
            pieces = [bytes([b]) for b in range(256)] + [b"", b"", b""]
            scores: list[float] = []
            self.bos_id, self.eos_id, self.pad_id = 256, 257, 258
            self.specials = {"bos": 256, "eos": 257, "pad": 258}
        else:
            import sentencepiece

            if not model:
                raise DataError("tokenizer.model is empty.")
            self.processor = sentencepiece.SentencePieceProcessor()
            self.processor.LoadFromSerializedProto(model)
            pieces, scores = read_pieces(self.processor)
            self.bos_id, self.eos_id, self.pad_id = 1, 2, 3
            self.specials = {"unk": 0, "bos": 1, "eos": 2, "pad": 3}
            if len(pieces) <= self.pad_id:
                raise DataError(f"its SentencePiece model holds {len(pieces)} pieces.")
            self.first_byte = self.processor.piece_to_id("<0x00>")
            self.spaceless = self.processor.is_unknown(self.processor.piece_to_id(SPACE))
            if self.processor.is_unknown(self.first_byte) or len(self.encode("  a\n b")) == 0:
                raise DataError("the tokenizer has no byte fallback: it cannot be lossless.")
        self.names = {NAMES[role]: i for role, i in self.specials.items()}
        self.frame = self.document_frame
        self.set_tables(pieces, [kind, [p.hex() for p in pieces], scores])

    def set_tables(self, pieces: list[bytes], definition: Any) -> None:
        """Sets the tables that decoding needs, and the hash of `definition` (JSON)."""
        self.pieces = pieces
        self.vocab_size = len(pieces)
        self.byte_lengths = np.array([len(p) for p in pieces], np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.byte_lengths)[:-1]])
        self.flat = np.frombuffer(b"".join(pieces), np.uint8)
        self.hash = hashlib.sha256(json.dumps(definition).encode()).hexdigest()

    @classmethod
    def byte_level(cls) -> "Tokenizer":
        """256 bytes, then bos, eos, pad."""
        return cls("bytes")

    def __reduce__(self) -> Any:
        return Tokenizer, (self.kind, self.model)

    @property
    def document_frame(self) -> Frame:
        """BOS and EOS, which a token store puts around each document."""
        return Frame((self.bos_id,), (self.eos_id,))

    def name_of(self, i: int) -> str:
        """The text of a special token; its number where it has none."""
        return next((name for name, known in self.names.items() if known == i), f"<{i}>")

    def encode_specials(self, text: str, more: Mapping[str, int] | None = None) -> np.ndarray:
        """Ids [n] of `text`, in which a special token's own text ("</s>") is that token; `more`:
        ids of others by their text.
        """
        return self.encode_around(text, {**self.names, **(more or {})}, self.encode)

    @staticmethod
    def encode_around(
        text: str, names: Mapping[str, int], encode: Callable[[str], np.ndarray]
    ) -> np.ndarray:
        """Ids [n] of `text`: those of `names` where one is spelled, and what `encode` makes of the
        text between.
        """
        longest = sorted(names, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest))})", text) if names else [text]
        ids = [[names[part]] if part in names else encode(part) for part in parts]
        return np.concatenate(ids).astype(np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Ids [n] of `text`, no bos or eos; raises DataError on a lone surrogate."""
        return self.encode_batch([text], threads=1)[0]

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        """Ids of each text; threads 0: one for each core this process may use."""
        encoded = utf8(texts)
        if self.kind == "bytes":
            return [np.frombuffer(text, np.uint8).astype(np.int32) for text in encoded]
        parts = [chunks(text) for text in texts]
        flat = list(itertools.chain.from_iterable(parts))
        found = self.processor.encode(flat, num_threads=threads or cores())
        sign = [self.first_byte + b for b in SPACE.encode()]
        for i, chunk in enumerate(flat):
            if chunk == SPACE:
                found[i] = sign
            elif self.spaceless and " " in chunk:  # SentencePiece gives it the bytes of the sign
                found[i] = replaced(found[i], sign, self.first_byte + 0x20)
        lists, results = iter(found), []
        for part in parts:
            ids = itertools.chain.from_iterable(itertools.islice(lists, len(part)))
            results.append(np.fromiter(ids, np.int32))
        return results

    def decode_bytes(self, ids: Any) -> bytes:
        """The bytes that `ids` [n] stand for; specials stand for none. Raises DataError on an id
        that is none.
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        if ids.size == 0:
            return b""
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise DataError(
                f"token id {ids.max() if ids.max() >= self.vocab_size else ids.min()} is outside"
                f" the tokenizer's 0..{self.vocab_size - 1}."
            )
        lengths = self.byte_lengths[ids]
        ends = np.cumsum(lengths)
        index = np.repeat(self.starts[ids] - ends + lengths, lengths) + np.arange(ends[-1])
        return self.flat[index].tobytes()

    def restores(self, text: bytes, ids: Any) -> bool:
        """Whether `ids` are exactly this UTF-8 `text`."""
        return self.decode_bytes(ids).removeprefix(self.prefix) == text

    def decode(self, ids: Any) -> str:
        """Text of `ids` [n]; bytes that are no UTF-8 (a sample cut in a character) become
        U+FFFD.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decoder(self) -> "StreamDecoder":
        """A decoder for ids that come one by one."""
        return StreamDecoder(self)

    def save(self, directory: Any) -> None:
        """Writes tokenizer.json and, for SentencePiece, tokenizer.model into `directory`."""
        from etils import epath

        folder = epath.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        if self.model:
            (folder / "tokenizer.model").write_bytes(self.model)
        about = {"kind": self.kind, "vocab_size": self.vocab_size, "hash": self.hash}
        (folder / "tokenizer.json").write_text(json.dumps(about, indent=1) + "\n")

    def check_hash(self, folder: Any, expected: Any) -> None:
        """Raises DataError when the hash that the files in `folder` record is another."""
        if self.hash != expected:
            raise DataError(
                f"{folder}: tokenizer hash is {self.hash[:12]}, its file has"
                f" {str(expected)[:12]}: damaged or exchanged."
            )


class StreamDecoder:
    """Text of ids that come one by one: `push` returns what is complete, `flush` the rest."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Any) -> str:
        """The characters that `ids` (one or several) complete."""
        return self.utf8.decode(self.tokenizer.decode_bytes(np.atleast_1d(ids)))

    def flush(self) -> str:
        """The end: U+FFFD if a character was cut."""
        return self.utf8.decode(b"", final=True)


def utf8(texts: Sequence[str]) -> list[bytes]:
    """`texts` as UTF-8; raises DataError on a lone surrogate."""
    try:
        return [text.encode() for text in texts]
    except UnicodeEncodeError as error:
        raise DataError(
            f"text holds a lone surrogate {error.object[error.start]!r} at character"
            f" {error.start}: not Unicode text."
        ) from None


def replaced(ids: list[int], run: list[int], one: int) -> list[int]:
    """`ids` with `one` for each `run`."""
    found, i = [], 0
    while i < len(ids):
        whole = ids[i : i + len(run)] == run
        found.append(one if whole else ids[i])
        i += len(run) if whole else 1
    return found


def chunks(text: str) -> list[str]:
    """Parts of `text` that are encoded separately: cut before newlines, and anywhere after
    MAX_CHUNK characters.

    Short parts keep the encoder fast (its queue grows with the part) and give every thread
    something to do.
    """
    if SPACE in text:
        return [c for part in re.split(f"({SPACE})", text) for c in chunks_of(part)]
    return chunks_of(text)


def chunks_of(text: str) -> list[str]:
    """`chunks` of a text without SPACE, or of SPACE itself."""
    found, start = [], 0
    while len(text) - start > 2048:
        cut = CUT.search(text, start + 1024, start + MAX_CHUNK)
        end = cut.start() if cut else start + MAX_CHUNK
        found.append(text[start:end])
        start = end
    if start < len(text):
        found.append(text[start:])
    return found


def read_pieces(processor: Any) -> tuple[list[bytes], list[float]]:
    """([bytes that each id stands for], [score of each id]) of a SentencePiece processor."""
    pieces, scores = [], []
    for i in range(processor.get_piece_size()):
        piece = processor.id_to_piece(i)
        scores.append(processor.get_score(i))
        if processor.is_control(i) or processor.is_unknown(i):
            pieces.append(b"")
        elif processor.is_byte(i):
            pieces.append(bytes([int(piece[3:5], 16)]))
        else:
            pieces.append(piece.replace(SPACE, " ").encode())
    return pieces, scores


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
