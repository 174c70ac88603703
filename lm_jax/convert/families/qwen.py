"""Qwen 2 and Qwen 3 of `transformers`: a Llama with biases on queries, keys and values or norms on
their heads, and a window for some layers (transformers/models/qwen2, qwen3).
"""

from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.config.values import typed
from lm_jax.convert.families import llama, windows
from lm_jax.convert.mapping import REQUIRED
from lm_jax.convert.pattern import pattern_of, repeated
from lm_jax.convert.values import sized


def read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Without `layer_types`, layers from `max_window_layers` on have the window."""
    window = 0
    if typed(values.get("use_sliding_window") or False, bool, f"{where}: use_sliding_window"):
        window = windows.read_window(values, 4096, where)
    layers = sized(values.get("num_hidden_layers"), int, f"{where}: num_hidden_layers")
    full = sized(values.get("max_window_layers", 28), int, f"{where}: max_window_layers")
    full = min(full, layers) if window else layers
    letters = pattern_of(("g", full), ("l", layers - full))
    return windows.read_layers(values, window, letters, where)


def write(config: ModelConfig) -> dict[str, Any]:
    """The window in both forms: by layer, and as the number of layers before the first with it."""
    letters = repeated(config.kinds, config.num_layers)
    return {
        **windows.write_layers(config),
        "use_sliding_window": bool(config.window),
        "max_window_layers": len(letters) - len(letters.lstrip("g")),
    }


KEYS = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")
SIZES = {"max_position_embeddings": 32_768, "num_key_value_heads": REQUIRED}

QWEN2 = llama.like(
    "qwen2",
    "Qwen2ForCausalLM",
    defaults=SIZES,
    ours={"qkv_bias": True},
    keys=KEYS,
    read=read,
    write=write,
)

QWEN3 = llama.like(
    "qwen3",
    "Qwen3ForCausalLM",
    defaults={**SIZES, "head_dim": 128},
    ours={"qk_norm": True},
    keys=(*KEYS, "attention_bias"),
    read=lambda values, where: {**read(values, where), **llama.read_bias(values, where)},
    write=lambda config: {**write(config), **llama.write_bias(config)},
)
