"""Qwen2 (Yang et al. 2024, arXiv:2407.10671, table 1): biases on queries, keys and values alone.

    python -m lm_jax.train --config=configs/qwen2.py:0.5b --workdir=/mnt/bucket/qwen2 \
        --config.data.store=gs://BUCKET/tokens

The report tells no recipe; this one is Llama's. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = (
    "model.num_layers model.dim model.num_heads model.num_kv_heads model.mlp_dim "
    "model.vocab_size model.tie_embeddings"
)
SIZES = {
    "0.5b": (24, 896, 14, 2, 4864, 151_936, True),
    "1.5b": (28, 1536, 12, 2, 8960, 151_936, True),
    "7b": (28, 3584, 28, 4, 18_944, 152_064, False),
    "72b": (80, 8192, 64, 8, 29_568, 152_064, False),
}


def get_config(size: str = "0.5b"):
    """One of SIZES."""
    config = lm_config.sized("qwen2", size, FIELDS, SIZES)
    config.steps = 100_000
    config.batch_size = 512

    config.model.max_length = 32768
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-06
    config.model.positions = "rope"
    config.model.activation = "silu"
    config.model.gated = True
    config.model.rope_theta = 1_000_000.0
    config.model.qkv_bias = True
    config.model.init_depth_scaling = False
    config.model.remat = "full"

    config.data.vocab_size = 151_643
    config.data.sequence_length = 4096

    config.optimizer.learning_rate = 0.0003
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
