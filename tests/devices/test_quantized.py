"""Products in eight bits are close to those of floats, equal on every mesh, and compiled to eight
bits for the chips that have them.
"""

import dataclasses
import functools
import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm_jax.config import Config, MeshConfig, ModelConfig, OptimizerConfig, from_model
from lm_jax.devices import products, quantized, sharding, xla_options
from lm_jax.devices.sharding import make_mesh, shard
from lm_jax.errors import MachineError, UserError
from lm_jax.models import ragged
from lm_jax.training import ahead_of_time
from lm_jax.training.train_step import init_state, make_train_step

pytest.importorskip("qwix", reason="pip install 'lm_jax[quantization]' brings Qwix")

MODES = ("int8", "int8_full", "fp8", "fp8_full")
EACH = ["int8", "fp8_full"] + [
    pytest.param(bits, marks=pytest.mark.slow) for bits in ("int8_full", "fp8")
]
MESHES = [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 8}]


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def branch(bits, x_BLD, up_DF, down_FD):
    """One weight reads the stream, one writes to it."""
    axes = ("batch", "length", "mlp")
    x_BLD = shard(x_BLD, *sharding.stream(x_BLD.shape[2]))
    up_DF, down_FD = shard(up_DF, "embed", "mlp"), shard(down_FD, "mlp", "embed")
    (h_BLF,) = products.expand(x_BLD, ("bld,df->blf", up_DF, axes), bits=bits)
    return products.contract("blf,fd->bld", jnp.tanh(h_BLF), down_FD, *axes, bits=bits)


def outcome(bits, mesh=None, devices=None, lower=False):
    """The branch, and the gradients of its arguments; with `lower`, its program."""

    def run(*arrays):
        y, back = jax.vjp(partial(branch, bits), *arrays)
        return y, back(jnp.cos(arrays[0]))

    arrays = numbers(8, 6, 16), numbers(16, 32, seed=1) / 4, numbers(32, 16, seed=2) / 4
    if mesh is None:
        return jax.jit(run)(*arrays)
    with jax.set_mesh(make_mesh(MeshConfig(**mesh), devices)):
        if lower:
            with xla_options.not_kept():
                return jax.jit(run).trace(*arrays).lower(lowering_platforms=("tpu",)).compile()
        return jax.tree.map(np.asarray, jax.jit(run)(*arrays))


@pytest.mark.parametrize("bits", EACH)
def test_a_branch_and_its_gradients_are_near_those_of_floats(bits):
    error = lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b)
    errors = jax.tree.leaves(jax.tree.map(error, outcome(bits), outcome("none")))
    assert 1e-4 < max(errors) < (0.03 if "int8" in bits else 0.12)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("bits", EACH)
def test_a_branch_is_the_same_on_every_mesh(bits, mesh):
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, outcome(bits, mesh), outcome(bits))


def test_the_gradient_goes_straight_through_what_is_rounded():
    x, w = numbers(4, 8), numbers(8, 5, seed=1)
    found = [jax.vjp(partial(products.product, "bd,df->bf", None, bits), x, w)[1]
             for bits in ("int8", "none")]  # fmt: skip
    g = numbers(4, 5, seed=2)
    jax.tree.map(np.testing.assert_array_equal, *(back(g) for back in found))


def test_the_largest_of_a_row_is_no_tie():
    """If it became 127.5, the last bit would decide between -127 and -128."""
    x = numbers(64, 32)
    found = quantized.quantize(x, "bd", "bf", "int8").qvalue
    np.testing.assert_array_equal(jnp.max(jnp.abs(found.astype(jnp.int32)), 1), 127)


@pytest.mark.parametrize("bits", EACH)
def test_experts_are_near_those_of_floats(bits):
    sizes = jnp.asarray((0, 300, 0, 5))
    x, w = numbers(305 + ragged.ROOM, 24), numbers(4, 24, 16, seed=1)
    run = lambda bits: jax.vjp(lambda x, w: ragged.grouped(bits, x, w, sizes)[:305], x, w)
    (y, back), (y_ref, back_ref) = run(bits), run("none")
    for a, b in zip((y, *back(y_ref)), (y_ref, *back_ref(y_ref)), strict=True):
        a, b = (z[:305] if z.ndim == 2 else z for z in (a, b))
        assert jnp.linalg.norm(a - b) < (0.02 if "int8" in bits else 0.06) * jnp.linalg.norm(b)


