"""Initial standard deviations of the configs' tensors, as their reference implementations have
them.

Formulas are Python, of D width of the model, F of its feed-forward layer, N query heads of size H,
L layers, R buckets of relative positions. Tensors that no row names are constant at first: norms
are 1, biases 0.
"""

import math
from typing import NamedTuple


class Row(NamedTuple):
    """Tensors (last part of their names), our formula, the reference's where it is another."""

    tensors: str
    ours: str
    reference: str = ""


class Reference(NamedTuple):
    """Where the numbers come from, and what they are."""

    source: str
    rows: tuple[Row, ...]


def same(source: str) -> Reference:
    """One standard deviation for all weights."""
    return Reference(source, (Row("tokens positions types wq wk wv wo up down router head kernel "
                                  "pair", "0.02"),))  # fmt: skip


def hub(model: str) -> Reference:
    """A model of transformers that follows its `initializer_range` of 0.02."""
    return same(f"transformers, modeling_{model}.py, `_init_weights`: initializer_range")


GPT2 = Reference(
    "Radford et al. 2019, section 2.3; transformers, modeling_gpt2.py, `_init_weights`; nanoGPT, "
    "model.py (openai/gpt-2, src/model.py: positions 0.01)",
    (Row("tokens positions wq wk wv up", "0.02"), Row("wo down", "0.02 / sqrt(2 * L)")),
)
T5 = Reference(
    "Mesh-TensorFlow, transformer/{transformer,attention,transformer_layers}.py and layers.py, and "
    "transformers, modeling_t5.py, `_init_weights` (there: table D**-0.5, head 1)",
    (
        Row("tokens", "1.0"),
        Row("wq", "(D * H) ** -0.5"),
        Row("wk wv up", "D ** -0.5"),
        Row("wo", "(N * H) ** -0.5"),
        Row("down", "F ** -0.5"),
        Row("table", "sqrt(2 / (R + N))"),
        Row("head", "D ** -0.5"),
    ),
)
VASWANI = Reference(
    "tensor2tensor, models/transformer.py, transformer_base_v1: uniform_unit_scaling (Glorot); "
    "layers/modalities.py",
    (
        Row("tokens", "D ** -0.5"),
        Row("wq wk wv wo", "sqrt(2 / (D + N * H))"),
        Row("up down", "sqrt(2 / (D + F))"),
    ),
)
MUON = "own recipe for Muon, branches that start as nothing; beside it "
REFERENCES = {
    "bert": same("google-research/bert, modeling.py, `create_initializer` (truncated at 2 "
                 "deviations, which leaves 0.0176); transformers, modeling_bert.py"),
    "byt5": T5,
    "gemma2": hub("gemma2"),
    "gemma3": hub("gemma3"),
    "gpt2": GPT2,
    "gpt2_124m": GPT2,
    "gpt3": GPT2._replace(source="Brown et al. 2020, section 2.1: as GPT-2"),
    "hmm": Reference("own recipe", (Row("start transition emission", "1.0"),)),
    "llama2": hub("llama"),
    "llama3": hub("llama"),
    "llama3_1b": hub("llama"),
    "llama3_8b": hub("llama"),
    "lstm": Reference(
        "own recipe; beside it torch.nn.LSTM (uniform) and torch.nn.Embedding (ours times "
        "embed_scale 50)",
        (
            Row("tokens", "0.02", "1.0"),
            Row("wx wh", "D ** -0.5", "(3 * D) ** -0.5"),
            Row("head", "D ** -0.5", "(3 * D) ** -0.5"),
        ),
    ),
    "mistral": hub("mistral"),
    "mixtral_8x7b": hub("mixtral"),
    "mt5": T5,
    "ngram": Reference("counted, not trained", ()),
    "quickstart": Reference(
        MUON + "GPT-2",
        (
            Row("tokens", "0.02"),
            Row("wq wk wv up", "D ** -0.5", "0.02"),
            Row("wo down", "0.0", "0.02 / sqrt(2 * L)"),
        ),
    ),
    "qwen2": hub("qwen2"),
    "qwen3": hub("qwen3"),
    "roberta": same("fairseq, modules/transformer_sentence_encoder.py, `init_bert_params`"),
    "shakespeare": Reference(
        MUON + "nanoGPT, model.py",
        (
            Row("tokens positions wq wk wv up", "0.02"),
            Row("wo down", "0.0", "0.02 / sqrt(2 * L)"),
        ),
    ),
    "t5": T5,
    "transformer": VASWANI,
    "xlmr": same("fairseq, modules/transformer_sentence_encoder.py, `init_bert_params`"),
}  # fmt: skip


def value(formula: str, model) -> float:
    """A formula at the sizes of a ModelConfig."""
    sizes = {"D": model.dim, "F": model.mlp_size, "N": model.num_heads, "H": model.head_size,
             "L": model.num_layers, "R": model.relative_buckets}  # fmt: skip
    return float(eval(formula, {"__builtins__": {}, "sqrt": math.sqrt}, sizes))


def expected(reference: Reference, tensor: str, model) -> float:
    """The standard deviation that a tensor of this name must have at first."""
    rows = [row for row in reference.rows if tensor in row.tensors.split()]
    return value(rows[0].ours, model) if rows else 0.0
