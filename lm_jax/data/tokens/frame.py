"""The special tokens around a text: which ids a tokenizer puts before and after it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lm_jax.errors import DataError

TEXT = "TEXT"  # what a shown frame calls the text itself


@dataclasses.dataclass(frozen=True)
class Frame:
    """Ids before and after a text: BOS and EOS, [CLS] and [SEP], or none."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def around(self, ids: Any) -> np.ndarray:
        """`ids` [n] with the frame's ids before and after them, int32."""
        return np.concatenate([self.before, np.asarray(ids), self.after]).astype(np.int32)

    def show(self, name_of: Callable[[int], str]) -> str:
        """The frame in the tokens' names: "<s> TEXT </s>"."""
        return " ".join([*map(name_of, self.before), TEXT, *map(name_of, self.after)])


def frame_of(processor: Any) -> Frame:
    """The frame that a post-processor of a tokenizer.json puts around a text; raises DataError.

    In transformers 5 it alone decides: add_bos_token and add_eos_token of a tokenizer_config.json
    are ignored where there is a tokenizer.json.
    """
    kind = processor.get("type") if processor else None
    if kind in (None, "ByteLevel"):  # which moves offsets only
        return Frame()
    if kind == "Sequence":
        frames = [frame_of(part) for part in processor["processors"]]
        before = tuple(i for frame in reversed(frames) for i in frame.before)
        return Frame(before, tuple(i for frame in frames for i in frame.after))
    if kind in ("BertProcessing", "RobertaProcessing"):
        return Frame((processor["cls"][1],), (processor["sep"][1],))
    if kind == "TemplateProcessing":
        return frame_from_template(processor)
    raise DataError(f"post_processor {str(kind)[:40]!r} is not supported.")


def frame_from_template(processor: Mapping[str, Any]) -> Frame:
    """The frame of TemplateProcessing's `single`."""
    sides: list[list[int]] = [[], []]
    seen = 0
    for part in processor["single"]:
        if "Sequence" in part:
            seen += 1
        else:
            special = processor["special_tokens"][part["SpecialToken"]["id"]]
            sides[min(seen, 1)] += special["ids"]
    if seen != 1:
        raise DataError(f"post_processor: its template has {seen} texts in it, where 1 is allowed.")
    return Frame(tuple(sides[0]), tuple(sides[1]))


def template_of(frame: Frame, name_of: Callable[[int], str]) -> dict[str, Any] | None:
    """The post-processor of a tokenizer.json that puts `frame` around a text; None for none."""
    if frame == Frame():
        return None
    named = {i: name_of(i) for i in (*frame.before, *frame.after)}
    special = lambda i: {"SpecialToken": {"id": named[i], "type_id": 0}}
    text = lambda name, kind: {"Sequence": {"id": name, "type_id": kind}}
    before, after = map(special, frame.before), map(special, frame.after)
    single = [*before, text("A", 0), *after]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1)],
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]} for i, name in named.items()
        },
    }
