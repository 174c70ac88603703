"""The cost of a model from its options: matrix parameters, FLOPs for each token."""

from lm_jax.config import ModelConfig

GATES = {"rnn": 1, "lstm": 4, "gru": 3}  # matrices of input and state that a layer has


def matmul_parameters(config: ModelConfig) -> int:
    """Weights that multiply a token: projections, router, the experts that it is routed to, and the
    head; not the embedding lookup. For an encoder_decoder: a token of each side.
    """
    D, E = config.dim, config.num_experts
    if config.architecture in GATES:
        return config.num_layers * GATES[config.architecture] * 2 * D * D + D * config.vocab_size
    if config.architecture == "hmm":
        return D * D + D * config.vocab_size
    attention = D * (config.head_size + config.value_size) * (config.num_heads + config.kv_heads)
    experts = config.experts_per_token + config.shared_experts if E else 1
    mlp = D * config.mlp_size * (3 if config.gated else 2) * experts + D * E
    encoder, decoder, attentions = depths(config)
    return attentions * attention + (encoder + decoder) * mlp + D * config.vocab_size


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Training FLOPs a token, 6 N + 12 L d T: the "full" convention of PaLM and nanoGPT, in which
    the causal mask saves nothing.

    For an encoder_decoder: a token of the decoder and one of the encoder, as if both sides had
    `length` of them; the cross-attention of the decoder attends to the latter.
    """
    if config.architecture in (*GATES, "hmm"):
        return 6.0 * matmul_parameters(config)
    heads = config.num_heads * (config.head_size + config.value_size)
    return 6.0 * matmul_parameters(config) + 6 * depths(config)[2] * heads * length


def depths(config: ModelConfig) -> tuple[int, int, int]:
    """(layers of an encoder before the decoder, of the decoder or only stack, attentions in all)"""
    layers = config.num_layers
    if config.architecture != "encoder_decoder":
        return 0, layers, layers
    encoder = config.encoder_layers or layers
    return encoder, layers, encoder + 2 * layers
