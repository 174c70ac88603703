"""A training run of seconds: its config file, its text, the bits of its last checkpoint."""

import json
import random

from lm_jax.run.checkpoint import SavedSteps

STEPS, EVERY = 160, 8
CONFIG = f"""
from lm_jax import config as lm_config

def get_config():
    config = lm_config.new()
    config.steps = {STEPS}
    config.batch_size = 4
    config.microbatches = 2
    config.log_every = 1
    config.model.vocab_size = 384
    config.model.num_layers = 2
    config.model.dim = 32
    config.model.num_heads = 2
    config.model.max_length = 32
    config.model.dropout = 0.1
    config.data.tokenizer = "bytes"
    config.data.sequence_length = 32
    config.data.heldout_fraction = 0.1
    config.optimizer.warmup_steps = 10
    config.eval.every = 50
    config.eval.tokens = 256
    config.eval.samples = 0
    config.eval.baselines = False
    config.checkpoint.every = {EVERY}
    config.checkpoint.keep = 2
    return config
"""


def write_text(path):
    """Forty documents of made-up words, as JSON lines."""
    choose = random.Random(0)
    words = ["".join(choose.choices("abcdefghij", k=choose.randint(2, 7))) for _ in range(200)]
    documents = [" ".join(choose.choices(words, k=80)) for _ in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))


def final_bits(folder, name):
    """Every array of the newest checkpoint, bit for bit, and its step."""
    arrays, metadata = SavedSteps(folder / name).arrays(within="")
    return {key: x.tobytes() for key, x in arrays.items()}, metadata["step"]
