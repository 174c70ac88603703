"""Identities of the Transformer, exact or up to rounding, in every way to run it."""

# Shapes: B batch, L length, D width, K key heads, G query heads a key head, H head size.

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_models import abstract, make, rebuilt

from lm_jax.config import MeshConfig
from lm_jax.devices.sharding import make_mesh, shard
from lm_jax.models import ModelConfig
from lm_jax.models.attention import kernels

LLAMA = ModelConfig(
    vocab_size=24, num_layers=3, dim=16, num_heads=4, num_kv_heads=2, max_length=32,
    tie_embeddings=False,
)  # fmt: skip
GPT2 = ModelConfig(
    vocab_size=24, num_layers=3, dim=16, num_heads=4, max_length=32, norm="layernorm",
    positions="learned", activation="gelu_tanh", gated=False, bias=True, tie_embeddings=False,
)  # fmt: skip
BOTH = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
TOKENS = np.random.default_rng(0).integers(0, 24, (4, 12))


# Programs that run once: half the time to compile.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
forward = jit(lambda model, tokens: model(tokens))


@BOTH
def test_no_logit_depends_on_a_later_token(config):
    tokens = np.arange(12)[None]  # all different: a row of the table is a position

    @jit
    def influence(model):
        """Gradient of the logits at position 5 by the embedding at each position."""
        at_5 = lambda model: jnp.sin(model(tokens)[0, 5]).sum()
        return jax.grad(at_5)(model).embed.tokens[...]

    gradient_L = np.abs(influence(make(config)))[:12].max(-1)
    assert (gradient_L[:6] > 1e-4).all()
    assert (gradient_L[6:] == 0).all()


@BOTH
def test_packed_documents_do_not_see_each_other(config):
    segments = np.repeat([1, 2, 3], [5, 4, 3])[None].repeat(4, 0)
    positions = np.r_[np.arange(5), np.arange(4), np.arange(3)][None].repeat(4, 0)

    @jit
    def run(model, tokens):
        packed = model(tokens, segment_ids=segments, positions=positions)
        return packed, [model(part) for part in jnp.split(tokens, (5, 9), 1)]

    packed, alone = run(make(config), TOKENS)
    np.testing.assert_allclose(packed, np.concatenate(alone, 1), atol=1e-5, rtol=1e-5)
    other = TOKENS.copy()
    other[:, :5] = (other[:, :5] + 1) % 24
    changed, _ = run(make(config), other)
    np.testing.assert_array_equal(packed[:, 5:], changed[:, 5:])
    assert not np.array_equal(packed[:, 4], changed[:, 4])


def test_neither_unrolling_nor_remat_changes_loss_or_gradients():
    model = make(dataclasses.replace(LLAMA, num_layers=2))
    loss_of = lambda model: jnp.sin(model(TOKENS)).mean()
    run = jit(jax.value_and_grad(loss_of))
    loss, gradients = run(model)
    for changes in ({"remat": "full"}, {"remat": "dots"}, {"remat": "names", "scan_unroll": 2}):
        same, others = run(rebuilt(model, **changes))
        np.testing.assert_allclose(same, loss, rtol=1e-6)
        for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-4)


@BOTH
def test_decoding_with_a_cache_equals_the_parallel_forward(config):
    lengths = np.array([5, 2, 3, 1])  # of prompts that are padded on the right to 5

    @jit
    def decode(model, tokens):
        x_BLD, cache = model.decode(tokens[:, :5], model.init_cache(4, 16))
        cache["length"] = jnp.asarray(lengths)
        steps = []
        for step in range(4):
            one = jnp.take_along_axis(tokens, (lengths + step)[:, None], 1)
            y_BLD, cache = model.decode(one, cache)
            steps.append(y_BLD)
        return model.logits(x_BLD), model.logits(jnp.concatenate(steps, 1)), cache["length"]

    prompt, steps, filled = decode(make(config), TOKENS)
    wanted = np.asarray(forward(make(config), TOKENS))
    np.testing.assert_array_equal(filled, lengths + 4)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prompt[row, :length], wanted[row, :length], atol=1e-5, rtol=1e-4)
        after = wanted[row, length : length + 4]
        np.testing.assert_allclose(steps[row], after, atol=1e-5, rtol=1e-4)


