"""Combinations of options, by name: what each sets in the config of a run that takes a second."""

import functools
import re
from typing import Any

from lm_jax.config import Config, MeshConfig
from lm_jax.config.check import has_prefix
from lm_jax.config.field import facts_of
from lm_jax.data.views.fit import check_rows
from lm_jax.devices.resolve import resolved
from lm_jax.errors import UserError

BASE = {
    "steps": 3, "batch_size": 16, "log_every": 1,
    "model.vocab_size": 512, "model.num_layers": 4, "model.dim": 32, "model.num_heads": 4,
    "model.mlp_dim": 64, "model.max_length": 128, "data.sequence_length": 32, "mesh.data": 1,
    "data.heldout_fraction": 0.1, "optimizer.warmup_steps": 1, "optimizer.learning_rate": 0.003,
    "optimizer.muon_learning_rate": 0.003,
    # Adam makes a step of the rounding of a gradient that is zero (of key biases): eps forbids.
    "optimizer.eps": 1e-5,
    "checkpoint.every": 2, "eval.every": 0, "eval.tokens": 512, "eval.samples": 0,
}  # fmt: skip
PAIRED = {"model.pooler": True, "model.token_types": 2}
ED = {"model.architecture": "encoder_decoder"}


def of(architecture: str, objective: str = "causal", **more: Any) -> dict[str, Any]:
    """The fields of a family."""
    return {"model.architecture": architecture, "loss.objective": objective, **more}


OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "family": {
        "causal": of("decoder"),
        "prefix": of("decoder", "prefix_lm"),
        "fim": of("decoder", "fim:1,causal:1"),
        "ul2": of("decoder", "ul2"),
        "mlm": of("encoder", "mlm", **{"model.token_types": 1, "loss.whole_word": True}),
        "bert": of("encoder", "bert", **PAIRED),
        "sop": of("encoder", "sop", **PAIRED),
        "t5": of("encoder_decoder", "span_corruption:3,prefix_lm:1", **{"model.encoder_layers": 2}),
        "seq2seq": of("encoder_decoder", "seq2seq"),
        "lstm": of("lstm"),
        "gru": of("gru", "span_corruption"),
        "rnn": of("rnn", **{"data.carry": True}),
        "hmm": of("hmm"),
        "ngram": of("ngram", **{"model.order": 3}),
    },
    "positions": {
        name: {"model.positions": name}
        for name in ("rope", "learned", "sinusoidal", "relative", "alibi", "none")
    },
    "norm": {
        "pre": {},
        "post": {"model.norm": "layernorm", "model.norm_order": "post", "model.final_norm": False},
        "sandwich": {"model.norm_order": "sandwich", "model.norm_offset": 1.0},
        "output": {"model.norm": "layernorm", "model.norm_order": "output"},
    },
    "heads": {"all": {}, "grouped": {"model.num_kv_heads": 2}, "one": {"model.num_kv_heads": 1}},
    "bias": {"none": {}, "all": {"model.bias": True}, "qkv": {"model.qkv_bias": True}},
    "qk_norm": {"none": {}, "head": {"model.qk_norm": True}, "all": {"model.qk_norm_all": True}},
    "local": {
        "none": {},
        "all": {"model.window": 8},
        "some": {"model.window": 8, "model.layer_pattern": "lg", "model.rope_local_theta": 100.0},
    },
    "caps": {
        "none": {},
        "scores": {"model.attn_softcap": 20.0},
        "logits": {"model.logit_softcap": 10.0, "model.attn_scale": 0.3},
    },
    "experts": {
        "none": {},
        "dropless": {"model.num_experts": 4},
        "capacity": {
            "model.num_experts": 4, "model.capacity_factor": 1.5, "model.shared_experts": 1,
            "model.experts_per_token": 1,
        },
    },
    "mlp": {
        "silu": {},
        "gelu": {"model.activation": "gelu", "model.gated": False},
        "relu": {"model.activation": "relu", "model.zero_init": True},
    },
    "attention": {"auto": {}, "xla": {"model.attention": "xla"}},
    "context": {"gather": {}, "ring": {"model.context_attention": "ring"}},
    "pipeline": {
        "parts auto": {},
        "2 parts": {"model.pipeline_parts": 2},
        "2 rounds": {"model.pipeline_rounds": 2},
    },
    "remat": {name: {"model.remat": name} for name in ("none", "dots", "names", "full", "offload")},
    "unroll": {"1": {}, "4": {"model.scan_unroll": 4}},
    "quantization": {
        "none": {},
        "int8": {"model.quantization": "int8"},
        "int8_full": {"model.quantization": "int8_full", "model.quantized": "mlp,experts"},
        "fp8": {"model.quantization": "fp8"},
    },
    "precision": {
        name: {"model.matmul_precision": name} for name in ("default", "auto", "bfloat16")
    },
    "dtype": {"auto": {}, "bfloat16": {"model.dtype": "bfloat16"}},
    "optimizer": {name: {"optimizer.name": name} for name in
                  ("adamw", "muon", "lion", "adafactor")},
    "state": {"as weights": {}, "sharded": {"optimizer.shard_state": True}},
    "microbatches": {"1": {}, "2": {"microbatches": 2}},
    "dropout": {
        "0": {},
        "0.1": {"model.dropout": 0.1},
        "everywhere": {
            "model.dropout": 0.1, "model.attention_dropout": 0.1, "model.output_dropout": 0.1
        },
    },
    "targets": {
        "plain": {},
        "z_loss": {"loss.z_loss": 1e-3},
        "smoothed": {"loss.label_smoothing": 0.1},
    },
    "head": {
        "tied": {},
        "own": {"model.tie_embeddings": False, "model.embed_scale": 5.0},
        "transform": {"model.head_transform": True, "model.head_bias": True},
    },
    "chunk": {"whole": {}, "8": {"loss.chunk_size": 8}},
    "windows": {
        "packed": {}, "joined": {"data.packed": False}, "shifted": {"data.shifted": True}
    },
    "tokenizer": {name: {"data.tokenizer": name} for name in ("bytes", "bpe", "unigram")},
    "mesh": {
        "data 8": {"mesh.data": 8},
        "fsdp 8": {"mesh.fsdp": 8},
        "data 2 fsdp 2 tensor 2": {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2},
        "context 4 tensor 2": {"mesh.context": 4, "mesh.tensor": 2},
        "data 2 context 2 fsdp 2": {"mesh.data": 2, "mesh.context": 2, "mesh.fsdp": 2},
        "data 2 stage 2 tensor 2": {"mesh.data": 2, "mesh.stage": 2, "mesh.tensor": 2},
        "stage 2 context 2 fsdp 2": {"mesh.stage": 2, "mesh.context": 2, "mesh.fsdp": 2},
        "data 2 expert 4": {"mesh.data": 2, "mesh.expert": 4},
        "slice 2 data 2 fsdp 2": {"mesh.slice": 2, "mesh.data": 2, "mesh.fsdp": 2},
    },
}  # fmt: skip
NAMES = {name: tuple(values) for name, values in OPTIONS.items()}
PLAIN = {name: values[0] for name, values in NAMES.items()}  # one value of each: the defaults
ROLES = {name: facts.role for name, facts in facts_of(Config).items()}
# How a model is trained; the other options say what it is, and a plain one can be exported.
TRAINED = tuple(
    name
    for name, values in OPTIONS.items()
    if all(ROLES[field] != "logits" for fields in values.values() for field in fields)
)


