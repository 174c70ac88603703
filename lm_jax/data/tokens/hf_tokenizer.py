"""Tokenizers of Hugging Face: a tokenizer.json, by the `tokenizers` library (extra `hf`), behind
the interface of Tokenizer.

The library encodes. Decoding is lm_jax's own: one byte string an id, from the piece and the decoder
of tokenizer.json (pieces.py).
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_jax.data.tokens import definition as definition_file
from lm_jax.data.tokens import probe
from lm_jax.data.tokens.frame import frame_of
from lm_jax.data.tokens.hf_folder import ABOUT, companions, known_roles, read_object, roles_in
from lm_jax.data.tokens.pieces import decoder_steps, pieces_of, prefix_of
from lm_jax.data.tokens.tokenizer import Tokenizer, utf8
from lm_jax.errors import DataError, UserError

# A tokenizer that gives all of these back is taken to be lossless.
PROBES = (
    "a", " a", "a ", "  a   b", "A b C", "don't , stop .", "\ta\t\tb", "a\n\n b\r\n", "\n", " ",
    "na\u00efve", "e\u0301", "\ufb01 \u2460 \uff21", "\u6771\u4eac", "\U0001f600", "\u05e9\u05dc",
    "\u2581", "a\0b\x7f", "\ufeffa\u2028b", "</s> <unk> [MASK] <0x41>", "\u0378",
)  # fmt: skip


class HFTokenizer(Tokenizer):
    """A tokenizer.json with the interface of Tokenizer: kind "hf".

    `encode` adds no specials, and text that looks like one is text: ids are those of transformers
    with add_special_tokens=False and split_special_tokens=True. (LlamaTokenizer of transformers 5
    follows its own rules instead of those of an older tokenizer.json; a newly saved one has them.)
    Take ids of specials from `specials`, which has them by role (bos, eos, pad, unk, cls, sep,
    mask, decoder_start) as far as the directory names them, and by their text ("<extra_id_0>").

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
        self.bos_id = self.id_of_first("bos", "cls", "decoder_start", "eos", "sep")
        self.eos_id = self.id_of_first("eos", "sep", "bos", "cls")
        self.pad_id = self.roles.get("pad", self.eos_id)
        self.prefix = prefix_of(steps)
        canonical = json.dumps(definition, sort_keys=True)
        self.set_tables(pieces, ["hf", canonical, sorted(self.roles.items())])
        options = json.loads(self.files.get("tokenizer_config.json", b"{}"))
        self.splits_specials = options.get("split_special_tokens") is True
        self.frame = frame_of(definition.get("post_processor"))
        if odd := [i for i in (*self.frame.before, *self.frame.after) if i >= self.vocab_size]:
            raise DataError(
                f"post_processor: id {odd[0]} is outside the vocabulary of {self.vocab_size}."
            )
        found = self.encode_batch(PROBES)
        self.lossless = all(map(self.restores, utf8(PROBES), found))

    def id_of_first(self, *roles: str) -> int:
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
        encode = lambda part: encoded(self.with_specials, [part])[0]
        return self.encode_around(text, more or {}, encode)

    def encode_batch(self, texts: Sequence[str], threads: int = 0) -> list[np.ndarray]:
        """Ids of each text, by as many threads as the library takes (TOKENIZERS_PARALLELISM)."""
        return encoded(self.processor, texts)

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


def encoded(processor: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of each text by the library's tokenizer `processor`; raises DataError."""
    utf8(texts)
    what = "the tokenizer cannot encode this text"
    found = guarded(what, processor.encode_batch_fast, list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in found]


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
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise DataError(f"{folder}: damaged tokenizer ({error!r:.200}).") from None
    if about:
        tokenizer.check_hash(folder, about.get("hash"))
    return tokenizer
