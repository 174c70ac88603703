"""Presets are the published models: each parses and has the published number of parameters."""

import math

import jax
import pytest
from flax import nnx
from scaled import module

from lm_jax.config import Config
from lm_jax.errors import UserError
from lm_jax.models import Transformer

# Numbers of the published checkpoints (their model cards, or the files themselves), with the heads
# that pretraining has; those in millions are the papers' own, which round.
PUBLISHED = {
    "gpt2": {"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080,
             "xl": 1_557_611_200},
    "gpt3": {"small": 125e6, "medium": 356e6, "large": 760e6, "xl": 1.3e9, "2.7b": 2.7e9,
             "6.7b": 6.7e9, "13b": 13e9, "175b": 175e9},
    "llama2": {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192},
    "llama3": {"3.2_1b": 1_235_814_400, "3.2_3b": 3_212_749_824, "8b": 8_030_261_248,
               "3.1_8b": 8_030_261_248, "70b": 70_553_706_496, "405b": 405_853_388_800},
    "mistral": {"7b": 7_241_732_096},
    "qwen2": {"0.5b": 494_032_768, "1.5b": 1_543_714_304, "7b": 7_615_616_512,
              "72b": 72_706_203_648},
    "qwen3": {"0.6b": 596_049_920, "1.7b": 1_720_574_976, "4b": 4_022_468_096, "8b": 8_190_735_360,
              "14b": 14_768_307_200, "32b": 32_762_123_264},
    "gemma2": {"2b": 2_614_341_888, "9b": 9_241_705_984, "27b": 27_227_128_320},
    "gemma3": {"270m": 268_098_176, "1b": 999_885_952, "4b": 3_880_099_328, "12b": 11_765_788_416,
               "27b": 27_009_002_240},
    "bert": {"base": 110_106_428, "large": 336_226_108, "multilingual": 178_566_653},
    "roberta": {"base": 124_697_433, "large": 355_412_057},
    "xlmr": {"base": 278_295_186, "large": 560_142_482},
    "t5": {"small": 60_506_624, "base": 222_903_552, "large": 737_668_096, "3b": 2_851_598_336,
           "11b": 11_307_321_344, "1.1_small": 76_961_152, "1.1_base": 247_577_856,
           "1.1_large": 783_150_080, "1.1_xl": 2_849_757_184, "1.1_xxl": 11_135_332_352},
    "mt5": {"small": 300_176_768, "base": 582_401_280, "large": 1_229_581_312, "xl": 3_742_619_648,
            "xxl": 12_921_057_280},
    "byt5": {"small": 300e6, "base": 582e6, "large": 1.23e9, "xl": 3.74e9, "xxl": 12.9e9},
    "transformer": {"base": 63e6, "big": 213e6},
}  # fmt: skip
PADDED = {"gpt2": 50_257, "gpt3": 50_257, "byt5": 384}  # vocabularies of the published numbers


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_number_of_parameters(name):
    preset = module(name)
    assert preset.SIZES.keys() == PUBLISHED[name].keys()
    for size, published in PUBLISHED[name].items():
        values = preset.get_config(size)
        values.model.vocab_size = PADDED.get(name, values.model.vocab_size)
        config = Config.parse(values)
        model = jax.eval_shape(lambda c=config.model: Transformer(c, rngs=nnx.Rngs(0)))
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model))
        tolerance = 0.06 if isinstance(published, float) else 0
        assert count == pytest.approx(published, rel=tolerance, abs=0), (size, count)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_size_that_is_not_there_is_answered_by_those_that_are(name):
    with pytest.raises(UserError, match=f"{name}: no size 'enormous'. Allowed: "):
        module(name).get_config("enormous")
