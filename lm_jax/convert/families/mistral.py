"""Mistral and Mixtral of `transformers`: a Llama with one window for all layers, and experts in
Mixtral (transformers/models/mistral, mixtral).
"""

from dataclasses import replace
from functools import partial
from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.convert.families import llama, windows
from lm_jax.convert.mapping import REQUIRED, Option
from lm_jax.errors import UserError


def read(values: dict[str, Any], where: str, window: int | None = None) -> dict[str, Any]:
    """The window; `window` is its default."""
    found = windows.read_window(values, window, where)
    return {"window": found, "layer_pattern": "l"} if found else {}


def write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read`."""
    return {"sliding_window": config.window or None}


def write_mixtral(config: ModelConfig) -> dict[str, Any]:
    """`write`; raises UserError without experts."""
    if not config.num_experts:
        raise UserError("config.model.num_experts=0: MixtralForCausalLM has 1 or more only.")
    return write(config)


SIZES = {"max_position_embeddings": 131_072, "num_key_value_heads": REQUIRED}

MISTRAL = llama.like(
    "mistral",
    "MistralForCausalLM",
    defaults=SIZES,
    keys=("sliding_window",),
    read=partial(read, window=4096),
    write=write,
)

WITHOUT_ALIASES = llama.like(
    "mixtral",
    "MixtralForCausalLM",
    defaults={**SIZES, "rms_norm_eps": 1e-5},
    theta=1e6,
    options=(
        Option("num_local_experts", "num_experts", 8),
        Option("num_experts_per_tok", "experts_per_token", 2),
    ),
    # These act in training only.
    keys=("sliding_window", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
    read=read,
    write=write_mixtral,
)
MIXTRAL = replace(WITHOUT_ALIASES, aliases={"num_experts": "num_local_experts"})
