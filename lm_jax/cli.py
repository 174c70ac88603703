"""How does a command start and end? One line for a mistake, an exit code for its kind, no traceback."""

import os
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

from lm_jax.errors import UserError

DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback behind an error.")


def fail(message: str, code: int) -> None:
    """Prints one line and leaves with `code`."""
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses the flags, runs `main(argv)` and exits: 0, 2 user, 3 data or checkpoint, 4 machine, 5 diverged."""
    app.run(lambda argv: guarded(main, argv), flags_parser=parse)


def guarded(main: Callable[[Sequence[str]], int | None], argv: Sequence[str]) -> int | None:
    """`main(argv)` with errors as one line."""
    if len(argv) > 1:
        fail(f"'{argv[1]}': not a flag. Write --name=value; --help lists the names.", 2)
    try:
        return main(argv)
    except UserError as error:
        if DEBUG.value:
            raise
        fail(str(error), error.code)
    except KeyboardInterrupt:
        fail("stopped by the keyboard.", 130)
    except BrokenPipeError:
        # The reader of a pipe left (| head): nothing is wrong, and flushing again would say so once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return None


def parse(argv: Sequence[str]) -> list[str]:
    """absl's flags, with one line in place of a traceback for a config override that cannot be."""
    from lm_jax.errors import nearest

    debug = "--debug" in argv
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError) as error:
        if debug:
            raise
        # ml_collections raises what it met on the way: the field is in the argument, the names in the config.
        for argument in argv[1:]:
            name = argument.lstrip("-").split("=")[0]
            if name.startswith("config.") and (where := unknown(name)):
                fail(f"{where[0]}: no such field.{nearest(where[1], where[2])}", 2)
        fail(str(error), 2)
    except (TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
        if debug:
            raise
        fail(str(error), 2)
    raise AssertionError("fail() exits")


def unknown(name: str) -> tuple[str, str, list[str]] | None:
    """(the dotted name up to the part that no config has, that part, what is there) of `config.a.b`."""
    import dataclasses
    import typing

    from lm_jax.config import Config

    cls, seen = Config, "config"
    for part in name.split(".")[1:]:
        hints = typing.get_type_hints(cls)
        seen += f".{part}"
        if part not in hints:
            return seen, part, list(hints)
        cls = hints[part]
        if not dataclasses.is_dataclass(cls):
            return None
    return None
