"""Whether rows of examples divide over the devices that share them, and into blocks of a kernel."""

import dataclasses
import math

from lm_jax.config import Config
from lm_jax.config.model import TRANSFORMERS
from lm_jax.data.views import by_objective
from lm_jax.errors import UserError

BLOCKS = {"splash": 128}  # tokens in the smallest block of an attention kernel
NEAR = 32  # a length that divides is searched this far above and below the configured one


def check_rows(config: Config, context: int) -> None:
    """Raises UserError where a row is no whole number of pieces for `context` devices, or a piece
    no whole number of blocks of config.model.attention.

    An encoder-decoder's inputs and targets have lengths of their own, which follow from
    config.data.sequence_length and the objective.
    """
    blocks = config.model.attention in BLOCKS
    if config.model.architecture not in TRANSFORMERS or not (context > 1 or blocks):
        return
    if odd := misfit(config, context):
        name, length, step = odd
        raise UserError(
            f"config.data.sequence_length={config.data.sequence_length}: rows of {length} {name} "
            f"(config.loss.objective={config.loss.objective!r}) must be a multiple of {step} for "
            f"config.mesh.context={context} and config.model.attention={config.model.attention!r}"
            f"{'; or set that to xla' if blocks else nearest_length(config, context)}."
        )


def misfit(config: Config, context: int) -> tuple[str, int, int] | None:
    """(name, length, what it must be a multiple of) of the first array that does not divide.

    Where tokens see only those before them a device has an early and a late piece (context.order),
    which a ring multiplies separately.
    """
    model, shapes = config.model, by_objective.shapes(config)
    block, ring = BLOCKS.get(model.attention, 1), model.context_attention == "ring"
    for name in ("tokens", "inputs"):
        causal = name == "tokens" and model.architecture != "encoder"
        halves = 2 if causal and context > 1 else 1
        step = context * math.lcm(halves, block * (halves if ring else 1))
        if name in shapes and (length := shapes[name][0][0]) % step:
            return name, length, step
    return None


def nearest_length(config: Config, context: int) -> str:
    """Advice: the nearest config.data.sequence_length that divides."""
    own, most = config.data.sequence_length, config.model.max_length
    for length in (own + sign * by for by in range(1, NEAR) for sign in (-1, 1)):
        data = dataclasses.replace(config.data, sequence_length=length)
        if 0 < length <= most and not misfit(dataclasses.replace(config, data=data), context):
            return f"; nearest: {length}"
    return "; set the first to 1"
