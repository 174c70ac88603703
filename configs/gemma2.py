"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118, table 1): local and global layers in turn, capped
scores.

    python -m lm_jax.train --config=configs/gemma2.py:2b --workdir=/mnt/bucket/gemma2 \
        --config.data.store=gs://BUCKET/tokens

The report tells no recipe; this one is Llama's. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = (
    "model.num_layers model.dim model.num_heads model.num_kv_heads model.head_dim "
    "model.mlp_dim model.attn_scale"
)
SIZES = {
    "2b": (26, 2304, 8, 4, 256, 9216, 0.0625),
    "9b": (42, 3584, 16, 8, 256, 14_336, 0.0625),
    "27b": (46, 4608, 32, 16, 128, 36_864, 0.08333333333333333),
}


def get_config(size: str = "2b"):
    """One of SIZES."""
    config = lm_config.sized("gemma2", size, FIELDS, SIZES)
    config.steps = 100_000
    config.batch_size = 512

    config.model.vocab_size = 256_000
    config.model.max_length = 8192
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-06
    config.model.norm_order = "sandwich"
    config.model.norm_offset = 1.0
    config.model.positions = "rope"
    config.model.activation = "gelu_tanh"
    config.model.gated = True
    config.model.tie_embeddings = True
    config.model.embed_scale = config.model.dim**0.5
    config.model.init_depth_scaling = False
    config.model.remat = "full"
    config.model.window = 4096
    config.model.layer_pattern = "lg"
    config.model.attn_softcap = 50.0
    config.model.logit_softcap = 30.0

    config.data.vocab_size = 256_000
    config.data.sequence_length = 8192

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
