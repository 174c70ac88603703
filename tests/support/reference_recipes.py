"""What the references of the configs drop and how their rates fall, as they publish it."""

from typing import Any, NamedTuple

NO_DROPOUT = (0.0, 0.0, 0.0, 0.0)


class Recipe(NamedTuple):
    """Rates of dropout (embeddings and branches, attention probabilities, inside the feed-forward
    layer, end of a stack), and fields of the optimizer; and where they are published.
    """

    dropout: tuple[float, float, float, float]
    optimizer: dict[str, Any]
    source: str


def adam(schedule: str, warmup: int, b2: float, eps: float = 1e-8, **more: Any) -> dict[str, Any]:
    """AdamW with these options."""
    return {"name": "adamw", "schedule": schedule, "warmup_steps": warmup, "b2": b2, "eps": eps,
            **more}  # fmt: skip


BERT = Recipe(
    (0.1, 0.1, 0.0, 0.0),
    adam("linear", 10_000, 0.999, 1e-6, learning_rate=1e-4, weight_decay=0.01, clip_norm=1.0),
    "Devlin et al. 2019, appendix A.2; google-research/bert, modeling.py, optimization.py",
)
ROBERTA = Recipe(
    (0.1, 0.1, 0.0, 0.0),
    adam("linear", 24_000, 0.98, 1e-6, learning_rate=6e-4, weight_decay=0.01, clip_norm=0.0),
    "Liu et al. 2019, table 9; fairseq, models/roberta/model.py (activation_dropout 0)",
)
LARGE = ROBERTA._replace(
    optimizer={**ROBERTA.optimizer, "warmup_steps": 30_000, "learning_rate": 4e-4}
)
RELATIVE = {"name": "adafactor", "schedule": "rsqrt", "warmup_steps": 0, "decay_steps": 10_000,
            "learning_rate": 0.01, "weight_decay": 0.0, "clip_norm": 0.0}  # fmt: skip
T5 = Recipe(
    (0.1, 0.1, 0.1, 0.1),
    RELATIVE,
    "Raffel et al. 2020, section 3.1.2; Mesh-TensorFlow, transformer/transformer_layers.py (there "
    "one draw serves all positions of a row); transformers, modeling_t5.py",
)
T5_11 = Recipe(
    NO_DROPOUT, RELATIVE, "google-research/text-to-text-transfer-transformer, released_checkpoints"
)
VASWANI = Recipe(
    (0.1, 0.0, 0.0, 0.0),
    adam("rsqrt", 4000, 0.98, 1e-9, weight_decay=0.0, clip_norm=0.0),
    "Vaswani et al. 2017, sections 5.3, 5.4; tensor2tensor, transformer_base_v1",
)
GPT3 = "Brown et al. 2020, appendix B: cosine, clipped at 1, decay 0.1; no dropout is told"
NANO = "nanoGPT, config/train_gpt2.py"
LLAMA = "Touvron et al. 2023, section 2.2: cosine, 2,000 steps of warm-up; no dropout"
RECIPES: dict[str, Recipe] = {
    "bert:base": BERT,
    "bert:large": BERT,
    "roberta:base": ROBERTA,
    "roberta:large": LARGE,
    "xlmr:base": ROBERTA,
    "xlmr:large": LARGE,
    "t5:base": T5,
    "t5:11b": T5,
    "t5:1.1_base": T5_11,
    "mt5:small": T5_11,
    "byt5:small": T5_11,
    "transformer:base": VASWANI,
    "transformer:big": VASWANI._replace(dropout=(0.3, 0.0, 0.0, 0.0)),
    "gpt2:small": Recipe(NO_DROPOUT, adam("cosine", 700, 0.95), NANO),
    "gpt2_124m": Recipe(NO_DROPOUT, adam("cosine", 700, 0.95, learning_rate=6e-4), NANO),
    "gpt3:175b": Recipe(NO_DROPOUT, adam("cosine", 375, 0.95, weight_decay=0.1, clip_norm=1.0),
                        GPT3),
    **{name: Recipe(NO_DROPOUT, adam("cosine", 2000, 0.95, weight_decay=0.1, clip_norm=1.0), LLAMA)
       for name in ("llama2:7b", "llama3:8b", "llama3_8b", "mistral:7b", "mixtral_8x7b",
                    "qwen2:0.5b", "qwen3:0.6b", "gemma2:2b", "gemma3:1b")},
}  # fmt: skip
PLACES = ("dropout", "attention_dropout", "activation_dropout", "output_dropout")
