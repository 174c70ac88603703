"""Is every change of an array noticed, and does every array have one name?"""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from small_state import bits, make, mesh_of

from lm_jax.run import manifest
from lm_jax.run.checkpoint import flatten, unflatten

# ---- Names ---------------------------------------------------------------------------------------


def test_names_are_paths_without_the_parameters_own_part():
    flat = flatten(make())
    assert list(flat) == [
        "step",
        "model/blocks/scale",
        "model/blocks/w",
        "model/head",
        "opt/0/count",
        *(f"opt/0/{moment}/{name}" for moment in ("mu", "nu")
          for name in ("blocks/scale", "blocks/w", "head")),
    ]  # fmt: skip
    assert bits(unflatten(flat, make())) == bits(make())
    with pytest.raises(ValueError, match="model/head"):
        unflatten({k: v for k, v in flat.items() if k != "model/head"}, make())


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match="'a/b'"):
        flatten({"a": {"b": 1}, "a/b": 2})


# ---- Fingerprints --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int8", "int32", "complex64"])
def test_a_fingerprint_does_not_depend_on_layout_or_device(dtype):
    x = np.asarray(jnp.asarray(np.arange(4 * 8 * 6).reshape(4, 8, 6) % 3 % 2).astype(dtype))
    expected = manifest.fingerprints({"x": x})["x"]
    for spec in (PartitionSpec(), PartitionSpec("fsdp", "tensor"), PartitionSpec(None, "data")):
        sharded = jax.device_put(x, NamedSharding(mesh_of("all"), spec))
        assert manifest.fingerprints({"x": sharded})["x"] == expected
    words = jax.device_get(manifest._on_device([sharded])[0])  # the way of accelerators
    assert "".join(f"{int(word):08x}" for word in words) == expected


def test_any_changed_bit_sign_or_order_changes_the_fingerprint():
    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    changed, choose = [], random.Random(0)
    for i in range(1, 64):
        flipped, signs = x.copy(), x.copy()
        words = flipped.reshape(-1).view(np.uint32)
        words[choose.randrange(words.size)] ^= np.uint32(1 << choose.randrange(32))
        signs[0, 0] *= -1
        signs[i, 0] *= -1  # equal in every sum of bits that odd numbers weigh
        changed += [flipped, signs, np.roll(x, i, 0)]
    found = manifest.fingerprints({str(i): y for i, y in enumerate(changed)})
    assert manifest.fingerprints({"x": x})["x"] not in found.values()
