"""Checkpoints of a run's state, saved in the background; a kill at any moment loses little.

restore.py has the layout on disk and reads it; manifest.py has the fingerprints of arrays.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.options import AtomicityMode, AtomicityOptions

from lm_jax.errors import CheckpointError, MachineError, UserError
from lm_jax.progress import human
from lm_jax.run import manifest
from lm_jax.run.manifest import Damaged, flatten, unflatten
from lm_jax.run.orbax_workarounds import array_handlers, collect, plainly_named, reason
from lm_jax.run.restore import COMMITTED, SavedSteps, Step, T

__all__ = ["Checkpoints", "SavedSteps", "flatten", "unflatten", "write_test"]

INDEX = "manifest.ocdbt"  # of the arrays, in TensorStore's format: without it, none is found
MAX_FAILURES = 3  # saves in a row that may fail before the run stops


class Checkpoints(SavedSteps):
    """The checkpoints of a run that this process (and those that run with it) alone writes.

    keep, keep_every: the newest `keep` steps stay, and every multiple of `keep_every` (0: none).
    A damaged step is moved to checkpoints/.quarantine by `restore`.
    read_only: nothing is written or moved, and `workdir` may be whatever SavedSteps takes.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        keep: int = 3,
        keep_every: int = 0,
        read_only: bool = False,
        **options: Any,
    ):
        super().__init__(workdir if read_only else epath.Path(workdir) / "checkpoints", **options)
        self.keep, self.keep_every, self.read_only = keep, keep_every, read_only
        self._manager: ocp.CheckpointManager | None = None
        self._link = contextlib.ExitStack()
        self._saving: int | None = None
        self._folder: tuple[int, int] | None = None  # device and inode of the work directory
        self._failures, self._failure, self._error = 0, "", ""

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            self.close()
        except MachineError:
            if kind is None:  # else what ended the block is the news
                raise

    def save(
        self,
        step: int,
        state: Any,
        metadata: dict[str, Any] | None = None,
        extra_files: dict[str, bytes] | None = None,
    ) -> None:
        """Saves in the background; when it returns, the arrays of `state` may be donated.

        metadata: anything that JSON holds. extra_files: contents by name, for `files`.
        A failure leaves the steps before it as they are, and is reported as soon as a `poll`,
        `save` or `wait` notices it; the third in a row raises MachineError. A step that is there
        with the same arrays is left alone; one with other arrays raises CheckpointError.
        """
        if self.read_only:
            raise ValueError("these checkpoints are read_only")
        self._finish()
        self.check_place(step)
        arrays = flatten(jax.tree.map(jnp.asarray, state))
        about, encoded = manifest.make(step, arrays, metadata, extra_files)
        if step in self.steps() and self._is_saved(step, about):
            return
        stored = {name: manifest.storable(x) for name, x in arrays.items()}
        items = {"state": ocp.args.PyTreeSave(stored), "manifest": ocp.args.JsonSave(about)}
        if encoded:
            items["files"] = ocp.args.JsonSave(encoded)
        self._failure = ""
        try:
            self.check_space(stored)
            self._open().save(step, args=ocp.args.Composite(**items), force=True)
            self._saving = step
        except Exception as error:
            self._failure = reason(error)
        if self._failure:
            self._failed(step)

    def check_place(self, step: int) -> None:
        """Raises MachineError when the work directory is not the one of the first save."""
        if "://" in str(self.directory):
            return
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(self.directory.parent)
            here = there.st_dev, there.st_ino
            if self._folder in (None, here):
                self._folder = here
                return
        if self._folder is not None:
            self._drop()
            raise MachineError(
                f"{self.directory.parent}: was moved or deleted while the run wrote to it; step "
                f"{step} is not saved. Start again with the --workdir where it is now."
            )

    def check_space(self, state: Any) -> None:
        """Raises MachineError when a local disk has not 1.2 times the bytes of `state` free."""
        need = 1.2 * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        there = next(p for p in (self.directory, *self.directory.parents) if p.exists())
        if "://" not in str(there) and (free := shutil.disk_usage(there).free) < need:
            raise MachineError(f"{human(free)}B free on the disk, {human(need)}B needed")

    def poll(self) -> None:
        """Notices that a save has ended, well or not. Costs a microsecond: call it every step."""
        if self._manager is not None and not self._manager.is_saving_in_progress():
            self._finish()

    def wait(self) -> None:
        """Returns when the last save is on disk; raises MachineError when it could not be."""
        self._finish()
        if self._failures:
            raise MachineError(self._error)

    def close(self) -> None:
        """Waits, and ends the threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._drop()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._clean()
            self._manager = ocp.CheckpointManager(
                self._link.enter_context(plainly_named(self.directory)),
                item_handlers={
                    # Compression saves 7 % of the bytes of float32 weights for twice the time.
                    "state": ocp.PyTreeCheckpointHandler(
                        use_compression=False, type_handler_registry=array_handlers()
                    ),
                    "manifest": ocp.JsonCheckpointHandler(),
                    "files": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=self.keep,
                    keep_period=self.keep_every or None,
                    # Renamed before it is deleted: half an old step is never left among the steps.
                    todelete_subdir=".trash",
                    atomicity_options=AtomicityOptions(mode=AtomicityMode.COMMIT_FILE),
                ),
            )
        return self._manager

    def _finish(self) -> None:
        """Waits for the save in progress; only here does Orbax report that one has failed."""
        step, self._saving = self._saving, None
        if step is None or self._manager is None:
            return
        self._failure = ""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failure = reason(error)
        if not self._failure and not (self.directory / str(step) / "state" / INDEX).exists():
            self._failure = "its index was not written"
            _delete([self.directory / str(step)])
        if self._failure:
            self._failed(step)
        else:
            self._failures = 0
            trash = [self.directory / ".trash"]
            threading.Thread(target=_delete, args=[trash], daemon=True).start()

    def _failed(self, step: int) -> None:
        """Reports that `step` was not saved; not in a handler, which holds what to collect."""
        self._drop()
        collect()
        self._clean(failed=True)
        self._failures += 1
        steps = self.steps()
        rest = f"the newest is of step {steps[-1]}" if steps else "there is none yet"
        self._error = f"{self.directory}: step {step} was not saved: {self._failure}; {rest}."
        if self._failures >= MAX_FAILURES:
            raise MachineError(f"{self._error} {self._failures} saves in a row failed.")
        self._report(self._error)

    def _drop(self) -> None:
        """Forgets Orbax's manager, whose list of steps is wrong after a failure or a move."""
        manager, self._manager = self._manager, None
        if manager is not None:
            try:
                manager.close()
            except Exception:  # it raises once more what was noticed before
                logging.debug("closing the checkpoint manager", exc_info=True)
        self._link.close()

    def _clean(self, failed: bool = False) -> None:
        """Deletes what a killed or failed save left: it would fill the disk. A step that was
        written to the end, and whose commit file was lost since, is put aside.
        """
        if self.directory.is_dir() and jax.process_index() == 0:
            for path in [*self.directory.iterdir()]:
                if path.name.isdigit() and not (path / COMMITTED).exists():
                    if not failed and _is_whole(path):
                        moved = self._aside(path)
                        self._report(f"{path}: has no {COMMITTED}, and is not used; {moved}.")
                    else:
                        _delete([path])
                elif path.name == ".trash" or ".orbax-checkpoint-tmp" in path.name:
                    _delete([path])
        _barrier("clean")

    def _is_saved(self, step: int, about: dict[str, Any]) -> bool:
        path = self._paths()[step]
        try:
            there = manifest.read(path)
        except Damaged:
            self._put_aside(path)
            return False
        if there["arrays"] != about["arrays"]:
            raise CheckpointError(f"{path}: is there already and differs; give another --workdir.")
        return True

    def newest(self, step: int | None, read: Callable[[Step], T]) -> tuple[T, dict[str, Any]]:
        self._finish()
        return super().newest(step, read)

    def _put_aside(self, path: epath.Path) -> str:
        if self.read_only:
            return ""
        self._drop()
        _barrier("choose")
        moved = self._aside(path) if jax.process_index() == 0 else ""
        _barrier("moved")
        return f"{moved}; "

    def _aside(self, path: epath.Path) -> str:
        """Moves a step out of the way, in one process; where to, for a line."""
        folder = self.directory / ".quarantine"
        target, count = folder / path.name, 1
        while target.exists():
            target, count = folder / f"{path.name}.{count}", count + 1
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(target)
        return f"moved to {target}"


