"""Can these values work at all? The checks of a config that need no machine."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from lm_jax.errors import UserError, nearest

PAIRS = ("span_corruption", "prefix_lm", "ul2", "seq2seq")  # an input, and an answer to it
OF_PAIRS = ("bert", "sop")  # of sentences, which the pooler tells apart
DECODER = ("causal", "fim", *PAIRS)
OBJECTIVES = {  # that an architecture can have; the first one is what an imported model is given
    "decoder": DECODER,
    "encoder": ("mlm", *OF_PAIRS),
    "encoder_decoder": PAIRS,
    "rnn": DECODER,
    "lstm": DECODER,
    "gru": DECODER,
    "hmm": ("causal",),
    "ngram": ("causal",),
}
CHOICES = {
    "model.architecture": tuple(OBJECTIVES),
    "model.norm_order": ("pre", "post", "sandwich", "output"),
    "model.norm": ("rmsnorm", "layernorm"),
    "model.positions": ("rope", "learned", "sinusoidal", "relative", "alibi", "none"),
    "model.activation": ("silu", "gelu", "gelu_tanh", "relu"),
    "model.rope_scaling": ("none", "linear", "llama3", "yarn"),
    "model.attention": ("auto", "xla", "splash", "cudnn"),
    "model.context_attention": ("gather", "ring"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("none", "full", "dots", "names", "offload"),
    "model.quantization": ("none", "int8", "int8_full", "fp8", "fp8_full"),
    "optimizer.name": ("adamw", "adafactor", "lion", "muon"),
    "optimizer.schedule": ("cosine", "wsd", "rsqrt", "constant"),
    "data.tokenizer": ("bpe", "unigram", "bytes"),
}
AT_LEAST_1 = (
    "steps", "batch_size", "microbatches", "log_every", "model.vocab_size", "model.num_layers",
    "model.dim", "model.num_heads", "model.max_length", "model.scan_unroll",
    "model.relative_buckets", "model.relative_distance", "loss.mean_span",
    "data.sequence_length", "data.vocab_size", "checkpoint.every", "checkpoint.keep", "eval.tokens",
    "watchdog.pause",
)  # fmt: skip
NOT_NEGATIVE = (
    "seed", "model.num_kv_heads", "model.head_dim", "model.mlp_dim", "model.init_std",
    "model.encoder_layers", "model.value_dim", "model.window", "model.attn_scale",
    "model.attn_softcap", "model.logit_softcap", "model.token_types", "model.num_experts",
    "model.shared_experts", "model.capacity_factor", "model.rope_local_theta",
    "model.position_offset", "loss.balance_loss", "loss.router_z_loss", "optimizer.learning_rate",
    "optimizer.muon_learning_rate", "optimizer.weight_decay", "optimizer.clip_norm",
    "optimizer.warmup_steps", "optimizer.decay_steps", "loss.z_loss", "loss.chunk_size",
    "eval.every", "eval.samples", "eval.sample_tokens", "data.workers", "checkpoint.keep_every",
    "watchdog.least",
)  # fmt: skip
FRACTIONS = ("model.dropout", "optimizer.b1", "optimizer.b2", "data.heldout_fraction",
             "loss.mask_rate", "loss.label_smoothing")  # fmt: skip
QUANTIZED = ("attn", "mlp", "experts")  # whose products with states may be in eight bits
ROW_AXES = ("slice", "data", "fsdp", "expert")  # of the mesh: they share the batch in the layers,
BATCH_AXES = (*ROW_AXES, "stage")  # and these before and after them
FAR_AXES = ("slice", "data", "stage", "fsdp")  # one of which crosses the network between slices
SHARES = ("loss.fim_rate", "loss.spm_rate")
RECURRENT = ("rnn", "lstm", "gru")
ATTENTION = ("decoder", "encoder", "encoder_decoder")


def check(config: Any) -> None:
    """Raises UserError at the first field whose value cannot work, whatever the machine is."""
    for field, allowed in CHOICES.items():
        value = value_of(config, field)
        need(config, value in allowed, field, f"not known.{nearest(value, allowed)}")
    for field in AT_LEAST_1:
        need(config, value_of(config, field) >= 1, field, "must be at least 1.")
    for field in NOT_NEGATIVE:
        need(config, value_of(config, field) >= 0, field, "must not be negative.")
    for field in FRACTIONS:
        need(config, 0 <= value_of(config, field) < 1, field, "must be at least 0 and below 1.")
    for field in SHARES:
        need(config, 0 <= value_of(config, field) <= 1, field, "must be 0 to 1.")
    check_model(config)
    check_steps(config)
    check_objective(config)
    check_mesh(config)


def need(config: Any, ok: Any, field: str, why: str) -> None:
    """Raises UserError about a field and its value unless `ok`."""
    if not ok:
        raise UserError(f"config.{field}={value_of(config, field)!r}: {why}")


def check_model(config: Any) -> None:
    """Can the parts of the model be put together?"""
    model, need_it = config.model, partial(need, config)
    heads = model.architecture not in ("hmm", "ngram")  # which have none
    need_it(
        not heads or model.head_dim or model.dim % model.num_heads == 0,
        "model.dim",
        f"not divisible by model.num_heads={model.num_heads}; or set model.head_dim.",
    )
    need_it(
        model.kv_heads <= model.num_heads and model.num_heads % model.kv_heads == 0,
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
        model.quantization == "none" or model.architecture in ATTENTION,
        "model.quantization",
        f"config.model.architecture={model.architecture!r} has no such products: set it to none.",
    )
    need_it(1 <= model.order <= 6, "model.order", "must be 1 to 6.")
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


def check_steps(config: Any) -> None:
    """Do windows fit the model, parts the batch, and the warm-up the steps?"""
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
    times = config.watchdog.times
    need_it(times > 1 or times == 0, "watchdog.times", "must be above 1, or 0: no watchdog.")


def check_objective(config: Any) -> None:
    """Can this architecture be trained with this objective, and with each part of a mixture?"""
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
        if weight <= 0:
            refuse(f"the weight of {name} must be above 0.")
        if name in OF_PAIRS and len(parts) > 1:
            refuse(f"{name} has pairs to tell apart, and cannot be mixed.")
        if name in OF_PAIRS and not model.pooler:
            refuse(f"{name} has pairs to tell apart: set config.model.pooler=True.")
        if name in OF_PAIRS and model.token_types < 2:
            refuse(f"{name} has two segments: set config.model.token_types=2.")


def check_mesh(config: Any) -> None:
    """Can the model be divided over these axes?"""
    model, mesh, need_it = config.model, config.mesh, partial(need, config)
    sizes = dataclasses.asdict(mesh)
    for axis, size in sizes.items():
        need_it(
            size >= 1 or size == -1, f"mesh.{axis}", "must be at least 1, or -1 for what is left."
        )
    filled = [axis for axis, size in sizes.items() if size == -1]
    if len(filled) > 1:
        raise UserError(f"config.mesh.{filled[1]}=-1: only one mesh axis may be -1.")
    for field, size in (
        ("model.num_kv_heads", model.kv_heads),
        ("model.mlp_dim", model.mlp_size),
        ("model.vocab_size", model.vocab_size),
    ):
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
        mesh.context == 1 or model.architecture in ATTENTION,
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


def check_stages(config: Any) -> None:
    """Can the stacks be cut into stages that all do the same?"""
    model, stages = config.model, config.mesh.stage
    need(
        config,
        stages in (1, -1) or model.architecture in ("decoder", "encoder", "encoder_decoder"),
        "mesh.stage",
        f"config.model.architecture={model.architecture!r} has no stack of blocks: set it to 1.",
    )
    period = len(model.kinds)
    of = f" of whole periods of model.layer_pattern={model.kinds!r}" if period > 1 else ""
    for field in ("model.num_layers", "model.encoder_layers"):
        layers = value_of(config, field)
        fits = [n for n in range(1, abs(stages) + 1) if n == 1 or layers % (n * period) == 0]
        need(
            config,
            fits[-1] == abs(stages),
            "mesh.stage",
            f"must cut config.{field}={layers} into equal parts{of}; nearest: {fits[-1]}.",
        )


def fill_mesh(mesh: Any, devices: int, of: str = "") -> Any:
    """`mesh` (a MeshConfig) over so many devices: its -1 filled in. Raises UserError when the sizes
    do not multiply to them; of: whose devices these are.
    """
    sizes = dataclasses.asdict(mesh)
    left = max(1, devices // math.prod(size for size in sizes.values() if size > 0))
    filled = {axis: left if size == -1 else size for axis, size in sizes.items()}
    if math.prod(filled.values()) != devices:
        raise UserError(
            f"config.mesh: {large_axes(sizes)} does not make {devices} devices{of}; "
            f"set one axis to -1, or sizes whose product is {devices}."
        )
    return dataclasses.replace(mesh, **filled)


def large_axes(sizes: Mapping[str, int]) -> str:
    """'data 2 x fsdp 4': a mesh without its axes of one device."""
    return " x ".join(f"{axis} {n}" for axis, n in sizes.items() if n != 1) or "data 1"


def check_batch(batch_size: int, microbatches: int, mesh: Mapping[str, int]) -> None:
    """Does a microbatch divide over the devices that share it? Raises UserError with the nearest
    sizes that do; mesh: sizes by axis.
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


def value_of(config: Any, field: str) -> Any:
    """The value of a dotted field."""
    for part in field.split("."):
        config = getattr(config, part)
    return config


def mixture(objective: str) -> list[tuple[str, float]]:
    """'span_corruption:3,causal:1' -> [(name, weight)]; a name alone has weight 1."""
    parts = []
    for part in objective.split(","):
        name, _, weight = part.strip().partition(":")
        try:
            parts.append((name, float(weight or 1)))
        except ValueError:
            raise UserError(
                f"config.loss.objective={objective!r}: the weight {weight!r} is not a number."
            ) from None
    return parts
