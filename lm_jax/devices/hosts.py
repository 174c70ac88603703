"""The processes of one run: how they join, wait for each other and speak with one voice.

All run the same program on devices of their own (JAX's multi-controller runtime). The first one
writes what is not a checkpoint, and the lines; each gives the rows of its own devices.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lm_jax import errors
from lm_jax.devices import slurm
from lm_jax.devices.runtime import tpu_is_here
from lm_jax.devices.sharding import RULES
from lm_jax.errors import AbsentError, UserError

HEARTBEAT = 30  # seconds after which a process that is silent has died, and the others stop
LONGEST_WAIT = 7 * 24 * 3600  # seconds, for what one process does alone


def join(address: str = "", count: int = 0, index: int = -1) -> None:
    """Joins the other processes of the run, before jax looks at a device: those that the flags
    name, or SLURM, or the TPU; alone where there are none.

    Raises UserError when the flags are not complete, AbsentError when the others are not there.
    """
    given = bool(address), count > 0, index >= 0
    if any(given) and not all(given):
        raise UserError(
            f"--coordinator_address={address!r} --num_processes={count} --process_id={index}: "
            "give all three (HOST:PORT, how many, 0 and up), or none."
        )
    if all(given) and index >= count:
        raise UserError(f"--process_id={index}: must be below --num_processes={count}.")
    if not any(given) and not tpu_is_here() and slurm_tasks() < 2:
        return
    named: dict[str, Any] = {}
    if all(given):
        named = {"coordinator_address": address, "num_processes": count, "process_id": index}
    elif slurm_tasks() > 1 and not tpu_is_here() and not os.environ.get("JAX_COORDINATOR_ADDRESS"):
        meeting = slurm.coordinator()  # SLURM tells jax the rest
        named = {"coordinator_address": meeting} if meeting else {}
    try:
        jax.distributed.initialize(**named, heartbeat_timeout_seconds=HEARTBEAT)
    except Exception as error:
        # Several that each went on alone would be several runs in one folder.
        if not named and tpu_is_here() and slurm_tasks() < 2 and gke_hosts() < 2:
            print(f"WARNING: only this host: {short(error)}", file=sys.stderr, flush=True)
            return
        raise AbsentError(f"the processes of the run did not meet: {short(error)}") from None
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - one log, to the end


def slurm_tasks() -> int:
    """Number of processes `srun` started with this one; 1 elsewhere. (In the script of a job
    SLURM_NTASKS and SLURM_PROCID are set as well, and it is alone.)
    """
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def gke_hosts() -> int:
    """Number of hosts of the TPUs of this run, as GKE tells the pods; 1 elsewhere."""
    of_a_slice = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    return of_a_slice * int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)


def short(error: BaseException) -> str:
    """An error of the runtime in one line."""
    return " ".join(str(error).split())[:200]


def are_several() -> bool:
    """Whether this process has joined others; looks at no device."""
    return service() is not None


def is_first() -> bool:
    """Whether this process writes what all of them know."""
    return jax.process_index() == 0


def on_first_process(what: Callable[[], Any], name: str) -> Any:
    """Result of `what()` on the first process; the others come back when it is done, with None. A
    UserError is raised on all of them. `name`: of this call alone.
    """
    if not are_several():
        return what()
    found, refusal = None, ["", ""]
    if is_first():
        try:
            found = what()
        except UserError as error:
            refusal = [type(error).__name__, str(error)]
        publish(f"first/{name}", json.dumps(refusal))
    barrier(name)
    kind, text = json.loads(wait_for_key(f"first/{name}", 60))
    if kind:
        raise getattr(errors, kind)(text)
    return found


def barrier(name: str) -> None:
    """Waits for every process, however long what the first one does takes (a text to prepare)."""
    if jax.process_count() > 1:
        # A collective alone would give up after the 30 s that gloo waits for the others.
        service().wait_at_barrier(f"lm_jax.{name}", timeout_in_ms=LONGEST_WAIT * 1000)
        multihost_utils.sync_global_devices(f"lm_jax.{name}")


def publish(key: str, value: str) -> None:
    """Leaves `value`, under `key`, where all processes can read it as long as process 0 lives."""
    service().key_value_set(f"lm_jax/{key}", value, allow_overwrite=True)


def read_keys(folder: str) -> dict[str, str]:
    """All values published under `folder`/name, by name."""
    found = service().key_value_dir_get(f"lm_jax/{folder}/")
    return {key.rpartition("/")[2]: value for key, value in found}


def wait_for_key(key: str, seconds: float) -> str:
    """Waits for the value of `key`; raises when it is not there within `seconds`."""
    return service().blocking_key_value_get(f"lm_jax/{key}", round(1000 * seconds))


def service() -> Any:
    """The service of jax.distributed: barriers, keys and values; without a public name (0.12)."""
    return distributed.global_state.client


def request_stop() -> None:
    """Asks all processes to stop after the same step, as SIGTERM does: see `told_to_stop`."""
    signal.raise_signal(signal.SIGTERM)  # jax's own handler has it where there are several


def told_to_stop(step: int) -> bool:
    """Whether one of several processes got SIGTERM, and all of them are to stop after this step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def share(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """(which, of how many) equal parts of a batch the devices of this process hold. On a TPU slice
    these are seldom one after the other: the devices of a host are not neighbours in the mesh.

    Raises UserError where two processes hold some parts together and others alone.
    """
    if jax.process_count() == 1:
        return (0,), 1
    axes = [mesh.axis_names.index(axis) for axis in RULES["batch"]]
    grid = np.moveaxis(mesh.devices, axes, range(len(axes)))
    parts = grid.reshape(np.prod(grid.shape[: len(axes)]), -1)  # [parts of the batch, copies]
    held: dict[int, list[int]] = {}
    for part, row in enumerate(parts):
        for process in {device.process_index for device in row}:
            held.setdefault(process, []).append(part)
    mine = held[jax.process_index()]
    groups = {tuple(group) for group in held.values()}
    if {len(group) for group in groups} != {len(mine)} or len(groups) * len(mine) != len(parts):
        raise UserError(
            f"config.mesh: process {jax.process_index()} holds parts {mine} of the batch, and "
            "others only some of them; let data and fsdp come before tensor."
        )
    return tuple(mine), len(parts)
