"""Views of a token store: the examples of config.loss.objective, one view or a mixture."""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.config import Config
from lm_jax.config.check import mixture
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.writer import Writer
from lm_jax.data.views.denoise import Infill, Masked
from lm_jax.data.views.mixture import Mixture
from lm_jax.data.views.pairs import Prefix, Spans, Supervised
from lm_jax.data.views.sentences import SentenceOrder, SentencePairs
from lm_jax.data.views.windows import Windows

# UL2's seven denoisers, equally likely (arXiv:2205.05131, table 1): mean span and rate.
UL2 = (
    partial(Spans, mean=3, rate=0.15, mode="[R]"),
    partial(Spans, mean=8, rate=0.15, mode="[R]"),
    partial(Prefix, share=0.25, mode="[S]"),
    partial(Spans, mean=3, rate=0.5, mode="[X]"),
    partial(Spans, mean=8, rate=0.5, mode="[X]"),
    partial(Spans, mean=64, rate=0.15, mode="[X]"),
    partial(Spans, mean=64, rate=0.5, mode="[X]"),
)
VIEWS: dict[str, tuple[Any, ...]] = {
    "causal": (Windows,),
    "prefix_lm": (Prefix,),
    "fim": (Infill,),
    "mlm": (Masked,),
    "bert": (SentencePairs,),
    "sop": (SentenceOrder,),
    "span_corruption": (Spans,),
    "ul2": UL2,
    "seq2seq": (Supervised,),
}


def make(store: TokenStore, split: str, config: Config, seed: int | None) -> Windows:
    """The examples of a split under config.loss.objective; seed None keeps their order.

    Raises UserError when the vocabulary has no room for the specials of the objective, DataError
    when the split is too small.
    """
    members, weights = [], []
    for name, weight in mixture(config.loss.objective):
        for view in VIEWS[name]:
            if view is Windows:
                length, packed = config.data.sequence_length, config.data.packed
                rows = config.batch_size if config.data.carry and split == "train" else 0
                # Of held-out text every token counts, those of the last window too.
                whole = split != "train"
                shifted = config.data.shifted and seed is not None and not whole
                members.append(Windows(store, split, length, seed, packed, whole, rows, shifted))
            else:
                members.append(view(store, split, config, seed))
            weights.append(weight / len(VIEWS[name]))
    return members[0] if len(members) == 1 else Mixture(members, weights, seed)


def cuts_text(objective: str) -> bool:
    """Whether examples of the objective are windows of the text, and not whole documents."""
    views = (view for name, _ in mixture(objective) for view in VIEWS[name])
    return any(getattr(view, "func", view) is not Supervised for view in views)


def shapes(config: Config) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{name: (shape, dtype)} of an example under config.loss.objective, whatever the text is."""
    length = config.data.sequence_length
    # Of bytes, which a model of fewer ids has no room for.
    model = dataclasses.replace(config.model, vocab_size=max(config.model.vocab_size, 512))
    data = dataclasses.replace(config.data, carry=False)
    config = dataclasses.replace(config, data=data, model=model)
    with tempfile.TemporaryDirectory() as folder:
        with Writer(Path(folder) / "store", Tokenizer.byte_level()) as writer:
            for text in ("a\t" + length * "b", "c\t" + 2 * length * "d"):
                writer.add("train", writer.tokenizer.encode(text), len(text))
            writer.finish({})
        store = TokenStore.open(Path(folder) / "store")
        batch = make(store, "train", config, 0).rows(np.zeros(1, np.int64))
    return {name: (x.shape[1:], x.dtype) for name, x in batch.items() if name != "example"}
