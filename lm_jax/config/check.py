"""Checks of a config that need no machine: bounds and choices, then what goes together."""

import dataclasses
import math
import types
from collections.abc import Mapping
from functools import partial
from typing import Any

from lm_jax.config.field import check_values
from lm_jax.config.mesh_check import check_mesh
from lm_jax.config.model import DROPOUTS, RECURRENT, TRANSFORMERS
from lm_jax.errors import UserError, nearest, need

PAIRS = ("span_corruption", "prefix_lm", "ul2", "seq2seq")  # of an input and a target
OF_PAIRS = ("bert", "sop")  # pairs of sentences, which the pooler classifies
DECODER = ("causal", "fim", *PAIRS)
OBJECTIVES = {  # of an architecture; an imported model gets the first one
    "decoder": DECODER,
    "encoder": ("mlm", *OF_PAIRS),
    "encoder_decoder": PAIRS,
    "rnn": DECODER,
    "lstm": DECODER,
    "gru": DECODER,
    "hmm": ("causal",),
    "ngram": ("causal",),
}
QUANTIZED = ("attn", "mlp", "experts")  # whose products with states may be in eight bits


def check(config: Any) -> None:
    """Raises UserError at the first field whose value cannot work, whatever the machine is."""
    check_values(config)
    check_model(config)
    check_dropout(config)
    check_steps(config)
    check_objective(config)
    check_mesh(config)
    check_ring(config)


def check_training(config: Any, sizes: Mapping[str, int]) -> None:
    """`check` of a config to be trained, once the sizes of its mesh are known."""
    check(dataclasses.replace(config, mesh=type(config.mesh)(**sizes)))
    why = "a body without an output head learns nothing here; import it with new_head=True."
    need(config, config.model.head, "model.head", why)


def check_ring(config: Any) -> None:
    """Raises UserError for what ring attention cannot do, where devices share the rows."""
    model = config.model
    if model.context_attention != "ring" or config.mesh.context in (1, -1):
        return
    beyond = {
        f"config.model.window={model.window}": model.window,
        f"config.model.positions={model.positions!r}": model.positions in ("relative", "alibi"),
        f"config.model.attention_dropout={model.attention_dropout}": model.attention_dropout,
        f"config.loss.objective={config.loss.objective!r}, whose rows have a prefix":
            has_prefix(config),
    }  # fmt: skip
    why = ", ".join(what for what, is_so in beyond.items() if is_so)
    need(config, not why, "model.context_attention", f"cannot have {why}; set it to gather.")


def has_prefix(config: Any) -> bool:
    """Whether rows begin with a prefix that attention sees from both sides: pairs of a decoder."""
    pairs = any(name in PAIRS for name, _ in mixture(config.loss.objective))
    return pairs and config.model.architecture == "decoder"


def check_alone(model: Any) -> None:
    """Raises UserError when a ModelConfig that no run has parsed has a value that cannot work."""
    check_values(model, "config.model.")
    config = types.SimpleNamespace(model=model)
    check_model(config)
    check_dropout(config)


def check_model(config: Any) -> None:
    """Raises UserError unless the parts of the model fit together."""
    model, need_it = config.model, partial(need, config)
    heads = model.architecture in TRANSFORMERS  # the others have none
    need_it(
        not heads or model.head_dim or model.dim % model.num_heads == 0,
        "model.dim",
        f"not divisible by model.num_heads={model.num_heads}; or set model.head_dim.",
    )
    need_it(
        not heads or (model.kv_heads <= model.num_heads and model.num_heads % model.kv_heads == 0),
        "model.num_kv_heads",
        f"must divide model.num_heads={model.num_heads}.",
    )
    need_it(
        not heads or model.positions != "rope" or model.head_size % 2 == 0,
        "model.head_dim",
        "rotary positions need an even head size.",
    )
    need_it(
        not model.layer_pattern.strip("lg") and model.layer_pattern,
        "model.layer_pattern",
        "letters l (local) and g (global), one a layer, repeated: 'lg', 'lllllg'.",
    )
    relative, exact = model.positions == "relative", model.relative_buckets // 2
    need_it(not relative or exact >= 2, "model.relative_buckets", "must be at least 4.")
    need_it(
        not relative or model.relative_distance > exact,
        "model.relative_distance",
        f"must be above {exact}, half of model.relative_buckets.",
    )
    need_it(
        not (model.qk_norm and model.qk_norm_all),
        "model.qk_norm_all",
        "one of model.qk_norm and this.",
    )
    for kind in model.quantized.split(","):
        near = nearest(kind, QUANTIZED)
        need_it(kind in QUANTIZED, "model.quantized", f"{kind!r} is not known.{near}")
    need_it(
        model.quantization == "none" or model.architecture in TRANSFORMERS,
        "model.quantization",
        f"config.model.architecture={model.architecture!r} has no such products: set it to none.",
    )
    most = model.num_experts or model.experts_per_token
    need_it(
        1 <= model.experts_per_token <= most, "model.experts_per_token", f"must be 1 to {most}."
    )
    need_it(
        not model.encoder_layers or model.architecture == "encoder_decoder",
        "model.encoder_layers",
        f"config.model.architecture={model.architecture!r} has one "
        "stack: set model.num_layers, and this to 0.",
    )
    need_it(
        not model.pooler or model.architecture == "encoder",
        "model.pooler",
        f"config.model.architecture={model.architecture!r} has none: set it to False.",
    )


