"""How is a Llama of `transformers` ours? Its options and tensors (transformers/models/llama)."""

# Axes: V vocabulary, D width, K key heads, G query heads a key head, H head size, F width of MLP.

from typing import Any

from lm_jax.config import ModelConfig, typed
from lm_jax.convert.mapping import ACTIVATIONS, Family, Option, Row, chosen, short, sized
from lm_jax.errors import UserError, nearest

BLOCK, LAYER = "decoder/blocks", "model.layers.{layer}"

OPTIONS = (
    Option("vocab_size", "vocab_size"),
    Option("max_position_embeddings", "max_length", 2048),
    Option("hidden_size", "dim"),
    Option("num_hidden_layers", "num_layers"),
    Option("num_attention_heads", "num_heads"),
    Option("num_key_value_heads", "num_kv_heads", 0),
    Option("head_dim", "head_dim", 0),
    Option("intermediate_size", "mlp_dim"),
    Option("hidden_act", "activation", "silu", ACTIVATIONS),
    Option("rms_norm_eps", "norm_eps", 1e-6),
    Option("initializer_range", "init_std", 0.02),
    Option("tie_word_embeddings", "tie_embeddings", False),
)
SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3"}
ROPE = {  # what each scaling needs: their key, our field
    "none": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "original_max_position_embeddings": "rope_original_length",
        "low_freq_factor": "rope_low_frequency",
        "high_freq_factor": "rope_high_frequency",
    },
}


def rows(config: ModelConfig) -> list[Row]:
    """Their Linear layers are (out, in); query head n looks at key head n // G."""
    table = [
        Row("embed/tokens", "VD", "model.embed_tokens.weight", "V D"),
        Row(f"{BLOCK}/attn_norm/scale", "D", f"{LAYER}.input_layernorm.weight", "D"),
        Row(f"{BLOCK}/attn/wq", "DKGH", f"{LAYER}.self_attn.q_proj.weight", "KGH D"),
        Row(f"{BLOCK}/attn/wk", "DKH", f"{LAYER}.self_attn.k_proj.weight", "KH D"),
        Row(f"{BLOCK}/attn/wv", "DKH", f"{LAYER}.self_attn.v_proj.weight", "KH D"),
        Row(f"{BLOCK}/attn/wo", "KGHD", f"{LAYER}.self_attn.o_proj.weight", "D KGH"),
        Row(f"{BLOCK}/mlp_norm/scale", "D", f"{LAYER}.post_attention_layernorm.weight", "D"),
        Row(f"{BLOCK}/mlp/up", "D0F", f"{LAYER}.mlp.gate_proj.weight", "F D"),
        Row(f"{BLOCK}/mlp/up", "D1F", f"{LAYER}.mlp.up_proj.weight", "F D"),
        Row(f"{BLOCK}/mlp/down", "FD", f"{LAYER}.mlp.down_proj.weight", "D F"),
        Row("decoder/norm/scale", "D", "model.norm.weight", "D"),
    ]
    if config.bias:
        table += [
            Row(f"{BLOCK}/attn/bq", "KGH", f"{LAYER}.self_attn.q_proj.bias", "KGH"),
            Row(f"{BLOCK}/attn/bk", "KH", f"{LAYER}.self_attn.k_proj.bias", "KH"),
            Row(f"{BLOCK}/attn/bv", "KH", f"{LAYER}.self_attn.v_proj.bias", "KH"),
            Row(f"{BLOCK}/attn/bo", "D", f"{LAYER}.self_attn.o_proj.bias", "D"),
            Row(f"{BLOCK}/mlp/up_bias", "0F", f"{LAYER}.mlp.gate_proj.bias", "F"),
            Row(f"{BLOCK}/mlp/up_bias", "1F", f"{LAYER}.mlp.up_proj.bias", "F"),
            Row(f"{BLOCK}/mlp/down_bias", "D", f"{LAYER}.mlp.down_proj.bias", "D"),
        ]
    if not config.tie_embeddings:
        table.append(Row("head", "VD", "lm_head.weight", "V D"))
    return table


