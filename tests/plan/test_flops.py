"""Operations are counted as by hand: loops, branches, recomputation, kernels, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from lm_jax.config import Config
from lm_jax.config.cost import flops_per_token
from lm_jax.plan.flops import Flops, count
from lm_jax.training.train_step import init_state, make_train_step

X, W = jnp.zeros((4, 8)), jnp.zeros((8, 16))


def test_a_product_is_two_operations_for_each_triple_and_the_rest_one_for_each_element():
    found = count(lambda x, w: jnp.tanh(x @ w) + 1.0, X, W)
    assert found == Flops(products=2 * 4 * 8 * 16, other=2 * 4 * 16)


def test_batched_products_convolutions_and_ragged_products():
    a, b = jnp.zeros((3, 5, 4, 8)), jnp.zeros((3, 5, 8, 2))
    assert count(jnp.matmul, a, b).products == 15 * 2 * 4 * 8 * 2
    image, kernel = jnp.zeros((2, 6, 10, 10)), jnp.zeros((12, 3, 5, 5))
    conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", feature_group_count=2)
    assert count(conv, image, kernel).products == 2 * (2 * 12 * 10 * 10) * 3 * 5 * 5
    rows, experts, sizes = jnp.zeros((32, 8)), jnp.zeros((4, 8, 16)), jnp.array([8, 8, 8, 8])
    dot = lambda x, w: jax.lax.ragged_dot(x, w, sizes)
    assert count(dot, rows, experts).products == 2 * 32 * 8 * 16
    assert count(dot, rows, experts, ragged=0.25).products == 32 * 8 * 16 / 2
    low = count(dot, rows.astype(jnp.int8), experts.astype(jnp.int8))
    assert (low.int8, low.products) == (2 * 32 * 8 * 16,) * 2
    grads = count(jax.grad(lambda x, w: dot(x, w).sum(), (0, 1)), rows, experts)
    assert grads.products == 2 * (2 * 32 * 8 * 16)


def test_a_scan_counts_its_body_once_for_each_step():
    body = lambda c, w: (jnp.tanh(c @ w), None)
    found = count(lambda x, w: jax.lax.scan(body, x, w)[0], X, jnp.zeros((7, 8, 8)))
    assert found.products == 7 * 2 * 4 * 8 * 8


def test_what_a_scan_is_given_for_all_its_steps_is_known_inside():
    times, ones = jnp.array(3), jnp.zeros((8, 8))
    step = lambda c, w: (jax.lax.fori_loop(0, times, lambda i, c: c @ ones + w, c), c)
    found = count(lambda x, w: jax.lax.scan(step, x, w), X, jnp.zeros((7, 1, 8)))
    assert found.products == 7 * 3 * 2 * 4 * 8 * 8
    assert not found.uncounted


def test_a_loop_counts_its_body_as_often_as_it_runs_or_says_that_nobody_knows():
    body = lambda i, c: c @ jnp.zeros((8, 8))
    assert count(lambda x: jax.lax.fori_loop(2, 12, body, x), X).products == 10 * 2 * 4 * 8 * 8
    open_end = lambda x, n: jax.lax.fori_loop(0, n, body, x)
    found = count(open_end, X, 3)
    assert found.products == 2 * 4 * 8 * 8
    assert list(found.uncounted) == ["while loop of unknown trip count"]


def test_of_branches_the_largest_counts_and_of_platforms_the_one_that_runs():
    small = lambda x: x @ jnp.zeros((8, 8))
    large = lambda x: x @ jnp.zeros((8, 64)) @ jnp.zeros((64, 8))
    found = count(lambda p, x: jax.lax.cond(p, small, large, x), True, X)
    assert found.products == 2 * 4 * 8 * 64 * 2
    either = lambda x: jax.lax.platform_dependent(x, cpu=small, default=large)
    assert count(either, X, platform="cpu").products == 2 * 4 * 8 * 8
    assert count(either, X, platform="tpu").products == 2 * 4 * 8 * 64 * 2


def test_recomputation_counts_and_what_no_result_needs_does_not():
    def loss(x, w, policy):
        body = jax.checkpoint(lambda c, w: (jnp.tanh(c @ w), None), policy=policy)
        return jax.lax.scan(body, x, w)[0].sum()

    w, one = jnp.zeros((3, 8, 8)), 2 * 4 * 8 * 8
    saved = jax.checkpoint_policies.everything_saveable
    assert count(jax.grad(lambda w: loss(X, w, None)), w).products == 3 * 4 * one
    assert count(jax.grad(lambda w: loss(X, w, saved)), w).products == 3 * 3 * one
    assert count(lambda x: (x @ W, x)[1], X).products == 0


def mesh(**sizes):
    shape = tuple(sizes.values())
    kinds = (AxisType.Explicit,) * len(shape)
    return jax.make_mesh(shape, tuple(sizes), axis_types=kinds)


def test_one_device_does_its_part_of_a_product_and_all_of_what_is_not_cut():
    P = PartitionSpec
    with jax.set_mesh(mesh(fsdp=4, tensor=2)):
        x = jax.device_put(jnp.zeros((64, 32)), P("fsdp", None))
        w = jax.device_put(jnp.zeros((32, 16)), P("fsdp", "tensor"))

        def step(x, w):
            h = jnp.einsum("bd,df->bf", x, w, out_sharding=P("fsdp", "tensor"))
            return jnp.einsum("bd,bf->df", x, h, out_sharding=P("fsdp", "tensor"))

        whole = 2 * (2 * 64 * 32 * 16)
        assert count(step, x, w).products == whole
        assert count(step, x, w, per_device=True).products == whole / 8
        alone = lambda x: jnp.einsum("bd,de->be", x, jnp.zeros((32, 8)))
        assert count(alone, x, per_device=True).products == 2 * 64 * 32 * 8 / 4
        # Nobody has a part of the batch: the weights are collected, and each device does it all.
        every = jax.device_put(jnp.zeros((64, 32)), P(None, None))
        again = lambda x, w: jnp.einsum("bd,df->bf", x, w, out_sharding=P(None, "tensor"))
        assert count(again, every, w, per_device=True).products == 2 * 64 * 32 * 16 / 2


def test_a_shard_map_is_done_by_each_device():
    P = PartitionSpec
    with jax.set_mesh(mesh(fsdp=4, tensor=2)):
        x = jax.device_put(jnp.zeros((64, 32)), P("fsdp", None))
        local = jax.shard_map(lambda x: x @ x.T, in_specs=P("fsdp", None), out_specs=P("fsdp"))
        assert count(local, x, per_device=True).products == 2 * 16 * 32 * 16
        assert count(local, x).products == 8 * 2 * 16 * 32 * 16


def attention(length, heads, causal, window=0):
    from lm_jax.models.attention.kernels import Mask, attention

    def run(q, k, v):
        return attention(q, k, v, Mask(causal, window), "splash").sum()

    q = jnp.zeros((3, length, 1, heads, 128), jnp.bfloat16)
    k = jnp.zeros((3, length, 1, 128), jnp.bfloat16)
    return run, (q, k, k)


@pytest.mark.parametrize(
    ("causal", "window", "blocks"), [(True, 0, 3), (False, 0, 4), (True, 1024, 3), (True, 1, 2)]
)
def test_splash_attention_counts_the_blocks_that_it_visits(causal, window, blocks):
    run, qkv = attention(2048, 2, causal, window)
    product = 2 * 3 * 2 * (blocks * 1024 * 1024) * 128
    assert count(run, *qkv) == Flops(attention=2 * product, other=pytest.approx(0, abs=1e8))
    found = count(jax.grad(run, (0, 1, 2)), *qkv)
    assert found.attention == (2 + 5) * product
    assert not found.uncounted


def test_a_kernel_that_is_not_known_is_said_and_not_guessed():
    from jax.experimental import pallas as pl

    def double(x_ref, o_ref):
        o_ref[...] = 2 * x_ref[...]

    found = count(pl.pallas_call(double, out_shape=X, name="double"), X)
    assert found.uncounted == {"Pallas kernel double": 1}


def small(**model):
    return Config.parse({
        "batch_size": 8, "data": {"sequence_length": 256}, "model": {
            "dim": 256, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 2048,
            "attention": "xla", "dtype": "bfloat16", **model}})  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{}, {"remat": "full"}, {"remat": "dots"}, {"gated": False, "activation": "gelu"}],
    ids=str,
)
def test_a_train_step_is_what_six_times_parameters_and_tokens_say(changes):
    config = small(**changes)
    state = jax.eval_shape(lambda: init_state(config))
    shape = jax.ShapeDtypeStruct((1, 8, 256), np.int32)
    batch = dict.fromkeys(("tokens", "targets", "segment_ids", "positions"), shape)
    batch["weights"] = jax.ShapeDtypeStruct(shape.shape, np.float32)
    found = count(make_train_step(config), state, batch)
    tokens, model = 8 * 256, config.model
    expected = flops_per_token(model, 256) * tokens
    head = 6 * model.dim * model.vocab_size * tokens
    # The mask leaves 3 of 4 blocks of scores of queries by 128; a second forward pass of the
    # layers makes all but the last product again, and the loss's is never made again. Where the
    # products with weights are kept, the scores alone are made again, before their softmax.
    scores = 12 * 3 * model.dim * 256 * tokens * 3 / 4
    forward = (expected - head - scores * 4 / 3) / 3 + scores / 3
    last = 2 * 3 * model.dim * model.mlp_size * tokens
    again = {"none": 0, "full": forward - last, "dots": scores / 6}[model.remat]
    assert found.products == pytest.approx(expected - scores / 3 + again)
    assert not found.uncounted
