"""Masks of every kind of stack, checked by gradients and identities, without torch."""

# Shapes: B batch, L length, S length of the encoder's input, D width.

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import make, rebuilt

from lm_jax.models import ModelConfig
from lm_jax.models.attention.kernels import Mask
from lm_jax.models.attention.positions import rotations
from lm_jax.models.stack import AttentionInputs

LLAMA = ModelConfig(
    vocab_size=24, num_layers=2, dim=16, num_heads=4, num_kv_heads=2, max_length=32, mlp_dim=24,
    tie_embeddings=False,
)  # fmt: skip
BERT = dataclasses.replace(
    LLAMA, architecture="encoder", norm="layernorm", norm_order="post", final_norm=False,
    embed_norm=True, positions="learned", gated=False, bias=True, token_types=2,
    head_transform=True, head_bias=True, pooler=True,
)  # fmt: skip
T5 = dataclasses.replace(
    LLAMA, architecture="encoder_decoder", encoder_layers=3, positions="relative", attn_scale=1.0,
    relative_buckets=8, relative_distance=12,
)  # fmt: skip
DECODED = {  # every kind of position, and every way to decode
    "rope_pattern": dataclasses.replace(LLAMA, window=3, layer_pattern="lg", num_layers=3),
    "learned_post": dataclasses.replace(
        LLAMA, positions="learned", norm_order="post", final_norm=False
    ),
    "none_sandwich": dataclasses.replace(
        LLAMA, positions="none", norm_order="sandwich", qk_norm=True
    ),
    "alibi_window": dataclasses.replace(LLAMA, positions="alibi", window=3),
    "relative_t5": T5,
    "sinusoidal_vaswani": dataclasses.replace(
        T5, positions="sinusoidal", norm_order="post", attn_scale=0.0
    ),
}
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
B, L, S = 2, 10, 7
RNG = np.random.default_rng(0)
TOKENS, INPUTS = RNG.integers(0, 24, (B, L)), RNG.integers(0, 24, (B, S))


def influence(model, batch, rows: int):
    """How much the logits at each place depend on the embedding of each token, [L, rows]: the
    tokens of the one row of the batch are all different, and so rows of the table are tokens.
    """

    def sums_L(model):
        return jnp.sin(model.logits(model.forward(batch)[0])[0]).sum(-1)

    return jnp.abs(jax.jacrev(sums_L)(model).embed.tokens[...][:, :rows]).max(-1)


