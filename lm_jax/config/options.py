"""What is a run made of? Every option, its default, and the checks that refuse a wrong one.

A config file returns the `ml_collections.ConfigDict` of `new()` with its own numbers set; the
command line overrides any field; `Config.parse` turns it into these frozen dataclasses, which the
rest of the code reads. A value of 0 or "auto" is derived, by the rule that stands beside it.
Imports no jax: a wrong field is refused in a blink.
"""

import dataclasses
import math
from typing import Any

from lm_jax.config import check
from lm_jax.config.values import expand_home, from_dict
from lm_jax.errors import UserError, nearest

PATHS = ("input", "store", "tokenizer")  # of config.data, in which ~ is the home folder


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The model. The defaults are a small Llama; configs/ has the other families."""

    architecture: str = "decoder"  # encoder, encoder_decoder; rnn, lstm, gru; hmm; ngram
    vocab_size: int = 4096  # at least the tokenizer's size; a multiple of 128 is fastest
    num_layers: int = 4  # of the decoder, or of the only stack
    encoder_layers: int = 0  # of the encoder of an encoder_decoder; 0: num_layers
    dim: int = 256  # width of the residual stream
    num_heads: int = 4  # query heads
    num_kv_heads: int = 0  # key and value heads, a divisor of num_heads; 0: num_heads
    head_dim: int = 0  # of queries and keys; 0: dim / num_heads
    value_dim: int = 0  # of values; 0: as queries and keys
    mlp_dim: int = 0  # 0: 4 dim, or 8/3 dim rounded up to a multiple of 64 when gated
    max_length: int = 1024  # the most positions that the model may see
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_order: str = "pre"  # before a branch; post: after the sum (2017); sandwich: around it;
    # output: after the branch alone (OLMo 2)
    norm_offset: float = 0.0  # the scale is this plus a weight (Gemma: 1)
    final_norm: bool = True  # after the last block
    embed_norm: bool = False  # after the embeddings (BERT)
    qk_norm: bool = False  # RMSNorm of each query and key head (Qwen 3)
    qk_norm_all: bool = False  # RMSNorm of a token's queries, and of its keys, together (OLMo 2)
    positions: str = "rope"
    position_offset: int = 0  # number of the first learned position (RoBERTa: 2)
    rope_theta: float = 10_000.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0  # how many times longer than the original context
    rope_original_length: int = 8192  # llama3 and yarn: the context of pretraining
    rope_low_frequency: float = 1.0  # llama3: the two bounds between which it interpolates,
    rope_high_frequency: float = 4.0  # in turns per original context
    rope_beta_fast: float = 32.0  # yarn: the same two bounds
    rope_beta_slow: float = 1.0
    rope_attention_factor: float = 0.0  # yarn: of cos and sin; 0: 0.1 ln(rope_factor) + 1
    rope_local_theta: float = 0.0  # of local layers, without scaling (Gemma 3); 0: as the others
    relative_buckets: int = 32  # positions "relative": T5's biases
    relative_distance: int = 128
    window: int = 0  # keys that a query of a local layer sees, itself among them; 0: no limit
    layer_pattern: str = "l"  # l: local, g: global, repeated over the layers; needs a window
    attn_scale: float = 0.0  # of q k; 0: head_dim ** -0.5
    attn_softcap: float = 0.0  # scores are cap tanh(score / cap) (Gemma 2); 0: off
    logit_softcap: float = 0.0  # the same of the logits
    activation: str = "silu"
    gated: bool = True
    bias: bool = False  # on every projection and LayerNorm
    qkv_bias: bool = False  # on the query, key and value projections alone
    tie_embeddings: bool = True
    embed_scale: float = 1.0  # of the token embeddings (Gemma and the Transformer: sqrt(dim))
    logit_scale: float = 1.0  # of what the head reads (T5 1.0: dim ** -0.5)
    token_types: int = 0  # kinds of segment that an encoder tells apart (BERT: 2)
    head_transform: bool = False  # a layer and a norm before the head (BERT)
    head_bias: bool = False
    pooler: bool = False  # a layer on the first token, and two logits for pairs (BERT)
    num_experts: int = 0  # feed-forward layers that a router chooses from; 0: one, no router
    experts_per_token: int = 2
    shared_experts: int = 0  # experts that see every token, beside the chosen ones
    capacity_factor: float = 0.0  # tokens an expert takes, in fair shares; 0: all (dropless)
    order: int = 5  # of an ngram, 1 to 6: tokens of its longest
    dropout: float = 0.0
    # Standard deviation of new weights. 0: by the sizes of each (see init_fan); T5 is such.
    init_std: float = 0.02
    init_fan: str = "in"  # init_std 0: fan_in ** -0.5; average: (2 / (fan_in + fan_out)) ** 0.5
    init_depth_scaling: bool = True  # what ends a residual branch: / sqrt(2 layers) (GPT-2)
    embed_init_std: float = 0.0  # of the token embeddings (T5: 1); 0: init_std, or 0.02
    zero_init: bool = False  # what ends a residual branch starts at 0: a block starts as nothing
    context_attention: str = "gather"  # of devices that share rows: ring sends keys round
    attention: str = "auto"  # splash on TPU, cudnn on GPU, xla elsewhere and where it must be
    dtype: str = "auto"  # of the computation: bfloat16, on CPU float32; parameters are float32
    # Of products of float32 in training, as jax.default_matmul_precision has it: default, bfloat16,
    # float32; auto: bfloat16 on a CPU with AMX, which is faster, and default elsewhere.
    matmul_precision: str = "default"
    # What is computed again for the way back: none; dots: all but products with weights and what
    # attention says; names: also products, but those of queries, keys and values; full: all;
    # offload: all, and what each layer reads waits in the memory of the host.
    remat: str = "none"
    scan_unroll: int = 1  # layers a scan step; num_layers: no loop at all
    # Training with products in eight bits (Qwix): none; int8, fp8: those of states and weights;
    # int8_full, fp8_full: also those of gradients and weights.
    quantization: str = "none"
    quantized: str = "attn,mlp,experts"  # which weights', of these
    # Parts of a batch that follow each other through the stages of mesh.stage: so many, or the
    # next lower number that divides it. More wait less, and fewer rows are multiplied at once.
    pipeline_parts: int = 0  # 0: 4 a stage, over all rounds
    # How often each part goes round through the stages, with so many times fewer layers each time:
    # stages wait that much less for the first part, and send that much more.
    pipeline_rounds: int = 1

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        """Size of one head."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def value_size(self) -> int:
        """Size of one value head."""
        return self.value_dim or self.head_size

    @property
    def kinds(self) -> str:
        """What its layers see, by the letters of one period: l near tokens, g all."""
        return self.layer_pattern if self.window else "g"

    def bits(self, kind: str) -> str:
        """How the products of one kind of `quantized` are done."""
        return self.quantization if kind in self.quantized.split(",") else "none"

    @property
    def mlp_size(self) -> int:
        """Width of the feed-forward layer."""
        if self.mlp_dim:
            return self.mlp_dim
        return 64 * math.ceil(self.dim * 8 / 3 / 64) if self.gated else 4 * self.dim


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text and how it becomes windows of tokens."""

    input: str = ""  # file, folder, glob, `stdlib` or `tfds:NAME`, prepared when `store` is absent
    store: str = ""  # token store; "": <workdir>/data
    tokenizer: str = "bpe"
    vocab_size: int = 4096  # pieces of the tokenizer that `input` trains
    text_field: str = "text"  # of JSON lines and tfds records
    heldout_fraction: float = 0.02  # of the documents, for evaluation
    max_bad_fraction: float = 0.01  # of the input's records; above it, the input is refused
    sequence_length: int = 256  # tokens a window, targets aside
    packed: bool = True  # documents that share a window do not see each other
    shifted: bool = False  # causal: in each epoch, windows begin elsewhere in the text
    carry: bool = False  # recurrent: windows follow each other, and the state goes on
    workers: int = 0  # processes that read ahead; batches are the same for any number


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    objective: str = "causal"  # or a mixture by weight: "span_corruption:3,causal:1"
    mask_rate: float = 0.15  # of the tokens: masked (mlm, bert, sop) or in spans
    whole_word: bool = False  # mlm: all pieces of a word or none
    mean_span: float = 3.0  # tokens of a span (T5, arXiv:1910.10683)
    fim_rate: float = 0.5  # of the documents that are cut for infilling (arXiv:2207.14255)
    spm_rate: float = 0.5  # of these, in the order suffix, prefix, middle
    balance_loss: float = 0.01  # times the load-balance loss of the experts
    router_z_loss: float = 0.001  # times log(Z)^2 of the router
    label_smoothing: float = 0.0  # share of the uniform distribution in a target (2017: 0.1)
    z_loss: float = 0.0  # times log(Z)^2 (PaLM, section 5)
    chunk_size: int = 0  # positions whose logits exist at once; 0: 256 MiB of them a device


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Decoupled decay off norms and biases, clipping by global norm, and the schedule."""

    name: str = "adamw"  # muon; lion; adafactor, whose rate is relative to a weight's size
    learning_rate: float = 1e-3  # at the peak; muon: of the weights that are not matrices
    muon_learning_rate: float = 0.02  # of the matrices of the blocks, when name is muon
    b1: float = 0.9  # adafactor has none of these three, and lion no eps
    b2: float = 0.95
    eps: float = 1e-8
    shard_state: bool = False  # over mesh.data too (ZeRO-1): less memory, one more gather a step
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # 0: off
    schedule: str = "cosine"
    warmup_steps: int = 100
    decay_steps: int = 0  # cosine, linear: to the run's end when 0; wsd: the last fifth of it
    # when 0; rsqrt: from this step on, or from the warm-up on when 0
    end_fraction: float = 0.1  # of the learning rate, at the end


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices share what; -1 (one axis at most) takes those that are left."""

    slice: int = 1  # the batch, over the network between slices or hosts
    stage: int = 1  # the layers, as a pipeline; before and after them, the batch
    data: int = -1  # the batch
    fsdp: int = 1  # the batch, and the parameters and optimizer state
    expert: int = 1  # the batch, and the experts
    context: int = 1  # the tokens of a row
    tensor: int = 1  # heads, feed-forward width and vocabulary


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is looked at while training."""

    every: int = 250  # steps; 0: at the end only
    tokens: int = 65_536  # of held-out text each time
    samples: int = 1  # texts written each time
    sample_tokens: int = 64
    prompt: str = ""
    baselines: bool = False  # xz and Kneser-Ney 5-grams beside the model in the report


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved and how much of it is kept."""

    every: int = 250  # steps
    keep: int = 3  # newest steps
    keep_every: int = 0  # steps that are kept for good; 0: none


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a run that finishes no step is taken for stuck, and ended to be started again."""

    times: float = 20.0  # the median step; 0: no watchdog
    least: float = 120.0  # seconds, however fast the steps are
    pause: float = 3600.0  # seconds of a save, an evaluation, or the first steps, with compilation


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "run"
    seed: int = 0
    steps: int = 1000
    batch_size: int = 32  # sequences a step, over all devices
    microbatches: int = 1  # parts in which a step computes its batch, one after the other
    log_every: int = 10
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
    def parse(cls, values: Any) -> "Config":
        """From a ConfigDict or nested dict; raises UserError naming field, value, right choice."""
        config = from_dict(cls, values.to_dict() if hasattr(values, "to_dict") else values)
        paths = {name: expand_home(getattr(config.data, name)) for name in PATHS}
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, **paths))
        check.check(config)
        return config

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict, what `parse` takes and a checkpoint stores."""
        return dataclasses.asdict(self)


def from_model(model: ModelConfig, sequence_length: int, name: str = "run", **more: Any) -> Config:
    """The config of a model that no run here has made, with an objective that it can have."""
    objective = check.OBJECTIVES[model.architecture][0]
    return Config(name, model=model, data=DataConfig(sequence_length=sequence_length),
                  loss=LossConfig(objective), **more)  # fmt: skip


def sized(name: str, size: str, fields: str, sizes: dict[str, tuple]) -> Any:
    """`new`, named name_size, with the row `size` of a table in its `fields` ("steps model.dim").

    Raises UserError for a size that is not in the table.
    """
    if size not in sizes:
        raise UserError(f"{name}: no size {size!r}.{nearest(size, sizes)}")
    config = new()
    config.update_from_flattened_dict(dict(zip(fields.split(), sizes[size], strict=True)))
    config.name = f"{name}_{size}"
    return config


def new() -> Any:
    """A ConfigDict of every field at its default, for a config file to set its numbers in."""
    from ml_collections import ConfigDict

    return ConfigDict(Config().to_dict())
