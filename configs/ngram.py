"""Kneser-Ney n-grams on any text: the baseline that a network must beat.

    python -m lm_jax.train --config=configs/ngram.py --workdir=runs/ngram
    python -m lm_jax.train --config=configs/ngram.py --workdir=runs/trigram --config.model.order=3

The text is the Python standard library of the machine unless --config.data.input names another. The
first steps x batch_size x sequence_length tokens are counted, here all; about 70 bytes of memory
are needed for each.
"""

from lm_jax import config as lm_config


def get_config():
    """One run."""
    config = lm_config.new()
    config.name = "ngram"
    config.steps = 1_000_000
    config.batch_size = 4

    config.model.architecture = "ngram"
    config.model.vocab_size = 4096
    config.model.order = 5
    config.model.max_length = 256

    config.data.input = "stdlib"
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 4096
    config.data.heldout_fraction = 0.05
    config.data.sequence_length = 256

    config.eval.prompt = "def "
    config.eval.baselines = True
    return config
