"""The end of a run: exact held-out figures beside the baselines, summary.json and report.html."""

import json
import shlex
import time
from pathlib import Path
from typing import Any

from lm_jax.config import Config
from lm_jax.devices import hosts
from lm_jax.errors import MachineError
from lm_jax.evaluation.baselines import baselines
from lm_jax.evaluation.heldout import Heldout
from lm_jax.models import num_parameters
from lm_jax.run import report, rundir
from lm_jax.run.rundir import replace_text


def finish(config: Config, workdir: Path, state: Any, heldout: Heldout, seconds: float) -> None:
    """Evaluates document by document, writes summary.json and report.html, prints where all is."""
    step, store, mesh = int(state.step), heldout.store, heldout.mesh
    summary = {
        "step": step,
        "parameters": num_parameters(state.model),
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "versions": rundir.installed(),
        "mesh": dict(mesh.shape),
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "data": data_figures(store),
    }
    figures = heldout.figures(state.model)
    if not hosts.is_first():
        return
    if figures:
        summary["model"] = figures
        if config.eval.baselines:
            summary["baselines"] = baselines(store)
        print(table(summary), flush=True)
    checkpoint = f"{workdir}/checkpoints/{step}"
    try:
        replace_text(workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
        page = report.write(workdir)
    except OSError as error:
        raise MachineError(
            f"{error.filename or workdir}: {error.strerror}; the checkpoint is {checkpoint}, and "
            "once it can be written the same command writes the report."
        ) from None
    print(
        f"checkpoint  {checkpoint}\n"
        f"metrics     {workdir}/metrics.jsonl (tensorboard --logdir {workdir}/tb)\n"
        f"report      {page}\n"
        f"next        {following(config, workdir)}",
        flush=True,
    )


def following(config: Config, workdir: Path) -> str:
    """The commands that make sense of such a model."""
    kind = config.model.architecture
    checkpoint = f"--checkpoint={shlex.quote(str(workdir))}"
    ask = f"python -m lm_jax.evaluate {checkpoint}"
    write = f"python -m lm_jax.generate {checkpoint} --prompt={shlex.quote(config.eval.prompt)}"
    if kind == "encoder":  # it continues no text
        return f"{ask} [--data=PATH]"
    ask = ask if kind == "encoder_decoder" else f"{ask} [--data=PATH]"
    return f"{write}\n            {ask}"


def data_figures(store: Any) -> dict[str, Any]:
    """Statistics of the token store, for people."""
    figures: dict[str, Any] = {"path": store.path, "tokenizer": store.tokenizer.kind,
                             "vocabulary": store.tokenizer.vocab_size}  # fmt: skip
    for split in store.splits:
        figures |= {
            f"{split} documents": store.num_documents(split),
            f"{split} tokens": store.num_tokens(split),
            f"{split} bytes": store.num_bytes(split),
        }
    return figures


def table(summary: dict[str, Any]) -> str:
    """Held-out bits per byte, best first; of a model that has none, what it has."""
    if "bpb" not in summary["model"]:
        values = (f"{name} {value:,.4g}" for name, value in summary["model"].items())
        return f"held-out text: {'  '.join(values)}"
    names = {**report.LABELS, "model": "this model"}
    figures = {"model": summary["model"]["bpb"], **summary.get("baselines", {})}
    rows = [f"{names.get(name, name):<28}{bpb:7.4f}" for name, bpb in
            sorted(figures.items(), key=lambda row: row[1])]  # fmt: skip
    return "\n".join([f"{'held-out text':<28}bits per byte", *rows])
