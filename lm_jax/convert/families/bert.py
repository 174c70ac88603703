"""BERT, RoBERTa and XLM-R of `transformers`: their options and tensors."""

# Axes: V vocabulary, P positions, T token types, D width, C width again, K heads, G 1, H head size,
# F feed-forward width, O the two logits of a pair.

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.convert.mapping import ACTIVATIONS, Family, Option
from lm_jax.convert.rows import Row
from lm_jax.convert.safetensors_file import Tensor
from lm_jax.convert.values import sized
from lm_jax.errors import UserError

BLOCK = "encoder/blocks"
PAIR = "cls.seq_relationship"
OPTIONS = (
    Option("vocab_size", "vocab_size"),
    Option("hidden_size", "dim"),
    Option("num_hidden_layers", "num_layers"),
    Option("num_attention_heads", "num_heads"),
    Option("intermediate_size", "mlp_dim"),
    Option("type_vocab_size", "token_types", 2),
    Option("layer_norm_eps", "norm_eps", 1e-12),
    Option("hidden_dropout_prob", "dropout", 0.1),
    Option("attention_probs_dropout_prob", "attention_dropout", 0.1),
    Option("initializer_range", "init_std", 0.02),
    Option("tie_word_embeddings", "tie_embeddings", True),
)
OURS = {
    "architecture": "encoder", "norm": "layernorm", "norm_order": "post", "final_norm": False,
    "embed_norm": True, "positions": "learned", "gated": False, "bias": True,
    "head_transform": True, "head_bias": True,
}  # fmt: skip
ONLY = {"is_decoder": False, "position_embedding_type": "absolute"}
# embedding_size only silences a check there.
KEYS = frozenset(("embedding_size", "max_position_embeddings"))


def linear(ours: str, axes: str, bias: str, theirs: str, dims: str) -> list[Row]:
    """A Linear layer of theirs, (out, in): our kernel, and our bias under its own name."""
    return [
        Row(ours, axes, f"{theirs}.weight", dims),
        Row(bias, dims.split()[0], f"{theirs}.bias", dims.split()[0]),
    ]


def norm(ours: str, theirs: str) -> list[Row]:
    """A LayerNorm."""
    return [
        Row(f"{ours}/scale", "D", f"{theirs}.weight", "D"),
        Row(f"{ours}/bias", "D", f"{theirs}.bias", "D"),
    ]


def encoder(config: ModelConfig, prefix: str) -> list[Row]:
    """Rows of embeddings and blocks; query head n is our key head n."""
    embed, layer = f"{prefix}embeddings", f"{prefix}encoder.layer.{{layer}}"
    attn = f"{layer}.attention"
    return [
        Row("embed/tokens", "VD", f"{embed}.word_embeddings.weight", "V D"),
        Row("embed/positions", "PD", f"{embed}.position_embeddings.weight", "P D"),
        Row("embed/types", "TD", f"{embed}.token_type_embeddings.weight", "T D"),
        *norm("embed/norm", f"{embed}.LayerNorm"),
        Row(f"{BLOCK}/attn/wq", "DKGH", f"{attn}.self.query.weight", "KGH D"),
        Row(f"{BLOCK}/attn/wk", "DKH", f"{attn}.self.key.weight", "KH D"),
        Row(f"{BLOCK}/attn/wv", "DKH", f"{attn}.self.value.weight", "KH D"),
        Row(f"{BLOCK}/attn/bq", "KGH", f"{attn}.self.query.bias", "KGH"),
        Row(f"{BLOCK}/attn/bk", "KH", f"{attn}.self.key.bias", "KH"),
        Row(f"{BLOCK}/attn/bv", "KH", f"{attn}.self.value.bias", "KH"),
        *linear(f"{BLOCK}/attn/wo", "KGHD", f"{BLOCK}/attn/bo", f"{attn}.output.dense", "D KGH"),
        *norm(f"{BLOCK}/attn_norm", f"{attn}.output.LayerNorm"),
        Row(f"{BLOCK}/mlp/up", "D0F", f"{layer}.intermediate.dense.weight", "F D"),
        Row(f"{BLOCK}/mlp/up_bias", "0F", f"{layer}.intermediate.dense.bias", "F"),
        *linear(f"{BLOCK}/mlp/down", "FD", f"{BLOCK}/mlp/down_bias", f"{layer}.output.dense",
                "D F"),
        *norm(f"{BLOCK}/mlp_norm", f"{layer}.output.LayerNorm"),
    ]  # fmt: skip


def head(config: ModelConfig, dense: str, layer_norm: str, decoder: str, bias: str) -> list[Row]:
    """Rows of the head. Untied, the decoder has its own bias, and the other one is not used."""
    table = [
        *linear("head_transform/kernel", "DC", "head_transform/bias", dense, "C D"),
        *norm("head_transform/norm", layer_norm),
    ]
    if config.tie_embeddings:
        return [*table, Row("head_bias", "V", bias, "V")]
    return [
        *table,
        Row("head", "VD", f"{decoder}.weight", "V D"),
        Row("head_bias", "V", f"{decoder}.bias", "V"),
    ]


