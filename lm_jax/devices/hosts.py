"""The processes of one run: joining, barriers, and values passed between them.

All run the same program on their own devices (JAX's multi-controller runtime). The first one prints
and writes all files but checkpoints; each loads the rows of its own devices.
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

HEARTBEAT = 30  # seconds without a heartbeat after which a process is dead and the others stop
MAX_WAIT = 7 * 24 * 3600  # seconds, for work that one process does alone


def join(address: str = "", count: int = 0, index: int = -1) -> None:
    """Joins the other processes of the run, named by the flags, SLURM or the TPU; does nothing
    where there are none. To be called before jax initialises its devices.

    Raises UserError when the flags are not complete, AbsentError when the others do not come.
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
        slurm.need_task()
        meeting = slurm.coordinator()  # SLURM tells jax the rest
        named = {"coordinator_address": meeting} if meeting else {}
    try:
        jax.distributed.initialize(**named, heartbeat_timeout_seconds=HEARTBEAT)
    except Exception as error:
        # Processes that each went on alone would be several runs in one work directory.
        if not named and tpu_is_here() and slurm_tasks() < 2 and gke_hosts() < 2:
            print(f"WARNING: only this host: {short(error)}", file=sys.stderr, flush=True)
            return
        raise AbsentError(f"the processes of the run did not meet: {short(error)}") from None
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - one log, to the end


def slurm_tasks() -> int:
    """Number of processes that `srun` started together with this one; 1 elsewhere. (A batch script
    has SLURM_NTASKS and SLURM_PROCID as well, but is a single process.)
    """
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def gke_hosts() -> int:
    """Number of TPU hosts of this run, from the variables that GKE sets in pods; 1 elsewhere."""
    of_a_slice = os.environ.get("TPU_WORKER_HOSTNAMES", "").count(",") + 1
    return of_a_slice * int(os.environ.get("MEGASCALE_NUM_SLICES") or 1)


def short(error: BaseException) -> str:
    """An error of the runtime in one line."""
    return " ".join(str(error).split())[:200]


def are_several() -> bool:
    """Whether this process has joined others; initialises no device."""
    return service() is not None


def is_first() -> bool:
    """Whether this is the process that prints and writes for all of them."""
    return jax.process_index() == 0


def on_first_process(function: Callable[[], Any], name: str) -> Any:
    """Result of `function()` on the first process; None on the others, which wait until it is done.
    A UserError is raised on all of them. `name`: unique to this call.
    """
    if not are_several():
        return function()
    result, refusal = None, ["", ""]
    if is_first():
        try:
            result = function()
        except UserError as error:
            refusal = [type(error).__name__, str(error)]
        publish(f"first/{name}", json.dumps(refusal))
    barrier(name)
    kind, text = json.loads(wait_for_key(f"first/{name}", 60))
    if kind:
        raise getattr(errors, kind)(text)
    return result


def barrier(name: str) -> None:
    """Waits for every process, up to MAX_WAIT: the first one may have a text to prepare."""
    if jax.process_count() > 1:
        # A collective alone would fail after gloo's timeout of 30 s.
        service().wait_at_barrier(f"lm_jax.{name}", timeout_in_ms=MAX_WAIT * 1000)
        multihost_utils.sync_global_devices(f"lm_jax.{name}")


def publish(key: str, value: str) -> None:
    """Stores `value` under `key`, where all processes can read it while process 0 lives."""
    service().key_value_set(f"lm_jax/{key}", value, allow_overwrite=True)


def read_keys(folder: str) -> dict[str, str]:
    """All values published under `folder`/name, by name."""
    found = service().key_value_dir_get(f"lm_jax/{folder}/")
    return {key.rpartition("/")[2]: value for key, value in found}


def wait_for_key(key: str, seconds: float) -> str:
    """Waits for the value of `key`; raises when it is not published within `seconds`."""
    return service().blocking_key_value_get(f"lm_jax/{key}", round(1000 * seconds))


def service() -> Any:
    """The client of jax.distributed: barriers, keys and values. It has no public name (0.12)."""
    return distributed.global_state.client


def request_stop() -> None:
    """Requests all processes to stop after the same step, as SIGTERM does; see `stop_requested`."""
    signal.raise_signal(signal.SIGTERM)  # jax's own handler has it where there are several


def stop_requested(step: int) -> bool:
    """Whether one of several processes got SIGTERM, so that all of them stop after this step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)


def share(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """The equal parts of a batch that the devices of this process hold: (their indices, number of
    all parts). On a TPU slice they are seldom consecutive: the devices of a host are not neighbours
    in the mesh.

    Raises UserError where two processes share some parts of the batch but not all.
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