def _is_whole(path: epath.Path) -> bool:
    """Whether a step has its manifest and all of its arrays' index, written last."""
    try:
        manifest.read(path)
    except Damaged:
        return False
    return (path / "state" / INDEX).exists()


def write_test(directory: epath.PathLike) -> None:
    """Writes, reads and deletes a small checkpoint in `directory`; raises MachineError if not."""
    place = epath.Path(directory) / ".write_test"
    probe = jax.jit(lambda: jnp.arange(256, dtype=jnp.float32))()  # on the mesh in use
    like = jax.ShapeDtypeStruct(probe.shape, probe.dtype, sharding=probe.sharding)
    try:
        with Checkpoints(place, report=lambda line: None) as checkpoints:
            checkpoints.save(0, {"probe": probe})
            checkpoints.wait()
            checkpoints.restore({"probe": like})
    except (OSError, UserError) as error:
        raise MachineError(
            f"{directory}: cannot hold a checkpoint: {reason(error)}; give another --workdir."
        ) from error
    finally:
        _delete([place])


def _delete(paths: Iterable[epath.Path]) -> None:
    if jax.process_index() == 0:
        for path in paths:
            if path.exists():
                path.rmtree(missing_ok=True)


def _barrier(name: str) -> None:
    """Waits for every process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"lm_jax.run.checkpoint.{name}")
