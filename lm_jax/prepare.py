"""python -m lm_jax.prepare --input=PATH --output=STORE: raw text to a tokenizer and a token store.

The text is read, tidied, freed of duplicates and split; a tokenizer is trained on it (or taken
from a directory, ours or one with the tokenizer.json of Hugging Face), and every document is
encoded, decoded again and compared. --show=3 prints examples as the model will see them.
"""

import dataclasses
import os
from collections.abc import Sequence

from absl import flags

from lm_jax import cli
from lm_jax.config import Config
from lm_jax.data.build import prepare
from lm_jax.errors import UserError
from lm_jax.run import interrupts

OVERRIDES = (
    "input",
    "tokenizer",
    "vocab_size",
    "text_field",
    "heldout_fraction",
    "max_bad_fraction",
)


def define_flags() -> None:
    """The command line; not at import, since other commands have some of the names."""
    cli.define_config("config", None, "File with get_config(); its data.* is used.")
    flags.DEFINE_string("input", None, "Text: a file, folder, glob, stdlib or tfds:NAME[:SPLIT].")
    flags.DEFINE_string("output", None, "Directory of the token store to make, or gs://...")
    flags.DEFINE_string("tokenizer", None, "bpe, unigram, bytes, or a directory that holds one.")
    flags.DEFINE_integer(
        "vocab_size", None, "Pieces of the tokenizer; 16384 or more for Chinese and the like."
    )
    flags.DEFINE_string("text_field", None, "Field of JSON lines and tfds records with the text.")
    flags.DEFINE_float("heldout_fraction", None, "Part of the text that is kept for evaluation.")
    flags.DEFINE_float(
        "max_bad_fraction", None, "Records that may be unusable before all is refused."
    )
    flags.DEFINE_integer("show", 0, "Print so many examples, inputs above targets.", lower_bound=0)


def main(argv: Sequence[str]) -> int:
    """Prints what was made; raises UserError."""
    del argv
    args = flags.FLAGS
    config = Config.parse(args.config) if args.config is not None else Config()
    values = {k: getattr(args, k) for k in OVERRIDES if getattr(args, k) is not None}
    path = str(config.data.store if args.output is None else args.output)
    if not path:
        raise UserError(
            "--output: missing. Name a directory for the store, e.g. --output=data/mine."
        )
    from lm_jax.data import inspect
    from lm_jax.data.tokens import writer
    from lm_jax.data.tokens.store import TokenStore
    from lm_jax.data.tokens.tokenizer import KINDS

    named = values.get("tokenizer", "bpe")
    if named not in KINDS and "/" not in named and os.path.isdir(named):
        values["tokenizer"] = f"./{named}"
    data = Config.parse({**config.to_dict(), "data": {**config.to_dict()["data"], **values}}).data
    if not (args.show and not data.input and TokenStore.exists(path)):
        interrupts.own()
        with interrupts.Requests(resumes=False) as requests:
            requests.cleanup = lambda: writer.discard(path)
            prepare(data, path, config.seed)
    store = TokenStore.open(path)
    print(inspect.table(store))
    for text in inspect.examples(store, dataclasses.replace(config, data=data), args.show):
        print(text)
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
