"""Loss and perplexity of a language model on held-out or any text."""

import sys
import time
from collections.abc import Iterator
from typing import Any

from lm_jax.data.tokens.files import path_of
from lm_jax.errors import DataError


def on_heldout(lm: Any, checkpoint: str, sizes: dict[str, Any]) -> tuple[str, Any]:
    """(path, result) of the held-out text of the run's token store; raises DataError."""

    from lm_jax.data.tokens.store import TokenStore
    from lm_jax.inference.scoring import evaluate_heldout

    recorded = lm.metadata.get("store", "")
    # A run that was moved carries its store along.
    beside = [
        f"{parent}/data" for parent in (checkpoint, f"{checkpoint}/..", f"{checkpoint}/../..")
    ]
    is_store = lambda path: path and (path_of(path, DataError) / "store.json").exists()
    path = next(filter(is_store, (recorded, *beside)), None)
    pairs = lm.model.conditional
    advice = (
        "an encoder_decoder is scored on the pairs of its run's store alone."
        if pairs
        else "give a text with --data=PATH."
    )
    if path is None:
        where = f"{recorded}: the token store of this run is gone" if recorded else (
            f"{checkpoint}: no run with a token store made this model")  # fmt: skip
        raise DataError(f"{where}; {advice}")
    store = TokenStore.open(path)
    if store.tokenizer_hash != lm.tokenizer.hash:
        raise DataError(
            f"{path}: made with another tokenizer ({store.tokenizer_hash[:12]}) than the "
            f"checkpoint's ({lm.tokenizer.hash[:12]}); {advice}"
        )
    if lm.metadata.get("data_fingerprint", store.fingerprint) != store.fingerprint:
        raise DataError(
            f"{path}: has changed since the checkpoint was saved, so the model may have learned "
            f"its held-out text; {advice}"
        )
    if not store.num_documents("heldout"):
        raise DataError(f"{path}: has no held-out text; {advice}")
    if pairs:
        return path, objective_loss(lm, store)
    return path, evaluate_heldout(lm.model, store, **sizes)


def objective_loss(lm: Any, store: Any) -> Any:
    """The result of an encoder_decoder: the loss of its objective on all held-out windows."""
    from lm_jax.evaluation.heldout import Heldout
    from lm_jax.inference.scoring import Result

    since, total = time.perf_counter(), store.num_tokens("heldout")
    result = Heldout(lm.config, store, None).loss(lm.model, total)
    count = store.num_documents("heldout")
    return Result(result.nats, result.tokens, 0, count, time.perf_counter() - since)


def on_text(
    lm: Any,
    spec: str,
    text_field: str | None,
    sizes: dict[str, Any],
    max_bad_fraction: float | None = None,
) -> Any:
    """The result on any text that `data.sources` reads. Raises DataError, before the model
    runs, where more than `max_bad_fraction` of it cannot be used (None: as in training).
    """
    from lm_jax.data.text.sources import Report, documents, total_bytes
    from lm_jax.inference.scoring import evaluate
    from lm_jax.progress import Progress

    field = text_field or lm.config.data.text_field
    allowed = lm.config.data.max_bad_fraction if max_bad_fraction is None else max_bad_fraction
    report = Report()

    def texts() -> Iterator[str]:
        with Progress("reading", total_bytes(spec)) as progress:
            for document in documents(spec, field, report, progress.add):
                yield document.text
        report.check(allowed, "--max_bad_fraction")
        if report.lost:
            print(
                f"{spec}: left out {report.lost.total():,} of {report.bytes:,} bytes:"
                f" {'; '.join(report.examples[:3])}",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    try:
        return evaluate(lm.model, lm.tokenizer, texts(), **sizes)
    except DataError as error:
        text = str(error).replace("config.data.input", "--data")
        raise DataError(text.replace("config.data.text_field", "--text_field")) from None
