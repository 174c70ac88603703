"""A trained model in Python: `lm = lm_jax.load("runs/q"); lm.generate("Once")`."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from lm_jax.config import Config
from lm_jax.config.values import number
from lm_jax.data.tokens.frame import Frame
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import CheckpointError, UserError
from lm_jax.inference.generation import texts
from lm_jax.inference.prompts import (
    Prompt,
    Reading,
    as_ids,
    checked,
    objective_names,
    trained_frame,
)
from lm_jax.inference.sampling import TEMPERATURE, TOP_P
from lm_jax.inference.scoring import Result, evaluate
from lm_jax.models import num_parameters
from lm_jax.models.protocol import Model

WINDOW = 1024  # tokens that the loss of an imported model is taken over, or fewer


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model with its tokenizer, what `load` returns. Made by hand it needs no checkpoint.

    model: as models.create makes them. Without a tokenizer there are logits of ids; whatever has to
    do with text raises UserError.
    """

    model: Model
    tokenizer: Tokenizer | None
    config: Config
    step: int = 0
    path: str = ""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = self.tokenizer.vocab_size if self.tokenizer else 0
        rows = self.model.config.vocab_size if self.model else ids
        if self.tokenizer and ids > rows:
            raise CheckpointError(
                f"{self.path or self.config.name}: its tokenizer has {ids} ids, up to"
                f" {self.tokenizer.name_of(ids - 1)!r}, and the model {rows} rows;"
                " take the tokenizer that belongs to it, or resize the model there"
                " (resize_token_embeddings of transformers)."
            )

    def generate(
        self,
        prompt: Prompt = "",
        max_new_tokens: int = 0,
        temperature: float = TEMPERATURE,
        top_k: int = 0,
        top_p: float = TOP_P,
        seed: int = 0,
        num_samples: int = 1,
        special_tokens: bool = False,
        bos: bool | None = None,
    ) -> str | list[str]:
        """The continuation of `prompt`, a text or a list of ids, without it; a list of them when
        num_samples > 1.

        max_new_tokens 0: 256, or fewer where the model's length ends. temperature 0: always the
        likeliest token. top_k, top_p: of the likeliest tokens alone (0 and 1: off). The same seed
        gives the same text. An encoder_decoder reads the prompt, and its answer is what is
        returned. special_tokens: a special token's own text in the prompt ("<|im_start|>") is that
        token. bos: whether BOS stands before a text; None: as `frame` has it. Ids are taken as they
        are. Raises UserError when prompt and max_new_tokens do not fit the model.
        """
        num_samples = number("num_samples", num_samples, whole=True)
        if num_samples < 1:
            raise UserError(f"num_samples={num_samples}: must be at least 1.")
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        reading = self.reading(special_tokens, bos)
        steps = self._texts([prompt] * num_samples, max_new_tokens, seed, reading, settings)
        answers = ["".join(parts) for parts in zip(*steps, strict=True)]
        return answers[0] if num_samples == 1 else answers

    def stream(
        self,
        prompt: Prompt = "",
        max_new_tokens: int = 0,
        seed: int = 0,
        special_tokens: bool = False,
        bos: bool | None = None,
        **settings: float,
    ) -> Iterator[str]:
        """The text of `generate` in pieces, as it is made."""
        reading = self.reading(special_tokens, bos)
        steps = self._texts([prompt], max_new_tokens, seed, reading, settings)
        return (added for (added,) in steps if added)

    def _texts(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        seed: int,
        reading: Reading,
        settings: dict[str, Any],
    ) -> Iterator[list[str]]:
        tokenizer = self.need_tokenizer()
        prompts = [checked(prompt, self.model.config.vocab_size) for prompt in prompts]
        return texts(self.model, tokenizer, prompts, max_new_tokens, seed, reading, **settings)

    @overload
    def loss(self, text: str, stride: int = 0, bos: bool | None = None,
             eos: bool | None = None) -> Result: ...  # fmt: skip

    @overload
    def loss(self, text: list[str], stride: int = 0, bos: bool | None = None,
             eos: bool | None = None) -> list[Result]: ...  # fmt: skip

    def loss(self, text: str | list[str], stride: int = 0, bos: bool | None = None,
             eos: bool | None = None) -> Result | list[Result]:  # fmt: skip
        """Loss, perplexity, bits per byte and tokens of `text` as one document; a list of them, in
        order, of a list of texts.

        stride: targets by which the window of config.data.sequence_length moves on; 0: the window.
        bos, eos: whether these stand around the text, and the end is predicted; None: as `frame`
        has it. Without bos the first token is given.
        """
        if not isinstance(text, str):
            each = [*text] if isinstance(text, Iterable) else [text]
            if not all(isinstance(one, str) for one in each):
                raise UserError(f"text={str(text)[:60]!r}: expected a text, or a list of texts.")
            return [self.loss(one, stride, bos, eos) for one in each]
        window, frame = self.config.data.sequence_length, self.framed(bos, eos)
        tokenizer = self.need_tokenizer()
        return evaluate(self.model, tokenizer, [text], window, stride, 1, frame, progress=False)

    @property
    def trained_here(self) -> bool:
        """Whether the model saw texts as a token store writes them, not only another library's."""
        imported = self.need_tokenizer().kind == "hf" and "data_fingerprint" not in self.metadata
        return not imported

    @property
    def frame(self) -> Frame:
        """The special tokens around a text: of a model that was trained here those of its token
        store, of an imported one those that its tokenizer puts there in transformers.
        """
        tokenizer = self.need_tokenizer()
        kind = self.model.config.architecture
        return trained_frame(tokenizer, kind) if self.trained_here else tokenizer.frame

    def framed(self, bos: bool | None = None, eos: bool | None = None) -> Frame:
        """`frame`, with BOS and EOS switched on or off; None: as they are."""
        tokenizer, frame = self.need_tokenizer(), self.frame
        before, after = frame.before, frame.after
        if bos is not None:
            before = (before or (tokenizer.bos_id,)) if bos else ()
        if eos is not None:
            after = (after or (tokenizer.eos_id,)) if eos else ()
        return Frame(before, after)

    def reading(self, special_tokens: bool = False, bos: bool | None = None) -> Reading:
        """Rules of this model for prompts and the end of an answer."""
        tokenizer, here = self.need_tokenizer(), self.trained_here
        more = objective_names(tokenizer, self.model.config.vocab_size) if here else {}
        rows = self.model.config.vocab_size
        ends = tuple(i for i in self.metadata.get("stop_ids", ()) if i < rows)
        return Reading(
            self.framed(bos), ends or (tokenizer.eos_id,), special_tokens, more, all_ids=not here
        )

    def logits(
        self, ids: ArrayLike, target_ids: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> jax.Array:
        """Logits [L, V] float32 at each of `ids` [L]; [B, L, V] of ids [B, L].

        mask: as `ids`, 0 where an id is padding, which no other sees; the logits there mean
        nothing. Positions count from a row's first id that is none, on whichever side it is.
        target_ids [T] or [B, T]: what the decoder of an encoder_decoder has read, of which the
        logits [T, V] or [B, T, V] are; `ids` and `mask` are then the encoder's.
        """
        ids = self._checked("ids", ids)
        if (target_ids is not None) != self.model.conditional:
            raise UserError("target_ids: an encoder_decoder needs them, and no other model.")
        batch, segments = {"tokens": ids}, "segment_ids"
        if target_ids is not None:
            batch = {"tokens": self._checked("target_ids", target_ids), "inputs": ids}
            segments = "input_segment_ids"
            if batch["tokens"].shape[:-1] != ids.shape[:-1]:
                raise UserError(
                    f"target_ids of shape {batch['tokens'].shape}: not as many rows as ids of shape"
                    f" {ids.shape}."
                )
        if mask is not None:
            batch[segments] = np.asarray(mask)
            if batch[segments].shape != ids.shape or not np.isin(batch[segments], (0, 1)).all():
                raise UserError(f"mask: expected 0 and 1, as many as ids: {ids.shape}.")
            if (positions := segments.replace("segment_ids", "positions")) in self.model.inputs:
                first = np.argmax(batch[segments], -1, keepdims=True)
                batch[positions] = np.maximum(np.arange(ids.shape[-1]) - first, 0)
        rows = {name: jnp.asarray(np.atleast_2d(x), jnp.int32) for name, x in batch.items()}
        tokens_BL = rows.pop("tokens")
        ask = self.model if self.model.on_host else partial(forward, self.model)
        logits = jnp.asarray(ask(tokens_BL, **rows))
        return logits[0] if ids.ndim == 1 else logits

    def _checked(self, name: str, ids: ArrayLike) -> np.ndarray:
        limit = self.model.config.max_length
        shapes = f"[L] or [B, L] with L from 1 to {limit}, of"
        array = as_ids(name, ids, self.model.config.vocab_size, (1, 2), shapes)
        if array.shape[-1] > limit:
            raise UserError(f"{name} of shape {array.shape}: expected {shapes} whole numbers.")
        return array

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer; raises UserError where there is none."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.path or self.config.name}: has no tokenizer: it knows ids only "
                "(lm.logits), no text."
            )
        return self.tokenizer

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return num_parameters(self.model)

    def __repr__(self) -> str:
        known = "no tokenizer"
        if self.tokenizer:
            shown = self.frame.show(self.tokenizer.name_of)
            known = f"{self.tokenizer.vocab_size} tokens, reads {shown!r}"
        return (
            f"LanguageModel({self.path or self.config.name!r}, step {self.step}, "
            f"{self.num_parameters:,} parameters, {known})"
        )


@jax.jit
def forward(model: Any, tokens_BL: jax.Array, **more: jax.Array) -> jax.Array:
    """Logits of a batch."""
    return model(tokens_BL, **more)
