"""Tokenizers of Hugging Face: a tokenizer.json, by the `tokenizers` library (extra `hf`), behind
the interface of Tokenizer.

Encoding is theirs. Decoding is ours, as everywhere: one byte string an id, from the piece and the
decoder that tokenizer.json names.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_jax.data.tokens import definition as definition_file
from lm_jax.data.tokens import probe
from lm_jax.data.tokens.definition import MAX_GROWTH, MAX_PIECE_BYTES
from lm_jax.data.tokens.frame import frame_of
from lm_jax.data.tokens.tokenizer import MAX_FILE_BYTES, Tokenizer, utf8
from lm_jax.errors import DataError, UserError, nearest

ABOUT = "lm_jax_tokenizer.json"  # ours, beside their tokenizer.json
# What else a directory says of its tokenizer; it goes where the tokenizer goes.
COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
              "chat_template.json")  # fmt: skip
ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
# What the tokenizer classes of transformers call them, for directories that do not say it.
USUAL = {
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
}
DECODERS = ("ByteLevel", "ByteFallback", "Metaspace", "Replace", "WordPiece", "BPEDecoder", "Fuse",
            "Strip")  # fmt: skip
FAILED = "the tokenizer cannot encode this text"
BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")
# A tokenizer that gives all of these back is taken to be lossless.
PROBES = (
    "a", " a", "a ", "  a   b", "A b C", "don't , stop .", "\ta\t\tb", "a\n\n b\r\n", "\n", " ",
    "na\u00efve", "e\u0301", "\ufb01 \u2460 \uff21", "\u6771\u4eac", "\U0001f600", "\u05e9\u05dc",
    "\u2581", "a\0b\x7f", "\ufeffa\u2028b", "</s> <unk> [MASK] <0x41>", "\u0378",
)  # fmt: skip


def byte_alphabet() -> list[str]:
    """256 characters, one a byte: itself where it prints, else the next from U+0100 (GPT-2)."""
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(b) if b in shown else chr(256 + hidden.index(b)) for b in range(256)]


ALPHABET = byte_alphabet()
BYTE_OF = {character: byte for byte, character in enumerate(ALPHABET)}


class HFTokenizer(Tokenizer):
    """A tokenizer.json with the interface of Tokenizer: kind "hf".

    `encode` adds no specials, and text that looks like one is text: ids are those of transformers
    with add_special_tokens=False and split_special_tokens=True. (LlamaTokenizer of transformers 5
    follows its own rules instead of an older tokenizer.json: what it saves anew says them.) Take
    ids of specials from `specials`. It has them by role (bos, eos, pad, unk, cls, sep, mask,
    decoder_start) as far as the directory names them, and by their own text ("<extra_id_0>").

    bos_id, eos_id, pad_id are always ids: a text begins with bos, else cls, else the decoder's
    start, else eos; ends with eos, else sep, else bos; and is padded with pad, else eos.

    lossless: whether PROBES come back from their ids. prefix: the space that encoding may put
    before a text; `decode` takes it away, `decode_bytes` and `decoder` do not, since they also read
    what stands within a text. byte_lengths of a WordPiece that begins a word count one space.

    frame: the special tokens that transformers puts around a text. files: COMPANIONS by name, as
    they were.
    """

    def __init__(
        self, model: bytes, roles: Mapping[str, str | int], files: Mapping[str, bytes] | None = None
    ):
        """`model`: the file tokenizer.json. `roles`: token or id of each special. `files`:
        COMPANIONS. Raises DataError, or UserError without the library.
        """
        definition = json.loads(model)
        for volatile in ("truncation", "padding"):  # transformers saves the last call's
            definition[volatile] = None
        definition_file.check(definition)
        self.kind, self.model, self.files = "hf", model, dict(files or {})
        self.definition = json.dumps(definition)
        self.processor = processor_of(self.definition)
        vocabulary = self.processor.get_vocab(with_added_tokens=True)
        added = {token["content"]: token for token in definition.get("added_tokens") or []}
        steps = decoder_steps(definition.get("decoder"))
        pieces = pieces_of(vocabulary, added, steps)
        special = {name: vocabulary[name] for name in added if added[name].get("special")}
        self.roles = known_roles(roles, vocabulary, special)
        for name in {"unk"} & self.roles.keys():  # it stands for no text, whatever it is called
            pieces[self.roles[name]] = b""
        self.specials, self.names = {**special, **self.roles}, special
        self.bos_id = self.first("bos", "cls", "decoder_start", "eos", "sep")
        self.eos_id = self.first("eos", "sep", "bos", "cls")
        self.pad_id = self.roles.get("pad", self.eos_id)
        self.prefix = prefix_of(steps)
        canonical = json.dumps(definition, sort_keys=True)
        self.keep(pieces, ["hf", canonical, sorted(self.roles.items())])
        options = json.loads(self.files.get("tokenizer_config.json", b"{}"))
        self.splits_specials = options.get("split_special_tokens") is True
        self.frame = frame_of(definition.get("post_processor"))
        if odd := [i for i in (*self.frame.before, *self.frame.after) if i >= self.vocab_size]:
            raise DataError(
                f"post_processor: id {odd[0]} is outside the vocabulary of {self.vocab_size}."
            )
        found = self.encode_batch(PROBES)
        self.lossless = all(map(self.restores, utf8(PROBES), found))

    def first(self, *roles: str) -> int:
        """The id of the first of `roles` that there is; raises DataError."""
        for role in roles:
            if role in self.roles:
                return self.roles[role]
        raise DataError(
            "the tokenizer names no special token that begins or ends a text;"
            " set bos_token and eos_token in tokenizer_config.json."
        )

    def __reduce__(self) -> Any:
        return HFTokenizer, (self.model, self.roles, self.files)

    @functools.cached_property
    def with_specials(self) -> Any:
        """The library's tokenizer, to which text that spells a special token is that token."""
        processor = processor_of(self.definition)
        processor.encode_special_tokens = False
        return processor

    @property
    def chat_template(self) -> Any:
        """The Jinja template of a conversation, {name: template} where there are several; "" where
        the directory has none.
        """
        if "chat_template.jinja" in self.files:
            return self.files["chat_template.jinja"].decode(errors="replace")
        options = json.loads(self.files.get("tokenizer_config.json", b"{}"))
        found = options.get("chat_template") or ""
        if isinstance(found, list):
            return {each["name"]: each["template"] for each in found}
        return found

    def name_of(self, i: int) -> str:
        """The text of a token; its number where it has none."""
        return self.processor.id_to_token(i) or f"<{i}>"

    def encode_specials(self, text: str, more: Mapping[str, int] | None = None) -> np.ndarray:
        """Ids [n] of `text`, in which a special token's own text is that token, as the library has
        it; `more`: ids of others by their text.
        """
        if more:
            parts = re.split(f"({'|'.join(map(re.escape, more))})", text)
        else:
            parts = [text]
        utf8(parts)
        ids = [[more[part]] if more and part in more
               else guarded(FAILED, self.with_specials.encode_batch_fast, [part],
                            add_special_tokens=False)[0].ids for part in parts]  # fmt: skip
        return np.concatenate(ids).astype(np.int32)

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        """Ids of each text, by as many threads as the library takes (TOKENIZERS_PARALLELISM)."""
        utf8(texts)
        found = guarded(
            FAILED, self.processor.encode_batch_fast, list(texts), add_special_tokens=False
        )
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def decode(self, ids: Any) -> str:
        """The whole text of `ids` [n], without the prefix."""
        return super().decode(ids).removeprefix(self.prefix.decode())

    def save(self, directory: Any) -> None:
        """Writes their files and, beside them, ABOUT with the ids of the specials."""
        from etils import epath

        folder = epath.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"kind": "hf", "vocab_size": self.vocab_size, "hash": self.hash}
        (folder / ABOUT).write_text(json.dumps({**about, "roles": self.roles}, indent=1) + "\n")
        for name, content in {"tokenizer.json": self.model, **self.files}.items():
            (folder / name).write_bytes(content)


