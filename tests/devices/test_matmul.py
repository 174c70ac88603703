"""Matrix products are rounded to bfloat16 where the precision is set, and only there."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.config import Config, MeshConfig, ModelConfig
from lm_jax.devices import matmul, runtime, sharding
from lm_jax.devices.products import einsum
from lm_jax.devices.resolve import resolved
from lm_jax.errors import UserError
from lm_jax.models.attention import kernels
from lm_jax.training.train_step import init_state, make_train_step

SMALL = ModelConfig(vocab_size=128, num_layers=2, dim=64, num_heads=2, max_length=32,
                    scan_unroll=2, dtype="float32", attention="xla")  # fmt: skip
ROUNDED = ("bf16", "reduce_precision")  # on jax before 0.10


def arrays(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def low(x):
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32))


def test_float32_is_multiplied_in_bfloat16_and_summed_in_float32_where_asked():
    x, w = arrays((8, 512), (512, 8))
    with jax.default_matmul_precision("bfloat16"):
        y = matmul.einsum("ab,bc->ac", x, w)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, low(x) @ low(w), rtol=1e-5, atol=1e-4)
    assert np.abs(np.asarray(y) - np.asarray(x) @ np.asarray(w)).max() > 1e-2
    full = jax.jit(lambda x, w: matmul.einsum("ab,bc->ac", x, w)).lower(x, w).as_text()
    assert not any(word in full for word in ROUNDED)


def test_gradients_are_rounded_as_the_product_is():
    x, w, g = arrays((2, 16, 64), (64, 32), (2, 16, 32))
    with jax.default_matmul_precision("bfloat16"):
        _, pull = jax.vjp(lambda x, w: einsum("bld,df->blf", x, w, None, None, None), x, w)
        dx, dw = pull(g)
    np.testing.assert_allclose(dx, np.einsum("blf,df->bld", low(g), low(w)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(dw, np.einsum("bld,blf->df", low(x), low(g)), rtol=1e-5, atol=1e-4)


def test_other_platforms_are_left_to_jax():
    """TPUs and GPUs have the setting: nothing is rounded before the product."""
    x, w = arrays((8, 16), (16, 8))
    with jax.default_matmul_precision("bfloat16"):
        traced = jax.jit(lambda x, w: matmul.einsum("ab,bc->ac", x, w)).trace(x, w)
    cpu, tpu = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu"))
    assert any(word in cpu for word in ROUNDED)
    assert not any(word in tpu for word in ROUNDED)


def dots(config: ModelConfig, what: str) -> int:
    """Number of products of a train step with operands of this type."""
    config = Config(batch_size=2, model=config)
    state = jax.eval_shape(lambda: init_state(config))
    tokens = jax.ShapeDtypeStruct((1, 2, 32), jnp.int32)
    batch = {"tokens": tokens, "targets": tokens,
             "weights": jax.ShapeDtypeStruct(tokens.shape, jnp.float32)}  # fmt: skip
    text = jax.jit(make_train_step(config)).lower(state, batch).as_text()
    lines = [line for line in text.splitlines() if "dot_general" in line]
    return sum(line.count(f"x{what}>") >= 2 for line in lines)


@pytest.mark.jax10
def test_every_product_of_a_train_step_is_rounded():
    products = dots(SMALL, "f32")
    assert products > 20  # equal ones may be one function
    low = dataclasses.replace(SMALL, matmul_precision="bfloat16")
    assert dots(low, "f32") == 0
    assert dots(low, "bf16") == products
    assert dots(SMALL, "bf16") == 0


def losses(precision: str, steps: int = 40, mesh: MeshConfig | None = None) -> np.ndarray:
    """Losses of a run on rows that repeat."""
    tokens = np.random.default_rng(1).integers(0, 8, (1, 8, 33)).astype(np.int32)
    batch = {"tokens": tokens[..., :-1], "targets": tokens[..., 1:],
             "weights": np.ones((1, 8, 32), np.float32)}  # fmt: skip
    model = dataclasses.replace(SMALL, matmul_precision=precision)
    optimizer = dataclasses.replace(Config().optimizer, warmup_steps=1)
    config = Config(batch_size=8, steps=40, model=model, optimizer=optimizer)
    place = sharding.make_mesh(mesh or MeshConfig(), None if mesh else jax.devices()[:1])
    with jax.set_mesh(place):
        state, step = jax.jit(lambda: init_state(config))(), jax.jit(make_train_step(config))
        found = []
        for _ in range(steps):
            state, metrics = step(state, sharding.put(batch, place, 1))
            found.append(float(metrics["loss"]))
    return np.asarray(found)


def test_a_model_learns_as_well():
    full, low = losses("default"), losses("bfloat16")
    assert full[-1] < 0.6 * full[0]
    np.testing.assert_allclose(low, full, rtol=0.02)
    assert not np.array_equal(low, full)


def test_a_mesh_rounds_the_same_products():
    low = losses("bfloat16", 10, MeshConfig(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(low, losses("bfloat16", 10), rtol=1e-3)


@pytest.mark.parametrize(
    ("platform", "dtype", "amx", "found"),
    [
        ("cpu", "auto", True, "bfloat16"),
        ("cpu", "auto", False, "default"),
        ("cpu", "bfloat16", True, "default"),
        ("tpu", "float32", True, "default"),
    ],
)
def test_auto_is_for_cpus_that_are_faster_so(monkeypatch, platform, dtype, amx, found):
    monkeypatch.setattr(runtime, "bfloat16_is_faster", lambda: amx)
    model = dataclasses.replace(SMALL, matmul_precision="auto", dtype=dtype)
    assert resolved(model, platform).matmul_precision == found
    plain = dataclasses.replace(model, matmul_precision="default")
    assert resolved(plain, platform).matmul_precision == "default"


@pytest.mark.jax10
def test_default_leaves_what_the_user_told_jax():
    with jax.default_matmul_precision("bfloat16"):
        assert dots(SMALL, "f32") == 0


def test_a_misspelt_precision_is_refused():
    with pytest.raises(UserError, match=r"model.matmul_precision='bf16'.*'bfloat16'"):
        Config.parse({"model": {"matmul_precision": "bf16"}})


@pytest.mark.parametrize("cap", [0.0, 5.0])
def test_attentions_own_gradient_is_that_of_its_formula(cap):
    """kernels.product against jax's own derivative of softmax(q k) v."""
    q, k, v, bias = arrays((2, 2, 3, 24, 8), (2, 2, 20, 8), (2, 2, 20, 6), (1, 2, 3, 24, 20))
    allowed = np.tril(np.ones((1, 24, 20), bool))

    def formula(q, k, v, bias):
        a = jnp.einsum("bkglh,bksh->bkgls", q, k)
        a = (cap * jnp.tanh(a / cap) if cap else a) + bias
        e = jnp.where(allowed[:, None, None], jnp.exp(a), 0.0)
        return jnp.einsum("bkgls,bksh->bkglh", e / e.sum(-1, keepdims=True), v)

    def ours(q, k, v, bias):
        return kernels.product(q, k, v, allowed, cap, bias)

    results = []
    for function in (formula, ours):
        o, pull = jax.vjp(function, q, k, v, bias)
        results.append((o, *pull(jnp.sin(jnp.arange(o.size, dtype=o.dtype)).reshape(o.shape))))
    for right, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, right, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("equation", ["blkgh,kghd->bld", "blkgh,dkgh->bld", "bld,dkgh->blkgh"])
def test_a_sum_over_several_axes_runs_in_the_order_of_memory(equation):
    sizes = dict(zip("blkghd", (2, 3, 4, 5, 6, 7), strict=True))
    inputs = equation.split("->")[0].split(",")
    x, w = arrays(*[[sizes[letter] for letter in of] for of in inputs])
    y = matmul.einsum(equation, x, w)
    np.testing.assert_allclose(y, jnp.einsum(equation, x, w), rtol=1e-5, atol=1e-5)
    [product] = jax.make_jaxpr(partial(matmul.einsum, equation))(x, w).jaxpr.eqns
    assert all(list(axes) == sorted(axes) for axes in product.params["dimension_numbers"][0])
