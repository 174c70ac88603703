"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825, table 1): every layer sees 4,096 tokens back.

    python -m lm_jax.train --config=configs/mistral.py:7b --workdir=/mnt/bucket/mistral \
        --config.data.store=gs://BUCKET/tokens

The paper tells no recipe of its training; this one is Llama's. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = (
    "model.num_layers model.dim model.num_heads model.num_kv_heads model.mlp_dim "
    "optimizer.learning_rate"
)
SIZES = {
    "7b": (32, 4096, 32, 8, 14_336, 0.0003),
}


def get_config(size: str = "7b"):
    """One of SIZES."""
    config = lm_config.sized("mistral", size, FIELDS, SIZES)
    config.steps = 100_000
    config.batch_size = 512

    config.model.vocab_size = 32_000
    config.model.max_length = 32768
    config.model.window = 4096
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-05
    config.model.positions = "rope"
    config.model.activation = "silu"
    config.model.gated = True
    config.model.tie_embeddings = False
    config.model.init_depth_scaling = False
    config.model.remat = "full"

    config.data.vocab_size = 32_000
    config.data.sequence_length = 8192

    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 2000
    config.optimizer.end_fraction = 0.1
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 1000
    config.eval.tokens = 4_194_304
    config.checkpoint.every = 1000
    return config
