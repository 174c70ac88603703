"""Qwen3, the dense ones (Yang et al. 2025, arXiv:2505.09388, table 1): a norm on queries and keys.

    python -m lm_jax.train --config=configs/qwen3.py:0.6b --workdir=/mnt/bucket/qwen3 \
        --config.data.store=gs://BUCKET/tokens

Widths are those of the published checkpoints. The report tells no recipe; this one is Llama's. Not
run here.
"""

from lm_jax import config as lm_config

FIELDS = (
    "model.num_layers model.dim model.num_heads model.num_kv_heads model.mlp_dim "
    "model.tie_embeddings"
)
SIZES = {
    "0.6b": (28, 1024, 16, 8, 3072, True),
    "1.7b": (28, 2048, 16, 8, 6144, True),
    "4b": (36, 2560, 32, 8, 9728, True),
    "8b": (36, 4096, 32, 8, 12_288, False),
    "14b": (40, 5120, 40, 8, 17_408, False),
    "32b": (64, 5120, 64, 8, 25_600, False),
}


def get_config(size: str = "0.6b"):
    """One of SIZES."""
    config = lm_config.sized("qwen3", size, FIELDS, SIZES)
    config.steps = 100_000
    config.batch_size = 512

    config.model.vocab_size = 151_936
    config.model.head_dim = 128
    config.model.max_length = 32768
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-06
    config.model.positions = "rope"
    config.model.activation = "silu"
    config.model.gated = True
    config.model.rope_theta = 1_000_000.0
    config.model.qk_norm = True
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
