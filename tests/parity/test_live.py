"""Do models go to `transformers` and back, live? Needs the extra: launch/test.sh --parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax import convert
from lm_jax.models import ModelConfig, Transformer

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]
REASON = "not installed; the parity extra has it: pip install 'lm_jax[parity]'"
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")
transformers = pytest.importorskip("transformers", reason=f"transformers is {REASON}")

from make_golden import VARIANTS, logits, random_model, token_ids  # noqa: E402

GPT2 = ModelConfig(
    vocab_size=67, num_layers=2, dim=24, num_heads=3, max_length=32, norm="layernorm",
    positions="learned", activation="gelu_tanh", gated=False, bias=True,
)  # fmt: skip
LLAMA = ModelConfig(
    vocab_size=67, num_layers=3, dim=24, num_heads=6, num_kv_heads=2, max_length=48,
    tie_embeddings=False,
)  # fmt: skip
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
}
forward = jax.jit(lambda model, ids: model(ids))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("shard", ["5GB", "10KB"])
def test_their_models_give_the_same_logits_here(name, shard, tmp_path):
    model, ids = random_model(name), token_ids(name)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    _, ours = convert.import_hf(tmp_path)
    np.testing.assert_allclose(forward(ours, ids), logits(model, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", OURS)
def test_our_models_give_the_same_logits_and_bits_there(name, tmp_path):
    config = OURS[name]
    model = random(config)
    convert.export_hf(model, config, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert theirs.dtype == torch.float32
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, config.max_length))
    np.testing.assert_allclose(logits(theirs, ids), forward(model, ids), atol=1e-4, rtol=0)

    theirs.save_pretrained(tmp_path / "back")
    again_config, again = convert.import_hf(tmp_path / "back")
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(
            np.asarray(one).view(np.uint32), np.asarray(other).view(np.uint32)
        )
    assert again_config.rope_scaling == config.rope_scaling


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
