"""Descriptions of model families: options and tensors of Hugging Face, read in both directions."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from lm_jax.config import MeshConfig, ModelConfig, from_model
from lm_jax.config.check import check
from lm_jax.config.cost import depths
from lm_jax.config.field import facts_of, idle
from lm_jax.config.values import differences
from lm_jax.convert.keys import ANYWHERE, NO_EFFECT, ONLY, harmless, renamed
from lm_jax.convert.pattern import MAX_LAYERS, repeated, shortest
from lm_jax.convert.rows import Row
from lm_jax.convert.safetensors_file import MAX_TENSORS, Tensor
from lm_jax.convert.values import chosen, same, short, sized
from lm_jax.errors import UserError

REQUIRED = object()  # an Option that config.json must give
ACTIVATIONS = {  # theirs -> ours; of several names for one function the first is written
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """A key of config.json, our field, and what its absence means there."""

    theirs: str
    ours: str
    default: Any = REQUIRED
    names: Mapping[str, str] | None = None  # their words -> ours


class LacksOptions(UserError):
    """A family does not have `count` options of a model."""

    def __init__(self, why: str, count: int):
        super().__init__(why)
        self.count = count


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of `transformers`: the mapping of its config.json and tensors to ours.

    ours: our options that the family fixes; another value cannot be exported as it.
    only: their options of which one value is supported.
    keys, read, write: the keys that no Option covers, also those without effect on the logits.
    aliases: other names under which transformers takes a key.
    head: pattern of the beginning of the names of the output head's tensors.
    nested: keys within a group of keys that `transformers` does not read, as group.name.
    buffers: pattern of tensors that files may hold and that the model does not use.
    older: (pattern, replacement): other names under which files hold a tensor.
    copies: their tensors that files may hold a second time, and ours that they must equal.
    fit: completes the options by the tensors of the files, where config.json leaves them open.
    zeros: flags of ours that the family always has; a model without is written with weights of 0.
    heads_divide: config.dim must be a multiple of the number of heads.
    depth_scaling: config.model.init_depth_scaling, which config.json cannot express.
    """

    model_type: str
    architecture: str
    prefix: str
    options: tuple[Option, ...]
    ours: Mapping[str, Any]
    only: Mapping[str, Any]
    keys: frozenset[str]
    buffers: str
    rows: Callable[[ModelConfig], list[Row]]
    read: Callable[[dict[str, Any], str], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
    older: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = (("lm_head.weight", "embed/tokens"),)
    fit: Callable[[ModelConfig, Mapping[str, Tensor]], ModelConfig] = lambda config, found: config
    zeros: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    nested: Callable[[Mapping[str, Any]], list[str]] = lambda values: []
    head: str = r"lm_head\.|cls\."
    heads_divide: bool = False
    depth_scaling: bool = False

    def completed(self, config: ModelConfig) -> ModelConfig:
        """The options of the same model in this family: with the weights of `zeros`."""
        flags: dict[str, Any] = dict.fromkeys(self.zeros, True)
        return dataclasses.replace(config, **flags)

    def table(self, config: ModelConfig) -> list[Row]:
        """The rows of a model; of a body, without those of the head."""
        return [row for row in self.rows(config) if config.head or not self.of_head(row)]

    def of_head(self, row: Row) -> bool:
        """Whether a row is of the output head."""
        return re.match(self.head, row.theirs) is not None

    def read_config(self, values: dict[str, Any], where: str) -> ModelConfig:
        """Our options from their `values`; raises UserError with the key that is not supported."""
        values, only = renamed(values, self.aliases, where), {**ONLY, **self.only}
        own = self.own_keys()
        for key, value in values.items():
            if key in only and value != only[key]:
                raise UserError(
                    f"{where}: {key}={short(value)}: not supported, only {only[key]!r}."
                )
            if key in ANYWHERE and key not in own and not harmless(key, value, values):
                raise UserError(
                    f"{where}: {key}={short(value)}: not supported in a {self.model_type}: "
                    f"{ANYWHERE[key]}"
                )
        hints = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
        found = {"init_depth_scaling": self.depth_scaling, **self.ours}
        for option in self.options:
            value = values.get(option.theirs)
            if value is None and option.default is REQUIRED:
                raise UserError(f"{where}: {option.theirs}: is missing.")
            if value is None:
                found[option.ours] = option.default
            elif option.names is not None:
                found[option.ours] = chosen(option.names, value, f"{where}: {option.theirs}")
            else:
                found[option.ours] = sized(value, hints[option.ours], f"{where}: {option.theirs}")
        config = ModelConfig(**{**found, **self.read(values, where)})
        layers = max(config.num_layers, config.encoder_layers)
        if layers > MAX_LAYERS:
            raise UserError(f"{where}: {layers} layers: at most {MAX_LAYERS}.")
        if layers * config.num_experts > MAX_TENSORS:
            raise UserError(
                f"{where}: {layers} layers of {config.num_experts} experts: at most "
                f"{MAX_TENSORS} in all."
            )
        check_model(config, where)
        return config

    def own_keys(self) -> set[str]:
        """Keys of config.json that only this family, or it in its own way, reads."""
        return {option.theirs for option in self.options} | self.only.keys() | self.keys

    def known_keys(self) -> set[str]:
        """Every key of config.json that `transformers` reads for this family, in any version."""
        return self.own_keys() | ONLY.keys() | ANYWHERE.keys() | self.aliases.keys() | NO_EFFECT

    def unread(self, values: Mapping[str, Any]) -> list[str]:
        """The keys of a config.json that `transformers` does not read for this family, sorted."""
        names = (key for key in values.keys() - self.known_keys() if not key.startswith("_"))
        return sorted([*names, *self.nested(values)])

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """Their config.json; raises UserError with the field that the family does not have."""
        if not config.head:
            raise UserError("config.model.head=False: a body without an output head; import it "
                            "with new_head=True to export it.")  # fmt: skip
        config = self.completed(config)
        differing = self.differing(config)
        for field in differing:
            self.refuse(field, getattr(config, field), self.ours[field], len(differing))
        if self.heads_divide and config.dim % config.num_heads:
            raise UserError(
                f"config.model.dim={config.dim}: {self.architecture} wants a multiple of "
                f"config.model.num_heads={config.num_heads}."
            )
        values: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": "float32",
            **self.only,
        }
        # They have one standard deviation for all weights; ours may follow from sizes (0).
        found = derived_sizes(config) | {"init_std": config.init_std or 0.02}
        for option in self.options:
            value = found.get(option.ours, getattr(config, option.ours))
            if option.names is not None:
                words = [theirs for theirs, ours in option.names.items() if ours == value]
                if not words:
                    self.refuse(option.ours, value, [*option.names])
                value = words[0]
            values[option.theirs] = value
        values |= self.write(config)
        # An option that their keys cannot express is not read back from them.
        there = self.read_config(values, self.architecture)
        lost = [row for row in differences(effective(config), effective(there))
                if not same(*row[1:])]  # fmt: skip
        for field, value, other in lost:
            self.refuse(field, value, other, len(lost))
        return values

    def differing(self, config: ModelConfig) -> list[str]:
        """Our fields whose values differ from those that the family fixes."""
        ours = self.ours.items()
        return [field for field, value in ours if not same(getattr(config, field), value)]

    def refuse(self, field: str, value: Any, has: Any, count: int = 1) -> None:
        """Raises LacksOptions: the family has no such option, and lacks `count` in all."""
        why = f"config.model.{field}={value!r}: {self.architecture} has {has!r} only."
        raise LacksOptions(why, count)

    def names(self, name: str) -> list[str]:
        """Names of a tensor in files; those of a model without a head lack the prefix."""
        known = [name, *(re.sub(pattern, other, name) for pattern, other in self.older)]
        return [x for one in known for x in (one, one.removeprefix(self.prefix))]

    def is_buffer(self, name: str) -> bool:
        """Whether a tensor is a mask or table that the options imply, or not of this model."""
        return re.fullmatch(self.buffers, name.removeprefix(self.prefix)) is not None


