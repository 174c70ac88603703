"""Recurrent models: gradients, resets of the state and carried states, on every mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.config import MeshConfig
from lm_jax.devices.sharding import make_mesh, put
from lm_jax.models import ModelConfig, Recurrent, Transformer, create
from lm_jax.models.recurrence import CELLS, forward, recurrence

KINDS = pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
TOKENS = np.random.default_rng(0).integers(0, 24, (8, 8)).astype(np.int32)
SEGMENTS = np.repeat([1, 2, 3], [3, 1, 4])[None].repeat(8, 0).astype(np.int32)
POSITIONS = np.r_[:3, :1, :4][None].repeat(8, 0).astype(np.int32)
PACKED = {"tokens": TOKENS, "targets": np.roll(TOKENS, -1, 1), "segment_ids": SEGMENTS,
          "positions": POSITIONS}  # fmt: skip


def config_of(kind, **changes):
    plain = ModelConfig(
        architecture=kind, vocab_size=24, num_layers=2, dim=16, tie_embeddings=False
    )
    return dataclasses.replace(plain, **changes)


@functools.cache
def make(kind, **changes):
    """A model whose every parameter is random, by numpy: there is nothing to compile."""
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape) + 0.1, jnp.float32)
    return jax.tree.map(draw, abstract(config_of(kind, **changes)))


def abstract(config):
    return jax.eval_shape(lambda: create(config, rngs=nnx.Rngs(0)))


jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
hidden = jit(lambda model, batch, key=None: model.forward(batch, key)[0])
carried = jit(lambda model, batch, state: model.forward(batch, state=state))
decode = jit(lambda model, tokens, cache, count_B: model.decode(tokens, cache, count_B))


def close(found, wanted, **tolerance):
    np.testing.assert_allclose(found, wanted, **{"atol": 1e-6, "rtol": 1e-5} | tolerance)


def test_an_architecture_names_its_class():
    for kind in CELLS:
        assert isinstance(make(kind), Recurrent)
    assert isinstance(abstract(ModelConfig()), Transformer)


# ---- The recurrence ------------------------------------------------------------------------------


def plain(cell, x_LDB, keep_LB, start, wx_GHD, wh_GHK, bx_GH, bh_GH):
    """The same, step after step, with the derivatives that jax finds."""
    state, found = start, []
    for x_DB, keep_B in zip(x_LDB, keep_LB, strict=True):
        state = tuple(s_HB * keep_B[None] for s_HB in state)
        x_GHB = jnp.einsum("ghd,db->ghb", wx_GHD, x_DB) + bx_GH[..., None]
        u_GHB = jnp.einsum("ghk,kb->ghb", wh_GHK, state[0]) + bh_GH[..., None]
        state = cell.step(state, *((x_GHB, u_GHB) if cell.split_gates else (x_GHB + u_GHB,)))
        found.append(state)
    return tuple(jnp.stack(x) for x in zip(*found, strict=True))


@KINDS
def test_the_loop_and_its_gradients_are_those_of_the_plain_loop(kind):
    cell, rng = CELLS[kind], np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    L, B, D, G, H = 5, 3, 4, cell.gates, 6
    start = tuple(draw(H, B) for _ in range(cell.states))
    keep_LB = jnp.asarray(rng.random((L, B)) < 0.7, jnp.float32)
    arguments = (
        draw(L, D, B),
        keep_LB,
        start,
        draw(G, H, D),
        draw(G, H, H),
        draw(G, H),
        draw(G, H),
    )
    weights = tuple(draw(L, H, B) for _ in range(cell.states))  # c has a gradient of its own

    def value(run, x_LDB, start, *rest):
        states = run(cell, x_LDB, keep_LB, start, *rest)
        return sum(jnp.sum(w * s) for w, s in zip(weights, states, strict=True))

    inputs = (arguments[0], *arguments[2:])
    both = [
        jit(jax.value_and_grad(functools.partial(value, run), range(6)))(*inputs)
        for run in (recurrence, plain)
    ]
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        close(one, other, atol=2e-5, rtol=1e-4)


def test_half_precision_keeps_its_state_in_float32():
    cell, x = CELLS["lstm"], lambda *shape: jnp.ones(shape, jnp.bfloat16)
    start = (jnp.zeros((6, 3)), jnp.zeros((6, 3)))
    states, saved = jax.eval_shape(
        functools.partial(forward, cell), x(5, 4, 3), jnp.ones((5, 3)), start, x(4, 6, 4),
        x(4, 6, 6), jnp.zeros((4, 6)), jnp.zeros((4, 6)),
    )  # fmt: skip
    assert [s.dtype for s in states] == [jnp.float32, jnp.float32]
    assert saved[-2][0].dtype == jnp.bfloat16  # what is kept of each step for the gradients


# ---- The model -----------------------------------------------------------------------------------


@KINDS
def test_packed_documents_do_not_see_each_other(kind):
    @jit
    def run(model, batch):
        """Packed (either name says where a document starts), alone, and as one text."""
        of = lambda *names: model.forward({name: batch[name] for name in ("tokens", *names)})[0]
        parts = jnp.split(batch["tokens"], (3, 4), 1)
        alone = jnp.concatenate([model.forward({"tokens": part})[0] for part in parts], 1)
        return of("segment_ids", "positions"), of("segment_ids"), of("positions"), alone, of()

    packed, *same, one_text = run(make(kind, num_layers=1), PACKED)
    for x_BLD in same:
        close(x_BLD, packed)
    close(one_text[:, :3], packed[:, :3])
    assert (np.abs(one_text - packed)[:, 3:].max(-1) > 1e-3).all()


@KINDS
def test_a_later_token_changes_nothing(kind):
    other = TOKENS.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 24
    one, two = (hidden(make(kind), {"tokens": tokens}) for tokens in (TOKENS, other))
    np.testing.assert_array_equal(one[:, :5], two[:, :5])
    assert not np.array_equal(one[:, 5], two[:, 5])


@KINDS
def test_windows_that_follow_each_other_are_one_text(kind):
    model = make(kind)
    first, places = model.init_state(8), np.arange(8, dtype=np.int32)[None].repeat(8, 0)
    assert set(first) == ({"h", "c"} if kind == "lstm" else {"h"})

    def window(half, positions, state):
        here = slice(4 * half, 4 * half + 4)
        batch = {"tokens": TOKENS[:, here], "positions": places[:, positions : positions + 4]}
        x_BLD, aux = carried(model, batch, state)
        return x_BLD, aux["state"]

    one, state = window(0, 0, first)
    two, last = window(1, 4, state)
    close(np.concatenate([one, two], 1), hidden(model, {"tokens": TOKENS}))
    assert jax.tree.map(jnp.shape, last) == jax.tree.map(jnp.shape, first)
    assert np.abs(last["h"]).max() <= 1  # what is named h is h, also where jax sorts the names
    if kind == "lstm":
        assert np.abs(last["c"]).max() > 1
    # Position 0 is a new document: what is carried is dropped.
    close(window(0, 0, last)[0], one)


@KINDS
def test_decoding_is_the_forward_and_does_not_move_on_padding(kind):
    model = make(kind)
    lengths = np.array([5, 2, 3, 1, 0, 4, 5, 5], np.int32)  # of prompts padded to 5; one is empty
    prompt, cache = decode(model, TOKENS[:, :5], model.init_cache(8, 64), lengths)
    np.testing.assert_array_equal(cache["length"], lengths)
    wanted = np.asarray(hidden(model, {"tokens": TOKENS}))
    rows, steps = np.arange(8), []
    for step in range(2):
        one = TOKENS[rows, lengths + step][:, None]
        x_BLD, cache = decode(model, one, cache, None)
        steps.append(x_BLD[:, 0])
    np.testing.assert_array_equal(cache["length"], lengths + 2)
    for row, length in enumerate(lengths):
        close(prompt[row, :length], wanted[row, :length])
        for step in range(2):
            close(steps[step][row], wanted[row, length + step])


@pytest.mark.parametrize("tied", [True, False])
def test_log_probs_are_of_the_targets(tied):
    model = make("rnn", tie_embeddings=tied, head_bias=True, num_layers=1)

    @jit
    def run(model, batch):
        logits = model(batch["tokens"], segment_ids=SEGMENTS, positions=POSITIONS)
        return model.forward(batch)[0], logits, model.log_probs(batch), jax.nn.log_softmax(logits)

    x_BLD, logits, log_probs, wanted = run(model, PACKED)
    table = model.embed.tokens if tied else model.head
    close(logits, np.asarray(x_BLD) @ np.asarray(table).T + np.asarray(model.head_bias), atol=1e-5)
    close(
        log_probs, np.take_along_axis(np.asarray(wanted), PACKED["targets"][..., None], -1)[..., 0]
    )


def test_dropout_needs_a_key_and_leaves_the_state_alone():
    model = make("rnn", dropout=0.5, num_layers=1)

    @jit
    def run(model, key):
        state = model.init_state(8)
        with_key, without = (model.forward(PACKED, k, state) for k in (key, None))
        # Without inputs there is nothing to drop but outputs: what is carried is the same.
        silent = nnx.merge(*nnx.split(model))
        silent.embed.tokens = nnx.Param(jnp.zeros((24, 16)))
        carried = [silent.forward(PACKED, k, state)[1]["state"]["h"] for k in (key, None)]
        return with_key[0], without[0], carried

    one, plain, carried = run(model, jax.random.key(0))
    two, same, _ = run(model, jax.random.key(1))
    np.testing.assert_array_equal(plain, same)
    for x in (one, two):
        assert not np.allclose(x, plain, atol=1e-2)
    assert not np.allclose(one, two, atol=1e-2)
    close(*carried)


def test_an_lstm_starts_by_remembering():
    model = jit(lambda: create(config_of("lstm"), rngs=nnx.Rngs(0)))()
    np.testing.assert_array_equal(model.layers.bx[...].sum(-1), [[0, 16, 0, 0]] * 2)


THREE = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("kind", "sizes"), [("rnn", {"data": 1, "fsdp": 8}), ("lstm", THREE), ("gru", THREE)]
)
def test_a_mesh_changes_neither_loss_nor_gradients(kind, sizes):
    model = make(kind, head_bias=True)

    @jit
    def run(model, batch, count_B):
        cache = model.decode(batch["tokens"], model.init_cache(8, 7), count_B)[1]
        return jax.value_and_grad(lambda model: -jnp.sum(model.log_probs(batch)))(model), cache

    batch, count = PACKED, {"count": np.arange(8, dtype=np.int32)}
    (loss, gradients), cache = run(model, batch, count["count"])
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        place = lambda x, leaf: jax.device_put(np.asarray(x), leaf.sharding.spec)
        spread = jax.tree.map(place, model, abstract(model.config))
        (same, others), far = run(spread, put(batch, mesh), put(count, mesh)["count"])
        assert far["h"].sharding.spec == spread.init_state(8)["h"].sharding.spec
    np.testing.assert_allclose(same, loss, rtol=1e-5)
    close(np.asarray(far["h"]), cache["h"], atol=1e-5)
    for x, one, other in zip(*map(jax.tree.leaves, (spread, gradients, others)), strict=True):
        assert other.sharding == x.sharding
        close(np.asarray(other), one, atol=2e-5, rtol=1e-4)
