"""The meaning of "auto" on a platform: attention, compute type, precision of products."""

import dataclasses

from lm_jax.config import ModelConfig
from lm_jax.devices import runtime
from lm_jax.errors import UserError


def resolved(
    config: ModelConfig, platform: str, prefix: bool = False, shared: bool = False
) -> ModelConfig:
    """The config with "auto" replaced by its meaning on `platform` (cpu, gpu, tpu).

    prefix: batches have a prefix (prefix LM). shared: several devices share a row (mesh.context).
    Raises UserError for a named attention kernel that does not run on the platform or cannot
    compute this model; "auto" never chooses such a kernel.
    """
    backends = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn"}
    attention = backends.get(platform, "xla") if config.attention == "auto" else config.attention
    dtype = "float32" if platform == "cpu" else "bfloat16"
    dtype = dtype if config.dtype == "auto" else config.dtype
    possible = {"splash": ("tpu",), "cudnn": ("gpu", "cuda")}.get(attention, (platform,))
    if platform not in possible:
        raise UserError(
            f"config.model.attention={attention!r}: cannot run on {platform}; "
            "set it to auto or xla."
        )
    beyond = {
        f"config.model.positions={config.positions!r}": config.positions in ("relative", "alibi"),
        f"config.model.attention_dropout={config.attention_dropout}": config.attention_dropout,
        f"config.model.value_dim={config.value_dim}": config.value_size != config.head_size,
        "a prefix that is seen from before": prefix and attention == "splash",
        "config.model.attn_softcap": config.attn_softcap and attention == "cudnn",
        "config.model.context_attention='ring'": (
            shared and config.context_attention == "ring" and attention == "cudnn"
        ),
        f"config.model.dtype={dtype!r}": dtype == "float32" and attention == "cudnn",
        f"heads of {config.head_size} numbers, but multiples of 8 up to 256": (
            attention == "cudnn" and (config.head_size % 8 or config.head_size > 256)
        ),
    }
    why = next((what for what, is_so in beyond.items() if is_so and attention != "xla"), None)
    if why and config.attention != "auto":
        raise UserError(
            f"config.model.attention={attention!r}: cannot have {why}; set it to auto or xla."
        )
    attention = "xla" if why else attention
    precision = config.matmul_precision
    if precision == "auto":
        fast = platform == "cpu" and dtype == "float32" and runtime.bfloat16_is_faster()
        precision = "bfloat16" if fast else "default"
    return dataclasses.replace(config, attention=attention, dtype=dtype, matmul_precision=precision)
