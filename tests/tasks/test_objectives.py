"""The loss is the documented sum over target tokens, whole or in chunks."""

# Shapes: B batch, L length, D model width, V vocabulary.

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.config import LossConfig
from lm_jax.models import ModelConfig, head
from lm_jax.tasks.objectives import cross_entropy, loss

B, L, D, V = 2, 12, 8, 24
rng = np.random.default_rng(0)
X = rng.standard_normal((B, L, D)).astype(np.float32)
TABLE = rng.standard_normal((V, D)).astype(np.float32)
TARGETS = rng.integers(0, V, (B, L)).astype(np.int32)
WEIGHTS = (rng.random((B, L)) < 0.7).astype(np.float32) * rng.choice([1.0, 0.5], (B, L)).astype(
    np.float32
)


def reference(z_loss=0.0, label_smoothing=0.0):
    """(loss, negative log-likelihood) by the formulas, float64."""
    logits_BLV = X.astype(np.float64) @ TABLE.T.astype(np.float64)
    log_z_BL = np.log(np.exp(logits_BLV).sum(-1))
    nll_BL = log_z_BL - np.take_along_axis(logits_BLV, TARGETS[..., None], 2)[..., 0]
    nll = (nll_BL * WEIGHTS).sum()
    q_BLV = np.full(logits_BLV.shape, label_smoothing / V)
    np.put_along_axis(q_BLV, TARGETS[..., None], 1 - label_smoothing + label_smoothing / V, 2)
    smooth_BL = -(q_BLV * (logits_BLV - log_z_BL[..., None])).sum(-1)
    return (smooth_BL * WEIGHTS).sum() + z_loss * (log_z_BL**2 * WEIGHTS).sum(), nll


def loss_and_gradients(config, weights=WEIGHTS):
    def loss(x, table):
        return cross_entropy(
            x, {"table": table}, jnp.asarray(TARGETS), jnp.asarray(weights), config
        )

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (loss, nll), gradients = run(jnp.asarray(X), jnp.asarray(TABLE))
    return float(loss), float(nll), gradients


@pytest.mark.parametrize("more", [{}, {"z_loss": 0.1}, {"z_loss": 0.1, "label_smoothing": 0.2}])
def test_loss_equals_the_formula_and_chunks_equal_the_whole_with_their_gradients(more):
    whole = loss_and_gradients(LossConfig(**more, chunk_size=L))
    chunked = loss_and_gradients(LossConfig(**more, chunk_size=4))
    np.testing.assert_allclose(whole[:2], reference(**more), rtol=1e-5)
    np.testing.assert_allclose(chunked[:2], whole[:2], rtol=1e-5)
    for one, other in zip(chunked[2], whole[2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more", [{"z_loss": 0.1}, {"label_smoothing": 0.3}])
def test_the_gradient_is_that_of_the_formula(more):
    _, _, (x_grad, _) = loss_and_gradients(LossConfig(**more, chunk_size=4))
    step = np.zeros_like(X)
    step[1, 3, 2] = 1e-3
    global_x, found = X.copy(), []
    for sign in (1, -1):
        globals()["X"] = global_x + sign * step
        found.append(reference(**more)[0])
    globals()["X"] = global_x
    np.testing.assert_allclose(x_grad[1, 3, 2], (found[0] - found[1]) / 2e-3, rtol=1e-3)


def test_a_target_without_weight_leaves_no_trace():
    padded = np.zeros_like(WEIGHTS)
    padded[0, :5] = 1
    loss, nll, (x_grad, _) = loss_and_gradients(LossConfig(chunk_size=4), padded)
    assert loss == nll > 0
    assert (x_grad[0, 5:] == 0).all()
    assert (x_grad[1] == 0).all()
    assert loss_and_gradients(LossConfig(chunk_size=4), 0 * padded)[:2] == (0.0, 0.0)


def test_a_chunk_divides_the_length_and_fits_what_is_asked_or_the_memory():
    size = lambda length, asked, vocab=V: head.chunk_size((B, length, D), vocab, asked)
    assert [size(12, 5), size(12, 12), size(12, 99), size(7, 6)] == [4, 12, 12, 1]
    assert size(1024, 0, 50_304) == 512  # 2 x 512 x 50304 x 4 bytes are under 256 MiB, twice is not
    assert size(12, 0) == 12


class Model:
    """A stand-in whose hidden states are its input's embeddings."""

    config = ModelConfig()

    def forward(self, batch, key):
        del key
        return jnp.asarray(TABLE)[batch["tokens"]], {}

    def head_states(self, x):
        return x

    def readout(self):
        return {"table": jnp.asarray(TABLE)}


def test_the_loss_gives_sums_so_that_parts_add_up_to_the_whole():
    tokens = jnp.asarray(rng.integers(0, V, (B, L)).astype(np.int32))
    batch = {"tokens": tokens, "targets": jnp.asarray(TARGETS), "weights": jnp.asarray(WEIGHTS)}
    total, sums = loss(Model(), batch, None, LossConfig())
    assert float(sums["tokens"]) == WEIGHTS.sum()
    parts = [loss(Model(), {k: v[i : i + 1] for k, v in batch.items()}, None, LossConfig())
             for i in range(B)]  # fmt: skip
    for found, expected in (
        (sum(p[0] for p in parts), total),
        (sum(p[1]["nll"] for p in parts), sums["nll"]),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
