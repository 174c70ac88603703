"""Import and export of models in Hugging Face directories, tensor by tensor."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm_jax.config import ModelConfig
from lm_jax.convert.arrays import Sources, abstract_model, get_layer, load_array
from lm_jax.convert.bodies import body_line, missing_head, new_arrays
from lm_jax.convert.keys import unread_line
from lm_jax.convert.mapping import Family
from lm_jax.convert.registry import family_named, family_of
from lm_jax.convert.rows import Row, rows_by_tensor, sizes_of, tensor_shape
from lm_jax.convert.safetensors_file import (
    WEIGHTS,
    Tensor,
    read_json,
    refuse_pickles,
    tensors,
    write,
)
from lm_jax.convert.tokenizer import special_ids
from lm_jax.convert.values import GENERATION
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.errors import CheckpointError, MachineError, UserError
from lm_jax.models import Transformer
from lm_jax.run.checkpoint import flatten

SHARD_BYTES = 5 * 10**9


def import_hf(
    directory: str | os.PathLike[str], new_head: bool = False
) -> tuple[ModelConfig, Transformer]:
    """(config, model) of a directory with config.json and safetensors, of `save_pretrained`.

    A body that was saved without its head (LlamaModel, BertModel) has none here either: hidden
    states, but no logits (config.head), and a line is printed; new_head: it gets a new one.

    Each tensor goes straight onto its shards of the mesh that is set (jax.set_mesh), or the default
    device, and becomes float32. Raises UserError that names the option of config.json, or
    CheckpointError that names the file or tensor that is not supported; a model is never loaded in
    part.
    """
    return imported(directory, new_head)[1:]


def imported(
    directory: str | os.PathLike[str], new_head: bool = False
) -> tuple[Family, ModelConfig, Transformer]:
    """`import_hf`, with the family of the model."""
    path = Path(directory)
    if not path.is_dir():
        if path.is_file():
            refuse_pickles(path)
        raise CheckpointError(f"{path}: is not a directory.")
    try:
        family, config = read_config(path)
        found = tensors(path)
        config = family.fit(config, found)
        lacking = missing_head(family, config, found)
        if lacking:
            config = config if new_head else dataclasses.replace(config, head=False, pooler=False)
            print(body_line(path, lacking, new_head), file=sys.stderr, flush=True)
        rows = [row for row in family.table(config) if not (lacking and family.of_head(row))]
        sources = match(path, family, rows, config, found)
        model = abstract_model(config, str(path / "config.json"))
        parts: dict[str, list[Row]] = {}
        for row in rows:
            parts.setdefault(row.ours, []).append(row)
        new = new_arrays(config, flatten(model).keys() - parts.keys())
        loaded = [
            new[name] if name in new else load_array(leaf, parts[name], config, sources)
            for name, leaf in flatten(model).items()
        ]
        return family, config, jax.tree.unflatten(jax.tree.structure(model), loaded)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: {error.strerror}.") from None


def export_hf(
    model: Transformer,
    config: ModelConfig,
    directory: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = SHARD_BYTES,
    family: str = "",
) -> None:
    """Writes config.json, generation_config.json and float32 safetensors that `transformers` loads.

    tokenizer: gives the ids that begin, end and pad a text; its files are not written. family: a
    model_type of transformers; by default the first that has these options.
    Raises UserError when no family there has these options, and when `directory` exists and is not
    empty; it is written whole or not at all.
    """
    path = Path(directory)
    chosen = family_named(family) if family else family_of(config)
    ids = special_ids(tokenizer, config)
    config, arrays = after_padding(config, flatten(model), ids["pad_token_id"])
    values, rows = chosen.write_config(config), chosen.rows(config)
    values |= {key: value for key, value in ids.items() if value is not None or key not in values}
    arrays |= zero_arrays(chosen.completed(config), config)
    if set(arrays) != {row.ours for row in rows}:
        odd = sorted(set(arrays) ^ {row.ours for row in rows})[0]
        raise UserError(f"the model is not one of this config: {odd} is in one of them only.")
    by_tensor = rows_by_tensor(rows, config)
    sizes = sizes_of(config)

    def get(name: str) -> np.ndarray:
        layer, row_list = by_tensor[name]
        parts = []
        for row in row_list:
            values = get_layer(arrays[row.ours], layer) if row.stacked else arrays[row.ours]
            parts.append(row.to_theirs(np.asarray(values)[row.place], sizes))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)

    shapes = {name: tensor_shape(row_list, sizes) for name, (_, row_list) in by_tensor.items()}
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists and is not an empty directory; name another.")
    draft = path.with_name(f"{path.name}.draft-{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        write(draft, shapes, get, shard_bytes)
        for name, content in (
            ("config.json", values),
            (GENERATION, {"_from_model_config": True, **{k: values[k] for k in ids}}),
        ):
            (draft / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
        draft.replace(path)
    except OSError as error:
        raise MachineError(f"{error.filename or path}: {error.strerror}.") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def after_padding(
    config: ModelConfig, arrays: dict[str, Any], pad: int | None
) -> tuple[ModelConfig, dict[str, Any]]:
    """`config` and `arrays` with positions that begin after the id of the tokenizer's padding, as
    those of RoBERTa do in transformers: the same rows of the table, shifted.
    """
    if not config.position_offset or pad in (None, config.position_offset - 1):
        return config, arrays
    table_PD = np.asarray(arrays["embed/positions"])[config.position_offset :]
    unused = np.zeros((pad + 1, table_PD.shape[1]), table_PD.dtype)
    moved = dataclasses.replace(config, position_offset=pad + 1)
    return moved, {**arrays, "embed/positions": np.concatenate([unused, table_PD])}


def zero_arrays(config: ModelConfig, other: ModelConfig) -> dict[str, np.ndarray]:
    """Zeros for the arrays that a model of `config` has and one of `other` lacks, by flat name."""
    if config == other:
        return {}
    shapes, known = (flatten(abstract_model(c, "config.model")) for c in (config, other))
    return {n: np.zeros(x.shape, np.float32) for n, x in shapes.items() if n not in known}


def read_config(path: Path) -> tuple[Family, ModelConfig]:
    """The family and the options of the config.json in `path`."""
    where = path / "config.json"
    values = read_json(where)
    family = family_named(values.get("model_type"), f"{where}: ")
    config = family.read_config(values, str(where))
    if unread := family.unread(values):
        print(unread_line(unread, family.architecture, str(where)), file=sys.stderr, flush=True)
    return family, config


def match(
    path: Path, family: Family, table: list[Row], config: ModelConfig, found: dict[str, Tensor]
) -> Sources:
    """The tensor of each row; raises CheckpointError on one that is missing, odd or left over."""
    sizes, sources, rest = sizes_of(config), {}, dict(found)
    by_tensor = rows_by_tensor(table, config)
    for name, (_, rows) in by_tensor.items():
        # Of tensors that are tied, some files hold the other one alone (safetensors' save_model).
        twins = [n for n, ours in family.copies if ours == rows[0].ours and n not in by_tensor]
        held = next((other for other in (*family.names(name), *twins) if other in rest), None)
        if held is None:
            raise CheckpointError(f"{path}: tensor {name} is missing.")
        tensor = rest.pop(held)
        shape = tensor_shape(rows, sizes)
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.path}: tensor {name} has shape {list(tensor.shape)}, "
                f"config.json means {list(shape)}."
            )
        if tensor.dtype not in WEIGHTS:
            raise CheckpointError(
                f"{tensor.path}: tensor {name} is {tensor.dtype}; allowed: {', '.join(WEIGHTS)}."
            )
        sources[name] = (tensor, rows)
    for name, ours in family.copies:
        tied = next((tensor for tensor, rows in sources.values() if rows[0].ours == ours), None)
        if name not in rest or tied is None:  # None: of a head that is not in the files
            continue
        copy = rest.pop(name)
        if copy.shape != tied.shape or not np.array_equal(copy.read(), tied.read()):
            raise CheckpointError(
                f"{copy.path}: tensor {name} differs from {tied.name}, "
                "config.json says that they are tied."
            )
    rest = {name: tensor for name, tensor in rest.items() if not family.is_buffer(name)}
    if rest:
        raise CheckpointError(
            f"{path}: tensor {sorted(rest)[0]} is not part of the {family.model_type} "
            "that config.json describes."
        )
    return sources
