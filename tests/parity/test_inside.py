"""Hidden states and attention weights of all layers are those of `transformers`."""

import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax import convert

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]
REASON = "not installed; the parity extra has it: pip install 'lm_jax[parity]'"
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")
transformers = pytest.importorskip("transformers", reason=f"transformers is {REASON}")

import make_golden  # noqa: E402
import make_golden_encoders as encoders  # noqa: E402


def same(ours, theirs, what):
    assert len(ours) == len(theirs), what
    for layer, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-4, err_msg=f"{what} {layer}")


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2", "gemma3", "mixtral"])
def test_decoders(name, tmp_path):
    model, ids = make_golden.random_model(name), make_golden.token_ids(name)
    model.save_pretrained(tmp_path)
    _, ours = convert.import_hf(tmp_path)
    inside = ours.inspect(jnp.asarray(ids))
    with torch.no_grad():
        there = model(torch.tensor(ids), output_hidden_states=True, output_attentions=True)
    same(inside.states, there.hidden_states, "states")
    same(inside.attention, there.attentions, "attention")


@pytest.mark.parametrize("name", ["bert", "roberta", "t5", "t5_1_1"])
def test_encoders_and_encoder_decoders(name, tmp_path):
    model = encoders.random_model(*encoders.VARIANTS[name])
    model.save_pretrained(tmp_path)
    _, ours = convert.import_hf(tmp_path)
    tokens = jnp.asarray(np.random.default_rng(0).integers(3, 60, (2, 9)))
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        if "t5" not in name:
            inside = ours.inspect(tokens)
            there = model(torch.tensor(np.array(tokens)), **asked)
            same(inside.states, there.hidden_states, "states")
            same(inside.attention, there.attentions, "attention")
            return
        inside = ours.inspect(tokens, inputs=tokens[:, ::-1])
        there = model(
            torch.tensor(np.array(tokens[:, ::-1])),
            decoder_input_ids=torch.tensor(np.array(tokens)), **asked,
        )  # fmt: skip
    same(inside.encoder.states, there.encoder_hidden_states, "encoder states")
    same(inside.encoder.attention, there.encoder_attentions, "encoder attention")
    same(inside.states, there.decoder_hidden_states, "states")
    same(inside.attention, there.decoder_attentions, "attention")
    same(inside.cross_attention, there.cross_attentions, "cross-attention")
