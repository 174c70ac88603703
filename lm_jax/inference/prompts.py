"""Prompts as ids: special tokens before a text, those that it spells, and what ends an answer."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_jax.data.text.clean import tidy
from lm_jax.data.tokens.frame import Frame
from lm_jax.data.tokens.specials import NAMES, Specials
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import UserError

Prompt = str | Sequence[int] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Reading:
    """The way a model reads a prompt.

    frame: special tokens around a text; those after it are for an encoder only, since a decoder is
    to go on. stop_ids: tokens that end an answer. spelled: whether a special token's own text in a
    prompt ("</s>") is that token; what stands before a text is then not put there twice. more: ids
    of such tokens that the tokenizer does not know. all_ids: whether an answer may hold special
    tokens, as in transformers, where they are left out of the text.
    """

    frame: Frame
    stop_ids: tuple[int, ...]
    spelled: bool = False
    more: Mapping[str, int] = dataclasses.field(default_factory=dict)
    all_ids: bool = False

    def ids(self, tokenizer: Tokenizer, prompt: Prompt, architecture: str) -> np.ndarray:
        """Ids [n] of a prompt, [1] at least; a list of ids is taken as it is."""
        if not isinstance(prompt, str):
            return np.asarray(prompt, np.int32)
        text = tidy(prompt)  # as training text was
        ids = tokenizer.encode_specials(text, self.more) if self.spelled else (
            tokenizer.encode(text))  # fmt: skip
        before, after = self.frame.before, self.frame.after
        # A conversation that the chat template wrote begins with BOS, and has one.
        if self.spelled and before and tuple(ids[: len(before)].tolist()) == before:
            before = ()
        ids = Frame(before, after if architecture == "encoder_decoder" else ()).around(ids)
        return ids if ids.size else np.array([tokenizer.bos_id], np.int32)

    def allowed(self, tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
        """bool [vocab_size]: the ids that may be drawn."""
        known = np.ones(tokenizer.vocab_size, bool) if self.all_ids else tokenizer.byte_lengths > 0
        allowed = np.zeros(vocab_size, bool)
        allowed[: tokenizer.vocab_size] = known
        allowed[[i for i in self.stop_ids if i < vocab_size]] = True
        return allowed


def trained_frame(tokenizer: Tokenizer, architecture: str) -> Frame:
    """The special tokens around the texts that a model of ours was trained on."""
    frame = tokenizer.document_frame
    return Frame((), frame.after) if architecture == "encoder_decoder" else frame


def reading_of(tokenizer: Tokenizer, architecture: str) -> Reading:
    """The reading of a model that was trained here."""
    return Reading(trained_frame(tokenizer, architecture), (tokenizer.eos_id,))


def objective_names(tokenizer: Tokenizer, vocab_size: int) -> dict[str, int]:
    """Ids of the special tokens of the objectives ("<mask>", "<extra_id_0>") by name, as far as the
    model has them.
    """
    specials = Specials.from_tokenizer(tokenizer, vocab_size)
    names = {name: specials.id(name) for name in NAMES}
    sentinels = range(specials.sentinels)
    names |= {f"<extra_id_{k}>": specials.last_sentinel - k for k in sentinels}
    return {name: i for name, i in names.items() if i < vocab_size}


def checked(prompt: Any, vocab_size: int) -> Prompt:
    """A text, or one list of ids below `vocab_size`; raises UserError at anything else."""
    if isinstance(prompt, str):
        return prompt
    return as_ids("prompt", prompt, vocab_size, (1,), "a text, or the ids of one as a list of")


def as_ids(
    name: str, values: Any, vocab_size: int, dimensions: Sequence[int], expected: str
) -> np.ndarray:
    """`values` as int32 ids of this many dimensions; raises UserError unless they are whole numbers
    from 0 to vocab_size - 1, one at least.
    """
    try:
        ids = np.asarray(values)
        fits = ids.ndim in dimensions and ids.size > 0 and np.issubdtype(ids.dtype, np.integer)
    except ValueError:  # rows of several lengths
        fits = False
    if not fits:
        raise UserError(f"{name}={str(values)[:60]!r}: expected {expected} whole numbers.")
    if ids.min() < 0 or ids.max() >= vocab_size:
        odd = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(f"{name}: id {odd} is outside the model's 0 to {vocab_size - 1}.")
    return ids.astype(np.int32)
