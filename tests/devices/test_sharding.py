"""Devices hold the parts that the rules give them; impossible layouts are refused."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from lm_jax.config import MeshConfig, ModelConfig
from lm_jax.config.mesh_check import BATCH_AXES, check_batch
from lm_jax.convert import import_hf
from lm_jax.devices import sharding
from lm_jax.devices.sharding import as_in, make_mesh, shard, spec, spread
from lm_jax.errors import UserError
from lm_jax.models import Transformer

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, {"data": 8}),
        ({"data": 1, "fsdp": -1}, {"fsdp": 8}),
        ({"data": 2, "fsdp": -1, "tensor": 2}, {"data": 2, "fsdp": 2, "tensor": 2}),
        ({"data": -1, "tensor": 4}, {"data": 2, "tensor": 4}),
        ({"fsdp": 2, "expert": 2}, {"data": 2, "fsdp": 2, "expert": 2}),
        ({"slice": 2, "data": 1, "context": -1}, {"slice": 2, "context": 4}),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(asked, found):
    sizes = make_mesh(MeshConfig(**asked)).shape
    assert {axis: size for axis, size in sizes.items() if size > 1} == found


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({"data": 3}, "set one axis to -1, or sizes whose product is 8"),
        ({"data": 16}, "whose product is 8"),
        ({"data": 4, "tensor": 1}, "whose product is 8"),
        ({"fsdp": 3}, "the axes beside -1 take 3, which must divide 8"),
        ({"data": 2, "fsdp": -1, "expert": 8}, "take 16, which must divide 8: make them smaller"),
    ],
)
def test_sizes_that_do_not_make_all_devices_are_refused(asked, remedy):
    with pytest.raises(UserError, match=rf"does not make 8 devices; .*{remedy}"):
        make_mesh(MeshConfig(**asked))


def test_one_device_is_a_mesh_of_ones():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == dict.fromkeys(sharding.AXES, 1)


@pytest.mark.parametrize(
    ("batch_size", "microbatches", "nearest"),
    [(9, 1, "8 or 12"), (3, 1, "nearest: 4."), (36, 2, "32 or 40"), (12, 3, None), (8, 2, None)],
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(
    batch_size, microbatches, nearest
):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    if nearest is None:
        check_batch(batch_size, microbatches, mesh.shape)
        return
    with pytest.raises(UserError, match=f"config.batch_size={batch_size}: must be .*{nearest}"):
        check_batch(batch_size, microbatches, mesh.shape)


@pytest.mark.parametrize("axes", [("data",), ("data", "model")])
def test_a_mesh_of_another_program_is_refused_in_one_line(axes):
    shape = (8,) if len(axes) == 1 else (4, 2)
    theirs = jax.make_mesh(shape, axes, axis_types=(AxisType.Explicit,) * len(axes))
    model = lambda: Transformer(ModelConfig(vocab_size=64, dim=16), rngs=nnx.Rngs(0))
    with (
        jax.set_mesh(theirs),
        pytest.raises(UserError, match=f"the axes {', '.join(axes)}, lm_jax"),
    ):
        model()
    with jax.set_mesh(theirs), pytest.raises(UserError, match="set none, or one of lm_jax"):
        import_hf(GOLDEN / "qwen2")
    with jax.set_mesh(jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))):
        model()  # the compiler's own layout: as without a mesh


def test_two_logical_axes_on_one_mesh_axis_are_refused():
    with jax.set_mesh(make_mesh(MeshConfig())):
        assert spec("batch", None, "mlp") == PartitionSpec(BATCH_AXES, None, "tensor")
        for names in (
            ("heads", "mlp"),
            ("batch", "embed"),
            ("vocab", None, "heads"),
            ("batch", "experts"),
        ):
            with pytest.raises(ValueError, match="use a mesh axis twice"):
                spec(*names)


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((4, 4))
    assert spec("batch", "mlp") is None
    assert shard(x, "batch", "mlp") is x
    with jax.set_mesh(make_mesh(MeshConfig())), sharding.no_mesh():
        assert spec("batch") is None


def test_a_batch_lies_spread_over_the_axes_that_share_it_and_comes_back_whole():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    x = np.arange(2 * 8 * 3).reshape(2, 8, 3)
    found = sharding.put({"x": x}, mesh, leading=1)["x"]
    assert found.sharding.spec == PartitionSpec(None, BATCH_AXES)
    assert {shard.data.shape for shard in found.addressable_shards} == {(2, 2, 3)}
    np.testing.assert_array_equal(found, x)


def test_ways_count_the_devices_that_share_a_logical_axis():
    assert sharding.ways("batch") == 1  # no mesh
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices())
    with jax.set_mesh(mesh):
        assert [sharding.ways("batch"), sharding.ways("vocab")] == [4, 2]
        assert sharding.ways("batch", "vocab") == 8


def test_an_axis_of_the_rows_is_named_only_where_devices_share_them():
    axes = ("batch", "length", None)
    for sizes, named in (({"context": 2}, "context"), ({}, None)):
        with jax.set_mesh(make_mesh(MeshConfig(**sizes))):
            assert spec(*axes) == PartitionSpec(BATCH_AXES, named, None)
            assert sharding.ways("tokens") == 8
            with sharding.whole_rows():
                assert spec(*axes) == PartitionSpec(BATCH_AXES, None, None)
                assert sharding.ways("tokens") == sharding.ways("batch")


@pytest.mark.jax10
def test_a_pipeline_beside_fsdp_is_warned_of_where_jax_collects_its_weights(monkeypatch):
    beside = make_mesh(MeshConfig(stage=2, fsdp=2, tensor=2))
    for version, warned in (((0, 10, 2), True), ((0, 12, 0), False)):
        monkeypatch.setattr(jax, "__version_info__", version)
        assert ("stage=2" in sharding.warning(beside)) == warned
        assert not sharding.warning(make_mesh(MeshConfig(stage=2)))
        assert not sharding.warning(make_mesh(MeshConfig(fsdp=2)))


def test_ways_of_the_batch_count_the_devices_that_hold_experts():
    with jax.set_mesh(make_mesh(MeshConfig(data=2, expert=2, tensor=2))):
        assert [sharding.ways("batch"), sharding.ways("experts")] == [4, 2]


@pytest.mark.parametrize(
    ("shape", "names", "first", "found"),
    [
        ((2, 12, 8), (None, None, None), False, (None, "data", None)),  # the longest
        ((2, 12, 8), (None, None, None), True, ("data", None, None)),  # the layers
        ((3, 12, 8), (None, None, None), True, (None, "data", None)),  # which do not divide
        ((2, 8, 6), (None, "embed", "mlp"), False, (None, ("fsdp", "data"), "tensor")),
        ((3, 2, 4), (None, "embed", "mlp"), False, (None, "fsdp", ("tensor", "data"))),
        ((3, 2, 2), (None, "embed", "mlp"), False, (None, "fsdp", "tensor")),  # none divides
        ((3, 5), (None, None), False, (None, None)),
        ((), (), False, ()),
        ((4,), ("batch",), False, (BATCH_AXES,)),  # has it
    ],
)
def test_state_is_spread_over_data_where_it_divides(shape, names, first, found):
    with jax.set_mesh(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
        x = shard(jnp.arange(float(np.prod(shape))).reshape(shape), *names)
        y = spread({"x": x}, first)["x"]
        assert y.sharding.spec == PartitionSpec(*found)
        back = as_in([y], [x])[0]
        assert back.sharding == x.sharding
        for other in (y, back):
            np.testing.assert_array_equal(other, x)


def test_where_data_is_one_device_nothing_is_spread():
    tree = {"x": jnp.ones((8, 8))}
    assert spread(tree) is tree  # no mesh
    assert as_in(tree, None) is tree
    for mesh in (make_mesh(MeshConfig(data=1, fsdp=8)), make_mesh(MeshConfig(), jax.devices()[:1])):
        with jax.set_mesh(mesh):
            assert spread(tree) is tree
