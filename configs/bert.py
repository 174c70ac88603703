"""BERT (Devlin et al. 2019, arXiv:1810.04805, section 3): masked words and next sentences.

    python -m lm_jax.train --config=configs/bert.py:base --workdir=/mnt/bucket/bert \
        --config.data.store=gs://BUCKET/tokens

256 sequences of 512 tokens for 1 M steps (appendix A.2); `multilingual` is the cased model of 104
languages. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = "model.num_layers model.dim model.num_heads model.vocab_size"
SIZES = {
    "base": (12, 768, 12, 30_522),
    "large": (24, 1024, 16, 30_522),
    "multilingual": (12, 768, 12, 119_547),
}


def get_config(size: str = "base"):
    """One of SIZES."""
    config = lm_config.sized("bert", size, FIELDS, SIZES)
    config.steps = 1_000_000
    config.batch_size = 256

    config.model.max_length = 512
    config.model.architecture = "encoder"
    config.model.norm = "layernorm"
    config.model.norm_eps = 1e-12
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
    config.model.token_types = 2
    config.model.pooler = True

    config.data.vocab_size = config.model.vocab_size - 110
    config.data.sequence_length = 512

    config.loss.objective = "bert"
    config.optimizer.learning_rate = 0.0001
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 10000
    config.optimizer.end_fraction = 0.0
    config.optimizer.schedule = "linear"
    config.optimizer.eps = 1e-06
    config.eval.every = 1000
    config.eval.tokens = 4_194_304
    config.checkpoint.every = 1000
    return config
