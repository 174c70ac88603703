"""A lock on a work directory, so that two runs never write to one at the same time."""

import contextlib
import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # no Unix
    fcntl = None  # type: ignore[assignment]

from lm_jax.errors import BusyError, MachineError

NAME = ".lock"
HELD = (errno.EWOULDBLOCK, errno.EACCES)
# The lock of a process that was killed is free at once on a local disk. On NFS, that of a host that
# died is kept until its lease ends.
PATIENCE = 3.0  # seconds: a process that got SIGTERM may still be ending


@contextlib.contextmanager
def held(workdir: str | os.PathLike, patience: float = PATIENCE) -> Iterator[None]:
    """Holds the lock of `workdir`, which is made where it is missing and, should nothing be written
    to it, removed again. Raises BusyError when another process has the lock.

    An advisory lock of the kernel (flock; over NFS a POSIX lock of the server): it ends with its
    process, however that ends. A file system without locks is used with a warning.
    """
    folder = Path(workdir).absolute()
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = taken(folder / NAME, patience)
    except BusyError:
        raise
    except OSError as error:
        raise MachineError(f"--workdir={workdir}: {error.strerror}; name another folder.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / NAME).unlink()  # while it is held: see `taken`
        os.close(file)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()  # refused by the system unless it is empty


def taken(path: Path, patience: float) -> int:
    """The descriptor of the lock file, locked."""
    until = time.monotonic() + patience
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have unlinked the file after it was opened here.
            if os.fstat(file).st_ino == os.stat(path).st_ino:
                break
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in HELD:
                print(f"warning: {path}: the file system has no locks ({error.strerror}); make "
                      "sure that no other run uses the folder.", file=sys.stderr,
                      flush=True)  # fmt: skip
                break
            if time.monotonic() > until:
                who = os.pread(file, 200, 0).decode("utf-8", "replace").strip()
                os.close(file)
                raise BusyError(
                    f"--workdir={path.parent}: another process trains here ({who or 'unknown'}); "
                    "wait for its end, or name another --workdir."
                ) from None
        os.close(file)
        time.sleep(0.1)
    about = f"{socket.gethostname()}, process {os.getpid()}, since {time.strftime('%F %T')}\n"
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(file, 0)
        os.pwrite(file, about.encode(), 0)
    return file
