"""Models of `transformers` that were saved without their output head."""

from collections.abc import Mapping, Set
from pathlib import Path

import jax
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.convert.mapping import Family
from lm_jax.convert.rows import rows_by_tensor
from lm_jax.convert.safetensors_file import Tensor
from lm_jax.models import Transformer
from lm_jax.run.checkpoint import flatten


def missing_head(family: Family, config: ModelConfig, found: Mapping[str, Tensor]) -> list[str]:
    """Names of the head's tensors if the files hold none of them (a body), else []."""
    names = rows_by_tensor([row for row in family.rows(config) if family.of_head(row)], config)
    held = any(other in found for name in names for other in family.names(name))
    return [] if held else [*names]


def body_line(path: Path, lacking: list[str], new_head: bool) -> str:
    """The line that is printed about a body."""
    what = "has a new one, not trained" if new_head else "has hidden states, no logits"
    more = "" if new_head else "; new_head=True gives it a new head"
    return f"{path}: a body without its head ({lacking[0]}, ...): the model {what}{more}"


def new_arrays(config: ModelConfig, names: Set[str]) -> dict[str, jax.Array]:
    """Initial values of some arrays of a model, by flat name, on their devices."""

    def make() -> dict[str, jax.Array]:
        model = flatten(Transformer(config, rngs=nnx.Rngs(0)))
        return {name: model[name] for name in names}

    return jax.jit(make)() if names else {}
