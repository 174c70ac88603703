"""Llama 2 (Touvron et al. 2023, arXiv:2307.09288, table 1 and appendix A.2), 2 T tokens.

    python -m lm_jax.train --config=configs/llama2.py:7b --workdir=/mnt/bucket/llama2 \
        --config.data.store=gs://BUCKET/tokens

4 M tokens a step. Not run here.
"""

from lm_jax import config as lm_config

FIELDS = (
    "model.num_layers model.dim model.num_heads model.num_kv_heads model.mlp_dim "
    "optimizer.learning_rate"
)
SIZES = {
    "7b": (32, 4096, 32, 32, 11_008, 0.0003),
    "13b": (40, 5120, 40, 40, 13_824, 0.0003),
    "70b": (80, 8192, 64, 8, 28_672, 0.00015),
}


def get_config(size: str = "7b"):
    """One of SIZES."""
    config = lm_config.sized("llama2", size, FIELDS, SIZES)
    config.steps = 476_837
    config.batch_size = 1024

    config.model.vocab_size = 32_000
    config.model.max_length = 4096
    config.model.norm = "rmsnorm"
    config.model.norm_eps = 1e-05
    config.model.positions = "rope"
    config.model.activation = "silu"
    config.model.gated = True
    config.model.tie_embeddings = False
    config.model.init_depth_scaling = False
    config.model.remat = "full"

    config.data.vocab_size = 32_000
    config.data.sequence_length = 4096

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
