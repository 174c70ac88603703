"""Every key of config.json that the installed transformers reads is known here, and no family of
its own is taken for a misspelling of ours.
"""

import pytest

from lm_jax.convert import registry
from lm_jax.errors import UserError

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from config_keys import keys  # noqa: E402


@pytest.mark.parametrize("model_type", registry.FAMILIES)
def test_every_key_that_transformers_reads_is_known(model_type):
    assert sorted(keys(model_type) - registry.FAMILIES[model_type].known_keys()) == []


@pytest.mark.parametrize("model_type", registry.FAMILIES)
def test_a_family_has_no_keys_of_its_own_that_transformers_does_not_read(model_type):
    # n_positions of a T5 is what it was trained with; the others were read by transformers 4 or
    # stand in the files that it writes.
    older = {"n_positions", "position_embedding_type", "scale_decoder_outputs"}
    assert sorted(registry.FAMILIES[model_type].own_keys() - keys(model_type) - older) == []


def test_the_name_of_another_family_is_no_misspelling_of_ours():
    for kind in transformers.CONFIG_MAPPING:
        if kind not in registry.FAMILIES:
            with pytest.raises(UserError) as error:
                registry.family_named(kind)
            assert "Did you mean" not in str(error.value), kind


@pytest.mark.parametrize("model_type", registry.FAMILIES)
def test_what_transformers_writes_for_a_new_config_is_read_in_full(model_type):
    config = transformers.CONFIG_MAPPING[model_type]()
    assert registry.FAMILIES[model_type].unread(config.to_dict()) == []
    assert registry.FAMILIES[model_type].unread(config.to_diff_dict()) == []
