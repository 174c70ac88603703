"""A hidden Markov language model of 256 states on any text, by gradients.

    python -m lm_jax.train --config=configs/hmm.py --workdir=runs/hmm

The text is the Python standard library of the machine unless --config.data.input names another.
lm_jax.models.classical.hmm has expectation maximisation as well.
"""

from lm_jax import config as lm_config


def get_config():
    """One run."""
    config = lm_config.new()
    config.name = "hmm"
    config.steps = 1900
    config.batch_size = 4
    config.log_every = 50

    config.model.architecture = "hmm"
    config.model.vocab_size = 4096
    config.model.dim = 256
    config.model.max_length = 256

    config.data.input = "stdlib"
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 4096
    config.data.heldout_fraction = 0.05
    config.data.sequence_length = 256

    config.optimizer.learning_rate = 3e-2
    config.optimizer.weight_decay = 0.0
    config.optimizer.warmup_steps = 50
    config.optimizer.end_fraction = 0.05

    config.eval.every = 500
    config.eval.prompt = "def "
    config.eval.baselines = True
    config.checkpoint.every = 500
    return config
