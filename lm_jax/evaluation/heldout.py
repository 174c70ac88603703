"""What does the model say of text that it never learned from? Its loss, and samples."""

from typing import Any

import jax
import numpy as np

from lm_jax.config import Config
from lm_jax.data.views import by_objective
from lm_jax.data.views.windows import Shard
from lm_jax.devices import sharding
from lm_jax.inference.sampling import sample_text
from lm_jax.inference.scoring import evaluate_heldout
from lm_jax.tasks.objectives import loss

MOST_TOKENS = 5_000_000  # of held-out text that are read at the end


class Heldout:
    """The held-out text of a run, asked as it is trained; on the default device without a mesh.

    share: which parts of each batch are this process's. Raises DataError where the text is less
    than an example.
    """

    def __init__(self, config: Config, store: Any, mesh: Any, share: Shard = (0, 1)):
        self.config, self.store, self.mesh, self.share = config, store, mesh, share
        self.windows = by_objective.make(store, "heldout", config, 0)
        self.sums = jax.jit(lambda model, batch: loss(model, batch, None, config.loss)[1])

    def loss(self, model: Any, most: int) -> tuple[float, int]:
        """(nats a target, targets) over at most about `most` tokens of windows, always the same."""
        config = self.config
        rows = config.batch_size // config.microbatches
        most = min(most, self.store.num_tokens("heldout"))
        nll = tokens = 0.0
        for index in range(max(1, most // (rows * config.data.sequence_length))):
            batch = self.windows.batch(index, rows, self.share)
            del batch["example"]
            sums = self.sums(model, sharding.put(batch, self.mesh) if self.mesh else batch)
            nll, tokens = nll + float(sums["nll"]), tokens + float(sums["tokens"])
        return nll / max(1.0, tokens), int(tokens)

    def samples(self, model: Any) -> list[tuple[str, str]]:
        """(prompt, what the model writes after it); none from an encoder, which writes nothing."""
        config, tokenizer = self.config, self.store.tokenizer
        prompt = config.eval.prompt
        if config.model.architecture == "encoder":
            return []
        read = (
            len(tokenizer.encode(prompt)) if config.model.architecture != "encoder_decoder" else 0
        )
        length = min(config.eval.sample_tokens, config.model.max_length - read - 1)
        numbers = range(config.eval.samples if length > 0 else 0)
        return [(prompt, sample_text(model, tokenizer, prompt, length, seed=n)) for n in numbers]

    def figures(self, model: Any) -> dict[str, float]:
        """Loss of all held-out documents, {} when they are too many: perplexity and bits per byte;
        of an encoder the pseudo-perplexity (scoring.Masking); of an encoder_decoder the loss of its
        objective, which is not of the text alone.
        """
        config, store = self.config, self.store
        kind, window = config.model.architecture, config.data.sequence_length
        total = store.num_tokens("heldout")
        if total > MOST_TOKENS:
            return {}
        if kind == "encoder_decoder":
            nats, tokens = self.loss(model, total)
            return {"loss": nats, "tokens": tokens, "perplexity": float(np.exp(nats))}
        stride = window // 2 if config.eval.baselines and kind != "encoder" else window
        found = evaluate_heldout(model, store, window, stride)
        figures = {"loss": found.loss, "tokens": found.tokens}
        if found.pseudo:
            return {**figures, "pseudo_perplexity": found.perplexity}
        return {"bpb": found.bits_per_byte, **figures, "perplexity": found.perplexity,
                "stride": stride}  # fmt: skip
