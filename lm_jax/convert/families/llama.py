"""Llama of `transformers`: its options and tensors (transformers/models/llama), and those that its
many descendants share with it.
"""

# Axes: V vocabulary, D width, K key heads, G query heads a key head, H head size, F width of MLP,
# E experts.

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.config.values import typed
from lm_jax.convert.families import rope
from lm_jax.convert.mapping import ACTIVATIONS, Family, Option
from lm_jax.convert.rows import Row
from lm_jax.errors import UserError

BLOCK, LAYER = "decoder/blocks", "model.layers.{layer}"

OPTIONS = (
    Option("vocab_size", "vocab_size"),
    Option("max_position_embeddings", "max_length", 2048),
    Option("hidden_size", "dim"),
    Option("num_hidden_layers", "num_layers"),
    Option("num_attention_heads", "num_heads"),
    Option("num_key_value_heads", "num_kv_heads", 0),
    Option("head_dim", "head_dim", 0),
    Option("intermediate_size", "mlp_dim"),
    Option("hidden_act", "activation", "silu", ACTIVATIONS),
    Option("rms_norm_eps", "norm_eps", 1e-6),
    Option("initializer_range", "init_std", 0.02),
    Option("attention_dropout", "attention_dropout", 0.0),
    Option("tie_word_embeddings", "tie_embeddings", False),
)


def rows(config: ModelConfig) -> list[Row]:
    """Their Linear layers are (out, in); query head n looks at key head n // G."""
    sandwich = config.norm_order == "sandwich"
    before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
    table = [
        Row("embed/tokens", "VD", "model.embed_tokens.weight", "V D"),
        Row(f"{BLOCK}/attn_norm/scale", "D", f"{LAYER}.input_layernorm.weight", "D"),
        Row(f"{BLOCK}/attn/wq", "DKGH", f"{LAYER}.self_attn.q_proj.weight", "KGH D"),
        Row(f"{BLOCK}/attn/wk", "DKH", f"{LAYER}.self_attn.k_proj.weight", "KH D"),
        Row(f"{BLOCK}/attn/wv", "DKH", f"{LAYER}.self_attn.v_proj.weight", "KH D"),
        Row(f"{BLOCK}/attn/wo", "KGHD", f"{LAYER}.self_attn.o_proj.weight", "D KGH"),
        Row(f"{BLOCK}/mlp_norm/scale", "D", f"{LAYER}.{before_mlp}.weight", "D"),
        Row("decoder/norm/scale", "D", "model.norm.weight", "D"),
        *(expert_rows(config) if config.num_experts else MLP_ROWS),
    ]
    if config.bias or config.attn_bias or config.qkv_bias:
        table += [
            Row(f"{BLOCK}/attn/bq", "KGH", f"{LAYER}.self_attn.q_proj.bias", "KGH"),
            Row(f"{BLOCK}/attn/bk", "KH", f"{LAYER}.self_attn.k_proj.bias", "KH"),
            Row(f"{BLOCK}/attn/bv", "KH", f"{LAYER}.self_attn.v_proj.bias", "KH"),
        ]
    if config.bias or config.attn_bias:
        table.append(Row(f"{BLOCK}/attn/bo", "D", f"{LAYER}.self_attn.o_proj.bias", "D"))
    if config.bias:
        table += [
            Row(f"{BLOCK}/mlp/up_bias", "0F", f"{LAYER}.mlp.gate_proj.bias", "F"),
            Row(f"{BLOCK}/mlp/up_bias", "1F", f"{LAYER}.mlp.up_proj.bias", "F"),
            Row(f"{BLOCK}/mlp/down_bias", "D", f"{LAYER}.mlp.down_proj.bias", "D"),
        ]
    if config.qk_norm:
        table += [
            Row(f"{BLOCK}/attn/q_norm/scale", "H", f"{LAYER}.self_attn.q_norm.weight", "H"),
            Row(f"{BLOCK}/attn/k_norm/scale", "H", f"{LAYER}.self_attn.k_norm.weight", "H"),
        ]
    if sandwich:
        table += [
            Row(f"{BLOCK}/attn_out_norm/scale", "D", f"{LAYER}.post_attention_layernorm.weight",
                "D"),
            Row(f"{BLOCK}/mlp_out_norm/scale", "D", f"{LAYER}.post_feedforward_layernorm.weight",
                "D"),
        ]  # fmt: skip
    if not config.tie_embeddings:
        table.append(Row("head", "VD", "lm_head.weight", "V D"))
    return table