@BOTH
def test_a_mesh_changes_nothing_and_is_not_needed(config):
    alone = np.asarray(forward(make(config), TOKENS))
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        place = lambda x, leaf: jax.device_put(np.asarray(x), leaf.sharding.spec)
        model = jax.tree.map(place, make(config), abstract(config))
        tokens = shard(jnp.asarray(TOKENS), "batch", None)
        np.testing.assert_allclose(np.asarray(forward(model, tokens)), alone, atol=1e-5, rtol=1e-4)


def test_grouped_heads_equal_repeated_ones():
    grouped = make(LLAMA)
    repeated = rebuilt(grouped, num_kv_heads=4)
    attn, N = repeated.decoder.blocks.attn, LLAMA.num_layers
    attn.wq = nnx.Param(attn.wq[...].reshape(N, 16, 4, 1, 4))
    attn.wo = nnx.Param(attn.wo[...].reshape(N, 4, 1, 4, 16))
    attn.wk = nnx.Param(jnp.repeat(attn.wk[...], 2, 2))
    attn.wv = nnx.Param(jnp.repeat(attn.wv[...], 2, 2))
    wanted = forward(grouped, TOKENS)
    np.testing.assert_allclose(forward(repeated, TOKENS), wanted, atol=1e-5, rtol=1e-4)


def plain(q_BLKGH, k_BSKH, v_BSKH, allowed_BLS):
    """Attention as the formula has it, float64 numpy."""
    a = np.einsum("blkgh,bskh->bkgls", q_BLKGH, k_BSKH) / np.sqrt(q_BLKGH.shape[-1])
    a = np.where(allowed_BLS[:, None, None], a, -np.inf)
    p = np.exp(a - a.max(-1, keepdims=True))
    return np.einsum("bkgls,bskh->blkgh", p / p.sum(-1, keepdims=True), v_BSKH)


@pytest.mark.parametrize("L", [1, 127, 128, 129, 300])
def test_attention_in_blocks_equals_the_formula(L):
    rng = np.random.default_rng(L)
    q = rng.standard_normal((2, L, 2, 3, 4))
    k, v = rng.standard_normal((2, 2, L, 2, 4))
    segments = np.sort(rng.integers(1, 5, (2, L)), -1)
    causal = np.tril(np.ones((1, L, L), bool))
    own = segments[:, :, None] == segments[:, None, :]

    @jit
    def run(q, k, v, segments):
        masks = (
            kernels.Mask(),
            kernels.Mask(segments=segments),
            kernels.Mask(causal=False, segments=segments),
        )
        return [kernels.attention(q, k, v, mask, "xla") for mask in masks]

    found = run(*(x.astype(np.float32) for x in (q, k, v)), segments)
    for one, allowed in zip(found, (causal, causal & own, own), strict=True):
        np.testing.assert_allclose(one, plain(q, k, v, allowed), atol=1e-5)


@pytest.mark.parametrize("types", [False, True])
def test_devices_that_share_a_row_have_its_token_types_or_the_first_one(types):
    config = ModelConfig(
        architecture="encoder", vocab_size=32, num_layers=1, dim=32, num_heads=4, max_length=16,
        token_types=2, positions="learned", attention="xla", dtype="float32",
    )  # fmt: skip
    model = make(config)
    batch = {"tokens": jnp.arange(32).reshape(2, 16)}
    batch |= {"token_types": jnp.tile(jnp.arange(16) // 8, (2, 1))} if types else {}
    alone = model.forward(batch)[0]
    mesh = make_mesh(MeshConfig(data=1, context=4, tensor=2))
    with jax.set_mesh(mesh):
        shared = jax.jit(lambda batch: model.forward(batch)[0])(batch)
    np.testing.assert_allclose(shared, alone, atol=1e-5)
