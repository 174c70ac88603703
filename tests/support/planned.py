"""Configs to plan: a small one, and those of configs/ on a mesh."""

import dataclasses

from scaled import published

from lm_jax.config import MeshConfig
from lm_jax.devices.resolve import resolved

SMALL = {"batch_size": 16, "steps": 1000, "data": {"sequence_length": 256}, "model": {
    "dim": 256, "num_layers": 4, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 512,
    "mlp_dim": 512, "remat": "full"}}  # fmt: skip


def of_file(name, mesh, **changes):
    """A config of configs/, on a mesh."""
    config = dataclasses.replace(published(name, **changes), mesh=MeshConfig(**{"data": 1} | mesh))
    return dataclasses.replace(config, model=resolved(config.model, "tpu"))
