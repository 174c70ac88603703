"""TensorFlow Datasets without TensorFlow, as random-access sources of ArrayRecords."""

import importlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from lm_jax.data.text.documents import Document, Report, usable
from lm_jax.errors import DataError, nearest

# Builders that tfds does not find by name before their module is imported.
MODULES = {
    "c4": "text.c4",
    "wiki40b": "text.wiki40b",
    "wikipedia": "text.wikipedia",
    "glue": "text.glue",
    "super_glue": "text.super_glue",
    "hellaswag": "text.hellaswag",
    "xsum": "summarization.xsum",
    "cnn_dailymail": "summarization.cnn_dailymail",
    "wmt14_translate": "translate.wmt14",
    "wmt_t2t": "translate.wmt_t2t",
    "flores": "translate.flores",
    "conll2003": "text.conll2003.conll2003",
    "wikiann": "text.wikiann",
    "gem": "text.gem",
}
SPEC = re.compile(r"tfds:(?P<name>.+?)(?::(?P<split>[a-z_]+(\[[^\]]*\])?))?$")


def tfds_documents(
    spec: str, text_field: str, report: Report, advance: Callable[[float], None]
) -> Iterator[Document]:
    """The texts of `tfds:NAME[/CONFIG][:VERSION][:SPLIT]` or `tfds:DIRECTORY[:SPLIT]` (split
    `train` by default).

    Data sets are prepared as ArrayRecord; raises DataError when that needs TensorFlow or the name
    is not known.
    """
    match = SPEC.match(spec)
    if not match:
        raise DataError(f"config.data.input={spec}: write tfds:NAME or tfds:NAME:SPLIT.")
    name, split = match["name"], match["split"] or "train"
    source = data_source(spec, name, split)
    for i in range(len(source)):
        record, where = source[i], f"{spec}:{i}"
        if text_field not in record:
            raise DataError(
                f"config.data.text_field={text_field}: {spec} has no such field."
                f"{nearest(text_field, record)}"
            )
        report.records += 1
        value, size = record[text_field], 0
        if isinstance(value, bytes):
            size = len(value)
            report.bytes += size
            advance(size)
            try:
                value = value.decode("utf-8")
            except UnicodeDecodeError:
                report.refuse(where, "invalid UTF-8", size=size)
                continue
        if not isinstance(value, str):
            report.refuse(where, f"field '{text_field}' is not text", size=size)
        elif text := usable(value, where, report, size):
            yield Document(text, where)


def data_source(spec: str, name: str, split: str) -> Any:
    """The random-access records; raises DataError."""
    import tensorflow_datasets as tfds

    family = name.split("/")[0].split(":")[0]
    try:
        if os.path.isdir(name):
            return tfds.builder_from_directory(name).as_data_source(split=split)
        if family in MODULES:
            importlib.import_module(f"tensorflow_datasets.{MODULES[family]}")
        # Without file_format the default is TFRecord, which TensorFlow alone can read.
        return tfds.data_source(name, split=split, builder_kwargs={"file_format": "array_record"})
    except tfds.core.DatasetNotFoundError:
        raise DataError(f"config.data.input={spec}: tfds knows no data set '{family}'.") from None
    except ImportError as error:
        raise DataError(
            f"config.data.input={spec}: preparing this one needs TensorFlow ({error}); prepare"
            " it once elsewhere with file_format='array_record' and name its folder: tfds:FOLDER."
        ) from None
    except Exception as error:
        # A builder is foreign code: whatever it raises is about this input.
        line = " ".join(str(error).split())[:300]
        raise DataError(f"config.data.input={spec}: {type(error).__name__}: {line}") from None
