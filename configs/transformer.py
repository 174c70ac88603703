"""The Transformer, base and big (Vaswani et al. 2017, arXiv:1706.03762, table 3), of pairs of
texts.

    python -m lm_jax.train --config=configs/transformer.py:base --workdir=/mnt/bucket/transformer \
        --config.data.store=gs://BUCKET/tokens

The documents are pairs (config.loss.objective=seq2seq). About 25,000 tokens of each side a step;
schedule and smoothed labels are the paper's (sections 5.3 and 5.4). Not run here.
"""

from lm_jax import config as lm_config

FIELDS = "model.dim model.mlp_dim model.num_heads model.dropout steps"
SIZES = {
    "base": (512, 2048, 8, 0.1, 100_000),
    "big": (1024, 4096, 16, 0.3, 300_000),
}


def get_config(size: str = "base"):
    """One of SIZES."""
    config = lm_config.sized("transformer", size, FIELDS, SIZES)
    config.batch_size = 96

    config.model.architecture = "encoder_decoder"
    config.model.vocab_size = 37_120
    config.model.num_layers = 6
    config.model.max_length = 512
    config.model.norm = "layernorm"
    config.model.norm_order = "post"
    config.model.final_norm = False
    config.model.positions = "sinusoidal"
    config.model.embed_scale = config.model.dim**0.5
    config.model.activation = "relu"
    config.model.gated = False
    config.model.bias = True
    config.model.tie_embeddings = True
    config.model.init_std = 0.0
    config.model.init_fan = "average"
    config.model.init_depth_scaling = False
    config.model.embed_init_std = config.model.dim**-0.5

    config.data.vocab_size = 37_000
    config.data.sequence_length = 256

    config.loss.objective = "seq2seq"
    config.loss.label_smoothing = 0.1
    # Equation 3 at its peak.
    config.optimizer.learning_rate = config.model.dim**-0.5 * 4000**-0.5
    config.optimizer.schedule = "rsqrt"
    config.optimizer.b2 = 0.98
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.warmup_steps = 4000
    config.optimizer.eps = 1e-09
    config.eval.every = 1000
    config.eval.tokens = 4_194_304
    config.checkpoint.every = 1000
    return config
