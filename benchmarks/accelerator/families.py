"""Train steps of other models, and their memory beside what a plan predicts."""

import dataclasses
from typing import Any

from accelerator.part import Measure
from accelerator.step import LLAMA_1B, measured
from accelerator.step import config_of as of
from lm_jax.config import MeshConfig
from lm_jax.devices import runtime
from lm_jax.devices.chips import chip_of, parse
from lm_jax.errors import UserError
from lm_jax.plan.estimate import part_of
from lm_jax.plan.memory import memory

BERT = {
    "batch_size": 128,
    "model.architecture": "encoder", "model.vocab_size": 30_592, "model.num_layers": 12,
    "model.dim": 768, "model.num_heads": 12, "model.mlp_dim": 3072, "model.max_length": 512,
    "model.norm": "layernorm", "model.norm_order": "post", "model.final_norm": False,
    "model.embed_norm": True, "model.positions": "learned", "model.activation": "gelu",
    "model.gated": False, "model.bias": True, "model.head_transform": True,
    "model.head_bias": True, "model.token_types": 2, "loss.objective": "mlm",
    "data.sequence_length": 512,
}  # fmt: skip
T5 = {
    "batch_size": 64,
    "model.architecture": "encoder_decoder", "model.vocab_size": 32_128, "model.num_layers": 12,
    "model.dim": 768, "model.num_heads": 12, "model.head_dim": 64, "model.mlp_dim": 3072,
    "model.max_length": 512, "model.positions": "relative", "model.attn_scale": 1.0,
    "model.activation": "relu", "model.gated": False, "loss.objective": "span_corruption",
    "data.sequence_length": 512,
}  # fmt: skip
# Mixtral's layers, 1 B parameters active of 2.6 B.
EXPERTS = LLAMA_1B | {
    "batch_size": 8, "model.vocab_size": 32_000, "model.mlp_dim": 3584, "model.num_experts": 8,
    "model.experts_per_token": 2, "model.remat": "full",
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "Llama 1B, 2,048 tokens": LLAMA_1B,
    "Llama 1B, 8,192 tokens": LLAMA_1B | {"batch_size": 4, "data.sequence_length": 8192},
    "BERT base": BERT,
    "T5 base": T5,
    "8 experts, 1B active": EXPERTS,
}


def run(measure: Measure) -> None:
    """The rows of this part."""
    runtime.start()
    for name, shape in SHAPES.items():
        measure.each(name, one, measure, name, shape)


def one(measure: Measure, name: str, shape: dict[str, Any]) -> None:
    """A row: speed, and memory beside the prediction."""
    tiny = {"model__num_experts": 4} if measure.tiny and "model.num_experts" in shape else {}
    config = of(shape, measure.tiny, **tiny)
    figures = measured(config, 0.2 if measure.tiny else 2.0)
    figures["GiB predicted"] = predicted(config)
    measure.row(name, **figures, attention=config.model.attention)


def predicted(config: Any) -> float | None:
    """GiB that a plan expects; None for a model that it does not estimate."""
    chip = chip_of(runtime.devices()[0].device_kind)
    name = chip.name if chip else "h200"  # no chip of the table: that of the script's aim
    topology = parse(f"{name}:1" if not chip or not chip.is_tpu else f"{name}:1x1")
    try:
        mesh = MeshConfig(data=1)
        raw = dataclasses.replace(config.model, attention="auto")
        part = part_of(dataclasses.replace(config, mesh=mesh, model=raw), topology)
    except UserError:
        return None
    return memory(part).total / 2**30
