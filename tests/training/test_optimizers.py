"""Do schedules and optimizers do what the papers say, and does decay leave norms and biases
alone?
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lm_jax.config import ModelConfig, OptimizerConfig
from lm_jax.errors import UserError
from lm_jax.models import Transformer
from lm_jax.models.parameter import TABLE, hidden, parameter, vector
from lm_jax.run.checkpoint import flatten
from lm_jax.training import optimizers


def rates(steps, at, **options):
    """Learning rates at the steps `at` of a run, as fractions of the peak."""
    schedule = optimizers.schedule(OptimizerConfig(learning_rate=2.0, **options), steps)
    return [round(float(schedule(step)) / 2.0, 5) for step in at]


def test_cosine_warms_up_from_the_first_step_and_ends_at_its_fraction():
    found = rates(110, (0, 5, 10, 60, 110, 500), warmup_steps=10, end_fraction=0.1)
    assert found == [round(1 / 11, 5), round(6 / 11, 5), 1.0, 0.55, 0.1, 0.1]


def test_cosine_may_end_before_the_run():
    assert rates(1000, (10, 60, 110, 900), warmup_steps=10, decay_steps=100) == [1, 0.55, 0.1, 0.1]


def test_linear_falls_by_the_same_in_each_step_from_the_warm_up_to_the_end():
    linear = {"schedule": "linear", "end_fraction": 0.0}
    found = rates(110, (0, 5, 10, 35, 60, 110, 500), warmup_steps=10, **linear)
    assert found == [round(1 / 11, 5), round(6 / 11, 5), 1.0, 0.75, 0.5, 0.0, 0.0]
    assert rates(1000, (0, 50, 900), warmup_steps=0, decay_steps=100, **linear) == [1, 0.5, 0]


def test_warm_up_stable_decay_is_flat_until_the_last_fifth():
    found = rates(100, (0, 10, 79, 80, 90, 100), warmup_steps=10, schedule="wsd", end_fraction=0.0)
    assert found == [round(1 / 11, 5), 1.0, 1.0, 1.0, 0.5, 0.0]


def test_warm_up_stable_decay_reaches_its_end_after_any_warm_up():
    found = rates(10, (8, 9, 10), warmup_steps=9, schedule="wsd", end_fraction=0.0)
    assert found == [0.9, 1.0, 0.0]


def test_the_inverse_square_root_is_that_of_the_step():
    found = rates(1000, (0, 25, 100, 400), warmup_steps=25, schedule="rsqrt")
    assert found == [round(1 / 26, 5), 1.0, 0.5, 0.25]


def test_the_inverse_square_root_may_begin_later_as_for_t5():
    found = rates(1000, (0, 99, 100, 400), warmup_steps=0, decay_steps=100, schedule="rsqrt")
    assert found == [1.0, 1.0, 1.0, 0.5]
    found = rates(1000, (10, 100, 400), warmup_steps=10, decay_steps=100, schedule="rsqrt")
    assert found == [1.0, 1.0, 0.5]


def test_constant_stays_and_no_warm_up_starts_at_the_peak():
    assert rates(100, (0, 5, 99), warmup_steps=0, schedule="constant") == [1.0, 1.0, 1.0]
    assert rates(100, (0, 100), warmup_steps=0, schedule="cosine") == [1.0, 0.1]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd", "rsqrt", "constant"])
def test_no_first_step_is_lost_to_a_rate_of_zero(schedule):
    assert rates(50, (0,), warmup_steps=20, schedule=schedule)[0] > 0


def test_decay_leaves_out_norms_and_biases_and_nothing_else():
    config = ModelConfig(
        vocab_size=32, num_layers=2, dim=8, num_heads=2, max_length=8, bias=True,
        norm="layernorm", positions="learned", gated=False, tie_embeddings=False,
    )  # fmt: skip
    model = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    found = flatten(optimizers.decayed(model))
    assert sorted(name for name, decays in found.items() if decays) == [
        *(f"decoder/blocks/attn/{name}" for name in ("wk", "wo", "wq", "wv")),
        "decoder/blocks/mlp/down", "decoder/blocks/mlp/up",
        "embed/positions", "embed/tokens", "head",
    ]  # fmt: skip
    assert len(found) == 9 + 2 * 2 + 4 + 2 + 2  # norms of the blocks, attention, mlp, last norm


class Tiny(nnx.Module):
    def __init__(self, w, scale, bias):
        self.w = parameter(w, (None, None), hidden((-2,), (-1,)))
        self.scale, self.bias = (parameter(x, (None,), vector()) for x in (scale, bias))


def steps_of(config, steps=3):
    """(gradients, values before, values after) by name, of steps on random gradients."""
    rng, shapes = np.random.default_rng(0), {"w": (3, 4), "scale": (4,), "bias": (4,)}
    draw = lambda: {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    array = lambda tree: Tiny(**{name: jnp.asarray(x, jnp.float32) for name, x in tree.items()})
    model, tx = array(draw()), optimizers.make(config, steps=10)
    values = lambda: {name: np.float64(getattr(model, name)[...]) for name in shapes}
    state = tx.init(model)
    for _ in range(steps):
        grads, before = draw(), values()
        updates, state = tx.update(array(grads), state, model)
        model = optax.apply_updates(model, updates)
        yield grads, before, values()


def test_adamw_equals_its_formula_over_three_steps():
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, weight_decay=0.3, b1=0.8, b2=0.9, eps=1e-6
    )
    m = v = {"w": 0.0, "scale": 0.0, "bias": 0.0}
    for step, (g, before, after) in enumerate(steps_of(config)):
        rate = 0.1 * min(1.0, (step + 1) / 3 if step < 2 else 1.0)
        m = {k: 0.8 * m[k] + 0.2 * g[k] for k in g}
        v = {k: 0.9 * v[k] + 0.1 * g[k] ** 2 for k in g}
        for name, x in before.items():
            mean, var = m[name] / (1 - 0.8 ** (step + 1)), v[name] / (1 - 0.9 ** (step + 1))
            decay = 0.3 * x if name == "w" else 0.0
            expected = x - rate * (mean / (np.sqrt(var) + 1e-6) + decay)
            np.testing.assert_allclose(after[name], expected, rtol=2e-5)
    assert step == 2
    assert math.isclose(float(optimizers.schedule(config, 10)(2)), 0.1, rel_tol=1e-6)


def test_lion_equals_its_formula_over_three_steps():
    config = OptimizerConfig(
        name="lion", learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.3,
        b1=0.8, b2=0.9,
    )  # fmt: skip
    m = {"w": 0.0, "scale": 0.0, "bias": 0.0}
    for g, before, after in steps_of(config):
        for name, x in before.items():
            sign = np.sign(0.8 * m[name] + 0.2 * g[name])
            expected = x - 0.1 * (sign + (0.3 * x if name == "w" else 0.0))
            np.testing.assert_allclose(after[name], expected, rtol=2e-5)
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in g}
    assert np.any(m["w"])


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_without_a_gradient_only_weights_decay(name):
    config = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=0, weight_decay=0.3,
                             muon_learning_rate=0.1)  # fmt: skip
    model = Tiny(*(jnp.arange(1.0, 13.0).reshape(3, 4), jnp.full(4, 2.0), jnp.full(4, 3.0)))
    tx = optimizers.make(config, steps=10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model)
    np.testing.assert_allclose(updates.w[...], -0.03 * model.w[...], rtol=1e-5)
    assert not np.any(updates.scale[...])
    assert not np.any(updates.bias[...])


class Beside(nnx.Module):
    """A matrix inside the blocks, two of gate and up, an embedding and a bias."""

    def __init__(self, w, up, table, bias):
        self.w = parameter(w, (None,) * 3, hidden((-1,), (-3, -2)))
        self.up = parameter(up, (None,) * 3, hidden((-3,), (-1,)))
        self.table = parameter(table, (None, None), TABLE)
        self.bias = parameter(bias, (None,), vector())


def published_muon(g, momentum):
    """(The move of one matrix [in, out], its new momentum), in float64 (Jordan et al. 2024)."""
    momentum = 0.95 * momentum + 0.05 * g
    x = 0.95 * momentum + 0.05 * g
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x * max(1.0, x.shape[1] / x.shape[0]) ** 0.5, momentum


def test_muon_equals_the_published_algorithm_with_adamw_beside_it():
    config = OptimizerConfig(
        name="muon", learning_rate=0.1, muon_learning_rate=0.02, schedule="constant",
        warmup_steps=0, weight_decay=0.3, b1=0.8, b2=0.9, eps=1e-6,
    )  # fmt: skip
    rng, shapes = np.random.default_rng(0), {"w": (2, 3, 4), "up": (4, 2, 7), "table": (6, 4),
                                             "bias": (4,)}  # fmt: skip
    draw = lambda: {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    array = lambda tree: Beside(**{name: jnp.asarray(x, jnp.float32) for name, x in tree.items()})
    values, tx = draw(), optimizers.make(config, steps=10)
    model = array(values)
    state = tx.init(model)
    m = v = {"table": 0.0, "bias": 0.0}
    momentum = dict.fromkeys(("w", 0, 1), 0.0)
    for step in range(1, 4):
        g = draw()
        updates, state = tx.update(array(g), state, model)
        model = optax.apply_updates(model, updates)
        move, momentum["w"] = published_muon(g["w"].reshape(6, 4).T, momentum["w"])
        values["w"] = values["w"] - 0.02 * (move.T.reshape(2, 3, 4) + 0.3 * values["w"])
        both = []
        for part in (0, 1):  # each by itself
            move, momentum[part] = published_muon(g["up"][:, part], momentum[part])
            both.append(move)
        values["up"] = values["up"] - 0.02 * (np.stack(both, 1) + 0.3 * values["up"])
        m = {k: 0.8 * m[k] + 0.2 * g[k] for k in m}
        v = {k: 0.9 * v[k] + 0.1 * g[k] ** 2 for k in v}
        for name in m:
            mean, var = m[name] / (1 - 0.8**step), v[name] / (1 - 0.9**step)
            decay = 0.3 * values[name] if name == "table" else 0.0
            values[name] = values[name] - 0.1 * (mean / (np.sqrt(var) + 1e-6) + decay)
        for name, x in values.items():
            np.testing.assert_allclose(getattr(model, name)[...], x, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("grown", "blamed"), [
    ("hidden", "muon_learning_rate (now 9)"), ("others", "learning_rate (now 7)"),
    ("none", "muon_learning_rate (now 9) or config.optimizer.learning_rate (now 7)"),
])  # fmt: skip
def test_after_divergence_the_rate_of_the_weights_that_grew_is_to_be_lowered(grown, blamed):
    config = OptimizerConfig(name="muon", learning_rate=7.0, muon_learning_rate=9.0)
    model = Transformer(MIXED, rngs=nnx.Rngs(0))
    if grown == "hidden":
        model.decoder.blocks.mlp.up[...] *= 1e6
    if grown == "others":
        model.decoder.blocks.mlp_norm.scale[...] *= 1e6
    assert optimizers.largest_rate(config, model) == f"config.optimizer.{blamed}"
    adamw = OptimizerConfig(learning_rate=7.0)
    assert optimizers.largest_rate(adamw, model) == "config.optimizer.learning_rate (now 7)"


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_a_parameter_that_says_nothing_is_refused_by_name(name):
    model = jax.eval_shape(lambda: Transformer(MIXED, rngs=nnx.Rngs(0)))
    model.decoder.blocks.attn.adapter = nnx.Param(jnp.zeros((N, D, 2)))
    tx = optimizers.make(OptimizerConfig(name=name), 10)
    with pytest.raises(UserError, match=r"^parameter decoder/blocks/attn/adapter: .*decays"):
        jax.eval_shape(tx.init, model)


# ---- Adafactor, beside optax's on each matrix by itself ------------------------------------------

N, D, E, V = 2, 8, 2, 24  # layers, width, experts, vocabulary
MIXED = ModelConfig(
    vocab_size=V, num_layers=N, dim=D, num_heads=4, num_kv_heads=2, mlp_dim=12, max_length=10,
    qkv_bias=True, num_experts=E,
)  # fmt: skip
APART = {  # name -> [matrices, rows, columns]; vectors are [vectors, size]
    "wq": (N, D, -1), "wk": (N, D, -1), "wv": (N, D, -1), "wo": (N, -1, D), "router": (N, D, E),
    "up": (2 * N * E, D, 12), "down": (N * E, -1, D), "tokens": (1, V, D),
}  # fmt: skip


def apart(tree):
    """{name and number: the matrix or vector}."""
    found = {}
    for name, x in flatten(tree).items():
        x = np.moveaxis(x, -2, 1) if name.endswith("/up") else x  # gate and up are two matrices
        shape = next((shape for end, shape in APART.items() if name.endswith("/" + end)), None)
        shape = shape or (N if "/blocks/" in name else 1, -1)
        for index, part in enumerate(x.reshape(shape)):
            found[f"{name} {index}"] = part
    return found


def test_adafactor_factors_each_layer_and_expert_as_optax_does_alone():
    config = OptimizerConfig(name="adafactor", learning_rate=0.1, schedule="constant",
                             warmup_steps=0, weight_decay=0.0)  # fmt: skip
    ours, theirs = optimizers.make(config, 10), optax.adafactor(0.1, min_dim_size_to_factor=1)
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda: Transformer(MIXED, rngs=nnx.Rngs(0)))
    # Of unlike sizes in rows, columns and layers: what is averaged with what would show.
    draw = lambda x: jnp.asarray(np.exp(rng.normal(size=x.shape)), jnp.float32)
    model = jax.tree.map(draw, abstract)
    state, other = ours.init(model), theirs.init(apart(model))
    update, alone = jax.jit(ours.update), jax.jit(theirs.update)
    for _ in range(3):
        grads = jax.tree.map(draw, abstract)
        updates, state = update(grads, state, model)
        expected, other = alone(apart(grads), other, apart(model))
        found = apart(updates)
        assert len(found) == len(expected) == 34
        for name, x in expected.items():
            np.testing.assert_allclose(found[name], x, rtol=2e-4, atol=1e-9, err_msg=name)
        model = optax.apply_updates(model, updates)


def test_adafactor_keeps_a_row_and_a_column_of_each_matrix():
    model = jax.eval_shape(lambda: Transformer(MIXED, rngs=nnx.Rngs(0)))
    sizes = {}
    for name in ("adafactor", "adamw"):
        tx = optimizers.make(OptimizerConfig(name=name), 10)
        sizes[name] = sum(x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, model)))
    parts = apart(jax.tree.map(lambda x: np.zeros(x.shape), model)).values()
    counters = 2  # of optax's chain: the moments', the schedule's
    assert sizes["adafactor"] == sum(sum(x.shape) for x in parts) + counters
    assert sizes["adafactor"] < sizes["adamw"] / 4
