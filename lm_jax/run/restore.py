"""Restoring of checkpoints: the arrays that were saved, verified, on any mesh, or none.

    <workdir>/checkpoints/<step>/state      the arrays, by name: model/decoder/blocks/attn/wq
                                manifest    JSON: shapes, types, fingerprints; the caller's metadata
                                files       JSON: the caller's files, such as a tokenizer

A step counts once its commit file is there, and is used only when every fingerprint is right;
otherwise the step before it is, with a warning.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from lm_jax.data.tokens.files import path_of
from lm_jax.errors import CheckpointError
from lm_jax.run import manifest
from lm_jax.run.manifest import Damaged, flatten, unflatten
from lm_jax.run.orbax_workarounds import collect, plainly_named, reason

COMMITTED = "commit_success.txt"  # Orbax writes it last
T = TypeVar("T")


# ---- Steps ---------------------------------------------------------------------------------------


class SavedSteps:
    """The checkpoints of a run, to be read; another process may be writing them meanwhile.

    path: the work directory, its `checkpoints` folder, or one step, wherever it was copied to.
    report: is given each warning, a line.
    """

    def __init__(
        self,
        path: epath.PathLike,
        report: Callable[[str], None] = lambda line: print(f"warning: {line}", file=sys.stderr),
    ):
        path = path_of(path)
        if "://" not in str(path):
            path = epath.Path(os.path.abspath(path))  # the only kind that Orbax takes
        # A work directory may be called so, too.
        named = path.name == "checkpoints" and not (path / "checkpoints").is_dir()
        inside = named or _is_step(path)
        self.directory = path if inside else path / "checkpoints"
        self.report = report

    def steps(self) -> list[int]:
        """Steps that were saved to the end, oldest first; reading shows whether they are intact."""
        return sorted(self._paths())

    def restore(
        self, abstract_state: Any, step: int | None = None, mesh: Mesh | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """(state, metadata) of the newest intact step, or of `step`, which is in metadata["step"].

        abstract_state: leaves of shape and dtype, such as jax.eval_shape gives. Arrays are laid out
        by their shardings over `mesh` (None: that of jax.set_mesh; without one, on the first
        device). Raises CheckpointError: no checkpoint, none intact, or of another model, of which
        it names the first arrays that differ.
        """
        return self.newest(step, lambda saved: saved.tree(abstract_state, mesh))

    def arrays(
        self, step: int | None = None, within: str = "model/"
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """({name: array}, metadata) of the names that start with `within`: no model, no mesh."""
        return self.newest(step, lambda saved: saved.arrays(within))

    def metadata(self, step: int | None = None) -> dict[str, Any]:
        """Metadata given to `save`, of the newest step with an intact manifest. Reads no array."""
        return self.newest(step, lambda saved: None)[1]

    def files(self, step: int | None = None) -> dict[str, bytes]:
        """The files that `save` was given."""
        return self.newest(step, Step.files)[0]

    def newest(self, step: int | None, read: Callable[["Step"], T]) -> tuple[T, dict[str, Any]]:
        """(read(step), metadata) of `step`, or of the newest of which all that is read is intact.

        Raises CheckpointError: no checkpoint, or none intact.
        """
        paths = self._paths()
        have = ", ".join(map(str, sorted(paths)))
        if not paths:
            raise CheckpointError(f"{self.directory}: no checkpoint; train, or give another path.")
        if step is not None and step not in paths:
            raise CheckpointError(f"{self.directory}: no checkpoint of step {step}; has {have}.")
        why: dict[int, str] = {}
        for candidate in [step] if step is not None else sorted(paths, reverse=True):
            damage, path = "", paths[candidate]
            try:
                saved = Step(path, manifest.read(path))
                result = read(saved)
            except Damaged as error:
                damage = str(error)
            if damage and jax.process_count() == 1 and not (path / COMMITTED).exists():
                return self.newest(step, read)  # the run deleted it meanwhile, and has newer ones
            if everywhere(not damage):
                # Only now: had none been intact, the cause may be a disk that will be back.
                for old, text in why.items():
                    moved = self._put_aside(paths[old])
                    self._report(f"{paths[old]}: damaged: {text}; {moved}using step {candidate}.")
                return result, saved.metadata
            why[candidate] = damage or "another process finds it damaged"
        reasons = "; ".join(f"step {number}: {text}" for number, text in why.items())
        other = f". There are {have}: choose another" if len(paths) > len(why) else ""
        raise CheckpointError(f"{self.directory}: no intact checkpoint: {reasons}{other}.")

    def _paths(self) -> dict[int, epath.Path]:
        if _is_step(self.directory):
            name = self.directory.name
            return {int(name) if name.isdigit() else _step_of(self.directory): self.directory}
        if not self.directory.is_dir():
            return {}
        return {
            int(path.name): path
            for path in self.directory.iterdir()
            if path.name.isdigit() and (path / COMMITTED).exists()
        }

    def _report(self, line: str) -> None:
        if jax.process_index() == 0:
            self.report(line)

    def _put_aside(self, path: epath.Path) -> str:
        """Description of what was done with a damaged step, for the warning: here nothing."""
        return ""


def _is_step(path: epath.Path) -> bool:
    return (path / "manifest").is_dir() and (path / COMMITTED).exists()


def _step_of(path: epath.Path) -> int:
    try:
        return manifest.read(path)["step"]
    except Damaged as error:
        raise CheckpointError(f"{path}: no intact checkpoint: {error}.") from error


# ---- One step ------------------------------------------------------------------------------------


class Step:
    """One step whose manifest is intact. What is read of it is verified; raises Damaged."""

    def __init__(self, path: epath.Path, about: dict[str, Any]):
        self.path, self.about = path, about

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata given to `save`, and the step."""
        return self.about["metadata"] | {"step": self.about["step"]}

    def files(self) -> dict[str, bytes]:
        """The files that `save` was given."""
        return manifest.read_files(self.path, self.about)

    def rows(self, within: str) -> dict[str, Any]:
        """The manifest's rows of the names that start with `within`."""
        arrays = self.about["arrays"].items()
        return {name: row for name, row in arrays if name.startswith(within)}

    def tree(self, abstract: Any, mesh: Mesh | None = None, within: str = "") -> Any:
        """`abstract` with its arrays, those whose names start with `within`."""
        rows, wanted = self.rows(within), flatten(abstract)
        manifest.compare(rows, wanted, self.path)
        mesh = mesh or _mesh_in_use()
        laid = {name: _placement(getattr(x, "sharding", None), mesh) for name, x in wanted.items()}
        like = {name: manifest.stored_as(rows[name], laid[name]) for name in wanted}
        return unflatten(_fetch(self.path, rows, like), abstract)

    def model(self, abstract: Any, mesh: Mesh | None = None) -> Any:
        """The model of a training state, without the optimizer's arrays."""
        return self.tree({"model": abstract}, mesh, "model/")["model"]

    def arrays(self, within: str = "model/") -> dict[str, np.ndarray]:
        """{name: array} of the names that start with `within`: no model, no mesh."""
        rows, place = self.rows(within), _placement(None, None)
        like = {name: manifest.stored_as(row, place) for name, row in rows.items()}
        found = _fetch(self.path, rows, like)
        return {name: np.asarray(manifest.storable(x)) for name, x in found.items()}


