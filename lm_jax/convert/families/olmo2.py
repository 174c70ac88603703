"""OLMo 2 of `transformers`: a Llama whose norms follow its branches, with one norm over all
queries of a token and one over its keys (transformers/models/olmo2).
"""

from dataclasses import replace

from lm_jax.config import ModelConfig
from lm_jax.convert.families import llama
from lm_jax.convert.rows import Row

WITH_NORMS_BEFORE = llama.like(
    "olmo2",
    "Olmo2ForCausalLM",
    defaults={"rms_norm_eps": 1e-5},
    ours={"norm_order": "output", "qk_norm_all": True},
    keys=("attention_bias",),
    heads_divide=True,
    read=llama.read_bias,
    write=llama.write_bias,
)
NORMS = {
    "attn_norm/scale": ("D", "post_attention_layernorm"),
    "mlp_norm/scale": ("D", "post_feedforward_layernorm"),
    "attn/q_norm/scale": ("KGH", "self_attn.q_norm"),
    "attn/k_norm/scale": ("KH", "self_attn.k_norm"),
}


def rows(config: ModelConfig) -> list[Row]:
    """Llama's rows, with the norms of this family."""
    kept = [row for row in WITH_NORMS_BEFORE.rows(config) if "_norm" not in row.ours]
    norms = (
        Row(f"{llama.BLOCK}/{ours}", axes, f"{llama.LAYER}.{theirs}.weight", axes)
        for ours, (axes, theirs) in NORMS.items()
    )
    return [*kept, *norms]


FAMILY = replace(WITH_NORMS_BEFORE, rows=rows)
