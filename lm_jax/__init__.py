"""lm_jax: pretraining of language models in JAX and Flax. Public names load when they are first
used.
"""

import importlib
from typing import Any

from lm_jax.run import interrupts

__version__ = "0.1.0"

_HOMES = {"load": "lm_jax.api", "LanguageModel": "lm_jax.inference.language_model",
          "Transformer": "lm_jax.models", "ModelConfig": "lm_jax.config", "Config": "lm_jax.config",
          "diagnose": "lm_jax.devices.checks"}  # fmt: skip
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lm_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


if command := interrupts.module_run():
    interrupts.quietly_until_started(command)
