"""RoBERTa (Liu et al. 2019, arXiv:1907.11692, table 9): BERT without pairs, masked anew each time.

    python -m lm_jax.train --config=configs/roberta.py:base --workdir=/mnt/bucket/roberta \
        --config.data.store=gs://BUCKET/tokens

8,192 sequences of 512 tokens for 500 k steps. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = "model.num_layers model.dim model.num_heads optimizer.learning_rate optimizer.warmup_steps"
SIZES = {
    "base": (12, 768, 12, 0.0006, 24_000),
    "large": (24, 1024, 16, 0.0004, 30_000),
}


def get_config(size: str = "base"):
    """One of SIZES."""
    config = lm_config.sized("roberta", size, FIELDS, SIZES)
    config.steps = 500_000
    config.batch_size = 8192

    config.model.vocab_size = 50_265
    config.model.max_length = 512
    config.model.architecture = "encoder"
    config.model.norm = "layernorm"
    config.model.norm_eps = 1e-05
    config.model.norm_order = "post"
    config.model.final_norm = False
    config.model.embed_norm = True
    config.model.positions = "learned"
    config.model.activation = "gelu"
    config.model.gated = False
    config.model.bias = True
    config.model.tie_embeddings = True
    config.model.head_transform = True
    config.model.head_bias = True
    config.model.init_depth_scaling = False
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.1
    config.model.token_types = 1
    config.model.position_offset = 2

    config.data.vocab_size = config.model.vocab_size - 110
    config.data.sequence_length = 512

    config.loss.objective = "mlm"
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.0
    config.optimizer.schedule = "linear"
    config.optimizer.end_fraction = 0.0
    config.optimizer.eps = 1e-06
    config.eval.every = 1000
    config.eval.tokens = 4_194_304
    config.checkpoint.every = 1000
    return config
