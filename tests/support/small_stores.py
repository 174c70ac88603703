"""The config of a small run, and token stores: of one letter, and without checksums."""

import dataclasses
import json

import numpy as np

from lm_jax.config import Config, DataConfig, ModelConfig
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.writer import Writer

CONFIG = Config(
    model=ModelConfig(vocab_size=384, num_layers=1, dim=16, num_heads=2, max_length=64),
    data=DataConfig(input="text.txt", tokenizer="bytes", vocab_size=259, sequence_length=16),
)


def without_sums(path):
    """Makes a store one of those that have no checksums of blocks."""
    manifest = json.loads((path / "store.json").read_text())
    del manifest["block_bytes"]
    for split in ("train", "heldout"):
        del manifest["files"][f"{split}.sums"]
        (path / f"{split}.sums").unlink()
    (path / "store.json").write_text(json.dumps(manifest))


def write_store(path, data, size=400, held=100):
    """A store of the byte 65, `size` times for training and `held` times held out."""
    with Writer(path, Tokenizer.byte_level()) as writer:
        for split, count in (("train", size), ("heldout", held)):
            if count:
                writer.add(split, np.full(count, 65, np.int32), count)
        writer.finish({"data": dataclasses.asdict(data)} if data else {})
    return TokenStore.open(path)
