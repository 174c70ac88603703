"""Ahead-of-time compilation of the train step for a TPU slice that is not here, by the real TPU
compiler (libtpu), which needs no TPU.
"""

import dataclasses
import os
from typing import Any, NamedTuple

import jax

from lm_jax.config import Config, MeshConfig
from lm_jax.config.check import has_prefix
from lm_jax.config.mesh_check import check_batch
from lm_jax.data.views import by_objective, fit
from lm_jax.devices import sharding, xla_options
from lm_jax.devices.resolve import resolved
from lm_jax.errors import MachineError, UserError
from lm_jax.training.train_step import TrainState, init_state, make_train_step

ENVIRONMENT = {  # libtpu would look for a TPU, and let one process compile at a time
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Beside those of a run (xla_options.py), and other than there: fusing collectives into products
# doubles the time of compilation, and changes no size.
OPTIONS = {"xla_tpu_enable_async_collective_fusion": "false"}


class Step(NamedTuple):
    """A traced train step, and what it takes: abstract arrays with their shardings."""

    config: Config  # resolved for the devices, and with the sizes of the mesh
    mesh: Any
    state: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    traced: Any  # jax.stages.Traced: its jaxpr, and from it the program

    def compile(self) -> Any:
        """The program for TPU, with the compiler's options of a run there and OPTIONS."""
        options = xla_options.accepted(self.mesh) | OPTIONS
        with jax.set_mesh(self.mesh), xla_options.not_kept():
            lowered = self.traced.lower(lowering_platforms=("tpu",))
            return lowered.compile(compiler_options=options)


def devices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of a TPU slice, or of several alike, by generation and shape: v5e:4x4, v5p:2x2x2.

    Raises UserError for one that the compiler does not know, MachineError without the compiler.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise MachineError("the TPU compiler is not here: pip install libtpu.") from None
    from jax.experimental import topologies

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):
        more["chip_config_name"] = "megacore"  # both cores of a chip are one device, as on a TPU VM
    try:
        return topologies.get_topology_desc(topology, "tpu", **more).devices
    except Exception as error:
        raise UserError(
            f"topology {topology!r}: the compiler knows no such slice "
            f"({' '.join(str(error).split())[:120]}); e.g. v5e:4x4, v5p:4x4x4, v6e:16x16."
        ) from None


def trace_step(config: Config, devices: list[Any]) -> Step:
    """The train step of `config` on these devices of a TPU. Raises UserError where the mesh or the
    batch does not fit them.
    """
    mesh = sharding.make_mesh(config.mesh, devices)
    check_batch(config.batch_size, config.microbatches, mesh.shape)
    model = resolved(config.model, "tpu", has_prefix(config), mesh.shape["context"] > 1)
    config = dataclasses.replace(config, model=model)
    fit.check_rows(config, mesh.shape["context"])
    return trace(config, mesh)


def trace(config: Config, mesh: Any) -> Step:
    """The train step of a config that is resolved, on a mesh. Takes seconds; compiles nothing."""
    config = dataclasses.replace(config, mesh=MeshConfig(**mesh.shape))
    with jax.set_mesh(mesh):
        state, batch = jax.eval_shape(lambda: init_state(config)), abstract_batch(config, mesh)
        step = jax.jit(make_train_step(config), donate_argnums=0)
        return Step(config, mesh, state, batch, step.trace(state, batch))


def abstract_batch(config: Config, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays [microbatches, rows, ...] of a batch, and where they lie."""
    leading = config.microbatches, config.batch_size // config.microbatches
    spec = jax.sharding.PartitionSpec(None, sharding.RULES["batch"])
    place = jax.sharding.NamedSharding(mesh, spec)
    return {
        name: jax.ShapeDtypeStruct(leading + shape, dtype, sharding=place)
        for name, (shape, dtype) in by_objective.shapes(config).items()
    }
