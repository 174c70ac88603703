"""Logits of encoders and encoder-decoders for a batch of the golden files."""

import jax
import numpy as np


@jax.jit
def forward(model, batch):
    """Logits of the tokens, and of the pair where the model has them."""
    x_BLD, _ = model.forward(batch)
    return model.logits(x_BLD), model.pooler(x_BLD) if model.config.pooler else None


def ours(batch):
    """The batch as a model here takes it."""
    return {"tokens" if name == "ids" else name: x.astype(np.int32) for name, x in batch.items()}
