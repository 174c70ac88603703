"""Facts about each option: every field states them, and every list follows from them."""

import dataclasses

import numpy as np
import pytest

from lm_jax.config import Config, LossConfig, ModelConfig
from lm_jax.config.check import OBJECTIVES
from lm_jax.config.field import check_values, facts_of, idle, walk
from lm_jax.errors import UserError
from lm_jax.training import optimizers

FIELDS = {name: (field, value) for name, field, value in walk(Config)}
NUMBERS = {name: value for name, (_, value) in FIELDS.items() if type(value) in (int, float)}


def set_to(name, value):
    """The default config with one dotted field set."""
    *groups, leaf = name.split(".")
    if not groups:
        return dataclasses.replace(Config(), **{leaf: value})
    group = dataclasses.replace(getattr(Config(), groups[0]), **{leaf: value})
    return dataclasses.replace(Config(), **{groups[0]: group})


def test_every_field_states_its_facts():
    assert all("facts" in field.metadata for field, _ in FIELDS.values())
    assert {facts.role for facts in facts_of(Config).values()} == {
        "logits", "training", "execution", "record"}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_a_lower_and_an_upper_bound(name):
    below = [-1e30, -2.0] if isinstance(NUMBERS[name], float) else [-(2**40), -2]
    assert any(refused(name, value) for value in below)
    if isinstance(NUMBERS[name], int):
        assert refused(name, 2**33)


def refused(name, value):
    """Whether the value is refused, in one line that names the field."""
    try:
        check_values(set_to(name, value))
    except UserError as error:
        return str(error).startswith(f"config.{name}={value!r}: must ") and "\n" not in str(error)
    return False


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("optimizer.end_fraction", -3.0, "must be 0 to 1."),
        ("model.rope_theta", 0.0, "must be above 0."),
        ("model.norm_eps", -1.0, "must be above 0."),
        ("data.max_bad_fraction", -1.0, "must be 0 to 1."),
        ("model.dim", 2**33, "must be at most 1048576."),
        ("model.vocab_size", 2**40, "must be at most 16777216."),
        ("seed", 2**32, "must be at most 4294967295."),
        ("steps", 2**31, "must be at most 2147483647."),
        ("model.dropout", 1.0, "must be at least 0 and below 1."),
        ("model.norm", "layer_norm", "not known. Did you mean 'layernorm'?"),
        ("model.order", 7, "must be 1 to 6."),
        ("model.rope_factor", float("nan"), "must be finite."),
        ("model.dim", 1.5, "expected int, got float."),
        ("model.gated", 1, "expected bool, got int."),
    ],
)
def test_a_value_out_of_bounds_is_one_line_with_what_is_allowed(name, value, why):
    with pytest.raises(UserError) as error:
        check_values(set_to(name, value))
    assert str(error.value).startswith(f"config.{name}={value}".replace("=layer_norm", "='layer"))
    assert str(error.value).endswith(why)


def test_the_bounds_themselves_are_allowed():
    for name, value in (("seed", 2**32 - 1), ("model.dim", 2**20), ("optimizer.end_fraction", 0)):
        check_values(set_to(name, value))


def test_how_a_run_is_computed_may_change_on_resume_and_what_it_learns_may_not():
    facts = facts_of(Config)
    may = {name for name in facts if facts[name].may_change(Config())}
    assert {"model.pipeline_parts", "model.pipeline_rounds", "model.context_attention",
            "model.remat", "microbatches", "mesh.fsdp", "eval.every"} <= may  # fmt: skip
    assert not {name for name in may if facts[name].role == "logits"}
    assert not {"seed", "steps", "model.dropout", "optimizer.learning_rate", "model.dtype"} & may


def test_a_run_may_be_made_longer_where_no_learning_rate_depends_on_its_length():
    steps = facts_of(Config)["steps"]
    for schedule in facts_of(Config)["optimizer.schedule"].choices:
        for decay_steps in (0, 500):
            optimizer = {"schedule": schedule, "decay_steps": decay_steps}
            config = Config.parse({"optimizer": optimizer})
            rates = [
                optimizers.schedule(config.optimizer, n)(np.arange(1000)) for n in (1000, 2000)
            ]
            assert steps.may_change(config) == np.array_equal(*rates), optimizer
    counted = {"model": {"architecture": "ngram"}, "optimizer": {"schedule": "constant"}}
    assert not steps.may_change(Config.parse(counted))


def test_architectures_and_objectives_are_the_same_list():
    assert tuple(OBJECTIVES) == facts_of(ModelConfig)["architecture"].choices
    assert LossConfig().objective in OBJECTIVES["decoder"]


def test_options_without_effect_are_known_by_the_architecture_and_the_other_options():
    llama = idle(ModelConfig(), "decoder")
    assert "rope_factor" in llama
    assert "rope_theta" not in llama
    assert "rope_factor" not in idle(ModelConfig(rope_scaling="yarn"), "decoder")
    assert "experts_per_token" not in idle(ModelConfig(num_experts=4), "decoder")
    assert {"dropout", "num_experts", "remat", "tie_embeddings"} <= {*idle(ModelConfig(), "hmm")}
    assert "dim" not in idle(ModelConfig(), "hmm")
    assert {"dim", "num_layers"} <= {*idle(ModelConfig(), "ngram")}