def _fetch(
    path: epath.Path, rows: dict[str, Any], like: dict[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """The arrays of `like`, verified; raises Damaged."""
    arguments = ocp.args.PyTreeRestore(
        item=like,
        restore_args=ocp.checkpoint_utils.construct_restore_args(like),
        partial_restore=True,
    )
    failure = ""
    try:
        with plainly_named(path) as plain:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                arrays = checkpointer.restore(plain / "state", args=arguments)
    except Exception as error:
        failure = reason(error)
    if failure:  # out of the handler, which holds what is to be collected
        collect()
        raise Damaged(failure)
    return manifest.check(rows, arrays)


def _placement(sharding: Any, mesh: Mesh | None) -> Any:
    """A sharding over real devices for that of an abstract array."""
    whole = sharding is None or (isinstance(sharding, NamedSharding) and sharding.mesh.empty)
    if whole and mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    if whole or (isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh)):
        if mesh is None:
            raise ValueError("sharded arrays need a mesh: `with jax.set_mesh(mesh)`, or mesh=")
        return NamedSharding(mesh, PartitionSpec() if whole else sharding.spec)
    return sharding


def _mesh_in_use() -> Mesh | None:
    """The mesh of jax.set_mesh, in a way that every version of jax has."""
    if jax.sharding.get_abstract_mesh().empty:
        return None
    return getattr(jax.jit(lambda: jnp.zeros(()))().sharding, "mesh", None)


def everywhere(here: bool) -> bool:
    """Whether `here` is true in every process."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.array(here)).all())
