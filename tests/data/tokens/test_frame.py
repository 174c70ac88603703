"""The special tokens around a text are those that transformers would put there."""

import pytest

from lm_jax.data.tokens.frame import Frame, frame_of, template_of
from lm_jax.errors import DataError

BERT = {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]}
BYTES = {"type": "ByteLevel", "add_prefix_space": True}
NAMES = {1: "<s>", 2: "</s>"}


def template(*parts):
    ids = {"<s>": [1], "</s>": [2], "<two>": [7, 8]}
    single = [{"Sequence": {"id": "A", "type_id": 0}} if part == "$A"
              else {"SpecialToken": {"id": part, "type_id": 0}} for part in parts]  # fmt: skip
    special = {name: {"id": name, "ids": found, "tokens": [name]} for name, found in ids.items()}
    return {"type": "TemplateProcessing", "single": single, "special_tokens": special}


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (None, Frame()),
        (BYTES, Frame()),
        (BERT, Frame((2,), (3,))),
        (BERT | {"type": "RobertaProcessing"}, Frame((2,), (3,))),
        (template("<s>", "$A"), Frame((1,))),
        (template("$A", "</s>"), Frame((), (2,))),
        (template("<two>", "$A", "</s>"), Frame((7, 8), (2,))),
        ({"type": "Sequence", "processors": [BYTES, template("<s>", "$A")]}, Frame((1,))),
        ({"type": "Sequence", "processors": [template("<s>", "$A"), BERT]}, Frame((2, 1), (3,))),
    ],
)
def test_a_post_processor_says_what_stands_around_a_text(processor, expected):
    assert frame_of(processor) == expected


def test_what_is_no_frame_is_refused():
    with pytest.raises(DataError, match="'Other' is not supported"):
        frame_of({"type": "Other"})
    with pytest.raises(DataError, match="has 2 texts in it"):
        frame_of(template("$A", "$A"))


@pytest.mark.parametrize("frame", [Frame((1,)), Frame((1,), (2,)), Frame((), (2,))])
def test_the_template_that_is_written_is_read_as_the_same_frame(frame):
    assert frame_of(template_of(frame, NAMES.get)) == frame
    assert template_of(Frame(), NAMES.get) is None


def test_a_frame_is_shown_by_name_and_put_around_ids():
    frame = Frame((1,), (2,))
    assert frame.show(NAMES.get) == "<s> TEXT </s>"
    assert frame.around([5, 6]).tolist() == [1, 5, 6, 2]
    assert Frame().around([]).tolist() == []
