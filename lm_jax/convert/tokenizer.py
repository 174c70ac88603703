"""Tokenizers to and from a Hugging Face directory, as tokenizer.json with the same ids.

Pieces hold real spaces in place of SentencePiece's U+2581, so there is neither a normalizer nor
Metaspace, and U+2581 in a text is an ordinary character without a piece.
"""

import json
import os
from pathlib import Path
from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.data.tokens.frame import Frame, template_of
from lm_jax.data.tokens.hf_folder import ROLES
from lm_jax.data.tokens.hf_tokenizer import HFTokenizer
from lm_jax.data.tokens.load import load_tokenizer
from lm_jax.data.tokens.pieces import ALPHABET
from lm_jax.data.tokens.specials import decoder_start
from lm_jax.data.tokens.tokenizer import NAMES, Tokenizer
from lm_jax.errors import MachineError, UserError

# Unigram scores of what SentencePiece does not choose by score: a byte, only where no piece covers
# the character; and the names of specials and of bytes that have a piece, never.
BYTE_SCORE = -1e3
NEVER_CHOSEN = -1e6
BYTE_LEVEL = {
    "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False
}  # fmt: skip
Parts = dict[str, Any]  # model, pre_tokenizer and decoder of a tokenizer.json


def import_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a directory with tokenizer.json, of transformers' `save_pretrained`.

    Its ids are those there with add_special_tokens=False and split_special_tokens=True: see
    lm_jax.data.tokens.hf_tokenizer.HFTokenizer. Raises DataError, or UserError without the
    `tokenizers` library (pip install lm_jax[hf]).
    """
    return load_tokenizer(directory)


def export_tokenizer(
    tokenizer: Tokenizer, directory: str | os.PathLike[str], frame: Frame | None = None
) -> None:
    """Writes the files that `transformers.AutoTokenizer` loads: tokenizer.json and
    tokenizer_config.json, and of an imported tokenizer all that came with it, such as its chat
    template, as it was.

    A tokenizer of ours then gives the ids of `tokenizer.encode`, of any text: spaces as they are,
    and text that looks like a special token is text. There are two exceptions. Where a text has
    MAX_CHUNK characters without a line end, it is cut here and not there. And unigram pieces of
    equal score may be chosen otherwise when the scores are not those of tokenizer_training, which
    are exact in float32 (SCORE_STEPS). Texts are decoded as here; of ids that are no UTF-8
    together, bpe makes more U+FFFD there.

    frame: special tokens that are put around a text there; by default none for a tokenizer of ours,
    and its own rule for an imported one.

    `directory` may hold the model already. Raises UserError when it holds a tokenizer.
    """
    path = Path(directory)
    own = tokenizer.frame if isinstance(tokenizer, HFTokenizer) else Frame()
    files = files_of(tokenizer, own if frame is None else frame)
    for name in files:
        if (path / name).exists():
            raise UserError(f"{path / name}: exists; name another directory.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (path / name).write_bytes(content)
    except OSError as error:
        raise MachineError(f"{error.filename or path}: {error.strerror}.") from None


def files_of(tokenizer: Tokenizer, frame: Frame) -> dict[str, bytes]:
    """The files of a tokenizer by name."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    if not isinstance(tokenizer, HFTokenizer):
        names = {role: NAMES[role] for role in tokenizer.specials}
        config["split_special_tokens"] = True  # a document that spells "</s>" does not end there
        config |= {f"{role}_token": name for role, name in names.items()}
        definition = definition_of(tokenizer, names, frame)
        return {"tokenizer.json": json.dumps(definition, ensure_ascii=False).encode(),
                "tokenizer_config.json": json_bytes(config)}  # fmt: skip
    files = {"tokenizer.json": tokenizer.model, **tokenizer.files}
    if "tokenizer_config.json" not in files:
        ids = {role: i for role, i in tokenizer.roles.items() if role in ROLES}
        config |= {f"{role}_token": tokenizer.name_of(i) for role, i in ids.items()}
        files["tokenizer_config.json"] = json_bytes(config)
    if frame != tokenizer.frame:
        template = template_of(frame, tokenizer.name_of)
        definition = json.loads(tokenizer.model) | {"post_processor": template}
        files["tokenizer.json"] = json.dumps(definition, ensure_ascii=False).encode()
    return files


