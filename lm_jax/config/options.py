"""The options of a run: every field, its default and its facts (config/field.py).

A config file returns the `ml_collections.ConfigDict` of `new()` with its own numbers set; the
command line overrides any field; `Config.parse` turns it into these frozen dataclasses, which the
rest of the code reads. A value of 0 or "auto" is derived, by the rule that stands beside it.
Imports no jax: a wrong field is refused in a blink.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from lm_jax.config import check
from lm_jax.config.field import execution, record, training
from lm_jax.config.model import NEURAL, ModelConfig
from lm_jax.config.values import expand_home, from_dict
from lm_jax.errors import UserError

ENDLESS = ("constant", "rsqrt")  # schedules without an end
LEARNED = ("bpe", "unigram")  # tokenizers whose pieces are learned from the text
PATHS = ("input", "store", "tokenizer")  # of config.data, in which ~ is the home folder


if TYPE_CHECKING:
    from ml_collections import ConfigDict


def rates_ignore_steps(config: Any) -> bool:
    """Whether no step's learning rate depends on config.steps: a run may then be made longer."""
    optimizer = config.optimizer
    given = optimizer.schedule in ("cosine", "linear") and optimizer.decay_steps > 0
    return (optimizer.schedule in ENDLESS or given) and config.model.architecture != "ngram"


def has_objective(*names: str) -> Callable[["LossConfig"], bool]:
    """A condition: the objective contains one of these."""
    return lambda loss: any(name in names for name, _ in check.mixture(loss.objective))


