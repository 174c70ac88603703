"""ByT5 (Xue et al. 2022, arXiv:2105.13626, table 1): T5 on bytes, with a deep encoder.

    python -m lm_jax.train --config=configs/byt5.py:small --workdir=/mnt/bucket/byt5 \
        --config.data.store=gs://BUCKET/tokens

1,024 sequences of 1,024 bytes for 1 M steps, spans of 20 bytes (section 3.2); the optimizer is
that of t5.py. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = "model.encoder_layers model.num_layers model.dim model.num_heads model.mlp_dim"
SIZES = {
    "small": (12, 4, 1472, 6, 3584),
    "base": (18, 6, 1536, 12, 3968),
    "large": (36, 12, 1536, 16, 3840),
    "xl": (36, 12, 2560, 32, 6720),
    "xxl": (36, 12, 4672, 64, 12_352),
}


def get_config(size: str = "small"):
    """One of SIZES."""
    config = lm_config.sized("byt5", size, FIELDS, SIZES)
    config.steps = 1_000_000
    config.batch_size = 1024

    config.model.vocab_size = 384
    config.model.head_dim = 64
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

    config.data.tokenizer = "bytes"
    config.data.sequence_length = 1024

    config.loss.mean_span = 20.0
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
