"""The configs of configs/, each with its variants, and one rule that makes any of them small.

Sizes are divided and capped; what a config is, is kept: its options, groups of heads, whole periods
of layers and what is left of them, and numbers that follow from the width. Nothing here names a
config.
"""

import dataclasses
import functools
import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

from lm_jax.config import Config
from lm_jax.config.field import walk

CONFIGS = Path(__file__).parents[2] / "configs"
NUMBERS = ("name", "model.num_layers", "model.num_heads", "model.num_kv_heads")
DIM, LENGTH, VOCAB, PIECES = 32, 32, 512, 300  # of small models; pieces: of their tokenizers
FILES = tuple(sorted(path.stem for path in CONFIGS.glob("*.py")))


@functools.cache
def module(file: str) -> ModuleType:
    """The module configs/FILE.py."""
    spec = importlib.util.spec_from_file_location(f"preset_{file}", CONFIGS / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def variants(file: str) -> list[str]:
    """What may stand behind the colon of --config=configs/FILE.py:VARIANT; [""] where nothing."""
    found = module(file)
    return [*getattr(found, "SIZES", getattr(found, "VARIANTS", ("",)))]


FIRST = [f"{file}:{variants(file)[0]}".rstrip(":") for file in FILES]  # variant of each file
NAMES = tuple(f"{file}:{name}".rstrip(":") for file in FILES for name in variants(file))


def published(name: str, **changes: Any) -> Config:
    """The config NAME ("llama3:8b") as it stands in its file, with changes by dotted field."""
    file, _, variant = name.partition(":")
    values = module(file).get_config(*[variant] * bool(variant))
    values.update_from_flattened_dict({key.replace("__", "."): x for key, x in changes.items()})
    return Config.parse(values)


def scaled(config: Config) -> dict[str, Any]:
    """{dotted field: value} that makes a small run of three steps of any config."""
    data, shorter = config.data, LENGTH * (2 if config.mesh.context > 1 else 1)
    length = min(data.sequence_length, shorter)
    small = {
        "steps": 3, "batch_size": 8, "log_every": 1,
        "microbatches": min(config.microbatches, 2),
        "data.sequence_length": length,
        "data.vocab_size": min(data.vocab_size, PIECES),
        "optimizer.warmup_steps": min(config.optimizer.warmup_steps, 1),
        "optimizer.decay_steps": min(config.optimizer.decay_steps, 2),
        "loss.chunk_size": min(config.loss.chunk_size, length // 2),
        "loss.mean_span": min(config.loss.mean_span, length / 8),
        "eval.every": min(config.eval.every, 2), "eval.tokens": 8 * length,
        "eval.sample_tokens": min(config.eval.sample_tokens, 3),
        "checkpoint.every": 2,
    }  # fmt: skip
    return small | {f"model.{field}": x for field, x in scaled_model(config, length).items()}


def scaled_model(config: Config, length: int) -> dict[str, Any]:
    """{field of the model: value}, for rows of `length` tokens."""
    model, cut = config.model, config.data.sequence_length // length
    groups, kv = min(model.num_heads // model.kv_heads, 2), min(model.kv_heads, 2)
    heads, period = groups * kv, len(model.kinds)
    layers = period * min(2 if period == 1 else 1, model.num_layers // period)
    layers += model.num_layers % period
    # A head is as wide as its part of the model, half as wide or twice as wide.
    head, share = model.head_dim, model.dim / model.num_heads
    wide = DIM // heads * (2 if head > share else 1) // (2 if head < share else 1)
    small = {
        "vocab_size": min(model.vocab_size, VOCAB), "dim": DIM, "num_layers": layers,
        "num_heads": heads, "num_kv_heads": model.num_kv_heads and kv, "head_dim": head and wide,
        "encoder_layers": min(model.encoder_layers, layers + 1),
        "mlp_dim": model.mlp_dim and max(16, 16 * round(model.mlp_dim * DIM / model.dim / 16)),
        "max_length": max(length, min(model.max_length // cut, 2 * length)),
        "window": min(model.window, length // 4),
        "num_experts": min(model.num_experts, 4),
        "experts_per_token": min(model.experts_per_token, 2),
        "scan_unroll": layers if model.scan_unroll == model.num_layers else 1,
    }  # fmt: skip
    for field in dataclasses.fields(model):  # those that follow from the width
        value = getattr(model, field.name)
        power = math.log(abs(value), model.dim) if field.type is float and value else 0
        if math.isclose(abs(power), 0.5):
            small[field.name] = DIM ** math.copysign(0.5, power)
    return small


def small(name: str) -> Config:
    """The config NAME, made small."""
    return published(name, **scaled(published(name)))


def kind(name: str) -> tuple[Any, ...]:
    """What a config is, its numbers aside: variants of one kind run the same code, and of a number
    only its being 0 or 1 can choose another one.
    """
    config = small(name)
    coarse = lambda x: x if isinstance(x, str) or x in (0, 1) else "a number"
    model = config.model
    shape = (model.num_layers, model.num_heads // model.kv_heads)
    rows = [(field, coarse(x)) for field, _, x in walk(config) if field not in NUMBERS]
    return (shape, *rows)