def bert_rows(config: ModelConfig) -> list[Row]:
    """BertForPreTraining, and BertForMaskedLM without the pooler."""
    theirs = "cls.predictions"
    transform = f"{theirs}.transform"
    table = encoder(config, "bert.") + head(
        config, f"{transform}.dense", f"{transform}.LayerNorm", f"{theirs}.decoder",
        f"{theirs}.bias",
    )  # fmt: skip
    if config.pooler:
        table += linear("pooler/kernel", "DC", "pooler/bias", "bert.pooler.dense", "C D")
        table += linear("pooler/pair", "DO", "pooler/pair_bias", PAIR, "O D")
    return table


def roberta_rows(config: ModelConfig) -> list[Row]:
    """RobertaForMaskedLM."""
    theirs = "lm_head"
    return encoder(config, "roberta.") + head(
        config, f"{theirs}.dense", f"{theirs}.layer_norm", f"{theirs}.decoder", f"{theirs}.bias"
    )


def bert_read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Positions, and whether there is a pooler, which only the class shows."""
    named = values.get("architectures")
    return {
        "pooler": isinstance(named, list) and "BertForPreTraining" in named,
        "max_length": positions(values, where),
    }


def bert_fit(config: ModelConfig, found: Mapping[str, Tensor]) -> ModelConfig:
    """Files of BertForPreTraining often have the config.json of BertForMaskedLM."""
    return dataclasses.replace(config, pooler=config.pooler or f"{PAIR}.weight" in found)


def roberta_read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Positions, which begin after the id of the padding."""
    pad = values.get("pad_token_id")
    offset = 1 + sized(1 if pad is None else pad, int, f"{where}: pad_token_id")
    rows = positions(values, where)
    if rows <= offset:
        raise UserError(
            f"{where}: max_position_embeddings={rows}: must be above pad_token_id + 1 = {offset}."
        )
    return {"position_offset": offset, "max_length": rows - offset}


def positions(values: dict[str, Any], where: str) -> int:
    """Number of rows of the table of positions."""
    rows = values.get("max_position_embeddings")
    return 512 if rows is None else sized(rows, int, f"{where}: max_position_embeddings")


def write(config: ModelConfig) -> dict[str, Any]:
    """Writes options that no row covers; raises UserError where the family has no such option."""
    if not config.token_types:
        raise UserError("config.model.token_types=0: an encoder there has 1 at least.")
    return {"max_position_embeddings": config.max_length + config.position_offset}


def bert_write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `bert_read`: the class follows from the pooler."""
    name = "BertForPreTraining" if config.pooler else "BertForMaskedLM"
    return {**write(config), "architectures": [name]}


def roberta_write(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `roberta_read`."""
    if not config.position_offset:
        raise UserError("config.model.position_offset=0: RobertaForMaskedLM has 1 at least.")
    return {**write(config), "pad_token_id": config.position_offset - 1}


BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    prefix="bert.",
    options=(*OPTIONS, Option("hidden_act", "activation", "gelu", ACTIVATIONS)),
    ours={**OURS, "position_offset": 0},
    only=ONLY,
    keys=KEYS,
    # A pooler without the logits of pairs serves other tasks only.
    buffers=r"embeddings\.position_ids|pooler\.dense\.(weight|bias)|cls\.predictions\.bias",
    rows=bert_rows,
    read=bert_read,
    write=bert_write,
    older=(
        (r"LayerNorm\.weight$", "LayerNorm.gamma"),
        (r"LayerNorm\.bias$", "LayerNorm.beta"),
        (r"predictions\.decoder\.bias$", "predictions.bias"),
    ),
    copies=(
        ("cls.predictions.decoder.weight", "embed/tokens"),
        ("cls.predictions.decoder.bias", "head_bias"),
    ),
    fit=bert_fit,
    heads_divide=True,
)
ROBERTA = Family(
    model_type="roberta",
    architecture="RobertaForMaskedLM",
    prefix="roberta.",
    options=OPTIONS,
    ours={**OURS, "activation": "gelu", "pooler": False},
    only={**ONLY, "hidden_act": "gelu"},  # the head's is always gelu
    keys=KEYS,
    buffers=r"embeddings\.position_ids|pooler\.dense\.(weight|bias)|lm_head\.bias",
    rows=roberta_rows,
    read=roberta_read,
    write=roberta_write,
    older=((r"lm_head\.decoder\.bias$", "lm_head.bias"),),
    copies=(("lm_head.decoder.weight", "embed/tokens"), ("lm_head.decoder.bias", "head_bias")),
    heads_divide=True,
)
XLM_R = dataclasses.replace(ROBERTA, model_type="xlm-roberta", architecture="XLMRobertaForMaskedLM")
