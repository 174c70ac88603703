"""The start of a training run: devices, mesh, checks of the config, folder, store, self-check; then
the loop.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lm_jax.config import Config, MeshConfig, mesh_check
from lm_jax.config import check as config_check
from lm_jax.config.values import expand_home
from lm_jax.data.views import by_objective, fit
from lm_jax.devices import hosts, quantized, runtime, sharding
from lm_jax.devices.resolve import resolved
from lm_jax.errors import EXIT_PREEMPTED, UserError
from lm_jax.run import lock, rundir
from lm_jax.run.checkpoint import Checkpoints
from lm_jax.run.interrupts import ALL, Requests, Stopped
from lm_jax.training import counting, hooks, out_of_memory, preflight, summary
from lm_jax.training.loop import Run
from lm_jax.training.train_step import init_state


def train(
    requested: Config | ConfigDict | dict[str, Any],
    workdir: str | os.PathLike[str],
    dry_run: bool = False,
    check: bool = True,
    profile: bool = False,
) -> int:
    """Trains `requested` in `workdir` to its end, from its newest checkpoint on where there is one;
    returns the exit code: 0, or 75 where SIGTERM or SIGHUP stopped it.

    dry_run: prints what would run, and writes nothing. check: runs the self-check first. profile:
    writes an XProf trace of a few steps. In the main thread, SIGTERM, SIGHUP and Ctrl-C save first,
    and Ctrl-C raises KeyboardInterrupt then; in another thread, signals are left alone.
    """
    refuse_import()
    config = requested if isinstance(requested, Config) else Config.parse(requested)
    if profile and config.steps <= hooks.TRACED.start:
        raise UserError(
            f"--profile: records from step {hooks.TRACED.start} on, "
            f"config.steps={config.steps} is too few."
        )
    runtime.start()
    several = hosts.are_several()  # jax has a handler of SIGTERM then, by which all agree
    ours = [number for number in ALL if number != signal.SIGTERM]
    requests = Requests(ours, forward=hosts.request_stop) if several else Requests()
    try:
        with requests:
            return set_up(config, expand_home(workdir), requests, dry_run, check, profile)
    except Stopped as stopped:
        print(stopped, flush=True)
        return EXIT_PREEMPTED


def refuse_import() -> None:
    """Raises UserError in a process of config.data.workers that is importing the program's script,
    where a run would begin again.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError(
            "train: config.data.workers are processes that import this script, and it trains as it "
            "is imported; put the call under `if __name__ == '__main__':`."
        )


def set_up(requested: Config, workdir: str, requests: Requests, dry_run: bool, check: bool,
            profile: bool) -> int:  # fmt: skip
    """`train`, once signals are handled: devices, mesh, checks of the config, the folder's lock."""
    devices = runtime.devices()
    counts = requested.model.architecture == "ngram"
    if counts:  # on one device, whatever the mesh
        mesh = sharding.make_mesh(MeshConfig(), counting.host(devices))
    else:
        mesh = sharding.make_mesh(requested.mesh, devices)
        mesh_check.check_batch(requested.batch_size, requested.microbatches, mesh.shape)
    config_check.check_training(requested, mesh.shape)
    prefix, shared = config_check.has_prefix(requested), mesh.shape["context"] > 1
    model = resolved(requested.model, devices[0].platform, prefix, shared)
    config = dataclasses.replace(requested, model=model)
    fit.check_rows(config, mesh.shape["context"])
    kind = devices[0].device_kind
    for warning in (quantized.warning(model.quantization, kind), sharding.warning(mesh)):
        if warning:
            print(warning, flush=True)
    rundir.check(workdir, requested)
    with contextlib.ExitStack() as stack:
        if not dry_run:
            hosts.on_first_process(lambda: stack.enter_context(lock.held(workdir)), "lock")
            rundir.check(workdir, requested)  # again: another run may just have ended here
        return train_in_folder(requested, config, workdir, mesh, requests, dry_run, check, profile)


def train_in_folder(requested: Config, config: Config, workdir: str, mesh: Mesh, requests: Requests,
              dry_run: bool, check: bool, profile: bool) -> int:  # fmt: skip
    """`train`, once the folder is locked; config: `requested` as it runs on this machine."""
    counts = config.model.architecture == "ngram"
    requests.cleanup = lambda: rundir.discard_unfinished(workdir, config)
    opened = lambda: rundir.open_store(workdir, config, prepare=not dry_run)
    store = hosts.on_first_process(opened, "store") or opened()
    with jax.set_mesh(mesh):
        abstract: Any = None if counts else jax.eval_shape(lambda: init_state(config))
        print(summary.text(requested, config, workdir, mesh, abstract, store), flush=True)
        if dry_run or store is None:
            return 0
        keep = requested.checkpoint
        with (
            Checkpoints(workdir, keep.keep, keep.keep_every) as saved,
            out_of_memory.explained(config, mesh, workdir),
        ):
            if steps := saved.steps():  # of another run: refused before anything is written
                requests.kept = f"the newest checkpoint is of step {steps[-1]}"
                rundir.check_checkpoint(saved.metadata(), requested, store, mesh.shape)
            if not counts:
                for split in ("train", "heldout"):  # room for specials, enough text: the same
                    by_objective.make(store, split, config, config.seed)
            hosts.on_first_process(lambda: rundir.create(workdir, requested), "folder")
            if counts:
                if profile:
                    print("--profile: without effect on a model that is counted", flush=True)
                return counting.train(config, Path(workdir), mesh, store, saved, requests)
            if check:
                print(preflight.run(config, mesh, abstract, workdir), flush=True)
            run = Run(config, Path(workdir), mesh, store, saved, abstract, profile, requests)
            return run.run()
