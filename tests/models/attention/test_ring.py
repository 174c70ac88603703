"""Ring attention over a sequence that is cut over devices equals attention over the whole."""

# Shapes: B batch, L length of the whole sequence, K key heads, G query heads a key head, H size.

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm_jax.devices import xla_options
from lm_jax.errors import UserError
from lm_jax.models.attention import context, kernels, ring
from lm_jax.models.remat import POLICIES
from lm_jax.training import ahead_of_time

CUT = PartitionSpec(None, "context")
RNG = np.random.default_rng(0)


def over(devices, function):
    """`function` of each device's part of arrays [B, L, ...]."""
    mesh = Mesh(np.array(devices), ("context",))
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=CUT, out_specs=CUT, check_vma=False))


def arrays(L: int, B=2, K=2, G=3, H=8):
    """q, k, v, and a cotangent of the output."""
    shapes = (B, L, K, G, H), (B, L, K, H), (B, L, K, H), (B, L, K, G, H)
    return [jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in shapes]


def documents(L: int):
    """Segments [2, L] that begin anywhere, one row with padding at its end."""
    ids_BL = np.cumsum(RNG.random((2, L)) < 4 / L, 1) + 1
    ids_BL[0, -L // 3 :] = 0
    return jnp.asarray(ids_BL, jnp.int32)


def ringed(c: int, segments_BL, causal: bool, cap: float, backend: str = "xla"):
    """Attention of q, k and v in natural order over c devices."""

    def local(q, k, v, ids):
        return ring.ring_attention(q, k, v, ids, ids, "context", causal, cap, backend)

    def all_of_them(q, k, v):
        places = np.arange(q.shape[1])
        places = context.zigzag(places, c) if causal else places
        parts = jax.tree.map(lambda x: x[:, places], (q, k, v, segments_BL))
        return over(jax.devices()[:c], local)(*parts)[:, np.argsort(places)]

    return all_of_them


def whole(segments_BL, causal: bool, cap: float):
    """The same on one device."""
    mask, scores = kernels.Mask(causal, segments=segments_BL), kernels.Scores(1.0, cap)
    return lambda q, k, v: kernels.xla(q, k, v, mask, scores)


def assert_equal(function, other, q, k, v, t):
    """Values to 1e-5, gradients to 1e-4."""

    def both(function):
        o, pull = jax.vjp(function, q, k, v)
        return o, *pull(t)

    found, wanted = (jax.jit(both, static_argnums=0)(f) for f in (function, other))
    for name, a, b in zip("oqkv", found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 if name == "o" else 1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("c", "causal", "cap", "packed"),
    [(8, True, 2.0, True), (2, True, 0.0, False), (4, False, 2.0, True)],
)
def test_a_ring_sees_what_one_device_sees(c, causal, cap, packed):
    ids_BL = documents(64) if packed else None
    assert_equal(ringed(c, ids_BL, causal, cap), whole(ids_BL, causal, cap), *arrays(64))


@pytest.mark.parametrize("c", [2, 8])
def test_every_step_is_two_products_of_pieces_on_every_device(c):
    h, H = 16, 8
    q, k, v, _ = arrays(2 * h * c, H=H)
    text = str(jax.make_jaxpr(ringed(c, None, True, 0.0))(q, k, v))
    sizes = re.findall(r",(\d+),(\d+)\] = dot_general", text)
    first, loop = 3, 2
    assert sizes == [(f"{h}", f"{h}"), (f"{h}", f"{H}")] * (first + loop)
    assert f"length={c - 1}" in text


def test_what_a_policy_keeps_as_context_is_not_looked_for_again():
    *qkv, _ = arrays(32)

    def loops(policy):
        attend = jax.checkpoint(ringed(2, None, True, 0.0), policy=POLICIES[policy])
        grad = jax.grad(lambda q, k, v: attend(q, k, v).sum(), (0, 1, 2))
        return str(jax.make_jaxpr(grad)(*qkv)).count("scan[")

    assert loops("full") == 3
    assert loops("names") == loops("dots") == 2


def test_splash_refuses_pieces_that_it_cannot_tile_and_a_kernel_that_it_does_not_know(monkeypatch):
    def attend(L):
        q, k, v, t = arrays(L, K=1, G=1)
        return jax.eval_shape(lambda *x: jax.vjp(splash, *x)[1](t), q, k, v)

    splash = ringed(2, None, True, 0.0, "splash")
    with pytest.raises(UserError, match=r"64 tokens, .* piece of it, are not a multiple of 128"):
        attend(256)
    monkeypatch.setattr(splash_attention_kernel, "_splash_attention_bwd", lambda res, do: None)
    with pytest.raises(UserError, match=r"has another backward kernel .* set config"):
        attend(512)


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "cap"), [(True, 5.0), (False, 0.0)])
def test_the_splash_kernel_is_the_same_ring(monkeypatch, causal, cap):
    make = functools.partial(splash_attention_kernel.make_splash_mqa, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mqa", make)
    ids_BL = documents(512)[:1]
    function, other = ringed(2, ids_BL, causal, cap, "splash"), whole(ids_BL, causal, cap)
    assert_equal(function, other, *arrays(512, B=1, K=1, G=2))


@pytest.mark.slow
def test_on_tpu_keys_travel_while_the_kernels_run():
    pytest.importorskip("libtpu")
    tpus = ahead_of_time.devices("v5p:2x2x1")
    place = NamedSharding(Mesh(np.array(tpus), ("context",)), CUT)

    def attend(q, k, v, ids):
        return ring.ring_attention(q, k, v, ids, ids, "context", True, 0.0, "splash")

    def both(q, k, v, ids, t):
        o, pull = jax.vjp(lambda *qkv: over(tpus, attend)(*qkv, ids), q, k, v)
        return o, pull(t)

    shapes = (1, 4096, 4, 1, 128), (1, 4096, 4, 128), (1, 4096, 4, 128)
    q, k, v = (jax.ShapeDtypeStruct(x, jnp.bfloat16, sharding=place) for x in shapes)
    ids = jax.ShapeDtypeStruct((1, 4096), jnp.int32, sharding=place)
    lowered = jax.jit(both).trace(q, k, v, ids, q).lower(lowering_platforms=("tpu",))
    with xla_options.not_kept():
        parts = re.split(r"\n(?=%|ENTRY)", lowered.compile().as_text())
    steps = [part for part in parts if part.startswith("%") and "tpu_custom_call" in part]
    assert len(steps) == 2  # the bodies of the loops, forward and backward
    for step, sent in zip(steps, (2, 4), strict=True):
        names = re.findall(r"^ +(?:ROOT )?(%\S+) =", step, re.M)
        kernels = [name for name in names if name.startswith("%splash")]
        pairs = re.findall(r"(%\S+) = (?:bf16|f32).* collective-permute-done\((%\S+?)\)", step)
        assert (len(kernels), len(pairs)) == (2, sent)
        for done, start in pairs:
            between = names[names.index(start) : names.index(done)]
            assert set(between) & set(kernels)
