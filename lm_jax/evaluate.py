"""python -m lm_jax.evaluate --checkpoint=runs/q: how well does a model predict text?

Loss (nats per token), perplexity and bits per byte of the run's held-out text, or of --data=PATH.
Each document is read from its own beginning, and each of its tokens, the end included, is counted
once. --stride=1 gives every token the whole window before it; the default, a stride of one window,
is fastest and a little pessimistic. An encoder's figures are pseudo-likelihoods: each token is
masked once, together with every eighth of its window. An encoder_decoder's loss is that of its
objective on the run's held-out text.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from lm_jax import cli, runtime
from lm_jax.errors import DataError, UserError


def define_flags() -> None:
    """The command line; not at import, since generate.py has some of the names."""
    flags.DEFINE_string("checkpoint", None, "Run directory, or one checkpoint: runs/q.")
    flags.DEFINE_string(
        "data", None, "Text file, folder, glob or tfds:NAME; the run's held-out text by default."
    )
    flags.DEFINE_string(
        "text_field", None, "Field of JSON lines that holds the text; as in training by default."
    )
    flags.DEFINE_integer("step", None, "Which checkpoint of the run; the newest by default.")
    flags.DEFINE_integer("window", 0, "Tokens that the model sees at once; 0: as in training.")
    flags.DEFINE_integer(
        "stride", 0, "Tokens by which the window moves on; 0: the window. 1 is exact and slow."
    )
    flags.DEFINE_integer("batch_size", 0, "Windows at a time; 0: about 8192 tokens.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def main(argv: Sequence[str]) -> int:
    """Prints what was found; raises UserError."""
    del argv
    asked = flags.FLAGS
    if not asked.checkpoint:
        raise UserError("--checkpoint: missing. Name a run, e.g. --checkpoint=runs/q.")
    from lm_jax.language_model import load
    from lm_jax.scoring import checked

    runtime.start()
    runtime.devices()
    lm = load(asked.checkpoint, asked.step)
    lm.need_tokenizer()
    window, stride = checked(
        asked.window or lm.config.data.sequence_length, asked.stride, lm.model.config.max_length
    )
    sizes: dict[str, Any] = {"window": window, "stride": stride, "batch_size": asked.batch_size}
    if asked.data:
        name, result = asked.data, on_text(lm, asked.data, asked.text_field, sizes)
    else:
        name, result = on_heldout(lm, asked.checkpoint, sizes)
    rows = {
        "checkpoint": asked.checkpoint,
        "step": lm.step,
        "data": name,
        "documents": result.documents,
        "tokens": result.tokens,
        "bytes": result.bytes,
        "loss": result.loss,
        "pseudo_perplexity" if result.pseudo else "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "window": window,
        "stride": stride,
        "seconds": result.seconds,
    }
    finite = {
        name: None if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in rows.items()
    }  # JSON has no NaN
    print(json.dumps(finite) if asked.json else table(finite))
    return 0


def on_heldout(lm: Any, checkpoint: str, sizes: dict[str, Any]) -> tuple[str, Any]:
    """(path, result) of the held-out text of the run's token store; raises DataError."""
    from etils import epath

    from lm_jax.data.store import TokenStore
    from lm_jax.scoring import evaluate_heldout

    recorded = lm.metadata.get("store", "")
    # A run that was moved carries its store along.
    beside = [
        f"{parent}/data" for parent in (checkpoint, f"{checkpoint}/..", f"{checkpoint}/../..")
    ]
    is_store = lambda path: path and (epath.Path(path) / "store.json").exists()
    path = next(filter(is_store, (recorded, *beside)), None)
    if path is None:
        raise DataError(
            f"{recorded or checkpoint}: the token store of this run is gone; "
            "give a text with --data=PATH."
        )
    store = TokenStore.open(path)
    if store.tokenizer_hash != lm.tokenizer.hash:
        raise DataError(
            f"{path}: made with another tokenizer ({store.tokenizer_hash[:12]}) than the "
            f"checkpoint's ({lm.tokenizer.hash[:12]}); give a text with --data=PATH."
        )
    if lm.metadata.get("data_fingerprint", store.fingerprint) != store.fingerprint:
        raise DataError(
            f"{path}: has changed since the checkpoint was saved, so the model may have learned "
            "its held-out text; give a text with --data=PATH."
        )
    if not store.num_documents("heldout"):
        raise DataError(f"{path}: has no held-out text; give a text with --data=PATH.")
    if lm.model.config.architecture == "encoder_decoder":
        return path, objective_loss(lm, store)
    return path, evaluate_heldout(lm.model, store, **sizes)


def objective_loss(lm: Any, store: Any) -> Any:
    """The result of an encoder_decoder: the loss of its objective on all held-out windows."""
    from lm_jax.heldout import Heldout
    from lm_jax.scoring import Result

    since, total = time.perf_counter(), store.num_tokens("heldout")
    loss, tokens = Heldout(lm.config, store, None).loss(lm.model, total)
    count = store.num_documents("heldout")
    return Result(loss * tokens, tokens, 0, count, time.perf_counter() - since)


def on_text(lm: Any, spec: str, text_field: str | None, sizes: dict[str, Any]) -> Any:
    """The result on any text that `data.sources` reads."""
    from lm_jax.data.sources import documents, total_bytes
    from lm_jax.progress import Progress
    from lm_jax.scoring import evaluate

    field = text_field or lm.config.data.text_field

    def texts() -> Iterator[str]:
        with Progress("reading", total_bytes(spec)) as progress:
            for document in documents(spec, field, advance=progress.add):
                yield document.text

    try:
        return evaluate(lm.model, lm.tokenizer, texts(), **sizes)
    except DataError as error:
        raise DataError(str(error).replace("config.data.input", "--data")) from None


def table(rows: dict[str, Any]) -> str:
    """One row a line, for people."""
    names = {"bits_per_byte": "bits per byte", "loss": "loss (nats per token)"}
    width = max(len(names.get(name, name)) for name in rows)
    return "\n".join(f"{names.get(name, name):<{width}}  {cell(x)}" for name, x in rows.items())


def cell(x: Any) -> str:
    """A number as people write it."""
    if isinstance(x, float):
        return f"{x:.4f}" if x < 1e4 else f"{x:.3g}"
    return f"{x:,}" if isinstance(x, int) else str("n/a" if x is None else x)


if __name__ == "__main__":
    define_flags()
    cli.run(main)
