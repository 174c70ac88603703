"""Kneser-Ney n-grams with the interface of the neural models."""

# Shapes: B rows, L length, V vocabulary.

from collections.abc import Mapping, Sequence

import numpy as np

from lm_jax.config import ModelConfig
from lm_jax.errors import CheckpointError
from lm_jax.models.classical.ngram import KneserNey, Level
from lm_jax.models.protocol import Ids


class NGram:
    """Interpolated modified Kneser-Ney n-grams of `config.order` over `config.vocab_size` tokens.

    counts: the fitted model (models.classical.ngram.KneserNey), computed by numpy on the host.
    """

    inputs: tuple[str, ...] = ("segment_ids",)
    generates, conditional, on_host = True, False, True

    def __init__(self, config: ModelConfig, counts: KneserNey):
        self.config, self.counts = config, counts

    @property
    def num_parameters(self) -> int:
        """Number of probabilities, one for each n-gram that was seen, and backoff weights."""
        levels = self.counts.levels
        return self.counts.vocab_size + sum(len(x.prob) + len(x.backoff) for x in levels)

    def __call__(self, tokens_BL: Ids, segment_ids: Ids | None = None) -> np.ndarray:
        """log p(next token) [B, L, V] float32 at each token of rows that start documents with bos.

        segment_ids: 0 is padding, which must be at the end.
        """
        del segment_ids
        rows = [[row[: i + 1] for i in range(len(row))] for row in np.asarray(tokens_BL)]
        return np.stack([self.next_log_probs(contexts) for contexts in rows])

    def next_log_probs(self, contexts: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
        """log p(next token) [B, V] float32 after each of the contexts, ids of any lengths."""
        rows = [np.log(self.counts.next_probabilities(context)) for context in contexts]
        return np.stack(rows).astype(np.float32)

    def log_probs(self, batch: Mapping[str, Ids]) -> np.ndarray:
        """log p(target) [B, L] float32 of batch["targets"], in nats; see KneserNey.log_probs."""
        return self.counts.log_probs({name: np.asarray(x) for name, x in batch.items()})

    def tables(self) -> dict[str, np.ndarray]:
        """Arrays of a checkpoint: 64-bit numbers as pairs of uint32, which jax supports."""
        arrays = {"unigram": self.counts.unigram}
        for k, level in enumerate(self.counts.levels, 2):
            arrays |= {
                f"keys_{k}": level.keys, f"prob_{k}": level.prob, f"above_{k}": level.backoff
            }  # fmt: skip
        return {name: x.view(np.uint32).reshape(-1, 2) for name, x in arrays.items()}

    @classmethod
    def from_tables(
        cls, config: ModelConfig, tables: dict[str, np.ndarray], bos_id: int | None
    ) -> "NGram":
        """The model with these `tables`; raises CheckpointError when they do not fit `config`."""
        kinds = {"keys": np.int64, "prob": np.float64, "above": np.float64, "unigram": np.float64}
        orders = range(2, config.order + 1)
        names = {f"{kind}_{k}" for k in orders for kind in ("keys", "prob", "above")}
        if odd := sorted({"unigram", *names} ^ tables.keys()):
            raise CheckpointError(
                f"the checkpoint is not of n-grams of config.model.order={config.order}: it "
                f"{'has' if odd[0] in tables else 'has no'} table {odd[0]!r}."
            )
        array = lambda name: (
            np.ascontiguousarray(tables[name]).reshape(-1).view(kinds[name.partition("_")[0]])
        )
        counts = KneserNey(config.order, config.vocab_size, bos_id)
        counts.unigram = array("unigram")
        counts.levels = [
            Level(array(f"keys_{k}"), array(f"prob_{k}"), array(f"above_{k}")) for k in orders
        ]
        if len(counts.unigram) != config.vocab_size:
            raise CheckpointError(
                f"the checkpoint has {len(counts.unigram)} tokens, not "
                f"config.model.vocab_size={config.vocab_size}."
            )
        return cls(config, counts)
