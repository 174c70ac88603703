"""Gemma 2 and the text model of Gemma 3 of `transformers`: a Llama with norms around each branch
whose scale is 1 + weight, scaled embeddings, caps and windows (transformers/models/gemma2, gemma3).
"""

import math
from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.convert.families import llama, rope, windows
from lm_jax.convert.mapping import ACTIVATIONS, REQUIRED, Option
from lm_jax.convert.pattern import pattern_of
from lm_jax.convert.values import short, sized
from lm_jax.errors import UserError

SLIDING, FULL = windows.LETTERS


def read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Scales and caps; the scale of the scores is `query_pre_attn_scalar` ** -0.5."""
    if values.get("use_bidirectional_attention"):
        raise UserError(
            f"{where}: use_bidirectional_attention={short(values['use_bidirectional_attention'])}: "
            "not supported, only false."
        )
    width = sized(values.get("hidden_size"), int, f"{where}: hidden_size")
    scalar = values.get("query_pre_attn_scalar", 256)
    if not sized(scalar, float, f"{where}: query_pre_attn_scalar") > 0:
        raise UserError(f"{where}: query_pre_attn_scalar={scalar}: must be above 0.")
    return {
        "embed_scale": math.sqrt(width),
        "attn_scale": scalar**-0.5,
        "logit_softcap": read_cap(values, "final_logit_softcapping", where),
        **llama.read_bias(values, where),
    }


def read_gemma2(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Every second layer has the window."""
    window = windows.read_window(values, 4096, where)
    return {
        **read({"final_logit_softcapping": 30.0, **values}, where),
        "attn_softcap": read_cap(
            {"attn_logit_softcapping": 50.0, **values}, "attn_logit_softcapping", where
        ),
        **windows.read_layers(values, window, "lg", where),
    }


def read_gemma3(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Every sixth layer sees all; the others have a rotary base of their own."""
    window = windows.read_window(values, 4096, where)
    period = sized(values.get("sliding_window_pattern", 6), int, f"{where}: sliding_window_pattern")
    if period < 1:
        raise UserError(f"{where}: sliding_window_pattern={period}: must be at least 1.")
    letters = pattern_of(("l", period - 1), ("g", 1))
    return {**read(values, where), **windows.read_layers(values, window, letters, where)}


def read_cap(values: dict[str, Any], key: str, where: str) -> float:
    """A cap of logits; 0 where it is null."""
    value = values.get(key)
    if value is None:
        return 0.0
    if not sized(value, float, f"{where}: {key}") > 0:
        raise UserError(f"{where}: {key}={value}: must be above 0, or null.")
    return float(value)


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`; their scalar is a whole number."""
    return {
        "query_pre_attn_scalar": max(1, round((config.attn_scale or config.head_size**-0.5) ** -2)),
        "final_logit_softcapping": config.logit_softcap or None,
        **windows.write_layers(config),
        **llama.write_bias(config),
    }


def write_gemma2(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_gemma2`."""
    return {**write(config), "attn_logit_softcapping": config.attn_softcap or None}


def read_rope(values: dict[str, Any], where: str) -> dict[str, Any]:
    """One base and scaling for global layers, one base for local ones (Gemma 3)."""
    nested = values.get("rope_parameters") or {}
    if not isinstance(nested, dict) or nested.keys() - windows.LETTERS:
        raise UserError(
            f"{where}: rope_parameters={short(nested)}: expected {SLIDING} and {FULL} in it."
        )
    flat = {**values, "rope_parameters": nested.get(FULL)}
    local = {"rope_parameters": nested.get(SLIDING), "rope_theta": values.get(LOCAL_BASE)}
    found = rope.read(local, f"{where}: {SLIDING}")
    if found.get("rope_scaling", "none") != "none":
        raise UserError(
            f"{where}: rope_parameters.{SLIDING}: rope_type={found['rope_scaling']!r} is not "
            "supported, only 'default'."
        )
    theta = found.get("rope_theta", 10_000.0)
    return {"rope_theta": 1e6, **rope.read(flat, where), "rope_local_theta": theta}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_rope`, in both forms."""
    local, values = config.rope_local_theta or 10_000.0, rope.write(config)
    default = {"rope_type": "default", "rope_theta": local}
    nested = {FULL: values["rope_parameters"], SLIDING: default}
    return {**values, "rope_parameters": nested, LOCAL_BASE: local}


LOCAL_BASE = "rope_local_base_freq"
SIZES = {"num_key_value_heads": REQUIRED, "head_dim": 256, "tie_word_embeddings": True}
OPTIONS = (
    Option("hidden_activation", "activation", "gelu_tanh",
           {"gelu_pytorch_tanh": "gelu_tanh", **ACTIVATIONS}),
)  # fmt: skip
OURS = {"norm_order": "sandwich", "norm_offset": 1.0}
KEYS = (
    "attention_bias", "final_logit_softcapping", "layer_types", "query_pre_attn_scalar",
    "sliding_window", "use_bidirectional_attention",
)  # fmt: skip

GEMMA2 = llama.like(
    "gemma2",
    "Gemma2ForCausalLM",
    defaults={**SIZES, "max_position_embeddings": 8192},
    options=OPTIONS,
    ours=OURS,
    keys=(*KEYS, "attn_logit_softcapping"),
    heads_divide=True,
    read=read_gemma2,
    write=write_gemma2,
)

GEMMA3 = llama.like(
    "gemma3_text",
    "Gemma3ForCausalLM",
    defaults={**SIZES, "max_position_embeddings": 131_072},
    options=OPTIONS,
    ours={**OURS, "qk_norm": True},
    # transformers has the cap of the scores among Gemma 3's options, and does not apply it.
    only={"attn_logit_softcapping": None},
    keys=(*KEYS, LOCAL_BASE, "sliding_window_pattern"),
    heads_divide=True,
    read=read_gemma3,
    write=write,
    read_rope=read_rope,
    write_rope=write_rope,
)
