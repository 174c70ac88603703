"""T5 (1.0 and 1.1) and mT5 of `transformers`: their options and tensors."""

# Axes: V vocabulary, D width, K heads, G 1, H head size, F feed-forward width, R buckets.

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm_jax.config import ModelConfig
from lm_jax.config.values import typed
from lm_jax.convert.mapping import ACTIVATIONS, Family, Option
from lm_jax.convert.rows import Row
from lm_jax.convert.safetensors_file import WEIGHTS, Tensor
from lm_jax.convert.values import chosen, short, sized
from lm_jax.errors import UserError

OPTIONS = (
    Option("vocab_size", "vocab_size"),
    Option("n_positions", "max_length", 512),  # what it was trained with; the model has no limit
    Option("d_model", "dim"),
    Option("d_kv", "head_dim"),
    Option("d_ff", "mlp_dim"),
    Option("num_layers", "encoder_layers"),
    Option("num_heads", "num_heads"),
    Option("relative_attention_num_buckets", "relative_buckets", 32),
    Option("relative_attention_max_distance", "relative_distance", 128),
    Option("layer_norm_epsilon", "norm_eps", 1e-6),
    Option("dropout_rate", "dropout", 0.1),
)
KEYS = frozenset(  # what `read` reads, and initializer_factor, which acts at birth
    ("num_decoder_layers", "feed_forward_proj", "dense_act_fn", "is_gated_act",
     "tie_word_embeddings", "scale_decoder_outputs", "initializer_factor")
)  # fmt: skip
ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}


def rows(config: ModelConfig) -> list[Row]:
    """Their Linear layers are (out, in); the first block holds the table of relative positions."""
    table = [Row("embed/tokens", "VD", "shared.weight", "V D")]
    for side in ("encoder", "decoder"):
        ours, layer = f"{side}/blocks", f"{side}.block.{{layer}}.layer"
        first = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        table += [
            Row(f"{side}/relative/table", "RKG", first, "R KG"),
            *attention(f"{ours}/attn", f"{layer}.0", "SelfAttention"),
        ]
        if side == "decoder":
            table += attention(f"{ours}/cross", f"{layer}.1", "EncDecAttention")
        last = f"{layer}.{1 if side == 'encoder' else 2}"
        dense = f"{last}.DenseReluDense"
        table += [
            Row(f"{ours}/mlp_norm/scale", "D", f"{last}.layer_norm.weight", "D"),
            *(
                Row(f"{ours}/mlp/up", f"D{place}F", f"{dense}.{name}.weight", "F D")
                for place, name in enumerate(("wi_0", "wi_1") if config.gated else ("wi",))
            ),
            Row(f"{ours}/mlp/down", "FD", f"{dense}.wo.weight", "D F"),
            Row(f"{side}/norm/scale", "D", f"{side}.final_layer_norm.weight", "D"),
        ]
    if not config.tie_embeddings:
        table.append(Row("head", "VD", "lm_head.weight", "V D"))
    return table


def attention(ours: str, layer: str, kind: str) -> list[Row]:
    """A layer of attention and the norm before it."""
    return [
        Row(f"{ours}_norm/scale", "D", f"{layer}.layer_norm.weight", "D"),
        Row(f"{ours}/wq", "DKGH", f"{layer}.{kind}.q.weight", "KGH D"),
        Row(f"{ours}/wk", "DKH", f"{layer}.{kind}.k.weight", "KH D"),
        Row(f"{ours}/wv", "DKH", f"{layer}.{kind}.v.weight", "KH D"),
        Row(f"{ours}/wo", "KGHD", f"{layer}.{kind}.o.weight", "D KGH"),
    ]


def read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The decoder's layers, the feed-forward layer, and the head: T5 1.0 scales its input.

    In transformers 4 the key of the scale is tie_word_embeddings; in 5 it is scale_decoder_outputs,
    and the head is tied unless the files hold another one (`fit`). Its mT5 never scales.
    """
    mt5 = values["model_type"] == "mt5"
    flag = lambda key, other: typed(
        other if values.get(key) is None else values[key], bool, f"{where}: {key}"
    )
    tied = flag("tie_word_embeddings", True)
    scaled = not mt5 and flag("scale_decoder_outputs", tied)
    key = "num_layers" if values.get("num_decoder_layers") is None else "num_decoder_layers"
    kind = values.get("feed_forward_proj") or ("gated-gelu" if mt5 else "relu")
    word = kind.removeprefix("gated-") if isinstance(kind, str) else kind
    gated = word != kind
    # Their gated gelu is the approximation, also where it is named as the other one.
    word = "gelu_new" if gated and word == "gelu" else word
    activation = chosen(ACTIVATIONS, word, f"{where}: feed_forward_proj")
    act = values.get("dense_act_fn") or word
    if (ACTIVATIONS.get(str(act)), flag("is_gated_act", gated)) != (activation, gated):
        raise UserError(f"{where}: feed_forward_proj={short(kind)}: differs from dense_act_fn.")
    rate = values.get("dropout_rate")
    dropout = 0.1 if rate is None else sized(rate, float, f"{where}: dropout_rate")
    return {
        "num_layers": sized(values[key], int, f"{where}: {key}"),
        "gated": gated,
        "activation": activation,
        "tie_embeddings": tied,
        "logit_scale": max(values["d_model"], 1) ** -0.5 if scaled else 1.0,
        "init_std": 0.0,
        "embed_init_std": 1.0,
        "decoder_start": "pad",
        **dict.fromkeys(("attention_dropout", "activation_dropout", "output_dropout"), dropout),
    }


def fit(config: ModelConfig, found: Mapping[str, Tensor]) -> ModelConfig:
    """Whether the files hold a head that is not the embeddings."""
    head = found.get("lm_head.weight")
    held = next((name for name in T5.names("shared.weight") if name in found), None)
    if not config.tie_embeddings or head is None or held is None:
        return config
    table = found[held]
    whole = head.shape == table.shape and {head.dtype, table.dtype} <= WEIGHTS.keys()
    tied = not whole or np.array_equal(head.read(), table.read())
    return dataclasses.replace(config, tie_embeddings=tied)


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes the options that `read` reads."""
    word = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    word = "gelu" if config.gated and word == "gelu_new" else word
    return {
        "num_decoder_layers": config.num_layers,
        "feed_forward_proj": f"gated-{word}" if config.gated else word,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1.0,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


T5 = Family(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    prefix="",
    options=OPTIONS,
    ours={
        "architecture": "encoder_decoder", "norm": "rmsnorm", "norm_order": "pre",
        "positions": "relative", "bias": False, "qkv_bias": False, "attn_scale": 1.0,
    },
    only={"is_encoder_decoder": True, "is_decoder": False},
    keys=KEYS,
    buffers=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    rows=rows,
    read=read,
    write=write,
    older=(
        (r"^shared\.weight$", "encoder.embed_tokens.weight"),
        (r"^shared\.weight$", "decoder.embed_tokens.weight"),
    ),
    copies=(
        ("encoder.embed_tokens.weight", "embed/tokens"),
        ("decoder.embed_tokens.weight", "embed/tokens"),
        ("lm_head.weight", "embed/tokens"),
    ),
    fit=fit,
    aliases=ALIASES,
)  # fmt: skip
MT5 = dataclasses.replace(T5, model_type="mt5", architecture="MT5ForConditionalGeneration")
