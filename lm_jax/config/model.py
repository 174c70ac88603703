"""The options of a model, with their facts (config/field.py)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from lm_jax.config.field import execution, logits, training

TRANSFORMERS = ("decoder", "encoder", "encoder_decoder")
RECURRENT = ("rnn", "lstm", "gru")
NEURAL = (*TRANSFORMERS, *RECURRENT)  # networks with layers, a residual stream and a head
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "output_dropout")  # rates
ARCHITECTURES = (*NEURAL, "hmm", "ngram")


def rotary(model: "ModelConfig") -> bool:
    """Whether queries and keys are rotated."""
    return model.positions == "rope"


def scaled(*kinds: str) -> Callable[["ModelConfig"], bool]:
    """A condition: rotary positions are scaled in one of these ways."""
    return lambda model: rotary(model) and model.rope_scaling in kinds


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Options of a model. The defaults are a small Llama; configs/ has the other families."""

    # encoder, encoder_decoder; rnn, lstm, gru; hmm; ngram
    architecture: str = logits("decoder", choices=ARCHITECTURES)
    # at least the tokenizer's size; a multiple of 128 is fastest
    vocab_size: int = logits(4096, low=1, high=2**24)
    # of the decoder, or of the only stack
    num_layers: int = logits(4, low=1, high=2**16, of=NEURAL)
    # of the encoder of an encoder_decoder; 0: num_layers
    encoder_layers: int = logits(0, low=0, high=2**16, of=("encoder_decoder",))
    dim: int = logits(256, low=1, high=2**20, of=(*NEURAL, "hmm"))  # width of the residual stream
    num_heads: int = logits(4, low=1, high=2**16, of=TRANSFORMERS)  # query heads
    # key and value heads, a divisor of num_heads; 0: num_heads
    num_kv_heads: int = logits(0, low=0, high=2**16, of=TRANSFORMERS)
    # of queries and keys; 0: dim / num_heads
    head_dim: int = logits(0, low=0, high=2**16, of=TRANSFORMERS)
    # of values; 0: as queries and keys
    value_dim: int = logits(0, low=0, high=2**16, of=TRANSFORMERS)
    # 0: 4 dim, or 8/3 dim rounded up to a multiple of 64 when gated
    mlp_dim: int = logits(0, low=0, high=2**24, of=TRANSFORMERS)
    max_length: int = logits(1024, low=1, high=2**30)  # the most positions that the model may see
    norm: str = logits("rmsnorm", choices=("rmsnorm", "layernorm"), of=NEURAL)
    norm_eps: float = logits(1e-5, above=0, high=1, of=NEURAL)
    # before a branch; post: after the sum (2017); sandwich: around it; output: after the
    # branch alone (OLMo 2)
    norm_order: str = logits("pre", choices=("pre", "post", "sandwich", "output"), of=TRANSFORMERS)
    # the scale is this plus a weight (Gemma: 1)
    norm_offset: float = logits(0.0, low=-10, high=10, of=NEURAL)
    final_norm: bool = logits(True, of=NEURAL)  # after the last block
    embed_norm: bool = logits(False, of=NEURAL)  # after the embeddings (BERT)
    qk_norm: bool = logits(False, of=TRANSFORMERS)  # RMSNorm of each query and key head (Qwen 3)
    # RMSNorm of a token's queries, and of its keys, together (OLMo 2)
    qk_norm_all: bool = logits(False, of=TRANSFORMERS)
    positions: str = logits(
        "rope",
        choices=("rope", "learned", "sinusoidal", "relative", "alibi", "none"),
        of=TRANSFORMERS,
    )
    # number of the first learned position (RoBERTa: 2)
    position_offset: int = logits(
        0, low=0, of=TRANSFORMERS, when=lambda m: m.positions == "learned"
    )
    rope_theta: float = logits(10_000.0, above=0, of=TRANSFORMERS, when=rotary)
    rope_scaling: str = logits(
        "none", choices=("none", "linear", "llama3", "yarn"), of=TRANSFORMERS, when=rotary
    )
    # how many times longer than the original context
    rope_factor: float = logits(
        1.0, above=0, of=TRANSFORMERS, when=scaled("linear", "llama3", "yarn")
    )
    # llama3 and yarn: the context of pretraining
    rope_original_length: int = logits(
        8192, low=1, high=2**30, of=TRANSFORMERS, when=scaled("llama3", "yarn")
    )
    # llama3: the two bounds between which it interpolates, in turns per original context
    rope_low_frequency: float = logits(1.0, above=0, of=TRANSFORMERS, when=scaled("llama3"))
    rope_high_frequency: float = logits(4.0, above=0, of=TRANSFORMERS, when=scaled("llama3"))
    # yarn: the same two bounds
    rope_beta_fast: float = logits(32.0, above=0, of=TRANSFORMERS, when=scaled("yarn"))
    rope_beta_slow: float = logits(1.0, above=0, of=TRANSFORMERS, when=scaled("yarn"))
    # yarn: of cos and sin; 0: 0.1 ln(rope_factor) + 1
    rope_attention_factor: float = logits(0.0, low=0, of=TRANSFORMERS, when=scaled("yarn"))
    # of local layers, without scaling (Gemma 3); 0: as the others
    rope_local_theta: float = logits(
        0.0, low=0, of=TRANSFORMERS, when=lambda m: rotary(m) and m.has_local_layers
    )
    # positions "relative": T5's biases
    relative_buckets: int = logits(
        32, low=1, high=2**16, of=TRANSFORMERS, when=lambda m: m.positions == "relative"
    )
    relative_distance: int = logits(
        128, low=1, of=TRANSFORMERS, when=lambda m: m.positions == "relative"
    )
    # keys that a query of a local layer attends to, its own included; 0: no limit
    window: int = logits(0, low=0, of=TRANSFORMERS)
    # l: local, g: global, repeated over the layers; needs a window
    layer_pattern: str = logits("l", of=TRANSFORMERS, when=lambda m: m.window > 0)
    attn_scale: float = logits(0.0, low=0, of=TRANSFORMERS)  # of q k; 0: head_dim ** -0.5
    # scores are cap tanh(score / cap) (Gemma 2); 0: off
    attn_softcap: float = logits(0.0, low=0, of=TRANSFORMERS)
    logit_softcap: float = logits(0.0, low=0, of=NEURAL)  # the same of the logits
    activation: str = logits(
        "silu", choices=("silu", "gelu", "gelu_tanh", "relu"), of=NEURAL,
        when=lambda m: m.architecture in TRANSFORMERS or m.head_transform,
    )  # fmt: skip
    gated: bool = logits(True, of=TRANSFORMERS)
    bias: bool = logits(False, of=NEURAL)  # on every projection and LayerNorm
    # on the query, key and value projections alone
    qkv_bias: bool = logits(False, of=TRANSFORMERS, when=lambda m: not (m.bias or m.attn_bias))
    # on the four projections of attention alone
    attn_bias: bool = logits(False, of=TRANSFORMERS, when=lambda m: not m.bias)
    # the output head; without one, a body imported from elsewhere, which has hidden states only
    head: bool = logits(True, of=NEURAL)
    tie_embeddings: bool = logits(True, of=NEURAL)
    # of the token embeddings (Gemma and the Transformer: sqrt(dim))
    embed_scale: float = logits(1.0, above=0, of=NEURAL)
    # of the input of the head (T5 1.0: dim ** -0.5)
    logit_scale: float = logits(1.0, above=0, of=NEURAL)
    # kinds of segment, each with an embedding (BERT: 2)
    token_types: int = logits(0, low=0, high=2**16, of=NEURAL)
    head_transform: bool = logits(False, of=NEURAL)  # a layer and a norm before the head (BERT)
    head_bias: bool = logits(False, of=NEURAL)
    # a layer on the first token, and two logits for pairs (BERT)
    pooler: bool = logits(False, of=("encoder",))
    # feed-forward layers that a router chooses from; 0: one, no router
    num_experts: int = logits(0, low=0, high=2**16, of=TRANSFORMERS)
    experts_per_token: int = logits(
        2, low=1, high=2**16, of=TRANSFORMERS, when=lambda m: m.num_experts > 0
    )
    # experts that see every token, beside the chosen ones
    shared_experts: int = logits(
        0, low=0, high=2**16, of=TRANSFORMERS, when=lambda m: m.num_experts > 0
    )
    # tokens an expert takes, in fair shares; 0: all (dropless)
    capacity_factor: float = logits(0.0, low=0, of=TRANSFORMERS, when=lambda m: m.num_experts > 0)
    # priority under a capacity; tokens: all choices of a token, then of the next (Switch); choices:
    # the first choices of all tokens, then the second ones (GShard)
    capacity_order: str = logits(
        "tokens",
        choices=("tokens", "choices"),
        of=TRANSFORMERS,
        when=lambda m: m.num_experts > 0 and m.capacity_factor > 0,
    )
    # first input of the decoder of an encoder_decoder: bos; pad (T5); the decoder_start_token_id of
    # a tokenizer's directory comes before both
    decoder_start: str = training("bos", choices=("bos", "pad"), of=("encoder_decoder",))
    # of an ngram, 1 to 6: tokens of its longest
    order: int = logits(5, low=1, high=6, of=("ngram",))
    # of the embeddings, and of what each branch adds
    dropout: float = training(0.0, low=0, below=1, of=NEURAL)
    # of the attention probabilities (BERT, T5); on xla alone
    attention_dropout: float = training(0.0, low=0, below=1, of=TRANSFORMERS)
    # inside the feed-forward layer, after its activation (T5)
    activation_dropout: float = training(
        0.0, low=0, below=1, of=TRANSFORMERS, when=lambda m: m.num_experts == 0
    )
    # of the output of a stack, after its last norm (T5)
    output_dropout: float = training(0.0, low=0, below=1, of=TRANSFORMERS)
    # standard deviation of new weights; 0: by the sizes of each, see init_fan (T5)
    init_std: float = training(0.02, low=0, of=NEURAL)
    # init_std 0: fan_in ** -0.5; average: (2 / (fan_in + fan_out)) ** 0.5
    init_fan: str = training(
        "in", choices=("in", "average"), of=NEURAL, when=lambda m: m.init_std == 0
    )
    # the last projection of a residual branch is born / sqrt(2 layers) (GPT-2)
    init_depth_scaling: bool = training(True, of=NEURAL)
    # of the token embeddings (T5: 1); 0: init_std, or 0.02
    embed_init_std: float = training(0.0, low=0, of=NEURAL)
    # the last projection of a residual branch is born at 0: a block starts as the identity
    zero_init: bool = training(False, of=TRANSFORMERS)
    # along mesh.context: gather all keys, or pass them round a ring
    context_attention: str = execution("gather", choices=("gather", "ring"), of=TRANSFORMERS)
    # auto: splash on TPU, cudnn on GPU; xla elsewhere and where these cannot
    attention: str = execution("auto", choices=("auto", "xla", "splash", "cudnn"), of=TRANSFORMERS)
    # of the computation: bfloat16, on CPU float32; parameters are float32
    dtype: str = execution("auto", resume=False, choices=("auto", "float32", "bfloat16"), of=NEURAL)
    # Of products of float32 in training, as jax.default_matmul_precision has it: default, bfloat16,
    # float32; auto: bfloat16 on a CPU with AMX, which is faster, and default elsewhere.
    matmul_precision: str = execution(
        "default", resume=False, choices=("default", "auto", "bfloat16", "float32"), of=NEURAL
    )
    # What the backward pass recomputes: none; dots: all but products with weights and the output of
    # attention; names: these products too, but for queries, keys and values; full: all;
    # offload: all, with the inputs of the layers kept in host memory.
    remat: str = execution(
        "none", choices=("none", "full", "dots", "names", "offload"), of=TRANSFORMERS
    )
    # layers a scan step; num_layers: no loop at all
    scan_unroll: int = execution(1, low=1, of=TRANSFORMERS)
    # Training with products in eight bits (Qwix): none; int8, fp8: those of states and weights;
    # int8_full, fp8_full: also those of gradients and weights.
    quantization: str = execution(
        "none",
        resume=False,
        choices=("none", "int8", "int8_full", "fp8", "fp8_full"),
        of=TRANSFORMERS,
    )
    # which weights', of these
    quantized: str = execution(
        "attn,mlp,experts", resume=False, of=TRANSFORMERS, when=lambda m: m.quantization != "none"
    )
    # Parts of a batch that follow each other through the stages of mesh.stage: so many, or the
    # next lower number that divides it. More wait less, and fewer rows are multiplied at once.
    pipeline_parts: int = execution(0, low=0, of=TRANSFORMERS)  # 0: 4 a stage, over all rounds
    # How often each part goes round through the stages, with so many times fewer layers each time:
    # stages wait that much less for the first part, and send that much more.
    pipeline_rounds: int = execution(1, low=1, high=2**16, of=TRANSFORMERS)

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
        """Letters of one period of layers: l attends to near tokens, g to all."""
        return self.layer_pattern if self.window else "g"

    @property
    def has_local_layers(self) -> bool:
        """Whether any layer sees near tokens alone."""
        letters = self.kinds * self.num_layers
        return "l" in letters[: self.num_layers]

    def bits(self, kind: str) -> str:
        """Precision of the products of one kind of `quantized`."""
        return self.quantization if kind in self.quantized.split(",") else "none"

    @property
    def has_dropout(self) -> bool:
        """Whether a training step draws random numbers."""
        return any(getattr(self, name) for name in DROPOUTS)

    def without_dropout(self) -> "ModelConfig":
        """The same model with no dropout anywhere, as outside of training."""
        none: dict[str, Any] = dict.fromkeys(DROPOUTS, 0.0)
        return dataclasses.replace(self, **none)

    @property
    def mlp_size(self) -> int:
        """Width of the feed-forward layer."""
        if self.mlp_dim:
            return self.mlp_dim
        return 64 * math.ceil(self.dim * 8 / 3 / 64) if self.gated else 4 * self.dim
