r"""The classic first run: a byte-level GPT on the works of Shakespeare, with nanoGPT's published
settings.

    python -m lm_jax.train --config=configs/shakespeare.py --workdir=runs/shakespeare \
        --config.data.input=tinyshakespeare.txt
    python -m lm_jax.train --config=configs/shakespeare.py:accelerator \
        --workdir=runs/shakespeare_large --config.data.input=tinyshakespeare.txt

The text is ASCII, so a byte is a character. Both shapes are nanoGPT's, which publishes validation
losses of 1.88 and 1.47 nats. `cpu` (0.8 M parameters, 2,000 steps, four minutes on two cores)
reaches 1.61 with Muon and branches that start at zero. `accelerator` (10.7 M) reaches 1.46 in 640
steps where nanoGPT has 5,000 (45 minutes on two cores with AMX): rotary positions besides, windows
that begin elsewhere in each epoch and twice the weight decay. More steps of Muon overfit a megabyte
of text.
"""

from lm_jax import config as lm_config

VARIANTS = ("cpu", "accelerator")


def get_config(variant: str = "cpu"):
    """`cpu` or `accelerator`."""
    lm_config.need_variant("shakespeare", variant, VARIANTS)
    config = lm_config.new()
    config.name = "shakespeare"
    config.steps = 2000
    config.batch_size = 12
    config.log_every = 50

    config.model.vocab_size = 384
    config.model.num_layers = 4
    config.model.dim = 128
    config.model.num_heads = 4
    config.model.max_length = 64
    config.model.scan_unroll = 4
    config.model.norm = "layernorm"
    config.model.positions = "learned"
    config.model.activation = "gelu"
    config.model.gated = False
    config.model.dropout = 0.0
    config.model.zero_init = True

    config.data.tokenizer = "bytes"
    config.data.heldout_fraction = 0.1
    config.data.sequence_length = 64

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.muon_learning_rate = 0.02
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_steps = 100
    config.optimizer.end_fraction = 0.1

    config.eval.every = 500
    config.eval.tokens = 111_616
    config.checkpoint.every = 500

    if variant == "accelerator":
        config.steps = 640
        config.batch_size = 64
        config.model.num_layers = 6
        config.model.dim = 384
        config.model.num_heads = 6
        config.model.max_length = 256
        config.model.scan_unroll = 6
        config.model.norm = "rmsnorm"
        config.model.positions = "rope"
        config.model.dropout = 0.2
        config.model.matmul_precision = "auto"
        config.data.sequence_length = 256
        config.data.shifted = True
        config.optimizer.weight_decay = 0.2
        config.optimizer.end_fraction = 0.02
        config.eval.every = 80
        config.checkpoint.every = 80
    return config
