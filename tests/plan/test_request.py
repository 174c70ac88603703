"""What cannot work is refused before any compiler starts, by its field."""

import pytest

from lm_jax.config import Config, MeshConfig
from lm_jax.devices.chips import parse
from lm_jax.errors import UserError
from lm_jax.plan.request import for_search, for_topology, mesh_of

LLAMA = {"batch_size": 128, "model": {"num_heads": 32, "num_kv_heads": 8, "dim": 4096}}


def config(**changes):
    return Config.parse({**LLAMA, **changes})


def test_flags_replace_what_the_config_says():
    found = for_topology(config(), parse("v5p:4x4x4"), "fsdp:16,tensor:4", 32, "full")
    assert found.mesh == MeshConfig(data=1, fsdp=16, expert=1, tensor=4)
    assert (found.batch_size, found.model.remat) == (32, "full")
    kept = for_topology(config(mesh={"data": 1, "fsdp": -1}), parse("v5p:4x4x4"))
    assert kept.mesh == MeshConfig(data=1, fsdp=64)
    assert (kept.batch_size, kept.model.remat) == (128, "none")


def test_a_mesh_is_sizes_by_axis():
    assert mesh_of("fsdp:-1, tensor:4") == MeshConfig(data=1, fsdp=-1, tensor=4)


@pytest.mark.parametrize(
    ("topology", "flags", "why"),
    [
        ("v5p:4x4x4", {"mesh": "fsdp:16"}, "does not make 64 devices of v5p:4x4x4; set one"),
        ("tpu7x:4x4x4", {"mesh": "fsdp:64"}, r"128 devices \(2 a chip\) of tpu7x:4x4x4"),
        ("v5p:4x4x4", {"mesh": "fdsp:64"}, "no axis 'fdsp'. Did you mean 'fsdp'"),
        ("v5p:4x4x4", {"mesh": "fsdp:all"}, "the size of fsdp is 'all'; write a whole number"),
        ("v5p:4x4x4", {"mesh": "data:-1,fsdp:-1"}, "only one mesh axis may be -1"),
        ("v5p:4x4x4", {"mesh": "fsdp:4,tensor:16"}, "mesh.tensor=16: must divide config.model.num"),
        ("v5p:4x4x4", {"batch": 100}, "config.batch_size=100.*nearest: 64 or 128"),
        ("v5p:4x4x4", {"remat": "ful"}, "config.model.remat='ful': not known. Did you mean 'full'"),
        ("v6e:4x4*3", {"mesh": "fsdp:16,tensor:3"}, "must divide"),
        ("v6e:4x4*4", {"mesh": "data:2,fsdp:2,tensor:8,expert:2"}, "multiple of the 4 slices"),
    ],
)
def test_what_cannot_work_is_refused_by_its_field(topology, flags, why):
    with pytest.raises(UserError, match=why):
        for_topology(config(), parse(topology), **flags)


@pytest.mark.parametrize("kind", ["ngram", "hmm"])
def test_a_model_that_is_no_network_has_no_step_to_plan(kind):
    with pytest.raises(UserError, match=f"'{kind}': is no network"):
        for_topology(Config.parse({"model": {"architecture": kind}}), parse("v5e:4x4"))
    with pytest.raises(UserError, match=f"'{kind}': is no network"):  # no advice to name a mesh
        for_search(Config.parse({"model": {"architecture": kind}}))
