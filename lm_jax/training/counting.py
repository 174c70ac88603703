"""Runs of n-grams: the text is counted once; the run's folder is as any other."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_jax.config import Config
from lm_jax.data.tokens.store import token_documents
from lm_jax.errors import UserError
from lm_jax.evaluation.heldout import Heldout
from lm_jax.models.classical.counted import NGram
from lm_jax.models.classical.ngram import KneserNey
from lm_jax.progress import Progress
from lm_jax.run import rundir
from lm_jax.run.checkpoint import Checkpoints
from lm_jax.run.interrupts import Requests
from lm_jax.training.finish import finish


def host(devices: list[Any]) -> list[Any]:
    """The one device whose host counts; raises UserError where there are several hosts."""
    if jax.process_count() > 1:
        raise UserError(
            "config.model.architecture='ngram': is counted on one host; start one process."
        )
    return devices[:1]


class Counted(NamedTuple):
    """The state of a counted model, in place of a TrainState."""

    model: NGram
    step: int = 1


def train(config: Config, workdir: Path, mesh: Any, store: Any, saved: Checkpoints,
          requests: Requests) -> int:  # fmt: skip
    """Counts the first `steps` times `tokens_per_step` tokens, or all; saves and evaluates; 0. A
    run that was killed after its save counts again, and is then evaluated.
    """
    if saved.steps() and (workdir / "report.html").is_file():
        print(f"{workdir} is finished: {workdir / 'report.html'}", flush=True)
        return 0
    since, heldout = time.perf_counter(), Heldout(config, store, mesh)
    state = Counted(counted(config, store))
    if not saved.steps():
        about = rundir.metadata(config, workdir, store, mesh)
        about["bos_id"] = store.tokenizer.bos_id
        files = rundir.tokenizer_files(store.tokenizer)
        saved.save(state.step, {"model": state.model.tables()}, about, files)
        saved.wait()
    requests.kept = f"step {state.step} is saved, and the same command writes the report"
    finish(config, workdir, state, heldout, time.perf_counter() - since)
    return 0


def counted(config: Config, store: Any) -> NGram:
    """The n-grams of a token store's training text."""
    tokens, ends = token_documents(store, "train")
    size = min(len(tokens), config.steps * config.tokens_per_step)
    ends = np.append(ends[ends < size], size)
    model = config.model
    with Progress("counting", size, "M tokens", 1e6) as progress:
        counts = KneserNey(model.order, model.vocab_size, store.tokenizer.bos_id)
        counts.fit(tokens[:size], ends)
        progress.add(size)
    return NGram(model, counts)