def check_dropout(config: Any) -> None:
    """Raises UserError for dropout where the model has no such place, or its kernel cannot."""
    model, need_it = config.model, partial(need, config)
    for name in DROPOUTS[1:]:  # the first is of all networks
        need_it(
            not getattr(model, name) or model.architecture in TRANSFORMERS,
            f"model.{name}",
            f"config.model.architecture={model.architecture!r} has no such place: set it to 0.",
        )
    need_it(
        not (model.activation_dropout and model.num_experts),
        "model.activation_dropout",
        f"not of experts (config.model.num_experts={model.num_experts}): set it to 0.",
    )
    need_it(
        not model.attention_dropout or model.attention in ("auto", "xla"),
        "model.attention_dropout",
        f"config.model.attention={model.attention!r} cannot have it: set that to auto or xla.",
    )


def check_steps(config: Any) -> None:
    """Raises UserError unless windows fit the model, parts the batch, and the warm-up the steps."""
    model, data, need_it = config.model, config.data, partial(need, config)
    need_it(
        not data.carry or model.architecture in RECURRENT,
        "data.carry",
        f"only a recurrent model ({', '.join(RECURRENT)}) has a state to carry.",
    )
    simple = config.microbatches == 1 and config.loss.objective == "causal"
    need_it(
        not data.carry or simple,
        "data.carry",
        "needs config.microbatches=1 and config.loss.objective=causal.",
    )
    need_it(
        not data.shifted or (config.loss.objective == "causal" and not data.carry),
        "data.shifted",
        "needs config.loss.objective=causal and config.data.carry=False.",
    )
    need_it(
        data.sequence_length <= model.max_length,
        "data.sequence_length",
        f"longer than config.model.max_length={model.max_length}.",
    )
    need_it(
        config.batch_size % config.microbatches == 0,
        "batch_size",
        f"must be divisible by config.microbatches={config.microbatches}.",
    )
    need_it(
        config.optimizer.warmup_steps <= config.steps,
        "optimizer.warmup_steps",
        f"longer than config.steps={config.steps}.",
    )
    optimizer = config.optimizer
    left = config.steps - optimizer.warmup_steps
    need_it(
        optimizer.schedule != "wsd" or optimizer.decay_steps <= left,
        "optimizer.decay_steps",
        f"longer than the {left} steps after config.optimizer.warmup_steps="
        f"{optimizer.warmup_steps} of config.steps={config.steps}.",
    )
    times = config.watchdog.times
    need_it(times > 1 or times == 0, "watchdog.times", "must be above 1, or 0: no watchdog.")


def check_objective(config: Any) -> None:
    """Raises UserError unless this architecture can be trained with this objective, and with each
    part of a mixture.
    """
    model, parts = config.model, mixture(config.loss.objective)
    allowed = OBJECTIVES[model.architecture]
    known = {name for names in OBJECTIVES.values() for name in names}
    refuse = partial(need, config, False, "loss.objective")
    for name, weight in parts:
        if name not in known:
            refuse(f"{name!r} is not known." + nearest(name, allowed))
        if name not in allowed:
            refuse(
                f"config.model.architecture={model.architecture!r} cannot have {name}."
                + nearest(name, allowed)
            )
        if not 0 < weight < math.inf:
            refuse(f"the weight of {name} must be a finite number above 0.")
        if name in OF_PAIRS and len(parts) > 1:
            refuse(f"{name} has pairs to tell apart, and cannot be mixed.")
        if name in OF_PAIRS and not model.pooler:
            refuse(f"{name} has pairs to tell apart: set config.model.pooler=True.")
        if name in OF_PAIRS and model.token_types < 2:
            refuse(f"{name} has two segments: set config.model.token_types=2.")


def mixture(objective: str) -> list[tuple[str, float]]:
    """'span_corruption:3,causal:1' -> [(name, weight)]; a name alone has weight 1."""
    parts = []
    for part in objective.split(","):
        name, colon, weight = part.strip().partition(":")
        try:
            parts.append((name, float(weight) if colon else 1.0))
        except ValueError:
            raise UserError(
                f"config.loss.objective={objective!r}: the weight {weight!r} is not a number."
            ) from None
    return parts
