"""Bytes between devices are read from real programs, and from what the TPU compiler writes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from lm_jax.errors import MachineError
from lm_jax.plan import hlo
from lm_jax.plan.collectives import axes_of, bytes_by, collectives, group_array

MESH = {"fsdp": 4, "tensor": 2}


@pytest.fixture(scope="module")
def real():
    """The program of a function with one collective of each kind, for eight devices."""
    mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Explicit,) * 2)
    ring = [(i, (i + 1) % 4) for i in range(4)]

    def local(x, w):
        w = jax.lax.all_gather(w, "fsdp", tiled=True)

        def body(c, _):
            c = jax.lax.psum(c @ w, "tensor")
            c = jax.lax.ppermute(c, "fsdp", ring)
            return jax.lax.all_to_all(c, "fsdp", 0, 0, tiled=True), None

        y, _ = jax.lax.scan(body, x, None, length=5)
        return jax.lax.psum_scatter(y, ("fsdp", "tensor"), tiled=True)

    place = NamedSharding(mesh, PartitionSpec("fsdp"))
    x, w = (jax.ShapeDtypeStruct(s, jnp.float32, sharding=place) for s in ((64, 32), (32, 32)))
    with jax.set_mesh(mesh):
        step = jax.shard_map(
            local, in_specs=(PartitionSpec("fsdp"),) * 2, out_specs=PartitionSpec(tuple(MESH)),
            check_vma=False,
        )  # fmt: skip
        return hlo.parse(jax.jit(step).lower(x, w).compile().as_text())


def test_each_kind_is_found_with_its_axes_its_bytes_and_the_steps_of_its_loop(real):
    own = 16 * 32 * 4  # bytes of a device's part of x, in the loop
    found = {c.kind: (c.axes, c.size, c.whole, c.times, c.sent) for c in collectives(real, MESH)}
    assert found == {
        "all-gather": (("fsdp",), 4, 32 * 32 * 4, 1, 32 * 32 * 4 * 3 / 4),
        "all-reduce": (("tensor",), 2, own, 5, 5 * own),
        "collective-permute": (("fsdp",), 2, own, 5, 5 * own),
        "all-to-all": (("fsdp",), 4, own, 5, 5 * own * 3 / 4),
        "reduce-scatter": (("fsdp", "tensor"), 8, own, 1, own * 7 / 8),
    }
    assert not real.unknown


def test_bytes_are_summed_by_axes_the_most_first(real):
    found = bytes_by(collectives(real, MESH), lambda c: "+".join(c.axes))
    assert list(found) == ["fsdp", "tensor", "fsdp+tensor"]
    assert found["tensor"] == 5 * 16 * 32 * 4


@pytest.mark.parametrize(
    ("text", "groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", [[0, 1], [2, 3], [4, 5], [6, 7]], ["tensor"]),
        ("replica_groups=[1,8]<=[8]", [list(range(8))], ["fsdp", "tensor"]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]], ["fsdp"]),
        ("replica_groups={}", [list(range(8))], ["fsdp", "tensor"]),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2] {'c'}", [[0, 1], [2, 3], [4, 5], [6, 7]],
         ["tensor"]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]], ["fsdp"]),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]], ["fsdp"]),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", [[0, 1], [2, 3], [4, 5], [6, 7]], ["tensor"]),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
         [[0, 4], [1, 5], [2, 6], [3, 7]], ["fsdp"]),
        ("source_target_pairs={{0,2},{2,0}}", [[0, 2], [2, 0]], ["fsdp"]),
    ],
)  # fmt: skip
def test_groups_are_read_in_every_way_to_write_them(text, groups, axes):
    found = group_array(f", channel_id=1, {text}, use_global_device_ids=true", 8)
    assert found.tolist() == groups
    assert axes_of(found, MESH) == tuple(axes)


def test_groups_in_a_new_way_are_refused():
    with pytest.raises(MachineError, match="groups of devices in an unknown form"):
        group_array(", replica_groups=everyone", 8)


# As libtpu writes it: loops without a count, layouts, fusions, asynchronous forms.
TPU = (Path(__file__).parent / "tpu_program.txt").read_text("utf-8")


def test_what_libtpu_writes_is_understood():
    program = hlo.parse(TPU)
    gathered, scattered = collectives(program, {"fsdp": 2, "tensor": 4})
    assert (gathered.kind, gathered.axes, gathered.times) == ("all-gather", ("fsdp",), 8)
    assert gathered.whole == 512 * 512 * 2
    assert gathered.name == "jit(step)/while/body/mlp/reshard"
    assert (scattered.kind, scattered.axes, scattered.times) == ("reduce-scatter", ("fsdp",), 8)
    assert scattered.sent == 8 * 1024 * 512 * 2 / 2
    assert np.array_equal(scattered.groups, [[0, 4], [1, 5], [2, 6], [3, 7]])


def test_a_loop_whose_steps_nobody_knows_is_run_once_and_said():
    program = hlo.parse(TPU.replace("direction=LT", "direction=NE"))
    assert {c.times for c in collectives(program, {"fsdp": 2, "tensor": 4})} == {1}
    assert program.unknown == ["while.1"]
    noted = TPU.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    found = collectives(hlo.parse(noted), {"fsdp": 2, "tensor": 4})
    assert {c.times for c in found} == {3}


SEND = """
ENTRY %main (x: bf16[32,8,128]) -> bf16[32,8,128] {
  %x = bf16[32,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %after-all = token[] after-all()
  %send = (bf16[32,8,128]{2,1,0:T(8,128)(2,1)}, u32[], token[]) send(%x, %after-all), channel_id=6, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  ROOT %y = bf16[32,8,128]{2,1,0:T(8,128)(2,1)} copy(%x)
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("mesh", "axis"), [({"data": 2, "fsdp": 16}, "data"), ({"data": 1, "fsdp": 32}, "fsdp")]
)
def test_what_goes_between_slices_is_sent_to_their_hosts(mesh, axis):
    (found,) = collectives(hlo.parse(SEND), mesh)
    assert (found.kind, found.axes, found.sent) == ("all-reduce", (axis,), 32 * 8 * 128 * 2)
    assert found.groups.tolist() == [[i, 16 + i] for i in range(16)]


OFFLOADED = """
%called (x.1: f32[1024], t.1: token[]) -> f32[1024] {
  %t.1 = token[] parameter(1)
  %x.1 = f32[1024]{0} parameter(0)
  ROOT %sum = f32[1024]{0} all-reduce(%x.1), replica_groups={{0,1},{2,3}}, to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (x: f32[1024]) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  %t = token[] after-all()
  %go = ((f32[1024]{0}, token[]), f32[1024]{0}) call-start(%x, %t), to_apply=%called
  ROOT %y = f32[1024]{0} call-done(%go)
}
"""


def test_what_another_core_of_the_chip_sends_is_found_once():
    (found,) = collectives(hlo.parse(OFFLOADED), {"fsdp": 2, "tensor": 2})
    assert (found.kind, found.axes, found.sent) == ("all-reduce", ("tensor",), 4096)