def values_of(row: dict[str, str], **more: Any) -> dict[str, Any]:
    """The nested values of a config, as Config.parse takes them."""
    flat = dict(BASE)
    for name, value in row.items():
        flat |= OPTIONS[name][value]
    flat |= more
    if row.get("family") in ("t5", "seq2seq"):  # whose targets divide over mesh.context
        flat["data.sequence_length"] = 64
    nested: dict[str, Any] = {}
    for field, value in flat.items():
        group, _, leaf = field.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = value
    return nested


def checked(row: dict[str, str]) -> Config:
    """The config of a row, checked as a run does before it writes anything; raises UserError."""
    config = Config.parse(values_of(row))
    resolved(config.model, "cpu", has_prefix(config), config.mesh.context > 1)
    if config.mesh.context > 1:
        rows_divide(row["family"], row["context"], row["mesh"])
    return config


@functools.cache
def rows_divide(family: str, context: str, mesh: str) -> None:
    """check_rows; what decides is in these three."""
    config = Config.parse(values_of(PLAIN | {"family": family, "mesh": mesh, "context": context}))
    check_rows(config, config.mesh.context)


def blamed(row: dict[str, str]) -> set[str]:
    """The options that set fields which the refusal of a row names; none where a run begins."""
    try:
        checked(row)
    except UserError as error:
        named = {
            field.rstrip(".")
            for field in re.findall(r"config\.([\w.]+)|((?:model|mesh)\.\w+)", str(error))
            for field in field
        }
        return {
            name
            for name, value in row.items()
            if any(set(fields) & named for fields in OPTIONS[name].values())
        }
    return set()


def other_mesh(row: dict[str, str]) -> dict[str, str]:
    """The row on the next mesh that it can have."""
    meshes = NAMES["mesh"]
    first = meshes.index(row["mesh"]) + 1
    turned = (row | {"mesh": meshes[(first + i) % len(meshes)]} for i in range(len(meshes)))
    return next(turned_row for turned_row in turned if not blamed(turned_row))


def mesh_of(row: dict[str, str]) -> MeshConfig:
    """The mesh of a row."""
    return Config.parse(values_of(row)).mesh