MLP_ROWS = (
    Row(f"{BLOCK}/mlp/up", "D0F", f"{LAYER}.mlp.gate_proj.weight", "F D"),
    Row(f"{BLOCK}/mlp/up", "D1F", f"{LAYER}.mlp.up_proj.weight", "F D"),
    Row(f"{BLOCK}/mlp/down", "FD", f"{LAYER}.mlp.down_proj.weight", "D F"),
)


def expert_rows(config: ModelConfig) -> list[Row]:
    """Mixtral's, as in the files: transformers itself keeps the experts in one tensor."""
    moe = f"{LAYER}.block_sparse_moe"
    table = [Row(f"{BLOCK}/mlp/router", "DE", f"{moe}.gate.weight", "E D")]
    for e in range(config.num_experts):
        table += [
            Row(f"{BLOCK}/mlp/up", f"{e}D0F", f"{moe}.experts.{e}.w1.weight", "F D"),
            Row(f"{BLOCK}/mlp/up", f"{e}D1F", f"{moe}.experts.{e}.w3.weight", "F D"),
            Row(f"{BLOCK}/mlp/down", f"{e}FD", f"{moe}.experts.{e}.w2.weight", "D F"),
        ]
    return table


def like(
    model_type: str,
    architecture: str,
    *,
    defaults: Mapping[str, Any] | None = None,
    options: tuple[Option, ...] = (),
    ours: Mapping[str, Any] | None = None,
    only: Mapping[str, Any] | None = None,
    keys: Iterable[str] = (),
    heads_divide: bool = False,
    theta: float = 10_000.0,
    read: Callable[[dict[str, Any], str], dict[str, Any]] = lambda values, where: {},
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {},
    read_rope: Callable[[dict[str, Any], str], dict[str, Any]] = rope.read,
    write_rope: Callable[[ModelConfig], dict[str, Any]] = rope.write,
) -> Family:
    """A family with Llama's options and tensors, and what differs.

    defaults: what the absence of an option of Llama means here. options: in place of those of
    Llama for the same field of ours. theta: the rotary base where none is given. read, write: what
    is not among the options of Llama. The others are those of Family.
    """
    defaults, new = defaults or {}, {option.ours for option in options}

    def read_all(values: dict[str, Any], where: str) -> dict[str, Any]:
        return {"rope_theta": theta, **read_rope(values, where), **read(values, where)}

    def write_all(config: ModelConfig) -> dict[str, Any]:
        return {**write_rope(config), **write(config)}

    return Family(
        model_type=model_type,
        architecture=architecture,
        prefix="model.",
        options=(
            *(replace(option, default=defaults.get(option.theirs, option.default))
              for option in OPTIONS if option.ours not in new),
            *options,
        ),
        ours={"norm": "rmsnorm", "positions": "rope", "gated": True, **(ours or {})},
        only=only or {},
        keys=frozenset((*rope.KEYS, *keys)),
        buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
        rows=rows,
        read=read_all,
        write=write_all,
        nested=rope.unread,
        heads_divide=heads_divide,
    )  # fmt: skip


def read_bias(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Biases of the projections of attention; a feed-forward layer there has none."""
    return {"attn_bias": typed(values.get("attention_bias") or False, bool,
                               f"{where}: attention_bias")}  # fmt: skip


def write_bias(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_bias`."""
    return {"attention_bias": config.attn_bias}


def read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Biases; raises UserError where the feed-forward layer alone has them."""
    attention = read_bias(values, where)
    if not typed(values.get("mlp_bias") or False, bool, f"{where}: mlp_bias"):
        return attention
    if not attention["attn_bias"]:
        raise UserError(
            f"{where}: mlp_bias=True: not supported with attention_bias=False, only with both."
        )
    return {"bias": True}


FAMILY = like(
    "llama",
    "LlamaForCausalLM",
    # pretraining_tp splits products, not the mathematics.
    keys=("attention_bias", "mlp_bias", "pretraining_tp"),
    heads_divide=True,
    read=read,
    write=lambda config: {
        "attention_bias": config.bias or config.attn_bias,
        "mlp_bias": config.bias,
    },
)
