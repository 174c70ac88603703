"""Gemma 3, text (Gemma Team 2025, arXiv:2503.19786, section 2): five local layers to a global one.

    python -m lm_jax.train --config=configs/gemma3.py:1b --workdir=/mnt/bucket/gemma3 \
        --config.data.store=gs://BUCKET/tokens

Widths are those of the published checkpoints. The report tells no recipe; this one is Llama's. Not
run here.
"""

from lm_jax import config as lm_config

FIELDS = (
    "model.num_layers model.dim model.num_heads model.num_kv_heads model.head_dim "
    "model.mlp_dim model.attn_scale model.window model.rope_factor"
)
SIZES = {
    "270m": (18, 640, 4, 1, 256, 2048, 0.0625, 512, 1.0),
    "1b": (26, 1152, 4, 1, 256, 6912, 0.0625, 512, 1.0),
    "4b": (34, 2560, 8, 4, 256, 10_240, 0.0625, 1024, 8.0),
    "12b": (48, 3840, 16, 8, 256, 15_360, 0.0625, 1024, 8.0),
    "27b": (62, 5376, 32, 16, 128, 21_504, 0.07715167498104596, 1024, 8.0),
}


def get_config(size: str = "1b"):
    """One of SIZES."""
    config = lm_config.sized("gemma3", size, FIELDS, SIZES)
    config.steps = 100_000
    config.batch_size = 512

    config.model.vocab_size = 262_144
    config.model.max_length = 32768
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
    config.model.qk_norm = True
    config.model.layer_pattern = "lllllg"
    config.model.rope_theta = 1_000_000.0
    config.model.rope_local_theta = 10_000.0
    config.model.rope_scaling = "linear" if config.model.rope_factor > 1 else "none"

    config.data.vocab_size = 262_144
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
