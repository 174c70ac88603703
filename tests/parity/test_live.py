"""Do models go to `transformers` and back, live? Needs the extra: launch/test.sh --parity."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax import convert
from lm_jax.convert.mapping import effective
from lm_jax.models import ModelConfig, Transformer
from lm_jax.run.checkpoint import flatten

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]
REASON = "not installed; the parity extra has it: pip install 'lm_jax[parity]'"
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")
transformers = pytest.importorskip("transformers", reason=f"transformers is {REASON}")

from make_golden import VARIANTS, logits, padding, random_model, token_ids  # noqa: E402

GPT2 = ModelConfig(
    vocab_size=67, num_layers=2, dim=24, num_heads=3, max_length=32, norm="layernorm",
    positions="learned", activation="gelu_tanh", gated=False, bias=True,
)  # fmt: skip
LLAMA = ModelConfig(
    vocab_size=67, num_layers=3, dim=24, num_heads=6, num_kv_heads=2, max_length=48,
    tie_embeddings=False,
)  # fmt: skip
YARN = {
    "rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_length": 12, "rope_theta": 300.0,
}  # fmt: skip
GEMMA = {
    "norm_order": "sandwich", "norm_offset": 1.0, "embed_scale": 24**0.5, "attn_scale": 7**-0.5,
    "activation": "gelu_tanh",
}  # fmt: skip
OURS = {
    "gpt2": GPT2,
    "gpt2_untied_relu": ModelConfig(
        **{**vars(GPT2), "tie_embeddings": False, "activation": "relu", "mlp_dim": 40}
    ),
    "llama": LLAMA,
    "llama_tied_biases_linear": ModelConfig(
        **{**vars(LLAMA), "tie_embeddings": True, "bias": True, "head_dim": 8}
        | {"rope_scaling": "linear", "rope_factor": 4.0, "activation": "gelu"}
    ),
    "llama3": ModelConfig(
        **{**vars(LLAMA), "rope_scaling": "llama3", "rope_factor": 8.0, "rope_theta": 1000.0}
        | {"rope_original_length": 16}
    ),
    "mistral": replace(LLAMA, window=9, head_dim=8, **YARN),
    "qwen2": replace(LLAMA, qkv_bias=True, window=5, layer_pattern="gll", tie_embeddings=True),
    "qwen3": replace(LLAMA, qk_norm=True, head_dim=6, **YARN),
    "gemma2": replace(
        LLAMA, **GEMMA, window=5, layer_pattern="lg", attn_softcap=2.0, logit_softcap=3.0
    ),
    "gemma3": replace(
        LLAMA, **GEMMA, qk_norm=True, window=5, layer_pattern="lgg", rope_local_theta=50.0,
        rope_scaling="linear", rope_factor=8.0, tie_embeddings=True,
    ),
    "mixtral": replace(LLAMA, num_experts=5, experts_per_token=2, window=9),
}  # fmt: skip
forward = jax.jit(lambda model, ids: model(ids))


@jax.jit
def step(model, ids, mask):
    """(gradients of the mean loss, logits) of rows with padding."""

    def loss(model):
        logits = model(ids, segment_ids=mask)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), ids[:, 1:, None], 2)[..., 0]
        real = mask[:, 1:] * mask[:, :-1]
        return jnp.sum(nats * real) / jnp.sum(real), logits

    return jax.grad(loss, has_aux=True)(model)


@pytest.mark.parametrize("name", VARIANTS)
def test_their_models_give_the_same_logits_and_gradients_here(name, tmp_path):
    # Torch gives the padding's embedding, 0 of Gemma, no gradient: it is no token of the text.
    model, ids = random_model(name), np.maximum(token_ids(name), 1)
    mask = padding(ids)
    model.save_pretrained(tmp_path / "model", max_shard_size="10KB")
    _, ours = convert.import_hf(tmp_path / "model")
    found, here = step(ours, ids, mask)
    np.testing.assert_allclose(
        here[mask == 1], logits(model, ids, mask)[mask == 1], atol=1e-4, rtol=0
    )
    gradients(model, ids, mask).save_pretrained(tmp_path / "gradients")
    _, wanted = convert.import_hf(tmp_path / "gradients")
    for where, leaf in flatten(found).items():
        np.testing.assert_allclose(
            leaf, flatten(wanted)[where], atol=1e-3, rtol=1e-3, err_msg=where
        )


def gradients(model, ids, mask):
    """The model with the gradients of the same loss for weights."""
    ids, mask = torch.tensor(ids), torch.tensor(mask)
    log_p = model(ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    nats = -log_p.gather(2, ids[:, 1:, None])[..., 0]
    real = mask[:, 1:] * mask[:, :-1]
    ((nats * real).sum() / real.sum()).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.grad)
    return model


@pytest.mark.parametrize("name", OURS)
def test_our_models_give_the_same_logits_and_bits_there(name, tmp_path):
    config = OURS[name]
    model = random(config)
    convert.export_hf(model, config, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    assert theirs.config.model_type.startswith(name.split("_")[0].rstrip("3")), name
    assert theirs.dtype == torch.float32
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, config.max_length))
    np.testing.assert_allclose(logits(theirs, ids), forward(model, ids), atol=1e-4, rtol=0)

    theirs.save_pretrained(tmp_path / "back")
    again_config, again = convert.import_hf(tmp_path / "back")
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(
            np.asarray(one).view(np.uint32), np.asarray(other).view(np.uint32)
        )
    assert effective(again_config) == effective(config)


def test_the_padding_ids_of_a_tokenizer_arrive(tmp_path):
    tokenizer = type("Tokenizer", (), {"bos_id": 1, "eos_id": 2, "pad_id": -1})()
    model = random(GPT2)
    convert.export_hf(model, GPT2, tmp_path / "out", tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    config = theirs.generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, None)


def random(config: ModelConfig) -> Transformer:
    """Our model, every parameter random, biases and norms too, by numpy: nothing to compile."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape) + 0.1, jnp.float32)
    return jax.tree.map(draw, jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
