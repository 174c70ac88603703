"""Mixtral 8x7B (Jiang et al. 2024, arXiv:2401.04088, table 1), pretrained at 8,192 tokens of
context.

    python -m lm_jax.train --config=configs/mixtral_8x7b.py --workdir=/mnt/bucket/mixtral \
        --config.data.store=gs://BUCKET/tokens

46.7 B parameters, 12.9 B of them for a token; a quarter of the experts, two of the eight, on each
of four devices, and all parameters spread over the others. 4 M tokens a step, 1 T tokens in all.
Sizes are the paper's; it names no schedule, and no base of the rotary positions (of the released
weights, which saw 32,768 tokens: 1e6). Not run here.
"""

from lm_jax import config as lm_config


def get_config():
    """One run."""
    config = lm_config.new()
    config.name = "mixtral_8x7b"
    config.steps = 238_419
    config.batch_size = 512

    config.model.vocab_size = 32_000
    config.model.num_layers = 32
    config.model.dim = 4096
    config.model.num_heads = 32
    config.model.num_kv_heads = 8
    config.model.head_dim = 128
    config.model.mlp_dim = 14_336
    config.model.max_length = 32_768
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-5
    config.model.positions = "rope"
    config.model.rope_theta = 1e6
    config.model.activation = "silu"
    config.model.gated = True
    config.model.tie_embeddings = False
    config.model.num_experts = 8
    config.model.experts_per_token = 2
    config.model.init_depth_scaling = False
    config.model.remat = "full"

    config.data.vocab_size = 32_000
    config.data.sequence_length = 8192

    config.loss.balance_loss = 0.01
    config.loss.router_z_loss = 0.001

    config.optimizer.learning_rate = 3e-4
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 2000
    config.optimizer.end_fraction = 0.1

    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.expert = 4
    config.eval.every = 1000
    config.eval.tokens = 16_777_216
    config.checkpoint.every = 1000
    return config
