"""Do schedules and AdamW do what the papers say, and does decay leave norms and biases alone?"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lm_jax import optimizers
from lm_jax.checkpoint import flatten
from lm_jax.config import ModelConfig, OptimizerConfig
from lm_jax.models import Transformer


def rates(steps, at, **options):
    """Learning rates at the steps `at` of a run, as fractions of the peak."""
    schedule = optimizers.schedule(OptimizerConfig(learning_rate=2.0, **options), steps)
    return [round(float(schedule(step)) / 2.0, 5) for step in at]


def test_cosine_warms_up_from_the_first_step_and_ends_at_its_fraction():
    found = rates(110, (0, 5, 10, 60, 110, 500), warmup_steps=10, end_fraction=0.1)
    assert found == [round(1 / 11, 5), round(6 / 11, 5), 1.0, 0.55, 0.1, 0.1]


def test_cosine_may_end_before_the_run():
    assert rates(1000, (10, 60, 110, 900), warmup_steps=10, decay_steps=100) == [1, 0.55, 0.1, 0.1]


def test_warm_up_stable_decay_is_flat_until_the_last_fifth():
    found = rates(100, (0, 10, 79, 80, 90, 100), warmup_steps=10, schedule="wsd", end_fraction=0.0)
    assert found == [round(1 / 11, 5), 1.0, 1.0, 1.0, 0.5, 0.0]


def test_the_inverse_square_root_is_that_of_the_step():
    found = rates(1000, (0, 25, 100, 400), warmup_steps=25, schedule="rsqrt")
    assert found == [round(1 / 26, 5), 1.0, 0.5, 0.25]


def test_constant_stays_and_no_warm_up_starts_at_the_peak():
    assert rates(100, (0, 5, 99), warmup_steps=0, schedule="constant") == [1.0, 1.0, 1.0]
    assert rates(100, (0, 100), warmup_steps=0, schedule="cosine") == [1.0, 0.1]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "rsqrt", "constant"])
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
        self.w, self.scale, self.bias = nnx.Param(w), nnx.Param(scale), nnx.Param(bias)


def test_adamw_equals_its_formula_over_three_steps():
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, weight_decay=0.3, b1=0.8, b2=0.9, eps=1e-6
    )
    rng = np.random.default_rng(0)
    shapes = {"w": (3, 4), "scale": (4,), "bias": (4,)}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = Tiny(**{name: jnp.asarray(x) for name, x in values.items()})
    tx = optimizers.make(config, steps=10)
    state = tx.init(model)
    m = v = {name: np.zeros(shape) for name, shape in shapes.items()}
    for step in range(3):
        g = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        updates, state = tx.update(Tiny(**{k: jnp.asarray(x) for k, x in g.items()}), state, model)
        model = optax.apply_updates(model, updates)
        rate = 0.1 * min(1.0, (step + 1) / 3 if step < 2 else 1.0)
        m = {k: 0.8 * m[k] + 0.2 * g[k] for k in g}
        v = {k: 0.9 * v[k] + 0.1 * g[k] ** 2 for k in g}
        for name, x in values.items():
            mean, var = m[name] / (1 - 0.8 ** (step + 1)), v[name] / (1 - 0.9 ** (step + 1))
            decay = 0.3 * x if name == "w" else 0.0
            values[name] = x - rate * (mean / (np.sqrt(var) + 1e-6) + decay)
            np.testing.assert_allclose(getattr(model, name)[...], values[name], rtol=2e-5)
    assert math.isclose(float(optimizers.schedule(config, 10)(2)), 0.1, rel_tol=1e-6)
