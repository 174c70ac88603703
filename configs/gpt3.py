"""GPT-3 in its eight sizes (Brown et al. 2020, arXiv:2005.14165, table 2.1), 300 B tokens.

    python -m lm_jax.train --config=configs/gpt3.py:xl --workdir=/mnt/bucket/gpt3 \
        --config.data.store=gs://BUCKET/tokens

Widths, heads, batches in tokens over 2,048 and learning rates are the table's, but for the heads of
`xl`: the table's 24 of 128 are wider than the model, and 16 make its 1.3 B parameters. `13b`, whose
40 heads of 128 are not its width, has no model in transformers to be exported to. Attention is
dense in every layer; the paper has locally banded patterns in every second one. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = (
    "model.num_layers model.dim model.num_heads model.head_dim optimizer.learning_rate batch_size"
)
SIZES = {
    "small": (12, 768, 12, 64, 0.0006, 256),
    "medium": (24, 1024, 16, 64, 0.0003, 256),
    "large": (24, 1536, 16, 96, 0.00025, 256),
    "xl": (24, 2048, 16, 128, 0.0002, 512),
    "2.7b": (32, 2560, 32, 80, 0.00016, 512),
    "6.7b": (32, 4096, 32, 128, 0.00012, 1024),
    "13b": (40, 5140, 40, 128, 0.0001, 1024),
    "175b": (96, 12_288, 96, 128, 6e-05, 1536),
}


def get_config(size: str = "small"):
    """One of SIZES."""
    config = lm_config.sized("gpt3", size, FIELDS, SIZES)
    config.steps = 300_000_000_000 // (config.batch_size * 2048)

    config.model.vocab_size = 50_304
    config.model.max_length = 2048
    config.model.norm = "layernorm"
    config.model.positions = "learned"
    config.model.activation = "gelu_tanh"
    config.model.gated = False
    config.model.bias = True
    config.model.tie_embeddings = True
    config.model.init_depth_scaling = True
    config.model.remat = "names"

    config.data.vocab_size = 50_257
    config.data.sequence_length = 2048

    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 375
    config.optimizer.end_fraction = 0.1
    config.mesh.data = 1
    config.mesh.fsdp = -1
    if size == "13b":  # four is the highest power of two that divides its width
        config.mesh.data, config.mesh.fsdp = -1, 4
    config.eval.every = 1000
    config.eval.tokens = 4_194_304
    config.checkpoint.every = 1000
    return config
