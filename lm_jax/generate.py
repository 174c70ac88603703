"""python -m lm_jax.generate --checkpoint=runs/q --prompt="Once": continues a prompt.

One sample streams to the terminal as it is made; several are printed one after the other, numbered.
"""

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from lm_jax import cli
from lm_jax.devices import runtime
from lm_jax.errors import UserError


def define_flags() -> None:
    """The command line; not at import, since evaluate.py has some of the names."""
    flags.DEFINE_string("checkpoint", None, "Run directory, or one checkpoint: runs/q.")
    flags.DEFINE_string("prompt", "", "Text to continue; by default the start of a document.")
    flags.DEFINE_list("prompt_ids", None, "Ids to continue instead of a text: 1,52,17.")
    flags.DEFINE_bool(
        "special_tokens", False, "Special tokens that --prompt spells, like </s>, are these tokens."
    )
    flags.DEFINE_bool(
        "bos", None, "Whether BOS stands before the prompt; as the model was trained by default."
    )
    flags.DEFINE_integer("num_samples", 1, "How many texts.")
    flags.DEFINE_integer("max_new_tokens", 0, "At most so many; 0: 256, or what the model can see.")
    flags.DEFINE_float("temperature", 0.8, "Below 1 safer, above 1 bolder; 0: the likeliest token.")
    flags.DEFINE_integer("top_k", 0, "Draw from the k likeliest tokens only; 0: off.")
    flags.DEFINE_float("top_p", 0.95, "Draw from the likeliest that have this share; 1: off.")
    flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")
    flags.DEFINE_integer("step", None, "Which checkpoint of the run; the newest by default.")


def main(argv: Sequence[str]) -> int:
    """Prints prompt and continuation; raises UserError."""
    del argv
    args = flags.FLAGS
    if not args.checkpoint:
        raise UserError("--checkpoint: missing. Name a run, e.g. --checkpoint=runs/q.")
    from lm_jax.api import load
    from lm_jax.inference.sampling import check_settings

    names = ("temperature", "top_k", "top_p")
    settings: dict[str, Any] = {name: args[name].value for name in names}
    check_settings(**settings)
    if args.num_samples < 1:
        raise UserError(f"--num_samples={args.num_samples}: must be at least 1.")
    prompt = ids_of(args.prompt_ids) if args.prompt_ids is not None else args.prompt
    if args.prompt_ids is not None and args.prompt:
        raise UserError("--prompt_ids: there is a --prompt, too; give one of them.")
    # Text is UTF-8 whatever the terminal's locale says.
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    runtime.start()
    runtime.devices()
    lm = load(args.checkpoint, args.step)
    print(lm, file=sys.stderr, flush=True)
    common = {"max_new_tokens": args.max_new_tokens, "seed": args.seed, "bos": args.bos,
              "special_tokens": args.special_tokens, **settings}  # fmt: skip
    shown = prompt if isinstance(prompt, str) else f"{prompt} "
    if args.num_samples == 1:
        pieces = lm.stream(prompt, **common)
        print(shown, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)
        return 0
    texts = lm.generate(prompt, num_samples=args.num_samples, **common)
    for i, text in enumerate(texts, 1):
        print(f"--- sample {i} of {args.num_samples}\n{shown}{text}", flush=True)
    return 0


def ids_of(parts: Sequence[str]) -> list[int]:
    """The numbers of --prompt_ids; raises UserError."""
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise UserError(
            f"--prompt_ids={','.join(parts)}: expected whole numbers: --prompt_ids=1,52,17."
        ) from None


if __name__ == "__main__":
    define_flags()
    cli.run(main)
