"""Is dropout where the references have it, of the right rate, off without a key, and the same
however its devices lie?
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.config import Config, DataConfig, MeshConfig, ModelConfig, OptimizerConfig
from lm_jax.devices import sharding
from lm_jax.devices.resolve import resolved
from lm_jax.errors import UserError
from lm_jax.models import Transformer
from lm_jax.models.attention import kernels
from lm_jax.models.attention.kernels import Mask, Scores
from lm_jax.training.train_step import init_state, make_train_step

B, L, K, G, H = 2, 24, 2, 2, 8
SMALL = ModelConfig(
    vocab_size=32, num_layers=2, dim=32, num_heads=4, max_length=32, attention="xla",
    dtype="float32",
)  # fmt: skip
ENCODER = dataclasses.replace(SMALL, architecture="encoder")
BOTH = dataclasses.replace(SMALL, architecture="encoder_decoder", positions="relative")
PLACES = ("dropout", "attention_dropout", "activation_dropout", "output_dropout")


def heads(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = ((B, L, K, G, H), (B, L, K, H), (B, L, K, H))
    return [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]


def dropped(scores, *qkv):
    """Attention under a causal mask of two blocks of queries."""
    return kernels.attention(*qkv, Mask(), "xla", scores)


def plainly(keep, rate, q, k, v):
    """The same as a plain formula, whose gradient is that of jax."""
    scores = jnp.einsum("blkgh,bskh->bkgls", q, k) * H**-0.5
    scores = jnp.where(np.tri(L, dtype=bool), scores, -1e30)
    p = jnp.where(keep, jax.nn.softmax(scores) / (1 - rate), 0)
    return jnp.einsum("bkgls,bskh->blkgh", p, v)


def test_gradients_are_those_of_dropped_probabilities(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 16)
    key, rate, qkv = jax.random.key(1), 0.3, heads(0)
    draws = []
    for block, (start, stop) in enumerate(((0, 16), (16, 24))):
        draw = jax.random.uniform(jax.random.fold_in(key, block), (B, K, G, stop - start, stop))
        draws.append(np.pad(np.asarray(draw), [(0, 0)] * 4 + [(0, L - stop)]))
    keep = np.concatenate(draws, 3) >= rate
    weights = jax.random.normal(jax.random.key(2), (B, L, K, G, H))
    total = lambda run: jax.value_and_grad(lambda qkv: jnp.sum(run(*qkv) * weights))(qkv)
    found = total(partial(dropped, Scores(H**-0.5, dropout=rate, key=key)))
    wanted = total(partial(plainly, keep, rate))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_attention_is_right_on_average_over_many_draws():
    q, k, v = heads(3)
    draw = jax.jit(lambda key: dropped(Scores(H**-0.5, dropout=0.5, key=key), q, k, v))
    many = jax.lax.map(draw, jax.random.split(jax.random.key(0), 4000))
    plain = dropped(Scores(H**-0.5), q, k, v)
    error = (many.mean(0) - plain) / (many.std(0) / 4000**0.5)
    assert abs(error).max() < 5


@pytest.mark.parametrize("backend", ["splash", "cudnn"])
def test_other_kernels_refuse_it_by_name(backend):
    with pytest.raises(UserError, match=r"model\.attention_dropout"):
        kernels.attention(
            *heads(0), Mask(), backend, Scores(1.0, dropout=0.1, key=jax.random.key(0))
        )
    values = {"model": {"attention": backend, "attention_dropout": 0.1}}
    with pytest.raises(UserError, match=r"config\.model\.attention_dropout=0\.1.*auto or xla"):
        Config.parse(values)
    with pytest.raises(UserError, match=r"config\.model\.attention_dropout=0\.1.*auto or xla"):
        Transformer(ModelConfig(**values["model"]), rngs=nnx.Rngs(0))


def test_auto_takes_the_kernel_that_can():
    plain = dataclasses.replace(SMALL, attention="auto")
    assert resolved(plain, "tpu").attention == "splash"
    with_it = dataclasses.replace(plain, attention_dropout=0.1)
    assert resolved(with_it, "tpu").attention == resolved(with_it, "gpu").attention == "xla"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"architecture": "lstm", "attention_dropout": 0.1}, "attention_dropout"),
        ({"architecture": "gru", "output_dropout": 0.1}, "output_dropout"),
        ({"num_experts": 4, "activation_dropout": 0.1}, "activation_dropout"),
        ({"attention_dropout": 1.0}, "attention_dropout"),
    ],
)
def test_dropout_where_there_is_no_such_place_is_refused(values, field):
    with pytest.raises(UserError, match=rf"config\.model\.{field}="):
        Config.parse({"model": values})


def test_a_ring_cannot_have_it():
    values = {
        "model": {"context_attention": "ring", "attention_dropout": 0.1},
        "mesh": {"context": 2},
    }
    with pytest.raises(UserError, match=r"context_attention='ring'.*attention_dropout=0\.1"):
        Config.parse(values)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", [ENCODER, BOTH], ids=["encoder", "encoder_decoder"])
def test_each_place_acts_with_a_key_and_only_then(place, model):
    plain = Transformer(model, rngs=nnx.Rngs(0))
    with_it = Transformer(dataclasses.replace(model, **{place: 0.4}), rngs=nnx.Rngs(0))
    batch = {"tokens": jnp.arange(2 * 8).reshape(2, 8) % 32}
    if model is BOTH:
        batch["inputs"] = batch["tokens"][:, ::-1]
    run = jax.jit(lambda model, key=None: model.forward(batch, key)[0])
    np.testing.assert_array_equal(run(with_it), run(plain))
    first, again, other = (run(with_it, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert abs(first - run(plain)).max() > 1e-3
    assert abs(first - other).max() > 1e-3
    if place == "output_dropout":  # the last thing that a stack does
        zeros = np.mean(np.asarray(first) == 0)
        assert 0.3 < zeros < 0.5


@pytest.mark.parametrize("axes", [{"fsdp": 2, "tensor": 2, "data": 2}, {"context": 2, "data": 4}])
def test_dropped_attention_is_the_same_on_devices_that_share_the_batch(axes):
    model = dataclasses.replace(SMALL, attention_dropout=0.3)
    batch = {"tokens": np.arange(8 * 16).reshape(8, 16).astype(np.int32) % 32}
    found = {}
    for name, sizes in (("one", {}), ("many", axes)):
        devices = jax.devices() if sizes else jax.devices()[:1]
        mesh = sharding.make_mesh(MeshConfig(**{"data": 1, **sizes}), devices)
        with jax.set_mesh(mesh):
            net = jax.jit(lambda: Transformer(model, rngs=nnx.Rngs(0)))()
            rows = sharding.put(batch, mesh)
            loss = lambda net, rows: jnp.sum(net.forward(rows, jax.random.key(3))[0] ** 2)
            found[name] = jax.tree.map(np.asarray, jax.jit(jax.value_and_grad(loss))(net, rows))
    one, many = (jax.tree.leaves(found[name]) for name in ("one", "many"))
    if "context" in axes:  # a device draws its own numbers there
        assert np.isfinite(many[0])
        assert many[0] != one[0]
        assert many[0] == pytest.approx(one[0], rel=0.1)
        return
    for a, b in zip(many, one, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * abs(b).max())


def test_a_training_step_draws_for_dropout_of_attention_alone():
    step = {}
    for rate in (0.0, 0.3):
        model = dataclasses.replace(SMALL, num_layers=1, dim=16, attention_dropout=rate)
        config = Config(steps=4, batch_size=2, model=model, data=DataConfig(sequence_length=16),
                        optimizer=OptimizerConfig(warmup_steps=0))  # fmt: skip
        tokens = np.arange(32).reshape(1, 2, 16).astype(np.int32) % 32
        batch = {"tokens": tokens, "targets": tokens, "weights": np.ones((1, 2, 16), np.float32)}
        found = jax.jit(make_train_step(config))(init_state(config), batch)[1]
        step[rate] = float(found["loss"])
    assert step[0.0] != step[0.3]
    assert step[0.3] == pytest.approx(step[0.0], rel=0.05)