def guarded(what: str, call: Any, *arguments: Any, **options: Any) -> Any:
    """Calls the library; raises DataError, with `what` before it, for what it raises, its panics
    too, which are no Exception.
    """
    try:
        return call(*arguments, **options)
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise DataError(f"{what}: {error}") from None


def processor_of(definition: str) -> Any:
    """The library's tokenizer; raises UserError without the library, DataError when it is none."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "a tokenizer.json of Hugging Face needs the tokenizers library: pip install lm_jax[hf]"
        ) from None
    what = f"tokenizers {tokenizers.__version__} cannot read it"
    processor = guarded(what, tokenizers.Tokenizer.from_str, definition)
    processor.encode_special_tokens = True
    return processor


def load(folder: Any) -> HFTokenizer:
    """The tokenizer in `folder` (epath.Path), saved by us or by transformers; raises DataError."""
    try:
        model = (folder / "tokenizer.json").read_bytes()
        about = read_object(folder / ABOUT)
        definition_file.check(definition := json.loads(model))
        probe.check(definition)
        roles = about["roles"] if about else roles_in(folder)
        tokenizer = HFTokenizer(model, roles, companions(folder))
    except DataError as error:
        raise DataError(f"{folder}: {' '.join(str(error).split())[:400]}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise DataError(f"{folder}: damaged tokenizer ({error!r:.200}).") from None
    if about:
        tokenizer.check_hash(folder, about.get("hash"))
    return tokenizer


def companions(folder: Any) -> dict[str, bytes]:
    """The COMPANIONS in a directory; raises DataError."""
    found = {}
    for name in COMPANIONS:
        if name.endswith(".json"):
            read_object(folder / name)
        if (folder / name).exists():
            if (folder / name).stat().length > MAX_FILE_BYTES:
                raise DataError(f"{name}: over {MAX_FILE_BYTES >> 20} MiB.")
            found[name] = (folder / name).read_bytes()
    return found


def read_object(path: Any) -> dict[str, Any]:
    """The JSON object in a file, {} when there is none; raises DataError."""
    if not path.exists():
        return {}
    if path.stat().length > MAX_FILE_BYTES:
        raise DataError(f"{path.name}: over {MAX_FILE_BYTES >> 20} MiB.")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}: not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise DataError(f"{path.name}: expected a JSON object.")
    return values


def roles_in(folder: Any) -> dict[str, str | int]:
    """Token or id of each role, as tokenizer_config.json, special_tokens_map.json or config.json
    say.
    """
    found: dict[str, str | int] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = read_object(folder / name)
        for role in ROLES:
            token = values.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found.setdefault(role, token)
    values = read_object(folder / "config.json")
    for role in (*ROLES, "decoder_start"):
        number = values.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int:
            found.setdefault(role, number)
    return found


def known_roles(
    roles: Mapping[str, str | int], vocabulary: Mapping[str, int], special: Mapping[str, int]
) -> dict[str, int]:
    """The roles whose token or id the vocabulary has; those not given by their USUAL names."""
    found = {}
    for role, value in roles.items():
        number = vocabulary.get(value) if isinstance(value, str) else value
        if number is not None and 0 <= number <= max(vocabulary.values()):
            found[role] = number
    for role, names in USUAL.items():
        usual = [special[name] for name in names if name in special]
        if role not in roles and usual:
            found[role] = usual[0]
    return found


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
