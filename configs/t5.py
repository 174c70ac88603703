"""T5 1.0 and 1.1 (Raffel et al. 2020, arXiv:1910.10683, section 3.7; Shazeer 2020,
arXiv:2002.05202).

    python -m lm_jax.train --config=configs/t5.py:base --workdir=/mnt/bucket/t5 \
        --config.data.store=gs://BUCKET/tokens

Span corruption, 128 sequences of 512 tokens for 2^19 steps, Adafactor at 0.01 for 10^4 steps and
then at 1 / sqrt(step) (section 3.1.2). 1.1 has gated layers, a head of its own, and no dropout in
pretraining. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = "model.num_layers model.dim model.num_heads model.head_dim model.mlp_dim"
SIZES = {
    "small": (6, 512, 8, 64, 2048),
    "base": (12, 768, 12, 64, 3072),
    "large": (24, 1024, 16, 64, 4096),
    "3b": (24, 1024, 32, 128, 16_384),
    "11b": (24, 1024, 128, 128, 65_536),
    "1.1_small": (8, 512, 6, 64, 1024),
    "1.1_base": (12, 768, 12, 64, 2048),
    "1.1_large": (24, 1024, 16, 64, 2816),
    "1.1_xl": (24, 2048, 32, 64, 5120),
    "1.1_xxl": (24, 4096, 64, 64, 10_240),
}


def get_config(size: str = "base"):
    """One of SIZES."""
    config = lm_config.sized("t5", size, FIELDS, SIZES)
    config.steps = 524_288
    config.batch_size = 128

    config.model.vocab_size = 32_128
    config.model.max_length = 1024
    config.model.architecture = "encoder_decoder"
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-06
    config.model.positions = "relative"
    config.model.attn_scale = 1.0
    config.model.decoder_start = "pad"
    config.model.init_std = 0.0
    config.model.init_depth_scaling = False
    config.model.embed_init_std = 1.0

    config.data.tokenizer = "unigram"
    config.data.vocab_size = 32_000
    config.data.sequence_length = 512

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
    if size.startswith("1.1"):
        config.model.activation, config.model.gated = "gelu_tanh", True
        config.model.tie_embeddings = False
        config.model.dropout = 0.0
    else:
        config.model.activation, config.model.gated = "relu", False
        config.model.tie_embeddings, config.model.logit_scale = True, config.model.dim**-0.5
        for place in ("dropout", "attention_dropout", "activation_dropout", "output_dropout"):
            config.model[place] = 0.1
    return config