def test_padding_changes_nothing_in_an_encoder():
    kept = np.arange(L) < np.array([[6], [L]])

    @jit
    def run(model, tokens):
        x_BLD, _ = model.forward({"tokens": tokens, "segment_ids": kept.astype(np.int32)})
        alone = model.forward({"tokens": tokens[:1, :6]})[0]
        return model.logits(x_BLD), model.pooler(x_BLD), model.logits(alone), model.pooler(alone)

    logits, pairs, alone, pair = run(make(BERT), TOKENS)
    np.testing.assert_allclose(logits[0, :6], alone[0], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(pairs[0], pair[0], atol=1e-5, rtol=1e-5)
    changed, pairs_changed, *_ = run(make(BERT), np.where(kept, TOKENS, (TOKENS + 1) % 24))
    np.testing.assert_array_equal(logits[kept], changed[kept])
    np.testing.assert_array_equal(pairs, pairs_changed)


def test_an_encoder_sees_every_token_of_its_segment_and_no_other():
    segments = np.repeat([1, 2, 0], [5, 3, 2])
    batch = {"tokens": np.arange(L)[None], "segment_ids": segments[None]}
    seen = np.asarray(jit(functools.partial(influence, rows=L))(make(BERT), batch))
    own = segments[:, None] == segments[None]
    assert (seen[own] > 1e-5).all()
    assert (seen[~own] == 0).all()


def test_a_decoder_sees_what_came_before_and_all_of_its_own_input():
    outputs, inputs = np.repeat([1, 2], [6, 4]), np.repeat([1, 2, 0], [3, 3, 1])
    batch = {
        "tokens": np.arange(L)[None], "segment_ids": outputs[None],
        "inputs": L + np.arange(S)[None], "input_segment_ids": inputs[None],
    }  # fmt: skip
    seen = np.asarray(jit(functools.partial(influence, rows=L + S))(make(T5), batch))
    past = np.tril(outputs[:, None] == outputs[None])
    wanted = np.concatenate([past, outputs[:, None] == inputs[None]], 1)
    assert (seen[wanted] > 1e-5).all()
    assert (seen[~wanted] == 0).all()


@pytest.mark.parametrize("causal", [True, False])
def test_a_local_layer_sees_its_window_alone(causal):
    config = LLAMA if causal else dataclasses.replace(LLAMA, architecture="encoder")
    config = dataclasses.replace(config, num_layers=1, window=3)
    batch = {"tokens": np.arange(L)[None]}
    distance = np.arange(L)[:, None] - np.arange(L)[None]
    past = (distance >= 0) | (not causal)
    near = past & (abs(distance) < 3)
    seen = np.asarray(jit(functools.partial(influence, rows=L))(make(config), batch))
    assert (seen[near] > 1e-5).all()
    assert (seen[~near] == 0).all()


def test_a_pattern_in_one_loop_equals_its_layers_one_by_one():
    config = dataclasses.replace(
        LLAMA, num_layers=5, window=3, layer_pattern="llg", rope_local_theta=100.0, remat="full"
    )
    model = make(config)

    places = jnp.arange(L)[None]

    @jit
    def one_by_one(model, tokens):
        x_BLD = model.embed(tokens, places, jnp.float32)
        for layer, kind in enumerate("llgll"):
            block = jax.tree.map(lambda x: x[layer], model.decoder.blocks)  # noqa: B023
            mask = Mask(window=3 if kind == "l" else 0)
            x_BLD, *_ = block(x_BLD, AttentionInputs(mask, rotations(config, places, kind), None))
        return model.logits(model.decoder.norm(x_BLD))

    found = jit(lambda model, tokens: model(tokens))(model, TOKENS)
    np.testing.assert_allclose(found, one_by_one(model, TOKENS), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [{"remat": "names", "scan_unroll": 2},
     pytest.param({"remat": "offload"}, marks=pytest.mark.jax10)],
)  # fmt: skip
def test_neither_remat_nor_unrolling_changes_the_gradients_of_two_stacks(changes):
    loss_of = lambda model: jnp.sin(model(TOKENS, inputs=INPUTS)).mean()
    run = jit(jax.value_and_grad(loss_of))
    loss, slopes = run(make(T5))
    same, others = run(rebuilt(make(T5), **changes))
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    for one, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", DECODED)
def test_decoding_with_a_cache_equals_the_parallel_forward(name):
    config, lengths = DECODED[name], np.array([5, 2])  # of prompts, padded on the right to 5
    both = config.architecture == "encoder_decoder"
    kept = (np.arange(S) < np.array([[S], [4]])).astype(np.int32)
    more = {"inputs": INPUTS, "input_segment_ids": kept} if both else {}

    @jit
    def run(model, tokens):
        x_BLD, cache = model.decode(tokens[:, :5], model.init_cache(B, 16, **more))
        cache["length"] = jnp.asarray(lengths)

        def step(cache, at):
            one = jnp.take_along_axis(tokens, (lengths + at)[:, None], 1)
            y_BLD, cache = model.decode(one, cache)
            return cache, y_BLD[:, 0]

        _, steps_TBD = jax.lax.scan(step, cache, jnp.arange(4))
        return (
            model.logits(x_BLD), model.logits(jnp.swapaxes(steps_TBD, 0, 1)),
            model(tokens, **more),
        )  # fmt: skip

    prompt, steps, wanted = (np.asarray(x) for x in run(make(config), TOKENS))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(prompt[row, :length], wanted[row, :length], atol=2e-5, rtol=1e-4)
        after = wanted[row, length : length + 4]
        np.testing.assert_allclose(steps[row], after, atol=2e-5, rtol=1e-4)
