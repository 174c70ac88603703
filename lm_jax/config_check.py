"""Can these values work at all? The checks of a config that need no machine."""

import dataclasses
from typing import Any

from lm_jax.errors import UserError, nearest

CHOICES = {
    "model.norm": ("rmsnorm", "layernorm"),
    "model.positions": ("rope", "learned", "none"),
    "model.activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "model.rope_scaling": ("none", "linear", "llama3"),
    "model.attention": ("auto", "xla", "splash", "cudnn"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("none", "full", "dots", "names"),
    "loss.objective": ("causal",),
    "optimizer.name": ("adamw", "muon"),
    "optimizer.schedule": ("cosine", "wsd", "constant"),
    "data.tokenizer": ("bpe", "unigram", "bytes"),
}

AT_LEAST_1 = (
    "steps", "batch_size", "microbatches", "log_every", "model.vocab_size", "model.num_layers",
    "model.dim", "model.num_heads", "model.max_length", "model.scan_unroll",
    "data.sequence_length", "data.vocab_size", "checkpoint.every", "checkpoint.keep", "eval.tokens",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "model.num_kv_heads", "model.head_dim", "model.mlp_dim", "model.init_std",
    "optimizer.learning_rate", "optimizer.muon_learning_rate",
    "optimizer.weight_decay", "optimizer.clip_norm",
    "optimizer.warmup_steps", "optimizer.decay_steps", "loss.z_loss", "loss.chunk_size",
    "eval.every", "eval.samples", "eval.sample_tokens", "data.workers", "checkpoint.keep_every",
)  # fmt: skip
FRACTIONS = ("model.dropout", "optimizer.b1", "optimizer.b2", "data.heldout_fraction")


def check(config: Any) -> None:
    """Raises UserError at the first field whose value cannot work, whatever the machine is."""
    model, data, mesh = config.model, config.data, config.mesh

    def need(ok: Any, field: str, why: str) -> None:
        if not ok:
            raise UserError(f"config.{field}={value_of(config, field)!r}: {why}")

    for field, allowed in CHOICES.items():
        need(value_of(config, field) in allowed, field,
             f"not known.{nearest(value_of(config, field), allowed)}")  # fmt: skip
    for field in AT_LEAST_1:
        need(value_of(config, field) >= 1, field, "must be at least 1.")
    for field in NOT_NEGATIVE:
        need(value_of(config, field) >= 0, field, "must not be negative.")
    for field in FRACTIONS:
        need(0 <= value_of(config, field) < 1, field, "must be at least 0 and below 1.")

    need(model.head_dim or model.dim % model.num_heads == 0, "model.dim",
         f"not divisible by model.num_heads={model.num_heads}; or set model.head_dim.")  # fmt: skip
    need(model.kv_heads <= model.num_heads and model.num_heads % model.kv_heads == 0,
         "model.num_kv_heads", f"must divide model.num_heads={model.num_heads}.")  # fmt: skip
    need(model.positions != "rope" or model.head_size % 2 == 0, "model.head_dim",
         "rotary positions need an even head size.")  # fmt: skip
    need(data.sequence_length <= model.max_length, "data.sequence_length",
         f"longer than config.model.max_length={model.max_length}.")  # fmt: skip
    need(config.batch_size % config.microbatches == 0, "batch_size",
         f"must be divisible by config.microbatches={config.microbatches}.")  # fmt: skip
    need(config.optimizer.warmup_steps <= config.steps, "optimizer.warmup_steps",
         f"longer than config.steps={config.steps}.")  # fmt: skip

    sizes = dataclasses.asdict(mesh)
    for axis, size in sizes.items():
        need(size >= 1 or size == -1, f"mesh.{axis}", "must be at least 1, or -1 for what is left.")
    filled = [axis for axis, size in sizes.items() if size == -1]
    if len(filled) > 1:
        raise UserError(f"config.mesh.{filled[1]}=-1: only one mesh axis may be -1.")
    for field, size in (("model.num_kv_heads", model.kv_heads), ("model.mlp_dim", model.mlp_size),
                        ("model.vocab_size", model.vocab_size)):  # fmt: skip
        need(size % abs(mesh.tensor) == 0, "mesh.tensor", f"must divide config.{field}={size}.")
    need(model.dim % abs(mesh.fsdp) == 0, "mesh.fsdp", f"must divide config.model.dim={model.dim}.")


def value_of(config: Any, field: str) -> Any:
    """The value of a dotted field."""
    for part in field.split("."):
        config = getattr(config, part)
    return config
