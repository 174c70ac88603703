"""Rotary positions in a config.json of `transformers`, in both of its forms."""

from collections.abc import Mapping
from typing import Any

from lm_jax.config import ModelConfig
from lm_jax.convert.keys import words
from lm_jax.convert.values import chosen, short, sized
from lm_jax.errors import UserError, nearest

LENGTH = "original_max_position_embeddings"
KEYS = ("rope_theta", "rope_scaling", "rope_parameters", LENGTH)
SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
ORIGINAL = {"factor": "rope_factor", LENGTH: "rope_original_length"}
NEEDS = {  # required keys of each scaling, and our fields
    "none": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        **ORIGINAL,
        "low_freq_factor": "rope_low_frequency",
        "high_freq_factor": "rope_high_frequency",
    },
    "yarn": ORIGINAL,
}
OPTIONAL = {  # optional keys of each scaling; null is our default
    "yarn": {
        "beta_fast": "rope_beta_fast",
        "beta_slow": "rope_beta_slow",
        "attention_factor": "rope_attention_factor",
    }
}
READ = words(  # by transformers; those that are not above must be without effect
    "attention_factor beta_fast beta_slow factor high_freq_factor long_factor low_freq_factor "
    "mscale mscale_all_dim original_max_position_embeddings partial_rotary_factor short_factor "
    "truncate"
)
NAMED = frozenset(("rope_theta", "rope_type", "type", *READ))
WITHOUT_EFFECT = (("partial_rotary_factor", 1.0), ("truncate", True))


def read(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Our fields of `rope_parameters` (transformers 5), or of `rope_theta` and `rope_scaling`.

    Raises UserError on a scaling that is not known or not complete, and on forms that differ.
    """
    forms = [read_form(values, key, where) for key in ("rope_parameters", "rope_scaling")]
    forms = [form for form in forms if form]
    if len(forms) == 2 and forms[0] != forms[1]:
        raise UserError(
            f"{where}: rope_scaling={short(values['rope_scaling'])}: differs from rope_parameters."
        )
    theta = values.get("rope_theta")
    plain = {} if theta is None else {"rope_theta": base(theta, f"{where}: rope_theta")}
    return {**plain, **(forms[0] if forms else {})}


def base(value: Any, where: str) -> float:
    """A base of the rotary frequencies, above 0."""
    if not sized(value, float, where) > 0:
        raise UserError(f"{where}={short(value)}: must be above 0.")
    return float(value)


def with_length(given: dict[str, Any], values: dict[str, Any], where: str) -> dict[str, Any]:
    """A scaling with its original length, which may be a key beside it, or the model's own."""
    beside = values.get(LENGTH)
    if beside is not None and given.get(LENGTH, beside) != beside:
        raise UserError(f"{where}: {LENGTH}={short(beside)}: differs from {short(given[LENGTH])}.")
    found = values.get("max_position_embeddings") if beside is None else beside
    return given if found is None else {LENGTH: found, **given}


def read_form(values: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    """Our fields of one of the two forms; {} where config.json lacks it."""
    given = values.get(key)
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UserError(f"{where}: {key}={short(given)}: expected a group of fields.")
    kind = given.get("rope_type", given.get("type", "default"))
    scaling = chosen(SCALINGS, kind, f"{where}: {key}.rope_type")
    may = OPTIONAL.get(scaling, {})
    given = with_length(given, values, where) if LENGTH in NEEDS[scaling] else given
    wanted = {**NEEDS[scaling], **may, "rope_theta": "rope_theta"}
    found: dict[str, Any] = {"rope_scaling": scaling}
    for name, value in given.items():
        if name in may and value is None:
            continue
        if name in wanted:
            hint = int if wanted[name] == "rope_original_length" else float
            found[wanted[name]] = sized(value, hint, f"{where}: {key}.{name}")
        elif (name, value) not in WITHOUT_EFFECT and name in READ:
            raise UserError(
                f"{where}: {key}.{name[:100]}={short(value)}: not supported with "
                f"rope_type={kind!r}.{nearest(name[:100], wanted)}"
            )
    if "rope_theta" not in given and values.get("rope_theta") is not None:
        found["rope_theta"] = base(values["rope_theta"], f"{where}: rope_theta")
    for name in NEEDS[scaling]:
        if name not in given:
            raise UserError(f"{where}: {key}.{name}: is missing, rope_type={kind!r} needs it.")
    for name, ours in wanted.items():
        if not found.get(ours, 1) > 0:
            raise UserError(f"{where}: {key}.{name}={given[name]!r}: must be above 0.")
    return found


def unread(values: Mapping[str, Any]) -> list[str]:
    """The keys within a rotary scaling that `transformers` does not read."""
    groups = {key: values.get(key) for key in ("rope_scaling", "rope_parameters")}
    return [
        f"{key}.{name}"
        for key, group in groups.items()
        if isinstance(group, dict)
        for name, value in group.items()
        if name not in NAMED and not isinstance(value, dict)
    ]


def write(config: ModelConfig) -> dict[str, Any]:
    """Both forms, for readers that know one of them."""
    form = parameters(config)
    scaling = {key: value for key, value in form.items() if key != "rope_theta"}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling == "none" else scaling,
        "rope_parameters": form,
    }


def parameters(config: ModelConfig) -> dict[str, Any]:
    """The form of transformers 5."""
    kind = next(theirs for theirs, ours in SCALINGS.items() if ours == config.rope_scaling)
    fields = {**NEEDS[config.rope_scaling], **OPTIONAL.get(config.rope_scaling, {})}
    values = {key: getattr(config, name) for key, name in fields.items()}
    if values.get("attention_factor") == 0:
        del values["attention_factor"]
    return {"rope_theta": config.rope_theta, "rope_type": kind, **values}
