"""The families of `transformers` that models are imported from and exported as."""

import difflib
from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.convert.families import bert, gemma, gpt2, llama, mistral, olmo2, qwen, t5
from lm_jax.convert.keys import words
from lm_jax.convert.mapping import Family
from lm_jax.convert.values import short
from lm_jax.errors import UserError

# A model is exported as the first that has all of its options.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (gpt2.FAMILY, llama.FAMILY, mistral.MISTRAL, mistral.MIXTRAL, qwen.QWEN2,
                   qwen.QWEN3, olmo2.FAMILY, gemma.GEMMA2, gemma.GEMMA3, bert.BERT, bert.ROBERTA,
                   bert.XLM_R, t5.T5, t5.MT5)
}  # fmt: skip
REFUSED = {
    "gemma": "a Gemma 1 has its activation, norms and scale in forms of its own",
    "gemma3": "it reads images; its text model alone, a gemma3_text, is supported",
    "umt5": "each of its layers has a table of relative positions, here a stack has one",
}
# Other families of transformers, one letter or two from ours.
OTHERS = words(
    "gemma gemma3n_text gemma4_text ibert llama4 ministral mistral3 mistral4 mllama molmo2 olmo "
    "pixtral t5gemma2 umt5 xlm-roberta-xl"
)


def family_named(kind: Any, where: str = "") -> Family:
    """The family of a model_type; raises UserError where there is none."""
    if not isinstance(kind, str) or kind not in FAMILIES:
        why = f": {REFUSED[kind]}." if isinstance(kind, str) and kind in REFUSED else "."
        raise UserError(f"{where}model_type={short(kind)}: not supported{why}{suggestion(kind)}")
    return FAMILIES[kind]


def suggestion(kind: Any) -> str:
    """The nearest family of a misspelt one, as ` Did you mean 'x'?`, else the list of them.

    The name of another family of transformers is not a misspelling.
    """
    close = difflib.get_close_matches(str(kind)[:100], FAMILIES, n=1, cutoff=0.85)
    if close and kind not in OTHERS:
        return f" Did you mean {close[0]!r}?"
    return f" Supported: {', '.join(FAMILIES)}."


def family_of(config: ModelConfig) -> Family:
    """The first family that has these options; raises the UserError of the nearest one."""
    errors = []
    for family in FAMILIES.values():
        try:
            family.write_config(config)
        except UserError as error:
            errors.append((getattr(error, "count", 1), error))
        else:
            return family
    raise min(errors, key=lambda pair: pair[0])[1]
