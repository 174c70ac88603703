"""Which keys of config.json does the installed transformers read, family by family?

Found in its sources: the fields of the configuration classes, the names that these take out of
their keyword arguments, and the attributes of a config that the code of the family, and the code
that serves all families, asks for.
"""

import dataclasses
import inspect
import re
from pathlib import Path

import transformers
from transformers import CONFIG_MAPPING, GenerationConfig, PreTrainedConfig

from lm_jax.convert.keys import words

SOURCES = Path(transformers.__file__).parent
GENERAL = ("configuration_utils", "modeling_utils", "modeling_layers", "masking_utils",
           "cache_utils", "modeling_rope_utils", "integrations/sdpa_attention")  # fmt: skip
CONFIG = r"(?:self\.|decoder_|text_|layer_|effective_)*config"
ATTRIBUTE = re.compile(rf"\b{CONFIG}\.(\w+)")
ASKED = re.compile(rf'(?:getattr|hasattr)\(\s*{CONFIG}\s*,\s*"(\w+)"')
TAKEN = re.compile(
    r'kwargs\.(?:get|pop)\(\s*"(\w+)"|"(\w+)" in kwargs|(?:getattr|hasattr)\(self, "(\w+)"'
)
READERS = ("__post_init__", "convert_rope_params_to_dict", "standardize_rope_params")
# Names in the code of all families that a model of these families does not come to: rotary
# positions and what stands in their place, other ways to say what its own keys say, other modules.
NOT_REACHED = words(
    "attention_dropout chain_hidden_post_norm head_dim init_std initializer_factor "
    "initializer_range logits_mup_width_multiplier max_position_embeddings num_key_value_heads "
    "number_of_conv_states rms_norm_eps rope_parameters sub_config_name json"
)
ROTARY = {"original_max_position_embeddings", "rope_parameters", "rope_scaling", "rope_theta"}
IMAGES = {"image_token_id", "mm_tokens_per_image", "text_config", "vision_config"}  # of Gemma 3


def keys(model_type: str) -> set[str]:
    """Every key that has a meaning there for a model of this type."""
    cls = CONFIG_MAPPING[model_type]
    name = Path(inspect.getfile(cls)).parent.name
    code = (SOURCES / "models" / name / f"modeling_{name}.py").read_text()
    found = {field.name for field in dataclasses.fields(cls)} | set(cls.attribute_map)
    found |= attributes(code) - IMAGES
    for klass in cls.__mro__:
        for method in READERS:
            if method in vars(klass):
                source = inspect.getsource(vars(klass)[method])
                found |= {name for both in TAKEN.findall(source) for name in both if name}
    found |= general() - NOT_REACHED
    found |= set(GenerationConfig._get_default_generation_params())
    fields = {field.name for field in dataclasses.fields(cls)}
    own = {name for name in found if name not in fields and hasattr(PreTrainedConfig, name)}
    found = {name for name in found - own if not name.startswith("_")} | (own & SAVED)
    return found if "rope_parameters" in fields else found - ROTARY


SAVED = {"name_or_path", "num_labels", "output_attentions", "rope_scaling", "torch_dtype"}


def general() -> set[str]:
    """What the code that serves all families asks a config for."""
    return {x for file in GENERAL for x in attributes((SOURCES / f"{file}.py").read_text())}


def attributes(code: str) -> set[str]:
    """The attributes of a config that some code reads."""
    return {name for pattern in (ATTRIBUTE, ASKED) for name in pattern.findall(code)}
