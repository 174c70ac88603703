"""Held-out text of a run: its loss while training and at the end, and samples."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lm_jax.config import Config
from lm_jax.data.views import by_objective
from lm_jax.data.views.windows import Shard
from lm_jax.devices import sharding
from lm_jax.inference.generation import sample_text
from lm_jax.inference.prompts import reading_of
from lm_jax.inference.scoring import evaluate_heldout
from lm_jax.tasks.objectives import loss

MAX_TOKENS = 5_000_000  # of held-out text that the figures at the end are computed on


@dataclasses.dataclass(frozen=True)
class HeldoutLoss:
    """The loss of held-out examples."""

    nats: float  # summed over the targets
    tokens: int  # targets
    examples: int
    bytes: float  # of the text that the targets are; NaN where they are not the text alone

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / max(1, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the text that was evaluated."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan


class Heldout:
    """The held-out text of a run under its objective; on the default device without a mesh.

    share: which parts of each batch are this process's. check: called before each batch and sample;
    what it raises ends an evaluation early. Raises DataError where the text is less
    than an example.
    """

    def __init__(self, config: Config, store: Any, mesh: Any, share: Shard = (0, 1),
                 check: Callable[[], None] = lambda: None):  # fmt: skip
        self.config, self.store, self.mesh, self.share = config, store, mesh, share
        self.check = check
        self.windows = by_objective.make(store, "heldout", config, 0)
        self.sums = jax.jit(lambda model, batch: loss(model, batch, None, config.loss)[1])
        self.bytes: dict[int, float] = {}  # by number of examples

    def loss(self, model: Any, max_tokens: int) -> HeldoutLoss:
        """The loss of the examples that hold about `max_tokens` of the text, always the same and
        each once: whole batches of them, or all, the last batch filled up with weight 0.
        """
        config, size = self.config, len(self.windows)
        rows = config.batch_size // config.microbatches
        wanted = math.ceil(min(1.0, max_tokens / self.store.num_tokens("heldout")) * size)
        batches = max(1, -(-wanted // rows))
        nll = tokens = 0.0
        for index in range(batches):
            self.check()
            batch = self.windows.batch(index, rows, self.share, stop=size)
            del batch["example"]
            sums = self.sums(model, sharding.put(batch, self.mesh) if self.mesh else batch)
            nll, tokens = nll + float(sums["nll"]), tokens + float(sums["tokens"])
        count = min(size, batches * rows)
        return HeldoutLoss(nll, int(tokens), count, self.text_bytes(count))

    def text_bytes(self, count: int) -> float:
        """Bytes of the text that is the targets of the first `count` examples; NaN where they are
        not the text, each token of it once.
        """
        if self.config.loss.objective != "causal":
            return math.nan
        if count not in self.bytes:
            self.bytes[count] = self.counted_bytes(count)
        return self.bytes[count]

    def counted_bytes(self, count: int) -> float:
        """`text_bytes`, where there is such a number."""
        store, tokenizer = self.store, self.store.tokenizer
        total = store.num_bytes("heldout")
        if count == len(self.windows):
            return total
        lengths, size, targets = tokenizer.byte_lengths, 0, 0
        for start in range(0, count, 256):
            batch = self.windows.rows(np.arange(start, min(start + 256, count)))
            there = batch["weights"] > 0
            size += int(lengths[batch["targets"][there]].sum())
            targets += int(there.sum())
        if tokenizer.lossless:
            return size
        # The length of a text does not follow from its ids: a share of the whole.
        return total * targets / (store.num_tokens("heldout") - store.num_documents("heldout"))

    def samples(self, model: Any) -> list[tuple[str, str]]:
        """(prompt, continuation) of each sample; none of an encoder, which generates no text."""
        config, tokenizer = self.config, self.store.tokenizer
        prompt = config.eval.prompt
        if not model.generates:
            return []
        kind, limit = config.model.architecture, config.model.max_length
        # An answer begins with one token; a continuation, with the whole prompt.
        reading = reading_of(tokenizer, kind)
        begun = 1 if model.conditional else len(reading.ids(tokenizer, prompt, kind))
        length = min(config.eval.sample_tokens, limit - begun)
        samples = []
        for number in range(config.eval.samples if length > 0 else 0):
            self.check()
            samples.append((prompt, sample_text(model, tokenizer, prompt, length, seed=number)))
        return samples

    def figures(self, model: Any) -> dict[str, float]:
        """Loss of all held-out documents, {} when they are too many: perplexity and bits per byte;
        of an encoder the pseudo-perplexity (scoring.Masking); of an encoder_decoder the loss of its
        objective, which is not of the text alone.
        """
        config, store = self.config, self.store
        window = config.data.sequence_length
        total = store.num_tokens("heldout")
        if total > MAX_TOKENS:
            return {}
        if model.conditional:
            pairs = self.loss(model, total)
            return {"loss": pairs.loss, "tokens": pairs.tokens, "examples": pairs.examples,
                    "perplexity": float(np.exp(pairs.loss))}  # fmt: skip
        stride = window // 2 if config.eval.baselines and model.generates else window
        result = evaluate_heldout(model, store, window, stride)
        figures = {"loss": result.loss, "tokens": result.tokens}
        if result.pseudo:
            return {**figures, "pseudo_perplexity": result.perplexity}
        return {"bpb": result.bits_per_byte, **figures, "perplexity": result.perplexity,
                "stride": stride}  # fmt: skip
