"""Train steps to measure: shapes, made-up batches, compilation, timing."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from lm_jax.config import Config
from lm_jax.config.cost import flops_per_token, matmul_parameters
from lm_jax.data.views import by_objective
from lm_jax.data.views.windows import mix
from lm_jax.devices import runtime, sharding, xla_options
from lm_jax.devices.chips import peak_flops
from lm_jax.devices.resolve import resolved
from lm_jax.training.train_step import init_state, make_train_step

GPT2 = {
    "batch_size": 64,
    "model.vocab_size": 50_304, "model.num_layers": 12, "model.dim": 768, "model.num_heads": 12,
    "model.mlp_dim": 3072, "model.max_length": 1024, "model.norm": "layernorm",
    "model.positions": "learned", "model.activation": "gelu_tanh", "model.gated": False,
    "model.bias": True, "data.sequence_length": 1024,
}  # fmt: skip
LLAMA_1B = {
    "batch_size": 16,
    "model.vocab_size": 128_256, "model.num_layers": 16, "model.dim": 2048, "model.num_heads": 32,
    "model.num_kv_heads": 8, "model.mlp_dim": 8192, "model.max_length": 8192,
    "model.rope_theta": 500_000.0, "model.remat": "names", "data.sequence_length": 2048,
}  # fmt: skip
# Sizes of the miniature, for every shape.
TINY = {
    "batch_size": 4, "model.vocab_size": 512, "model.num_layers": 2, "model.dim": 64,
    "model.num_heads": 4, "model.num_kv_heads": 0, "model.mlp_dim": 128, "model.max_length": 128,
    "model.head_dim": 0, "data.sequence_length": 128,
}  # fmt: skip


def config_of(shape: dict[str, Any], tiny: bool, **changes: Any) -> Config:
    """A config from dotted fields, as this machine runs it; in changes, __ stands for the dot."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    fields = shape | (TINY if tiny else {}) | dotted
    values: dict[str, Any] = {"steps": 1000}
    for name, value in fields.items():
        group, _, field = name.rpartition(".")
        (values.setdefault(group, {}) if group else values)[field] = value
    config = Config.parse(values)
    return dataclasses.replace(config, model=resolved(config.model, jax.default_backend()))


def ids(shape: tuple[int, ...], vocab: int, start: int = 0) -> np.ndarray:
    """Token ids that are a function of their place: no data is needed."""
    places = np.arange(start, start + np.prod(shape), dtype=np.uint64)
    return (mix(places) % np.uint64(vocab)).astype(np.int32).reshape(shape)


def batch_of(config: Config, documents: int = 4) -> dict[str, np.ndarray]:
    """A batch [microbatches, B, ...] of the objective, with so many documents a row."""
    lead = config.microbatches, config.batch_size // config.microbatches
    batch: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in by_objective.shapes(config).items():
        length = shape[0] if shape else 1
        places = np.arange(length)
        values: Any
        if name.endswith("segment_ids"):
            values = np.broadcast_to(places * documents // length + 1, (*lead, *shape))
        elif name.endswith("positions"):
            values = np.broadcast_to(places % -(-length // documents), (*lead, *shape))
        elif name in ("tokens", "targets", "inputs"):
            values = ids((*lead, *shape), config.model.vocab_size, start=len(name))
        elif name == "weights":
            masked = config.model.architecture == "encoder"
            values = np.broadcast_to(places % 7 == 0 if masked else places >= 0, (*lead, *shape))
        else:
            values = np.zeros((*lead, *shape))
        batch[name] = np.ascontiguousarray(values.astype(dtype))
    return batch


class Step:
    """A compiled train step with its state and a batch that stays on the device."""

    def __init__(self, config: Config, documents: int = 4, options: dict | None = None):
        self.config, self.device = config, runtime.devices()[0]
        self.mesh = sharding.make_mesh(config.mesh, [self.device])
        with jax.set_mesh(self.mesh):
            self.state: Any = jax.jit(lambda: init_state(config))()
            self.batch = sharding.put(batch_of(config, documents), self.mesh, 1)
            began = time.perf_counter()
            step = jax.jit(make_train_step(config), donate_argnums=0)
            chosen = xla_options.accepted(self.mesh) if options is None else options
            self.compiled: Any = step.lower(self.state, self.batch).compile(compiler_options=chosen)
            self.compile_seconds = time.perf_counter() - began

    def __call__(self) -> dict[str, jax.Array]:
        """One step more; its metrics."""
        with jax.set_mesh(self.mesh):
            self.state, metrics = self.compiled(self.state, self.batch)
        return metrics

    @property
    def gib(self) -> float | None:
        """GiB that the program needs: its arguments and temporary arrays."""
        found = self.compiled.memory_analysis()
        return found and (found.argument_size_in_bytes + found.temp_size_in_bytes) / 2**30

    def rate(self, seconds: float) -> dict[str, Any]:
        """Figures of about `seconds` of steps, after a few that are not counted."""
        loss = float(self()["loss"])
        jax.block_until_ready(self())
        began = time.perf_counter()
        jax.block_until_ready(self())
        steps = max(3, int(seconds / (time.perf_counter() - began)))
        began = time.perf_counter()
        for _ in range(steps):
            metrics = self()
        jax.block_until_ready(metrics)
        each = (time.perf_counter() - began) / steps
        config, length = self.config, self.config.data.sequence_length
        speed, peak = config.tokens_per_step / each, peak_flops(self.device.device_kind)
        model = config.model
        blocks = 6.0 * (matmul_parameters(model) - model.dim * model.vocab_size)
        share = lambda flops: round(100 * speed * flops / peak, 2) if peak else None
        return {
            "tok/s": speed, "MFU full %": share(flops_per_token(model, length)),
            "MFU blocks %": share(blocks), "ms a step": each * 1e3, "GiB": self.gib,
            "compile s": self.compile_seconds, "first loss": loss,
        }  # fmt: skip


def measured(config: Config, seconds: float, documents: int = 4, options: dict | None = None):
    """The figures of a config whose step is built, timed and dropped."""
    return Step(config, documents, options).rate(seconds)
