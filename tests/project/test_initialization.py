"""Initial weights of every config are those of its reference; docs/recipes.md has the table,
which `python tests/project/test_initialization.py` writes anew.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from initial_std import REFERENCES, expected, value
from scaled import module

from lm_jax.config import Config
from lm_jax.models import create, head, layers, moe, recurrent
from lm_jax.models.attention import attention, positions
from lm_jax.models.classical import hmm
from lm_jax.run.manifest import flatten

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- initial standard deviations -->\n", "<!-- end -->\n"
MAKERS = (head, layers, moe, recurrent, attention, positions, hmm)  # they import `weight` by name
TRAINED = [name for name in REFERENCES if name != "ngram"]


def models(name):
    """{variant: ModelConfig} of a file in configs/; the first is its default."""
    preset = module(name)
    names = tuple(getattr(preset, "SIZES", getattr(preset, "VARIANTS", ("",))))
    make = lambda size: preset.get_config(size) if size else preset.get_config()
    found = {size: Config.parse(make(size)).model for size in names}
    default = Config.parse(preset.get_config()).model
    return {next(size for size in found if found[size] == default): default, **found}


def small(model):
    """The generic rule: every size at its least that keeps its ratio to others and enough numbers
    for a standard deviation; what follows from the width follows it.
    """
    at_most = {"num_layers": 3, "encoder_layers": 4, "dim": 64, "num_heads": 4, "head_dim": 8,
               "mlp_dim": 160, "vocab_size": 512, "max_length": 128, "num_experts": 4}  # fmt: skip
    sizes = {name: min(getattr(model, name), most) for name, most in at_most.items()}
    group = max(1, model.num_heads // model.kv_heads)
    sizes["num_kv_heads"] = max(1, sizes["num_heads"] // group)
    for name in ("embed_scale", "embed_init_std", "logit_scale"):
        for power in (0.5, -0.5):
            if getattr(model, name) == model.dim**power:
                sizes[name] = sizes["dim"] ** power
    return dataclasses.replace(model, **sizes, window=0, attention="xla", dtype="float32")


def declared(model, monkeypatch):
    """{name: standard deviation} that a model's weights are drawn with, at any size."""

    def noted(rngs, shape, axes, std, *role):
        return nnx.Param(made(rngs, shape, axes, std, *role)[...], std=std)

    made = layers.weight
    with monkeypatch.context() as patch:
        for maker in MAKERS:
            patch.setattr(maker, "weight", noted)
        abstract = jax.eval_shape(lambda: create(model, rngs=nnx.Rngs(0)))
    is_param = lambda x: isinstance(x, nnx.Variable)
    leaves = jax.tree_util.tree_leaves_with_path(abstract, is_leaf=is_param)
    names = flatten(abstract)
    return dict(zip(names, (x.get_metadata().get("std", 0.0) for _, x in leaves), strict=True))


def test_every_config_has_a_reference():
    assert REFERENCES.keys() == {path.stem for path in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("name", TRAINED)
def test_weights_of_a_config_are_drawn_as_those_of_its_reference(name, monkeypatch):
    every = models(name)
    for size in dict.fromkeys((next(iter(every)), *list(every)[-1:])):
        for tensor, std in declared(every[size], monkeypatch).items():
            wanted = expected(REFERENCES[name], tensor.split("/")[-1], every[size])
            assert std == pytest.approx(wanted, rel=1e-6), (size, tensor)


@pytest.mark.slow  # 40 s
@pytest.mark.parametrize("name", TRAINED)
def test_weights_of_a_config_scaled_down_have_the_standard_deviation_of_its_reference(name):
    for size, model in models(name).items():
        config = small(model)
        for tensor, x in flatten(jax.jit(lambda c=config: create(c, rngs=nnx.Rngs(0)))()).items():
            kind = tensor.split("/")[-1]
            wanted = expected(REFERENCES[name], kind, config)
            if kind == "bx":  # an LSTM begins by remembering: one gate's bias is 1
                continue
            x = np.asarray(x)
            assert x.std() == pytest.approx(wanted, rel=4 / (2 * x.size) ** 0.5), (size, tensor)
            assert wanted == 0 or abs(x.mean()) < 4 * wanted / x.size**0.5, (size, tensor)


def table():
    """The table of docs/recipes.md: a row for each formula of each config, at its default size."""
    lines = ["| config | tensors | at first | formula | its reference | source |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, reference in REFERENCES.items():
        size, model = next(iter(models(name).items()))
        title = f"`{name}{f':{size}' * bool(size)}`"
        make = lambda m=model: create(m, rngs=nnx.Rngs(0))
        abstract = jax.eval_shape(make) if reference.rows else {}
        present = {tensor.split("/")[-1] for tensor in flatten(abstract)}
        source = reference.source
        for row in reference.rows:
            tensors = [tensor for tensor in row.tensors.split() if tensor in present]
            if not tensors:
                continue
            other = row.reference and f"`{row.reference}`: {value(row.reference, model):.4g}"
            cells = (title, " ".join(tensors), f"{value(row.ours, model):.4g}", f"`{row.ours}`",
                     other or "the same", source)  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
            title = source = ""  # said once
    return "\n".join(lines) + "\n"


def test_the_table_of_the_docs_is_this_one():
    page = PAGE.read_text("utf-8")
    shown = page.split(BEGIN)[1].split(END)[0]
    assert shown == table(), "python tests/project/test_initialization.py writes it anew"


if __name__ == "__main__":
    page = PAGE.read_text("utf-8")
    before, rest = page.split(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.split(END)[1], "utf-8")
    sys.exit()
