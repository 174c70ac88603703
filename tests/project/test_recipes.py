"""Dropout, warm-up and decay of the configs are those that their references publish."""

import pytest
from reference_recipes import PLACES, RECIPES
from scaled import FILES, published

OWN = {"hmm", "lstm", "ngram", "quickstart", "shakespeare", "llama3_1b"}  # recipes of no paper


def test_every_config_of_a_paper_is_set_beside_it():
    assert {name.split(":")[0] for name in RECIPES} | OWN == {*FILES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_drops_as_its_reference(name):
    config, recipe = published(name), RECIPES[name]
    assert tuple(getattr(config.model, place) for place in PLACES) == recipe.dropout, recipe.source


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_has_the_optimizer_of_its_reference(name):
    config, recipe = published(name), RECIPES[name]
    found = {field: getattr(config.optimizer, field) for field in recipe.optimizer}
    assert found == recipe.optimizer, recipe.source


@pytest.mark.parametrize("name", [name for name in RECIPES if "t5" in name])
def test_t5s_decoders_begin_with_pad(name):
    assert published(name).model.decoder_start == "pad"


def test_papers_that_are_linear_end_at_zero():
    for name, recipe in RECIPES.items():
        if recipe.optimizer["schedule"] == "linear":
            assert published(name).optimizer.end_fraction == 0.0, name
