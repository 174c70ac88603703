"""A Llama of two layers, and batches of packed documents for it."""

import numpy as np

from lm_jax.config import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig

STEPS, B, L, V = 20, 8, 16, 64
LLAMA = Config(
    steps=STEPS, batch_size=B,
    model=ModelConfig(vocab_size=V, num_layers=2, dim=32, num_heads=4, mlp_dim=64, max_length=L,
                      attention="xla", dtype="float32"),
    data=DataConfig(sequence_length=L), loss=LossConfig(z_loss=1e-4),
    optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=4),
)  # fmt: skip


def batch_of(step, microbatches=1):
    """Packed documents, with targets that do not count: [microbatches, B / microbatches, L]."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, V, (B, L + 1))
    tokens[:, 1::2] = (tokens[:, :-1:2] + 1) % V  # something to learn
    cut = rng.integers(1, L, (B, 1))
    place = np.arange(L)[None]
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": 1 + (place >= cut),
        "positions": np.where(place >= cut, place - cut, place),
    }
    batch = {name: x.astype(np.int32) for name, x in batch.items()}
    # Rows of unlike weight: an average of averages would show.
    kept = rng.random((B, L)) < np.linspace(0.1, 1.0, B)[:, None]
    batch["weights"] = (kept & (place != cut - 1)).astype(np.float32)
    return {k: x.reshape(microbatches, -1, L) for k, x in batch.items()}
