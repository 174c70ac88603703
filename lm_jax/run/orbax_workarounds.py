"""Workarounds for Orbax: its pages of errors and logs, folder names that it reads as patterns."""

import contextlib
import gc
import hashlib
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from logging import getLogger

import jax
from absl import logging
from etils import epath
from orbax.checkpoint import type_handlers

from lm_jax.errors import CheckpointError, UserError

SIGNS = {
    "No space left": "no space left on the disk",
    "Disk quota exceeded": "the disk quota is used up",
    "Permission denied": "permission denied",
    "Read-only file system": "the file system is read-only",
    "NOT_FOUND": "files are missing",
    "DATA_LOSS": "files are truncated or changed",
    "OUT_OF_RANGE": "files are truncated or changed",
    "Error reading": "files are truncated or changed",
}

# Orbax logs every step of its threads, and pages for an error: here an error is one line.
_theirs = re.compile("/orbax/|TensorStore|OCDBT")
for _logger in (logging.get_absl_logger(), getLogger("asyncio")):
    _logger.addFilter(
        lambda record: (
            not _theirs.search(record.pathname + str(record.msg))
            or logging.get_verbosity() >= logging.DEBUG
        )
    )


# Replicas of an array share the writing of it where each then writes as much. By default they share
# every array, a norm's scale too, and each slice is a program to compile at the first save.
MIN_SLICE_BYTES = 2**20


def array_handlers() -> type_handlers.TypeHandlerRegistry:
    """Registry of Orbax with the handler of jax.Array alone: a state has no other type."""
    handler = type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=MIN_SLICE_BYTES)
    return type_handlers.create_type_handler_registry((jax.Array, handler))


@contextlib.contextmanager
def plainly_named(path: epath.Path) -> Iterator[epath.Path]:
    """`path`, or a link to it where Orbax would take a part of its name for a pattern: it would
    then write a checkpoint without its index, and report success.
    """
    if "://" in str(path) or not set("[]*?\\") & set(str(path)):
        yield path
        return
    # The same name in all processes of a run, which Orbax compares, and each user's own.
    name = hashlib.sha256(f"{os.getuid()} {path}".encode()).hexdigest()[:32]
    alone = jax.process_count() == 1
    link = epath.Path(tempfile.gettempdir()) / f"lm_jax-{name}{f'-{os.getpid()}' * alone}"
    with contextlib.suppress(FileExistsError):
        os.symlink(path, link)
    if os.readlink(link) != str(path):
        raise CheckpointError(f"{link}: is in the way; delete it, or name another --workdir.")
    try:
        yield link
    finally:
        if alone:
            with contextlib.suppress(OSError):
                os.unlink(link)


def reason(error: BaseException) -> str:
    """An error in one short line: Orbax and TensorStore write pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    for sign, meaning in SIGNS.items():
        if sign in text:
            return meaning
    return f"{type(error).__name__} {text}"[:160]


def collect() -> None:
    """Collects the reads and writes that Orbax abandons when one fails; each would print pages."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
    # Those that are still under way will find their event loop closed, some time from now.
    closed = lambda raised: str(raised.exc_value) == "Event loop is closed"
    sys.unraisablehook = lambda raised: None if closed(raised) else hook(raised)
