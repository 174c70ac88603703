"""A small GPT on any text, in minutes on two CPU cores.

    python -m lm_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
    python -m lm_jax.train --config=configs/quickstart.py:accelerator --workdir=runs/quickstart

The text is the Python standard library of the machine unless --config.data.input names another.
"""

from lm_jax import config as lm_config

VARIANTS = ("cpu", "accelerator")


def get_config(variant: str = "cpu"):
    """`cpu`: 2 cores; `accelerator`: one GPU or TPU chip."""
    lm_config.need_variant("quickstart", variant, VARIANTS)
    config = lm_config.new()
    config.name = "quickstart"
    config.steps = 1900
    config.batch_size = 4
    config.log_every = 50

    config.model.vocab_size = 4096
    config.model.num_layers = 4
    config.model.dim = 128
    config.model.num_heads = 4
    config.model.max_length = 256
    config.model.init_std = 0.0
    config.model.zero_init = True
    config.model.scan_unroll = 4
    config.model.matmul_precision = "auto"

    config.data.input = "stdlib"
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 4096
    config.data.heldout_fraction = 0.05
    config.data.sequence_length = 256

    config.loss.chunk_size = 64

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 6e-3
    config.optimizer.muon_learning_rate = 0.03
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 20
    config.optimizer.end_fraction = 0.05

    config.eval.every = 500
    config.eval.prompt = "def "
    config.eval.baselines = True
    config.checkpoint.every = 500

    if variant == "accelerator":
        config.steps = 4000
        config.batch_size = 32
        config.model.num_layers = 12
        config.model.dim = 768
        config.model.num_heads = 12
        config.model.max_length = 512
        config.model.scan_unroll = 12
        config.data.sequence_length = 512
        config.loss.chunk_size = 0
        config.optimizer.learning_rate = 3e-3
        config.optimizer.muon_learning_rate = 0.02
        config.optimizer.warmup_steps = 200
    return config
