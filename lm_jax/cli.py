"""Start and end of a command: one line for a mistake, an exit code for its kind, no traceback."""

import errno
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

from lm_jax.config.values import expand_home
from lm_jax.devices import runtime
from lm_jax.errors import MachineError, UserError, nearest
from lm_jax.run import screen
from lm_jax.run.interrupts import EXIT_KEYBOARD

DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback behind an error.")
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def fail(message: str, code: int) -> None:
    """Prints one line and leaves with `code`, whatever becomes of the line."""
    screen.take()  # also before `run`
    print(f"error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    sys.exit(code)


def define_config(name: str, default: str | None, text: str, **more: Any) -> Any:
    """ml_collections' flag of a config file. It reads --flagfile where it is defined: one that
    cannot be read is one line here, too.
    """
    from ml_collections import config_flags

    try:
        return config_flags.DEFINE_config_file(name, default, text, **more)
    except flags.Error as error:
        fail(explained(error, ""), UserError.code)


def run(main: Callable[[Sequence[str]], int | None], needs_output: bool = True) -> None:
    """Parses the flags, runs `main(argv)` and exits: 0, 2 user, 3 data or checkpoint, 4 machine, 5
    diverged. (A run that is stuck is ended with 6, by watchdog.py.)

    needs_output: a stdout that fails ends it. What stderr does not take is dropped in any case.
    """
    module = sys.modules["__main__"].__spec__
    if module and ("-m", module.name) in itertools.pairwise(sys.orig_argv):
        runtime.huge_pages()  # starts `python -m lm_jax.train` anew, and nothing else
    screen.take()
    app.run(lambda argv: guarded(main, argv, needs_output), flags_parser=parse)


def guarded(main: Callable[[Sequence[str]], int | None], argv: Sequence[str],
            needs_output: bool) -> int | None:  # fmt: skip
    """`main(argv)` with errors as one line."""
    if len(argv) > 1:
        fail(f"'{argv[1]}': not a flag. Write --name=value; --help lists the names.", 2)
    screen.need_output(needs_output)
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        if DEBUG.value:
            raise
        fail(str(error), error.code)
    except KeyboardInterrupt as interrupt:
        fail(str(interrupt) or "stopped by the keyboard.", EXIT_KEYBOARD)
    except screen.ReaderGone:
        pass  # no fault
    except Exception as error:
        if DEBUG.value or not (why := machine_trouble(error)):
            raise
        fail(why, MachineError.code)
    finally:
        screen.need_output(False)  # at exit, Python flushes what is left
    return None


def machine_trouble(error: Exception) -> str:
    """One line for a full disk, a lack of memory or of a device; "" for a bug of ours."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else f"{error.strerror}"
        return f"{where}{what}; make room or name another folder (--debug shows where)."
    kernel = "memory space vmem" in text  # a kernel is too large for its chip: a bug of ours
    if ("RESOURCE_EXHAUSTED" in text and not kernel) or isinstance(error, MemoryError):
        return ("out of memory; lower config.batch_size, or raise config.microbatches, or set "
                f"config.model.remat=full. {text[:120]}")  # fmt: skip
    if "Unable to initialize backend" in text:
        return (f"{text.split('(you may')[0].strip(' .')}; unset JAX_PLATFORMS, or run "
                "python -m lm_jax.doctor.")  # fmt: skip
    return ""


def parse(argv: Sequence[str]) -> list[str]:
    """absl's flags, with one line for what is wrong with them or with the config file."""
    argv = [with_home(argument) for argument in argv]
    if "--debug" in argv:
        return flags.FLAGS(argv)
    file, written = "", sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the folder of a config file is not ours to write in
    try:
        if "config" in flags.FLAGS:
            file = check_config(argv[1:])
        return flags.FLAGS(argv)
    except UserError as error:
        fail(str(error), error.code)
    except Exception as error:  # a config file is Python, and may raise what it likes
        fail(explained(error, file), 2)
    finally:
        sys.dont_write_bytecode = written
    raise AssertionError("fail() exits")


def with_home(argument: str) -> str:
    """`argument` with ~ expanded in --NAME=~/PATH, where bash leaves it; texts stay as they are."""
    name, equals, value = argument.partition("=")
    if not equals or not name.startswith("-") or name.endswith("prompt"):
        return argument
    return f"{name}={expand_home(value)}"


def check_config(arguments: list[str]) -> str:
    """The path of --config; raises UserError at a file or a field that is not there."""
    named, fields = "", []
    for index, argument in enumerate(arguments):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config":
            named = value if equals else "".join(arguments[index + 1 : index + 2])
            if not named:
                raise UserError(f"{argument}: names no file; write --config=configs/quickstart.py.")
        elif name.startswith("config."):
            fields.append(name)
    if fields and not named:
        raise UserError(f"--{fields[0]}: needs a --config=FILE before it.")
    path = named.split(":")[0]
    if named and os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"--config={named}: is no regular file; name a Python file.")
    if named and not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        there = [name for name in listed(folder) if name.endswith(".py")]
        hint = nearest(os.path.basename(path), there) if there else " Name a Python file."
        raise UserError(f"--config={named}: no such file.{hint}")
    if named and not path.endswith(".py"):
        raise UserError(
            f"--config={named}: not a Python file; name one, like configs/quickstart.py."
        )
    for field in fields:
        if where := unknown(field):
            raise UserError(f"{where[0]}: no such field.{nearest(where[1], where[2])}")
    return path


