"""Is the first Transformer (Vaswani et al. 2017) here the torch.nn.Transformer with its weights?"""

# Shapes: B batch, S length of the input, L of the output, D width.

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.models import ModelConfig, Transformer
from lm_jax.run.checkpoint import flatten

pytestmark = pytest.mark.parity
REASON = "torch is not installed; the parity extra has it: pip install 'lm_jax[parity]'"
torch = pytest.importorskip("torch", reason=REASON)

CONFIG = ModelConfig(
    architecture="encoder_decoder", vocab_size=29, num_layers=3, encoder_layers=2, dim=16,
    num_heads=4, mlp_dim=24, norm="layernorm", norm_order="post", positions="sinusoidal",
    activation="relu", gated=False, bias=True, embed_scale=4.0,
)  # fmt: skip
B, S, L, D = 2, 11, 7, 16
RNG = np.random.default_rng(0)
BATCH = {
    "inputs": RNG.integers(0, 29, (B, S)),
    "tokens": RNG.integers(0, 29, (B, L)),
    "input_segment_ids": (np.arange(S) < np.array([[S], [6]])).astype(np.int32),
    "segment_ids": (np.arange(L) < np.array([[L], [4]])).astype(np.int32),
}


def random_model() -> Transformer:
    draw = lambda leaf: jnp.asarray(0.3 * RNG.standard_normal(leaf.shape) + 0.1, jnp.float32)
    return jax.tree.map(draw, jax.eval_shape(lambda: Transformer(CONFIG, rngs=nnx.Rngs(0))))


def tensors_of(model) -> dict[str, np.ndarray]:
    """What torch.nn.Transformer calls the numbers of the stacks, in its shapes."""
    x = {name: np.asarray(leaf) for name, leaf in flatten(model).items()}
    found = {}

    def attention(ours: str, theirs: str, layer: int) -> None:
        """Queries, keys and values one above the other; Linear layers are (out, in)."""
        part = lambda name: x[f"{ours}/{name}"][layer]
        columns = [part(name).reshape(D, D).T for name in ("wq", "wk", "wv")]
        found[f"{theirs}.in_proj_weight"] = np.concatenate(columns)
        biases = [part(name).reshape(D) for name in ("bq", "bk", "bv")]
        found[f"{theirs}.in_proj_bias"] = np.concatenate(biases)
        found[f"{theirs}.out_proj.weight"] = part("wo").reshape(D, D).T
        found[f"{theirs}.out_proj.bias"] = part("bo")

    for side, layers in (("encoder", 2), ("decoder", 3)):
        branches = ("attn", "cross", "mlp") if side == "decoder" else ("attn", "mlp")
        for layer in range(layers):
            there, here = f"{side}.layers.{layer}", f"{side}/blocks"
            attention(f"{here}/attn", f"{there}.self_attn", layer)
            if side == "decoder":
                attention(f"{here}/cross", f"{there}.multihead_attn", layer)
            found[f"{there}.linear1.weight"] = x[f"{here}/mlp/up"][layer, :, 0].T
            found[f"{there}.linear1.bias"] = x[f"{here}/mlp/up_bias"][layer, 0]
            found[f"{there}.linear2.weight"] = x[f"{here}/mlp/down"][layer].T
            found[f"{there}.linear2.bias"] = x[f"{here}/mlp/down_bias"][layer]
            for number, branch in enumerate(branches, 1):
                found[f"{there}.norm{number}.weight"] = x[f"{here}/{branch}_norm/scale"][layer]
                found[f"{there}.norm{number}.bias"] = x[f"{here}/{branch}_norm/bias"][layer]
        found[f"{side}.norm.weight"] = x[f"{side}/norm/scale"]
        found[f"{side}.norm.bias"] = x[f"{side}/norm/bias"]
    return found


@jax.jit
def ours(model, batch, probe_BLD):
    """Embedded inputs and outputs, the last states, and the gradients of probe times these."""
    places = lambda tokens: jnp.arange(tokens.shape[1])[None]
    embedded = [
        model.embed(batch[name], places(batch[name]), jnp.float32) for name in ("inputs", "tokens")
    ]
    states = lambda model: model.forward(batch)[0]
    slopes = jax.grad(lambda model: jnp.sum(probe_BLD * states(model)))(model)
    return embedded, states(model), slopes


def test_the_states_and_gradients_are_those_of_torch():
    model, real = random_model(), BATCH["segment_ids"] > 0
    probe_BLD = RNG.standard_normal((B, L, D)).astype(np.float32) * real[..., None]
    (input_BSD, output_BLD), states_BLD, slopes = ours(model, BATCH, probe_BLD)

    theirs = torch.nn.Transformer(D, 4, 2, 3, 24, dropout=0.0, batch_first=True)
    tensors = {name: torch.tensor(x.copy()) for name, x in tensors_of(model).items()}
    theirs.load_state_dict(tensors)
    padding = torch.tensor(BATCH["input_segment_ids"] == 0)
    wanted = theirs(
        torch.tensor(np.asarray(input_BSD)),
        torch.tensor(np.asarray(output_BLD)),
        tgt_mask=torch.triu(torch.ones(L, L, dtype=torch.bool), 1),
        src_key_padding_mask=padding,
        tgt_key_padding_mask=torch.tensor(~real),
        memory_key_padding_mask=padding,
    )
    np.testing.assert_allclose(states_BLD[real], wanted.detach()[real], atol=1e-5, rtol=1e-5)

    (torch.tensor(probe_BLD) * wanted).sum().backward()
    found = tensors_of(slopes)
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-4, err_msg=name)
