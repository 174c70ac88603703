"""mT5 (Xue et al. 2021, arXiv:2010.11934, section 3.2): T5 1.1 on 101 languages.

    python -m lm_jax.train --config=configs/mt5.py:small --workdir=/mnt/bucket/mt5 \
        --config.data.store=gs://BUCKET/tokens

1,024 sequences of 1,024 tokens for 1 M steps; the optimizer is that of t5.py. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = "model.num_layers model.dim model.num_heads model.head_dim model.mlp_dim"
SIZES = {
    "small": (8, 512, 6, 64, 1024),
    "base": (12, 768, 12, 64, 2048),
    "large": (24, 1024, 16, 64, 2816),
    "xl": (24, 2048, 32, 64, 5120),
    "xxl": (24, 4096, 64, 64, 10_240),
}


def get_config(size: str = "small"):
    """One of SIZES."""
    config = lm_config.sized("mt5", size, FIELDS, SIZES)
    config.steps = 1_000_000
    config.batch_size = 1024

    config.model.vocab_size = 250_112
    config.model.max_length = 2048
    config.model.architecture = "encoder_decoder"
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-06
    config.model.positions = "relative"
    config.model.attn_scale = 1.0
    config.model.decoder_start = "pad"
    config.model.init_std = 0.0
    config.model.init_depth_scaling = False
    config.model.embed_init_std = 1.0
    config.model.dropout = 0.0
    config.model.activation = "gelu_tanh"
    config.model.gated = True
    config.model.tie_embeddings = False

    config.data.tokenizer = "unigram"
    config.data.vocab_size = 250_000
    config.data.sequence_length = 1024

    config.loss.objective = "span_corruption"
    config.optimizer.name = "adafactor"
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.schedule = "rsqrt"
    config.optimizer.warmup_steps = 0
    config.optimizer.decay_steps = 10_000
    config.eval.every = 1000
    config.eval.tokens = 4_194_304
    config.checkpoint.every = 1000
    return config