def listed(folder: str) -> list[str]:
    """Sorted names in a folder, none when it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def explained(error: BaseException, file: str) -> str:
    """The line for what absl or a config file raised."""
    text = str(error)
    value = re.match(r"flag --(config\.[\w.]+)=(.*?): ", text, re.DOTALL)
    if value and (hint := kind(value[1])):
        return f"{value[1]}={value[2]!r}: expected {EXPECTED.get(hint, 'a field of it to be set')}."
    if isinstance(error, flags.CantOpenFlagFileError):
        return f"--flagfile: {text.split('flagfile: ')[-1]}; name a file of flags, one a line."
    if isinstance(error, flags.UnrecognizedFlagError):
        ours = [name for name in flags.FLAGS if not home_of(name).startswith("absl.")]
        advice = nearest(error.flagname, ours, " --help lists the names.")
        return f"Unknown command line flag '{error.flagname}'.{advice}"
    if isinstance(error, flags.Error) and not text.startswith("flag --config="):
        return text
    while error.__cause__ or error.__context__:  # absl and ml_collections wrap what happened
        error = error.__cause__ or error.__context__ or error
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if "get_config" in str(error) and isinstance(error, AttributeError):
        return f"--config={file}: has no get_config(); see configs/quickstart.py."
    where = f"{file}, line {lines[-1]}" if lines else file
    return f"--config={where}: {type(error).__name__}: {error}; correct the file."


def home_of(flag: str) -> str:
    """The module that defines a flag."""
    return str(flags.FLAGS.find_module_defining_flag(flag, ""))


def kind(name: str) -> type | None:
    """The type of the field `config.a.b`."""
    import typing

    from lm_jax.config import Config

    cls: type | None = Config
    for part in name.split(".")[1:]:
        cls = typing.get_type_hints(cls).get(part)
    return cls


def unknown(name: str) -> tuple[str, str, list[str]] | None:
    """(the dotted name up to the part that no config has, that part, what is there) of
    `config.a.b`.
    """
    import dataclasses
    import typing

    from lm_jax.config import Config

    cls, seen = Config, "config"
    for part in name.split(".")[1:]:
        if not dataclasses.is_dataclass(cls):
            return f"{seen}.{part}", seen, [seen]
        hints = typing.get_type_hints(cls)
        seen += f".{part}"
        if part not in hints:
            return seen, part, list(hints)
        cls = hints[part]
    return None
