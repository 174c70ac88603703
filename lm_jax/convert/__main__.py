"""python -m lm_jax.convert --from=HF_DIR --to=CHECKPOINT, or --from=runs/q --to=HF_DIR: to and from
Hugging Face.

What was exported is read again with transformers, where it is installed, and compared: see
certificate.json beside the weights.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from lm_jax import cli
from lm_jax.config.model import TRANSFORMERS
from lm_jax.convert.values import GENERATION
from lm_jax.devices import runtime
from lm_jax.errors import UserError


def define_flags() -> None:
    """The command line; not at import, since other commands have some of the names."""
    flags.DEFINE_string("from", None, "A Hugging Face directory, or a run or checkpoint: runs/q.")
    flags.DEFINE_string("to", None, "The directory to make: a checkpoint, or for transformers.")
    flags.DEFINE_integer("step", None, "Which checkpoint of the run; the newest by default.")
    flags.DEFINE_string(
        "family", "", "model_type to export as; by default what it came from, or the first that "
        "has all options of the model."
    )  # fmt: skip
    flags.DEFINE_bool("new_head", False, "Give a body that has no output head a new one.")


def main(argv: Sequence[str]) -> int:
    """Prints what was made; raises UserError."""
    del argv
    values = flags.FLAGS.flag_values_dict()
    source, path = values["from"], Path(values["to"] or "")
    is_run = any((Path(source or "") / name).exists() for name in ("checkpoints", "manifest"))
    check_flags(values, is_run)
    runtime.start()
    runtime.devices()
    from lm_jax.api import load

    if not is_run:
        lm = load(f"hf:{source.removeprefix('hf:')}", new_head=values["new_head"])
        from lm_jax.inference.load import save

        save(lm, values["to"])
        print(f"{lm}\ncheckpoint  {path / 'checkpoints' / '0'}\n"
              f"next        python -m lm_jax.generate --checkpoint={values['to']}")  # fmt: skip
        return 0
    lm = load(source, values["step"])
    certificate = export(lm, path, values["family"] or lm.metadata.get("family", ""))
    why = f": {certificate['why']}" if "why" in certificate else ""
    print(f"{lm}\nexported    {path}\ncertificate {certificate['verdict']}{why}")
    return 0


def check_flags(values: dict[str, Any], is_run: bool) -> None:
    """Raises UserError at a flag that is missing, or that the direction does not have."""
    for name in ("from", "to"):
        if not values[name]:
            raise UserError(f"--{name}: missing. --from=HF_DIR --to=CHECKPOINT, or --from=runs/q "
                            "--to=HF_DIR.")  # fmt: skip
    path = Path(values["to"])
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"--to={path}: exists and is not an empty directory; name another.")
    if path.exists() and path.samefile("."):  # it is made beside its place, and then moved there
        raise UserError(f"--to={path}: is the current directory; name a new one inside it.")
    if is_run and values["new_head"]:
        raise UserError("--new_head: only a Hugging Face directory can be without one.")
    if not is_run and values["family"]:
        raise UserError("--family: only an export has one to choose.")
    if not is_run and values["step"] is not None:
        raise UserError(f"--step={values['step']}: only a run has checkpoints to choose from.")


def export(lm: Any, path: Path, family: str) -> dict[str, Any]:
    """Writes a Hugging Face directory and returns its certificate. It is PATH.unproven until it is
    compared, and stays so when it is not the same model, which raises CheckpointError.
    """
    from lm_jax import convert
    from lm_jax.convert.tokenizer import prompt_frame

    kind = lm.config.model.architecture
    if kind not in TRANSFORMERS:
        also = " (lm_jax.models.classical.arpa writes n-grams for KenLM)" if kind == "ngram" else ""
        raise UserError(f"config.model.architecture={kind!r}: has no family in transformers{also}.")
    draft = path.with_name(f"{path.name}.unproven")
    convert.export_hf(lm.model, lm.config.model, draft, lm.tokenizer, family=family)
    frame = None
    if lm.tokenizer is not None:
        frame = prompt_frame(lm.frame, kind) if lm.trained_here else lm.tokenizer.frame
        convert.export_tokenizer(lm.tokenizer, draft, frame)
    keep_generation(draft, lm.metadata)
    certificate = convert.certify(draft, lm.model, lm.tokenizer, frame)
    draft.replace(path)
    return certificate


def keep_generation(path: Path, metadata: Mapping[str, Any]) -> None:
    """Writes what an imported model came with where transformers reads how to generate: the ids
    that end an answer, which may be others than the tokenizer's own, into config.json and
    generation_config.json, and the settings of the latter.
    """
    ends = list(metadata.get("stop_ids", []))
    ids = {"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}
    for name, settings in (("config.json", {}), (GENERATION, metadata.get("generation", {}))):
        values = json.loads((path / name).read_text()) | dict(settings) | ids
        (path / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
