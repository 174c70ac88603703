"""The options of a run: dataclasses with defaults, their checks, and what a model costs by its
options. Imports no jax.
"""

from lm_jax.config.options import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvalConfig,
    LossConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    WatchdogConfig,
    from_model,
    need_variant,
    new,
    sized,
)

__all__ = ["CheckpointConfig", "Config", "DataConfig", "EvalConfig", "LossConfig", "MeshConfig",
           "ModelConfig", "OptimizerConfig", "WatchdogConfig", "from_model",
           "need_variant", "new", "sized"]  # fmt: skip