def uses_optimizer(*names: str) -> Callable[["OptimizerConfig"], bool]:
    """A condition: the optimizer is one of these."""
    return lambda optimizer: optimizer.name in names


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text and how it becomes windows of tokens."""

    # file, folder, glob, `stdlib` or `tfds:NAME`, prepared when `store` is absent
    input: str = training("", resume=True)
    store: str = training("", resume=True)  # token store; "": <workdir>/data
    # what `input` trains, or the directory of an existing one, ours or of Hugging Face: ./DIR
    tokenizer: str = training("bpe", choices=("bpe", "unigram", "bytes"), or_path=True)
    # pieces of the tokenizer that `input` trains: for Chinese and other scripts without spaces
    # about four a character, 16384 or more
    vocab_size: int = training(4096, low=1, high=2**24, when=lambda d: d.tokenizer in LEARNED)
    text_field: str = training("text")  # of JSON lines and tfds records
    heldout_fraction: float = training(0.02, low=0, below=1)  # of the documents, for evaluation
    # of the input's records; above it, the input is refused
    max_bad_fraction: float = training(0.01, resume=True, low=0, high=1)
    sequence_length: int = training(256, low=1, high=2**30)  # tokens a window, targets aside
    packed: bool = training(True)  # documents that share a window do not see each other
    shifted: bool = training(False)  # causal: in each epoch, windows begin elsewhere in the text
    carry: bool = training(False)  # recurrent: windows follow each other, and the state goes on
    # processes that read ahead; batches are the same for any number
    workers: int = execution(0, low=0, high=4096)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Options of the objective and the loss."""

    objective: str = training("causal")  # or a mixture by weight: "span_corruption:3,causal:1"
    # of the tokens: masked (mlm, bert, sop) or in spans
    mask_rate: float = training(
        0.15, above=0, below=1, when=has_objective("mlm", "bert", "sop", "span_corruption")
    )
    # mlm: all pieces of a word or none
    whole_word: bool = training(False, when=has_objective("mlm", "bert", "sop"))
    # tokens of a span (T5, arXiv:1910.10683)
    mean_span: float = training(3.0, low=1, when=has_objective("span_corruption"))
    # of the documents that are cut for infilling (arXiv:2207.14255)
    fim_rate: float = training(0.5, low=0, high=1, when=has_objective("fim"))
    # of these, in the order suffix, prefix, middle
    spm_rate: float = training(0.5, low=0, high=1, when=has_objective("fim"))
    balance_loss: float = training(0.01, low=0)  # times the load-balance loss of the experts
    router_z_loss: float = training(0.001, low=0)  # times log(Z)^2 of the router
    # share of the uniform distribution in a target (2017: 0.1)
    label_smoothing: float = training(0.0, low=0, below=1, of=NEURAL)
    z_loss: float = training(0.0, low=0, of=NEURAL)  # times log(Z)^2 (PaLM, section 5)
    # positions whose logits exist at once; 0: 256 MiB of them a device
    chunk_size: int = execution(0, low=0, of=NEURAL)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Decoupled decay off norms and biases, clipping by global norm, and the schedule."""

    # muon; lion; adafactor, whose rate is relative to a weight's size
    name: str = training("adamw", choices=("adamw", "adafactor", "lion", "muon"))
    # at the peak; muon: of the weights that are not matrices
    learning_rate: float = training(1e-3, low=0)
    # of the matrices of the blocks, when name is muon
    muon_learning_rate: float = training(0.02, low=0, when=uses_optimizer("muon"))
    # adafactor has none of these three, and lion no eps
    b1: float = training(0.9, low=0, below=1, when=uses_optimizer("adamw", "lion", "muon"))
    b2: float = training(0.95, low=0, below=1, when=uses_optimizer("adamw", "lion", "muon"))
    eps: float = training(1e-8, low=0, high=1, when=uses_optimizer("adamw", "muon"))
    # over mesh.data too (ZeRO-1): less memory, one more gather a step
    shard_state: bool = execution(False)
    weight_decay: float = training(0.1, low=0)
    clip_norm: float = training(1.0, low=0)  # 0: off
    schedule: str = training("cosine", choices=("cosine", "linear", "wsd", "rsqrt", "constant"))
    warmup_steps: int = training(100, low=0)
    # cosine, linear: to the end of the run when 0; wsd: the last fifth of it when 0; rsqrt: from
    # this step on, or from the warm-up on when 0
    decay_steps: int = training(0, low=0, when=lambda o: o.schedule != "constant")
    # of the learning rate, at the end
    end_fraction: float = training(0.1, low=0, high=1, when=lambda o: o.schedule not in ENDLESS)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each axis of the mesh; -1 (one axis at most) takes those that are
    left.
    """

    slice: int = execution(1, low=-1)  # the batch, over the network between slices or hosts
    stage: int = execution(1, low=-1)  # the layers, as a pipeline; before and after them, the batch
    data: int = execution(-1, low=-1)  # the batch
    fsdp: int = execution(1, low=-1)  # the batch, and the parameters and optimizer state
    expert: int = execution(1, low=-1)  # the batch, and the experts
    context: int = execution(1, low=-1)  # the tokens of a row
    tensor: int = execution(1, low=-1)  # heads, feed-forward width and vocabulary


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Options of evaluation while training."""

    every: int = record(250, low=0)  # steps; 0: at the end only
    tokens: int = record(65_536, low=1)  # of held-out text each time
    samples: int = record(1, low=0)  # texts written each time
    sample_tokens: int = record(64, low=0, when=lambda e: e.samples > 0)
    prompt: str = record("")
    baselines: bool = record(False)  # xz and Kneser-Ney 5-grams beside the model in the report


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and how much of it is kept."""

    every: int = record(250, low=1)  # steps
    keep: int = record(3, low=1)  # newest steps
    keep_every: int = record(0, low=0)  # steps that are kept for good; 0: none


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a run that finishes no step is taken for stuck, and ended to be started again."""

    times: float = record(20.0, low=0)  # the median step; 0: no watchdog
    # seconds, however fast the steps are
    least: float = record(120.0, low=0, when=lambda w: w.times > 0)
    # seconds of a save, an evaluation, or the first steps, with compilation
    pause: float = record(3600.0, low=1, when=lambda w: w.times > 0)


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    name: str = record("run")
    seed: int = training(0, low=0, high=2**32 - 1)
    # a finished run goes on when it is larger
    steps: int = training(1000, low=1, resume=rates_ignore_steps)
    batch_size: int = training(32, low=1)  # sequences a step, over all devices
    # parts in which a step computes its batch, one after the other
    microbatches: int = execution(1, low=1)
    log_every: int = record(10, low=1)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watchdog: WatchdogConfig = WatchdogConfig()

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of one step, before masking."""
        return self.batch_size * self.data.sequence_length

    @classmethod
    def parse(cls, values: "Mapping[str, object] | ConfigDict") -> "Config":
        """From a ConfigDict or nested dict; raises UserError naming field, value, right choice."""
        plain: Any = values.to_dict() if hasattr(values, "to_dict") else values
        config = from_dict(cls, dict(plain) if isinstance(plain, Mapping) else plain)
        paths = {name: expand_home(getattr(config.data, name)) for name in PATHS}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **paths))
        check.check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, what `parse` takes and a checkpoint stores."""
        return dataclasses.asdict(self)


def from_model(
    model: ModelConfig, sequence_length: int, name: str = "run", mesh: MeshConfig | None = None
) -> Config:
    """The config of a model that no run here has made, with an objective that it can have."""
    objective = check.OBJECTIVES[model.architecture][0]
    return Config(name, model=model, data=DataConfig(sequence_length=sequence_length),
                  loss=LossConfig(objective), mesh=mesh or MeshConfig())  # fmt: skip


def sized(name: str, size: str, fields: str, sizes: dict[str, tuple]) -> "ConfigDict":
    """`new`, named name_size, with the row `size` of a table in its `fields` ("steps model.dim").

    Raises UserError for a size that is not in the table.
    """
    need_variant(name, size, sizes, "size")
    config = new()
    config.update_from_flattened_dict(dict(zip(fields.split(), sizes[size], strict=True)))
    config.name = f"{name}_{size}"
    return config


def need_variant(name: str, variant: str, variants: Collection[str], what: str = "variant") -> None:
    """Raises UserError for a variant, of those in `variants`, that a config file does not have."""
    if variant not in variants:
        raise UserError(f"{name}: no {what} {variant!r}. Allowed: {', '.join(variants)}.")


def new() -> "ConfigDict":
    """A ConfigDict of every field at its default, for a config file to set its numbers in."""
    from ml_collections import ConfigDict

    return ConfigDict(Config().to_dict())
