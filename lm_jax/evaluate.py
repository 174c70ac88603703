"""python -m lm_jax.evaluate --checkpoint=runs/q: loss, perplexity and bits per byte of text.

Loss (nats per token), perplexity and bits per byte of the run's held-out text, or of --data=PATH.
Each document is read from its own beginning, and each of its tokens is counted once: its end as
well, where `frame` has EOS, and its first where it has BOS. --stride=1 gives every token the whole
window before it; the default, a stride of one window, is fastest and a little pessimistic. An
encoder's figures are pseudo-likelihoods: each token is masked once, together with every eighth of
its window. An encoder_decoder's loss is that of its objective on the run's held-out text.
"""

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from lm_jax import cli
from lm_jax.devices import runtime
from lm_jax.errors import UserError
from lm_jax.evaluation.perplexity import on_heldout, on_text


def define_flags() -> None:
    """The command line; not at import, since generate.py has some of the names."""
    flags.DEFINE_string("checkpoint", None, "Run directory, or one checkpoint: runs/q.")
    flags.DEFINE_string(
        "data", None, "Text file, folder, glob or tfds:NAME; the run's held-out text by default."
    )
    flags.DEFINE_string(
        "text_field", None, "Field of JSON lines that holds the text; as in training by default."
    )
    flags.DEFINE_float(
        "max_bad_fraction", None, "Of --data that may be unusable; as in training by default.",
        lower_bound=0, upper_bound=1,
    )  # fmt: skip
    flags.DEFINE_integer("step", None, "Which checkpoint of the run; the newest by default.")
    flags.DEFINE_integer("window", 0, "Tokens that the model sees at once; 0: as in training.")
    flags.DEFINE_integer(
        "stride", 0, "Tokens by which the window moves on; 0: the window. 1 is exact and slow."
    )
    flags.DEFINE_bool(
        "bos", None, "Whether BOS is before a text of --data; as the model knows it by default."
    )
    flags.DEFINE_bool("eos", None, "Whether EOS is predicted after a text of --data.")
    flags.DEFINE_integer("batch_size", 0, "Windows at a time; 0: about 8192 tokens.")
    flags.DEFINE_bool("json", False, "Print one JSON object instead of a table.")


def check_flags(args: flags.FlagValues) -> None:
    """Raises UserError at a flag that is missing, or means nothing."""
    if not args.checkpoint:
        raise UserError("--checkpoint: missing. Name a run, e.g. --checkpoint=runs/q.")
    if args.batch_size < 0:
        raise UserError(f"--batch_size={args.batch_size}: must be 0 (about 8192 tokens) or more.")
    for name in ("data", "text_field"):  # an empty variable of a shell
        if args[name].value == "":
            raise UserError(f"--{name}=: is empty; leave it out for that of the run.")


def main(argv: Sequence[str]) -> int:
    """Prints the figures; raises UserError."""
    del argv
    args = flags.FLAGS
    check_flags(args)
    from lm_jax.api import load
    from lm_jax.inference.scoring import checked

    runtime.start()
    runtime.devices()
    lm = load(args.checkpoint, args.step)
    tokenizer = lm.need_tokenizer()
    window, stride = checked(
        args.window or lm.config.data.sequence_length, args.stride, lm.model.config.max_length
    )
    sizes: dict[str, Any] = {"window": window, "stride": stride, "batch_size": args.batch_size}
    frame = lm.framed(args.bos, args.eos)
    pairs = lm.model.conditional
    if idle := without_effect(args, pairs):
        about = "an encoder_decoder" if pairs else "held-out text"
        print(f"{', '.join(idle)}: without effect on {about}", file=sys.stderr, flush=True)
    if args.data:
        name, sizes = args.data, {**sizes, "frame": frame}
        result = on_text(lm, args.data, args.text_field, sizes, args.max_bad_fraction)
    elif frame != lm.frame:
        raise UserError("--bos, --eos: the held-out text of a run has both; these are of --data.")
    else:
        name, result = on_heldout(lm, args.checkpoint, sizes)
    rows = {
        "checkpoint": args.checkpoint,
        "step": lm.step,
        "data": name,
        "frame": frame.show(tokenizer.name_of),
        "documents": result.documents,
        "tokens": result.tokens,
        "bytes": result.bytes,
        "loss": result.loss,
        "pseudo_perplexity" if result.pseudo else "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "window": None if pairs else window,
        "stride": None if pairs else stride,
        "seconds": result.seconds,
    }
    finite = {
        name: None if isinstance(x, float) and not math.isfinite(x) else x
        for name, x in rows.items()
    }  # JSON has no NaN
    print(json.dumps(finite) if args.json else table(finite))
    return 0


def without_effect(values: flags.FlagValues, pairs: bool) -> list[str]:
    """Flags that are set and change nothing: those of --data without it, and those of windows where
    pairs are scored.
    """
    names = [] if values.data else ["text_field", "max_bad_fraction"]
    names += ["window", "stride", "batch_size"] if pairs else []
    return [f"--{name}" for name in names if values[name].value != values[name].default]


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
