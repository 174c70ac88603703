"""The real TPU compiler accepts the train step, with splash attention, for slices that are not
here; and their hosts share the batch.
"""

import dataclasses
import math
import os
import runpy

import jax
import numpy as np
import pytest

from lm_jax import hosts, sharding
from lm_jax.config import Config, MeshConfig, resolved
from lm_jax.train_step import init_state, make_train_step

CONFIGS = os.path.join(os.path.dirname(__file__), os.pardir, "configs")


@pytest.fixture(scope="module", autouse=True)
def tpu_compiler():
    os.environ.update(
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        TPU_ACCELERATOR_TYPE="v5litepod-16",
        TPU_LOG_DIR="disabled",
    )
    pytest.importorskip(
        "libtpu", reason="pip install 'lm_jax[test]' brings libtpu, the TPU compiler"
    )


def compile_step(config: Config, topology: str):
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    config = dataclasses.replace(config, model=resolved(config.model, "tpu"))
    mesh = sharding.make_mesh(config.mesh, devices)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(lambda: init_state(config))
        shape = (
            config.microbatches,
            config.batch_size // config.microbatches,
            config.data.sequence_length,
        )
        place = jax.sharding.NamedSharding(
            mesh, jax.sharding.PartitionSpec(None, sharding.RULES["batch"])
        )
        ints = ("tokens", "targets", "segment_ids", "positions")
        batch = {n: jax.ShapeDtypeStruct(shape, np.int32, sharding=place) for n in ints}
        batch["weights"] = jax.ShapeDtypeStruct(shape, np.float32, sharding=place)
        if config.model.pooler:
            batch["pair_label"] = jax.ShapeDtypeStruct(shape[:2], np.int32, sharding=place)
        lowered = (
            jax.jit(make_train_step(config), donate_argnums=0)
            .trace(state, batch)
            .lower(lowering_platforms=("tpu",))
        )
        # Fusing collectives into products doubles the time of compilation, and checks nothing here.
        options = {"xla_tpu_enable_async_collective_fusion": "false"}
        return state, lowered.compile(compiler_options=options)


def load(name: str, **changes) -> Config:
    name, _, size = name.partition(":")
    get_config = runpy.run_path(os.path.join(CONFIGS, f"{name}.py"))["get_config"]
    values = get_config(size) if size else get_config()
    for field, value in changes.items():
        group, _, leaf = field.rpartition("__")
        (values[group] if group else values)[leaf] = value
    return Config.parse(values)


def bytes_per_device(x) -> int:
    """Of an abstract array; one without a sharding is whole everywhere."""
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return math.prod(shape) * x.dtype.itemsize


@pytest.mark.parametrize(
    "sizes", [{}, {"data": 1, "fsdp": -1}, {"data": 2, "fsdp": -1}, {"tensor": 4}], ids=str
)
@pytest.mark.parametrize(
    ("topology", "slices"), [("v5e:4x4", 1), ("v5e:4x8", 1), ("v5p:4x4x4", 1), ("v5e:4x4", 2)]
)
def test_every_host_of_a_slice_has_rows_of_its_own(monkeypatch, topology, slices, sizes):
    from jax.experimental import topologies

    more = {"num_slices": slices} if slices > 1 else {}
    devices = topologies.get_topology_desc(topology, "tpu", **more).devices
    mesh = sharding.make_mesh(MeshConfig(**sizes), devices)
    if slices > 1:  # `data` and `fsdp` come first, and one of them alone goes from slice to slice
        first, second = np.split(mesh.devices.reshape(-1), 2)
        assert {device.slice_index for device in first} == {0}
        assert {device.slice_index for device in second} == {1}
    processes = sorted({device.process_index for device in devices})
    monkeypatch.setattr(jax, "process_count", lambda: len(processes))
    found = set()
    for index in processes:
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        mine, parts = hosts.share(mesh)
        found |= set(mine)
    assert found == set(range(parts))


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x2"])
@pytest.mark.parametrize("name", ["gpt2_124m", "llama3_8b"])
def test_train_step_compiles_for_tpu_with_splash_attention(name, topology):
    changes = {"model__num_layers": 2, "batch_size": 16} if name == "llama3_8b" else {}
    state, compiled = compile_step(load(name, **changes), topology)
    memory = compiled.memory_analysis()
    assert "splash" in compiled.as_text()
    held = sum(bytes_per_device(x) for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= 0.99 * held  # the state is donated: updated in place
    assert memory.argument_size_in_bytes < 1.05 * held + 2**24  # and nothing else is held
    if name == "llama3_8b":  # parameters are spread over all devices, not copied to each
        whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
        assert held < 1.01 * whole / len(compiled.input_shardings[0][1]["tokens"].device_set)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert:base", "gemma2:2b"])
def test_encoders_and_local_layers_with_capped_scores_have_splash_too(name):
    small = {"model__num_layers": 2, "model__vocab_size": 2048, "batch_size": 16,
             "data__vocab_size": 512, "data__sequence_length": 512}  # fmt: skip
    changes = {"model__window": 128} if name == "gemma2:2b" else {}
    _, compiled = compile_step(load(name, **small, **changes), "v5e:4x4")
    assert "splash" in compiled.as_text()