def read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Biases and rotary positions; raises UserError on a scaling not known or not complete."""
    attention, mlp = (
        typed(values.get(key) or False, bool, f"{where}: {key}")
        for key in ("attention_bias", "mlp_bias")
    )
    if attention != mlp:
        raise UserError(
            f"{where}: attention_bias={attention}: not supported with mlp_bias={mlp}, "
            "only both or neither."
        )
    return {"bias": attention, **read_rope(values, where)}


def read_rope(values: dict[str, Any], where: str) -> dict[str, Any]:
    """`rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of those before."""
    forms = [rope_form(values, key, where) for key in ("rope_parameters", "rope_scaling")]
    forms = [form for form in forms if form]
    if len(forms) == 2 and forms[0] != forms[1]:
        raise UserError(
            f"{where}: rope_scaling={short(values['rope_scaling'])}: differs from rope_parameters."
        )
    theta = values.get("rope_theta")
    plain = {} if theta is None else {"rope_theta": sized(theta, float, f"{where}: rope_theta")}
    return {**plain, **(forms[0] if forms else {})}


def rope_form(values: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """Our fields of one of the two forms; none where config.json has it not."""
    given = values.get(key)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: {key}={short(given)}: expected a group of fields.")
    kind = given.get("rope_type", given.get("type", "default"))
    scaling = chosen(SCALINGS, kind, f"{where}: {key}.rope_type")
    wanted = {**ROPE[scaling], "rope_theta": "rope_theta"}
    found: dict[str, Any] = {"rope_scaling": scaling}
    for name, value in given.items():
        if name in wanted:
            hint = int if wanted[name] == "rope_original_length" else float
            found[wanted[name]] = sized(value, hint, f"{where}: {key}.{name}")
        elif (name, value) != ("partial_rotary_factor", 1.0) and name not in ("rope_type", "type"):
            raise UserError(
                f"{where}: {key}.{name[:100]}={short(value)}: not supported with "
                f"rope_type={kind!r}.{nearest(name[:100], wanted)}"
            )
    if "rope_theta" not in given and values.get("rope_theta") is not None:
        found["rope_theta"] = sized(values["rope_theta"], float, f"{where}: rope_theta")
    for name in ROPE[scaling]:
        if name not in given:
            raise UserError(f"{where}: {key}.{name}: is missing, rope_type={kind!r} needs it.")
        if not found[wanted[name]] > 0:
            raise UserError(f"{where}: {key}.{name}={given[name]!r}: must be above 0.")
    return found


def write(config: ModelConfig) -> dict[str, Any]:
    """Biases, and rotary positions in both forms: a reader of one alone gets it right."""
    if config.dim % config.num_heads:
        raise UserError(
            f"config.model.dim={config.dim}: LlamaForCausalLM wants a multiple of "
            f"config.model.num_heads={config.num_heads}."
        )
    kind = {ours: theirs for theirs, ours in SCALINGS.items()}[config.rope_scaling]
    needs = ROPE[config.rope_scaling]
    scaling = {"rope_type": kind, **{key: getattr(config, name) for key, name in needs.items()}}
    return {
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "initializer_range": config.init_std or 0.02,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if kind == "default" else scaling,
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling},
    }


FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    prefix="model.",
    options=OPTIONS,
    ours={"norm": "rmsnorm", "positions": "rope", "gated": True, "qkv_bias": False},
    only={},
    # attention_dropout acts in training only; pretraining_tp splits products, not the mathematics.
    keys=frozenset(
        (
            "attention_bias",
            "mlp_bias",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "attention_dropout",
            "pretraining_tp",
        )
    ),
    buffers=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
    rows=rows,
    read=read,
    write=write,
)
