"""GPT-2 in its four sizes (Radford et al. 2019, table 2).

    python -m lm_jax.train --config=configs/gpt2.py:medium --workdir=/mnt/bucket/gpt2 \
        --config.data.store=gs://BUCKET/tokens

Half a million tokens a step. gpt2_124m.py is the smallest with a recipe tuned for 10 B tokens. The
vocabulary is padded from 50,257 to 50,304. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = "model.num_layers model.dim model.num_heads optimizer.learning_rate"
SIZES = {
    "small": (12, 768, 12, 0.0006),
    "medium": (24, 1024, 16, 0.0003),
    "large": (36, 1280, 20, 0.00025),
    "xl": (48, 1600, 25, 0.0002),
}


def get_config(size: str = "small"):
    """One of SIZES."""
    config = lm_config.sized("gpt2", size, FIELDS, SIZES)
    config.steps = 100_000
    config.batch_size = 512

    config.model.vocab_size = 50_304
    config.model.max_length = 1024
    config.model.norm = "layernorm"
    config.model.positions = "learned"
    config.model.activation = "gelu_tanh"
    config.model.gated = False
    config.model.bias = True
    config.model.tie_embeddings = True
    config.model.init_depth_scaling = True
    config.model.remat = "names"

    config.data.vocab_size = 50_257
    config.data.sequence_length = 1024

    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 700
    config.optimizer.end_fraction = 0.0
    config.eval.every = 1000
    config.eval.tokens = 4_194_304
    config.checkpoint.every = 1000
    return config