def derived_sizes(config: ModelConfig) -> dict[str, int]:
    """Sizes that a config may leave to be derived (0), by field."""
    return {
        "num_kv_heads": config.kv_heads,
        "head_dim": config.head_size,
        "value_dim": config.value_size,
        "mlp_dim": config.mlp_size,
        "encoder_layers": depths(config)[0],
    }


def effective(config: ModelConfig) -> ModelConfig:
    """A canonical config of the same model: derived values written out, options without effect on
    the logits at their defaults.
    """
    facts = facts_of(ModelConfig)
    free = {name for name in facts if facts[name].role != "logits"}
    free |= set(idle(config, config.architecture))
    letters = repeated(config.kinds, config.num_layers)
    free |= set() if "l" in letters else {"window"}
    plain = ModelConfig()
    derived = {
        "layer_pattern": shortest(letters) if "l" in letters else plain.layer_pattern,
        "attn_scale": config.attn_scale or config.head_size**-0.5,
        **derived_sizes(config),
    }
    return dataclasses.replace(config, **{name: getattr(plain, name) for name in free} | derived)


def check_model(config: ModelConfig, where: str, mesh: Mapping[str, int] | None = None) -> None:
    """Raises UserError when the model cannot work, or not on a mesh of these axis sizes."""
    try:
        check(from_model(config, sequence_length=1, mesh=MeshConfig(**(mesh or {}))))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
