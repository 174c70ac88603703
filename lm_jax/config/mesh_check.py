"""Checks of a mesh that need no machine."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from lm_jax.config.model import RECURRENT, TRANSFORMERS
from lm_jax.errors import UserError, need, value_of

ROW_AXES = ("slice", "data", "fsdp", "expert")  # of the mesh: they share the batch in the layers,
BATCH_AXES = (*ROW_AXES, "stage")  # and these before and after them
FAR_AXES = ("slice", "data", "stage", "fsdp")  # one of which crosses the network between slices


def check_mesh(config: Any) -> None:
    """Raises UserError unless the model divides over the axes of the mesh."""
    model, mesh, need_it = config.model, config.mesh, partial(need, config)
    sizes = dataclasses.asdict(mesh)
    for axis, size in sizes.items():
        need_it(
            size >= 1 or size == -1, f"mesh.{axis}", "must be at least 1, or -1 for what is left."
        )
    filled = [axis for axis, size in sizes.items() if size == -1]
    if len(filled) > 1:
        raise UserError(f"config.mesh.{filled[1]}=-1: only one mesh axis may be -1.")
    for field, size in shared_by_tensor(model):
        need_it(size % abs(mesh.tensor) == 0, "mesh.tensor", f"must divide config.{field}={size}.")
    need_it(
        model.num_experts % abs(mesh.expert) == 0,
        "mesh.expert",
        f"must divide config.model.num_experts={model.num_experts}.",
    )
    check_stages(config)
    parts = config.optimizer.shard_state and config.optimizer.name == "muon"
    of = f" / config.mesh.stage={mesh.stage}" if mesh.stage > 1 else ""
    for field, layers in (
        ("model.num_layers", model.num_layers),
        ("model.encoder_layers", model.encoder_layers),
    ):
        need_it(
            not parts or layers % abs(mesh.data * mesh.stage) == 0,
            "optimizer.shard_state",
            f"muon gives each device whole layers: config.mesh.data={mesh.data} must divide "
            f"config.{field}={layers}{of}; or set it to False.",
        )
    need_it(
        mesh.context == 1 or model.architecture in TRANSFORMERS,
        "mesh.context",
        f"config.model.architecture={model.architecture!r} reads a row in order: set it to 1.",
    )
    pieces = abs(mesh.context) * (2 if model.architecture == "decoder" else 1)
    length = config.data.sequence_length
    need_it(
        mesh.context == 1 or length % pieces == 0,
        "data.sequence_length",
        f"must be divisible by {pieces} (mesh.context={mesh.context}); nearest: "
        f"{max(1, round(length / pieces)) * pieces}.",
    )
    need_it(
        model.dim % abs(mesh.fsdp) == 0, "mesh.fsdp", f"must divide config.model.dim={model.dim}."
    )


def shared_by_tensor(model: Any) -> list[tuple[str, int]]:
    """(field, size) of what the devices along mesh.tensor divide among them."""
    sizes = [("model.vocab_size", model.vocab_size)]
    if model.architecture in TRANSFORMERS:
        heads = ("model.num_kv_heads", model.kv_heads)
        return [heads, ("model.mlp_dim", model.mlp_size), *sizes]
    return [("model.dim", model.dim), *sizes] if model.architecture in RECURRENT else sizes


def check_stages(config: Any) -> None:
    """Raises UserError unless the stacks can be cut into stages that all do the same."""
    model, stages = config.model, config.mesh.stage
    need(
        config,
        stages in (1, -1) or model.architecture in TRANSFORMERS,
        "mesh.stage",
        f"config.model.architecture={model.architecture!r} has no stack of blocks: set it to 1.",
    )
    period, rounds = len(model.kinds), model.pipeline_rounds
    need(config, rounds >= 1, "model.pipeline_rounds", "must be at least 1.")
    of = f" of whole periods of model.layer_pattern={model.kinds!r}" if period > 1 else ""
    for field in ("model.num_layers", "model.encoder_layers"):
        layers = value_of(config, field)
        for name, parts, by in (
            ("mesh.stage", abs(stages), period),
            ("model.pipeline_rounds", rounds, abs(stages) * period),
        ):
            fits = (n for n in range(parts, 0, -1) if n == 1 or layers % (n * by) == 0)
            nearest = next(fits)
            need(
                config,
                nearest == parts,
                name,
                f"must cut config.{field}={layers} into equal parts{of}; nearest: {nearest}.",
            )


def fill_mesh(mesh: Any, devices: int, of: str = "") -> Any:
    """`mesh` (a MeshConfig) over so many devices: its -1 filled in. Raises UserError when the sizes
    do not multiply to them; of: whose devices these are.
    """
    sizes = dataclasses.asdict(mesh)
    fixed = math.prod(size for size in sizes.values() if size > 0)
    left = max(1, devices // fixed)
    filled = {axis: left if size == -1 else size for axis, size in sizes.items()}
    if math.prod(filled.values()) != devices:
        remedy = f"set one axis to -1, or sizes whose product is {devices}"
        if -1 in sizes.values():  # advice that was followed
            remedy = (
                f"the axes beside -1 take {fixed}, which must divide {devices}: make them smaller"
            )
        raise UserError(
            f"config.mesh: {large_axes(sizes)} does not make {devices} devices{of}; {remedy}."
        )
    return dataclasses.replace(mesh, **filled)


def large_axes(sizes: Mapping[str, int]) -> str:
    """'data 2 x fsdp 4': a mesh without its axes of one device."""
    return " x ".join(f"{axis} {n}" for axis, n in sizes.items() if n != 1) or "data 1"


def check_batch(batch_size: int, microbatches: int, mesh: Mapping[str, int]) -> None:
    """Raises UserError, with the nearest sizes, unless a microbatch divides over the devices that
    share it; mesh: sizes by axis.
    """
    ways = math.prod(mesh[axis] for axis in BATCH_AXES)
    step = ways * microbatches
    if batch_size % step:
        down, up = batch_size // step * step, -(-batch_size // step) * step
        near = f"{down} or {up}" if down else f"{up}"
        raise UserError(
            f"config.batch_size={batch_size}: must be divisible by {ways} devices (mesh "
            f"{' x '.join(BATCH_AXES)}) x {microbatches} microbatches; nearest: {near}."
        )
