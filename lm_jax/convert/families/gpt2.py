"""GPT-2 of `transformers`: its options and tensors (transformers/models/gpt2)."""

# Axes: V vocabulary, P positions, D width, K heads, G 1, H head size, F feed-forward width.

from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.convert.mapping import ACTIVATIONS, Family, Option
from lm_jax.convert.rows import Row
from lm_jax.errors import UserError

BLOCK, LAYER = "decoder/blocks", "transformer.h.{layer}"

OPTIONS = (
    Option("vocab_size", "vocab_size"),
    Option("n_positions", "max_length"),
    Option("n_embd", "dim"),
    Option("n_layer", "num_layers"),
    Option("n_head", "num_heads"),
    Option("n_inner", "mlp_dim", 0),
    Option("activation_function", "activation", "gelu_tanh", ACTIVATIONS),
    Option("layer_norm_epsilon", "norm_eps", 1e-5),
    Option("resid_pdrop", "dropout", 0.1),
    Option("attn_pdrop", "attention_dropout", 0.1),
    Option("initializer_range", "init_std", 0.02),
    Option("tie_word_embeddings", "tie_embeddings", True),
)


def rows(config: ModelConfig) -> list[Row]:
    """The weights of their Conv1D layers are (in, out), queries, keys and values side by side."""
    table = [
        Row("embed/tokens", "VD", "transformer.wte.weight", "V D"),
        Row("embed/positions", "PD", "transformer.wpe.weight", "P D"),
        Row(f"{BLOCK}/attn_norm/scale", "D", f"{LAYER}.ln_1.weight", "D"),
        Row(f"{BLOCK}/attn_norm/bias", "D", f"{LAYER}.ln_1.bias", "D"),
        Row(f"{BLOCK}/attn/wq", "DKGH", f"{LAYER}.attn.c_attn.weight", "D KGH"),
        Row(f"{BLOCK}/attn/wk", "DKH", f"{LAYER}.attn.c_attn.weight", "D KH"),
        Row(f"{BLOCK}/attn/wv", "DKH", f"{LAYER}.attn.c_attn.weight", "D KH"),
        Row(f"{BLOCK}/attn/bq", "KGH", f"{LAYER}.attn.c_attn.bias", "KGH"),
        Row(f"{BLOCK}/attn/bk", "KH", f"{LAYER}.attn.c_attn.bias", "KH"),
        Row(f"{BLOCK}/attn/bv", "KH", f"{LAYER}.attn.c_attn.bias", "KH"),
        Row(f"{BLOCK}/attn/wo", "KGHD", f"{LAYER}.attn.c_proj.weight", "KGH D"),
        Row(f"{BLOCK}/attn/bo", "D", f"{LAYER}.attn.c_proj.bias", "D"),
        Row(f"{BLOCK}/mlp_norm/scale", "D", f"{LAYER}.ln_2.weight", "D"),
        Row(f"{BLOCK}/mlp_norm/bias", "D", f"{LAYER}.ln_2.bias", "D"),
        Row(f"{BLOCK}/mlp/up", "D0F", f"{LAYER}.mlp.c_fc.weight", "D F"),
        Row(f"{BLOCK}/mlp/up_bias", "0F", f"{LAYER}.mlp.c_fc.bias", "F"),
        Row(f"{BLOCK}/mlp/down", "FD", f"{LAYER}.mlp.c_proj.weight", "F D"),
        Row(f"{BLOCK}/mlp/down_bias", "D", f"{LAYER}.mlp.c_proj.bias", "D"),
        Row("decoder/norm/scale", "D", "transformer.ln_f.weight", "D"),
        Row("decoder/norm/bias", "D", "transformer.ln_f.bias", "D"),
    ]
    if not config.tie_embeddings:
        table.append(Row("head", "VD", "lm_head.weight", "V D"))
    return table


def read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """No options beside OPTIONS."""
    return {}


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes options that no row covers; raises UserError where GPT-2 has no such option."""
    if config.kv_heads != config.num_heads:
        raise UserError(
            f"config.model.num_kv_heads={config.num_kv_heads}: GPT2LMHeadModel groups no heads."
        )
    if config.head_size * config.num_heads != config.dim:
        raise UserError(
            f"config.model.head_dim={config.head_dim}: GPT2LMHeadModel has dim / num_heads only."
        )
    return {
        "n_inner": config.mlp_dim or None,
        "embd_pdrop": config.dropout,
    }


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    prefix="transformer.",
    options=OPTIONS,
    ours={"norm": "layernorm", "positions": "learned", "gated": False, "bias": True},
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    # Dropout acts in training only, the summary options on a head that a language model lacks,
    # and reorder_and_upcast_attn changes the order of products, not the mathematics.
    keys=frozenset(
        (
            "embd_pdrop",
            "reorder_and_upcast_attn",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        )
    ),
    buffers=r"h\.\d+\.attn\.(masked_)?bias",
    rows=rows,
    read=read,
    write=write,
    zeros=("bias",),
    depth_scaling=True,
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)
