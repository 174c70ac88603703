"""Bytes of the tokens of a tokenizer.json, by the decoder that it names."""

import re
from collections.abc import Mapping
from typing import Any

from lm_jax.data.tokens.definition import MAX_GROWTH, MAX_PIECE_BYTES
from lm_jax.data.tokens.tokenizer import MAX_FILE_BYTES
from lm_jax.errors import DataError, nearest

DECODERS = ("ByteLevel", "ByteFallback", "Metaspace", "Replace", "WordPiece", "BPEDecoder", "Fuse",
            "Strip")  # fmt: skip
BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> list[str]:
    """256 characters, one a byte: itself where it prints, else the next from U+0100 (GPT-2)."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


ALPHABET = byte_alphabet()
BYTE_OF = {character: byte for byte, character in enumerate(ALPHABET)}


def decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    """The decoder of a tokenizer.json as a flat list; raises DataError on one that is not known."""
    if decoder is None:
        # Pieces are then joined by spaces: WordPiece without continuations.
        return [{"type": "WordPiece", "prefix": None}]
    if decoder.get("type") == "Sequence":
        return [step for part in decoder["decoders"] for step in decoder_steps(part)]
    if decoder.get("type") not in DECODERS or "Regex" in decoder.get("pattern", {}):
        kind = "Replace by a regex" if "pattern" in decoder else str(decoder.get("type"))[:40]
        raise DataError(f"decoder {kind!r} is not supported.{nearest(kind, DECODERS)}")
    grown = max(len(decoder.get("content") or ""), decoder.get("start") or 0)
    if grown > MAX_GROWTH:
        raise DataError(f"decoder {decoder['type']!r} writes {grown} characters for one.")
    return [decoder]


def pieces_of(
    vocabulary: Mapping[str, int], added: Mapping[str, Any], steps: list[dict[str, Any]]
) -> list[bytes]:
    """Bytes of each id, b"" for special tokens; raises DataError when that is too much."""
    pieces, size = [b""] * (max(vocabulary.values(), default=-1) + 1), 0
    for piece, i in vocabulary.items():
        if piece not in added:
            pieces[i] = piece_bytes(piece, steps)
        elif not added[piece].get("special"):
            pieces[i] = piece.encode()
        size += len(pieces[i])
        if len(pieces[i]) > MAX_PIECE_BYTES or size > 4 * MAX_FILE_BYTES:
            raise DataError(
                f"token {piece[:40]!r} stands for {len(pieces[i])} bytes, and all so far for"
                f" {size}; at most {MAX_PIECE_BYTES} and {4 * MAX_FILE_BYTES} are allowed."
            )
    return pieces


def piece_bytes(piece: str, steps: list[dict[str, Any]]) -> bytes:
    """Bytes of a piece within a text."""
    for step in steps:
        if step["type"] == "ByteLevel" and all(c in BYTE_OF for c in piece):
            return bytes(BYTE_OF[c] for c in piece)
        if step["type"] == "ByteFallback" and (match := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if step["type"] == "Metaspace":
            piece = piece.replace(step["replacement"], " ")
        elif step["type"] == "Replace":
            piece = piece.replace(step["pattern"]["String"], step["content"])
            if len(piece) > MAX_PIECE_BYTES:
                break
        elif step["type"] == "BPEDecoder":
            piece = piece.replace(step["suffix"], " ")
        elif step["type"] == "WordPiece":
            inner = step["prefix"] and piece.startswith(step["prefix"])
            piece = piece.removeprefix(step["prefix"]) if inner else " " + piece
    return piece.encode()


def prefix_of(steps: list[dict[str, Any]]) -> bytes:
    """Bytes at the start of a text that were not in it, and that the decoder drops."""
    for step in steps:
        if step["type"] == "WordPiece" or (
            step["type"] == "Metaspace"
            and step.get("prepend_scheme", "always") != "never"
            and step.get("add_prefix_space", True)
        ):
            return b" "
        if step["type"] == "Strip":
            return (step["content"] * step["start"]).encode()
    return b""