def json_bytes(values: dict[str, Any]) -> bytes:
    """The bytes of a JSON file."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def prompt_frame(frame: Frame, architecture: str) -> Frame:
    """The special tokens around a prompt, from those around a training text: a decoder's prompt has
    none at its end, which it is to continue.
    """
    return Frame(frame.before) if architecture == "decoder" else frame


def definition_of(tokenizer: Tokenizer, names: dict[str, str], frame: Frame) -> dict[str, Any]:
    """The tokenizer.json of a tokenizer that was trained here."""
    parts = {"bpe": bpe, "unigram": unigram, "bytes": plain_bytes}[tokenizer.kind]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": tokenizer.specials[role], "content": name, **flags, "special": True}
            for role, name in names.items()
        ],
        "normalizer": None,
        "post_processor": template_of(frame, tokenizer.name_of),
        **parts(tokenizer, names),
    }


def bpe(tokenizer: Tokenizer, names: dict[str, str]) -> Parts:
    """Every pair of pieces that makes a piece is a merge, by the score of what it makes."""
    pieces = ordinary(tokenizer)
    by_score = sorted(pieces, key=lambda i: -tokenizer.processor.get_score(i))
    known = set(pieces.values())
    model = {
        "type": "BPE", "dropout": None, "unk_token": names["unk"], "fuse_unk": False,
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": True,
        "ignore_merges": False, "vocab": reserved(tokenizer) | {pieces[i]: i for i in pieces},
        "merges": [
            [pieces[i][:k], pieces[i][k:]] for i in by_score for k in splits(pieces[i], known)
        ],
    }  # fmt: skip
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return {"model": model, "pre_tokenizer": None, "decoder": decoder}


def splits(piece: str, known: set[str]) -> list[int]:
    """Ways to split `piece` into two pieces, in the order in which a merge is to be preferred.

    To SentencePiece all of these are one merge, and the leftmost in the text comes first; there
    they have an order of their own. It matters where two overlap: "a b" + "a" and "a" + "b a" in
    [a b][a][b a]. That is when the piece begins as it ends (with the k characters that they share),
    and the left one of them is the split before its last k characters.
    """
    n = len(piece)
    found = [k for k in range(1, n) if piece[:k] in known and piece[k:] in known]
    first = lambda k: piece[: n - k] == piece[k:] and (k > n - k or piece[:k] != piece[n - k :])
    return sorted(found, key=lambda k: (max(k, n - k), not first(k)))


def unigram(tokenizer: Tokenizer, names: dict[str, str]) -> Parts:
    """Pieces as byte strings. A vocabulary of characters would take the names of specials and bytes
    for pieces, where a text spells them.
    """
    normal = ordinary(tokenizer)
    taken = {tokenizer.pieces[i] for i in normal}
    vocab = []
    for name, i in reserved(tokenizer).items():
        piece = tokenizer.pieces[i]
        needed = piece and piece not in taken
        vocab.append((i, byte_level(piece), BYTE_SCORE) if needed else (i, name, NEVER_CHOSEN))
    for i in normal:
        vocab.append((i, byte_level(tokenizer.pieces[i]), tokenizer.processor.get_score(i)))
    model = {
        "type": "Unigram", "unk_id": tokenizer.specials["unk"], "byte_fallback": False,
        "vocab": [[piece, score] for _, piece, score in sorted(vocab)],
    }  # fmt: skip
    # Bytes that have a piece besides are still named <0x41>.
    decoder = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, BYTE_LEVEL]}
    return {"model": model, "pre_tokenizer": BYTE_LEVEL, "decoder": decoder}


def plain_bytes(tokenizer: Tokenizer, names: dict[str, str]) -> Parts:
    """BPE over bytes, without a merge."""
    vocab = {byte_level(bytes([b])): b for b in range(256)}
    vocab |= {name: tokenizer.specials[role] for role, name in names.items()}
    model: Parts = {
        "type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "byte_fallback": False,
        "ignore_merges": False, "vocab": vocab, "merges": [],
    }  # fmt: skip
    return {"model": model, "pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL}


def ordinary(tokenizer: Tokenizer) -> dict[int, str]:
    """The text of each SentencePiece piece that is neither a special nor a byte."""
    ids = range(tokenizer.vocab_size)
    other = set(reserved(tokenizer).values())
    return {i: tokenizer.pieces[i].decode() for i in ids if i not in other}


def reserved(tokenizer: Tokenizer) -> dict[str, int]:
    """Specials and bytes of a SentencePiece model: {"<s>": 1, ..., "<0x41>": 69, ...}."""
    model = tokenizer.processor
    ids = [
        i for i in range(tokenizer.vocab_size)
        if model.is_control(i) or model.is_unknown(i) or model.is_byte(i)
    ]  # fmt: skip
    return {model.id_to_piece(i): i for i in ids}


def byte_level(data: bytes) -> str:
    """Bytes in the alphabet of ByteLevel."""
    return "".join(ALPHABET[byte] for byte in data)


def special_ids(tokenizer: Any, config: ModelConfig) -> dict[str, int | None]:
    """The ids that begin, end and pad a text, and that a decoder starts from; null, or transformers
    would take its own defaults.

    No token pads where the tokenizer has none of its own for it: torch gives the embedding of
    pad_token_id no gradient, and the end of a text, which pads here, needs one.
    """
    ids = {name: getattr(tokenizer, f"{name}_id", None) for name in ("bos", "eos", "pad")}
    if isinstance(tokenizer, HFTokenizer) and "pad" not in tokenizer.roles:
        ids["pad"] = None
    if config.architecture == "encoder_decoder":
        start = None if tokenizer is None else decoder_start(tokenizer, config.decoder_start)
        ids["decoder_start"] = start
    known = lambda value: None if value is None or value < 0 else int(value)
    return {f"{name}_token_id": known(value) for name, value in ids.items()}
