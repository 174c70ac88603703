"""Llama 3 (Grattafiori et al. 2024, arXiv:2407.21783, table 3), 3.1 and 3.2 (their model cards).

    python -m lm_jax.train --config=configs/llama3.py:8b --workdir=/mnt/bucket/llama3 \
        --config.data.store=gs://BUCKET/tokens

llama3_1b.py and llama3_8b.py are recipes; this has all sizes. The 3.2 sizes have tied embeddings
and the scaled rotary positions of 128k context; 3.1_8b is pretrained further at that context
(section 3.4.2), eight devices to a row. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = (
    "model.num_layers model.dim model.num_heads model.num_kv_heads model.head_dim "
    "model.mlp_dim optimizer.learning_rate"
)
SIZES = {
    "3.2_1b": (16, 2048, 32, 8, 64, 8192, 0.0003),
    "3.2_3b": (28, 3072, 24, 8, 128, 8192, 0.0003),
    "8b": (32, 4096, 32, 8, 128, 14_336, 0.0003),
    "3.1_8b": (32, 4096, 32, 8, 128, 14_336, 3e-05),
    "70b": (80, 8192, 64, 8, 128, 28_672, 0.00015),
    "405b": (126, 16_384, 128, 8, 128, 53_248, 8e-05),
}


def get_config(size: str = "8b"):
    """One of SIZES."""
    config = lm_config.sized("llama3", size, FIELDS, SIZES)
    config.steps = 238_419
    config.batch_size = 512

    config.model.vocab_size = 128_256
    config.model.max_length = 8192
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-05
    config.model.positions = "rope"
    config.model.activation = "silu"
    config.model.gated = True
    config.model.rope_theta = 500_000.0
    config.model.tie_embeddings = size.startswith("3.2")
    config.model.init_depth_scaling = False
    config.model.remat = "full"

    config.data.vocab_size = 128_000
    config.data.sequence_length = 8192

    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 2000
    config.optimizer.end_fraction = 0.01
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.eval.every = 1000
    config.eval.tokens = 4_194_304
    config.checkpoint.every = 1000
    if size == "3.1_8b":
        config.model.rope_scaling, config.model.rope_factor = "llama3", 8.0
        config.model.max_length = config.data.sequence_length = 131_072
        config.model.context_attention, config.mesh.context = "ring", 8
        config.batch_size, config.steps = 32, 190_735  # 800 G tokens
    if size.startswith("3.2"):
        config.model.rope_scaling, config.model.rope_factor = "llama3", 32.0
    return config