@pytest.mark.parametrize(
    ("topology", "bits", "wanted"),
    [("v5e:2x2", "int8_full", {("s32", "s8", "s8")}),
     ("tpu7x:2x2x1", "fp8_full",
      {("f32", "f8e4m3fn", "f8e4m3fn"), ("f32", "f8e5m2", "f8e4m3fn")})],
)  # fmt: skip
def test_the_tpu_compiler_multiplies_in_eight_bits(topology, bits, wanted):
    pytest.importorskip("libtpu")
    mesh, devices = {"data": 1, "fsdp": 2, "tensor": 2}, ahead_of_time.devices(topology)[:4]
    text = outcome(bits, mesh, devices, lower=True).as_text()
    of = dict(re.findall(r"(%[\w.\-]+) = (\w+)\[", text))
    products = re.findall(r"= (\w+)\[\S+ convolution\((%[\w.\-]+), (%[\w.\-]+)\)", text)
    assert {(out, of[x], of[w]) for out, x, w in products} >= wanted


@functools.cache
def end(bits, seed):
    """The mean loss of the last of 200 steps."""
    return losses(200, bits, seed=seed)[-20:].mean()


def losses(steps, bits, mesh=None, seed=0, **model):
    """Losses of steps of a small model on this file, on one device or a mesh of eight."""
    text = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(np.int32)
    model = ModelConfig(vocab_size=256, num_layers=1, dim=32, num_heads=4, mlp_dim=64,
                        attention="xla", dtype="float32", quantization=bits, **model)  # fmt: skip
    optimizer = OptimizerConfig(warmup_steps=min(steps, 20), learning_rate=3e-3)
    config = dataclasses.replace(
        from_model(model, 32), steps=steps, batch_size=8, optimizer=optimizer
    )
    mesh = make_mesh(MeshConfig(**(mesh or {})), jax.devices()[: 8 if mesh else 1])
    at, found = np.random.default_rng(seed).integers(0, len(text) - 33, (steps, 1, 8)), []
    with jax.set_mesh(mesh):
        state, step = jax.jit(lambda: init_state(config))(), jax.jit(make_train_step(config))
        for starts in at:
            rows = text[starts[..., None] + np.arange(33)]
            batch = {"tokens": rows[..., :-1], "targets": rows[..., 1:],
                     "weights": np.ones((1, 8, 32), np.float32)}  # fmt: skip
            state, metrics = step(state, sharding.put(batch, mesh, leading=1))
            found.append(float(metrics["loss"]))
    return np.array(found)


def test_a_model_is_the_same_on_a_mesh():
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    np.testing.assert_allclose(losses(2, "int8", mesh), losses(2, "int8"), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("bits", MODES)
def test_a_model_learns_as_much_as_with_floats(bits):
    # Of one run the loss differs by up to 2 % either way, as does that of another order of sums.
    assert abs(np.mean([end(bits, seed) / end("none", seed) for seed in range(4)]) - 1) < 0.01


def test_a_chip_that_is_no_faster_is_told_with_what_would_be():
    assert quantized.warning("none", "cpu") == ""
    assert quantized.warning("int8", "TPU v5 lite") == ""
    assert quantized.warning("fp8_full", "NVIDIA H100 80GB HBM3") == ""
    line = quantized.warning("fp8_full", "TPU v6 lite")
    assert line == (
        "WARNING: config.model.quantization='fp8_full': on TPU v6 lite, fp8 is no faster than "
        "bfloat16, and may be slower; set it to int8 or none."
    )


def test_without_qwix_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(MachineError, match=r"pip install 'lm_jax\[quantization\]'"):
        quantized.warning("int8", "TPU v5 lite")


def test_a_wrong_choice_is_refused():
    parse = lambda **model: Config.parse({"model": model})
    with pytest.raises(UserError, match=r"model.quantization='int4': not known\..* 'int8'"):
        parse(quantization="int4")
    with pytest.raises(UserError, match=r"quantized='attn,mpl': 'mpl' is not known.* 'mlp'"):
        parse(quantized="attn,mpl")
    with pytest.raises(UserError, match="architecture='lstm' has no such products"):
        parse(quantization="int8", architecture="lstm")
    assert ModelConfig(quantization="fp8", quantized="mlp").bits("attn") == "none"
