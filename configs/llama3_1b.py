"""Llama 3.2 1B (Meta 2024, model card), pretrained at 8,192 tokens of context.

    python -m lm_jax.train --config=configs/llama3_1b.py --workdir=/mnt/bucket/llama1b \
        --config.data.store=gs://BUCKET/tokens

2 M tokens a step, 100 B tokens in all. Not run here yet.
"""

from lm_jax import config as lm_config


def get_config():
    """One run."""
    config = lm_config.new()
    config.name = "llama3_1b"
    config.steps = 47_684
    config.batch_size = 256

    config.model.vocab_size = 128_256
    config.model.num_layers = 16
    config.model.dim = 2048
    config.model.num_heads = 32
    config.model.num_kv_heads = 8
    config.model.mlp_dim = 8192
    config.model.max_length = 8192
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-5
    config.model.positions = "rope"
    config.model.rope_theta = 500_000.0
    config.model.activation = "silu"
    config.model.gated = True
    config.model.tie_embeddings = True
    config.model.init_depth_scaling = False
    config.model.remat = "full"

    config.data.vocab_size = 128_000
    config.data.sequence_length = 8192

    config.optimizer.learning_rate = 4e-4
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 1000
    config.optimizer.end_fraction = 0.01

    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 1000
    config.eval.tokens = 16_777_216
    config.checkpoint.every = 1000
    return config
