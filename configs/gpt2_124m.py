"""GPT-2 124M (Radford et al. 2019), with the recipe that nanoGPT and llm.c made the reference.

    python -m lm_jax.train --config=configs/gpt2_124m.py --workdir=/mnt/bucket/gpt2 \
        --config.data.store=gs://BUCKET/tokens

About 10 B tokens: 19,073 steps of 524,288. The vocabulary is padded from 50,257 to 50,304, a
multiple of 128. Not run to the end here yet; its train step compiles for TPU v5e 4x4 and v5p 2x2x2
in the tests.
"""

from lm_jax import config as lm_config


def get_config():
    """One run."""
    config = lm_config.new()
    config.name = "gpt2_124m"
    config.steps = 19_073
    config.batch_size = 512

    config.model.vocab_size = 50_304
    config.model.num_layers = 12
    config.model.dim = 768
    config.model.num_heads = 12
    config.model.mlp_dim = 3072
    config.model.max_length = 1024
    config.model.norm = "layernorm"
    config.model.positions = "learned"
    config.model.activation = "gelu_tanh"
    config.model.gated = False
    config.model.bias = True
    config.model.tie_embeddings = True
    config.model.dropout = 0.0
    config.model.init_depth_scaling = True
    config.model.remat = "names"
    config.model.scan_unroll = 1  # 12 on a GPU: no loop, a slower compilation

    config.data.vocab_size = 50_257
    config.data.sequence_length = 1024

    config.optimizer.learning_rate = 6e-4
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_steps = 700
    config.optimizer.end_fraction = 0.0

    config.mesh.data = -1
    config.eval.tokens = 10_485_760
    config.checkpoint.every = 1000
    return config
