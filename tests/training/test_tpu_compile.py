"""The real TPU compiler accepts the train step, with splash attention, for slices that are not
here; and their hosts share the batch.
"""

import math
import os
import re
import runpy

import jax
import numpy as np
import pytest

from lm_jax.config import Config, DataConfig, MeshConfig, ModelConfig
from lm_jax.devices import hosts, sharding
from lm_jax.errors import UserError
from lm_jax.training import ahead_of_time

CONFIGS = os.path.join(os.path.dirname(__file__), os.pardir, os.pardir, "configs")


@pytest.fixture(scope="module", autouse=True)
def tpu_compiler():
    pytest.importorskip(
        "libtpu", reason="pip install 'lm_jax[test]' brings libtpu, the TPU compiler"
    )


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


def traced(config, topology):
    """Its train step."""
    return ahead_of_time.trace_step(config, ahead_of_time.devices(topology))


@pytest.mark.parametrize(
    "sizes", [{}, {"data": 1, "fsdp": -1}, {"data": 2, "fsdp": -1}, {"tensor": 4}], ids=str
)
@pytest.mark.parametrize(
    ("topology", "slices"), [("v5e:4x4", 1), ("v5e:4x8", 1), ("v5p:4x4x4", 1), ("v5e:4x4", 2)]
)
def test_every_host_of_a_slice_has_rows_of_its_own(monkeypatch, topology, slices, sizes):
    devices = ahead_of_time.devices(topology, slices)
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


EFFORT = "jax_exec_time_optimization_effort", {"least": -1.0, "usual": 0.0}
if not hasattr(jax.config, EFFORT[0]):  # jax 0.12
    EFFORT = "jax_optimization_level", {"least": "O1", "usual": "UNKNOWN"}


@pytest.fixture(params=["least", pytest.param("usual", marks=pytest.mark.slow)])
def effort(request):
    """How hard the compiler tries; at the least, which takes a third of the time, all passes still
    run, and what they make takes a little more memory. Of a run: 0.
    """
    name, values = EFFORT
    jax.config.update(name, values[request.param])
    yield
    jax.config.update(name, values["usual"])


@pytest.mark.usefixtures("effort")
@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("gpt2_124m", "v5e:4x4"),
        ("llama3_8b", "v5p:2x2x2"),
        pytest.param("gpt2_124m", "v5p:2x2x2", marks=pytest.mark.slow),
        pytest.param("llama3_8b", "v5e:4x4", marks=pytest.mark.slow),
    ],
)
def test_train_step_compiles_for_tpu_with_splash_attention(name, topology):
    changes = {"model__num_layers": 2, "batch_size": 16} if name == "llama3_8b" else {}
    step = traced(load(name, **changes), topology)
    state, compiled = step.state, step.compile()
    memory = compiled.memory_analysis()
    assert "splash" in compiled.as_text()
    held = sum(bytes_per_device(x) for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= 0.99 * held  # the state is donated: updated in place
    assert memory.argument_size_in_bytes < 1.05 * held + 2**24  # and nothing else is held
    if name == "llama3_8b":  # parameters are spread over all devices, not copied to each
        whole = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
        assert held < 1.01 * whole / len(compiled.input_shardings[0][1]["tokens"].device_set)


def test_microbatches_compile_where_weights_are_spread():
    small = {"num_layers": 2, "dim": 128, "num_heads": 2, "num_kv_heads": 2, "head_dim": 64,
             "mlp_dim": 128, "vocab_size": 512, "max_length": 128, "attention": "xla"}  # fmt: skip
    changes = {f"model__{name}": value for name, value in small.items()}
    config = load("llama3_8b", batch_size=8, microbatches=2, data__sequence_length=128, **changes)
    assert config.mesh.fsdp == -1
    compiled = traced(config, "v5e:2x2").compile()
    assert "while" in compiled.as_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert:base", "gemma2:2b"])
def test_encoders_and_local_layers_with_capped_scores_have_splash_too(name):
    small = {"model__num_layers": 2, "model__vocab_size": 2048, "batch_size": 16,
             "data__vocab_size": 512, "data__sequence_length": 512,
             "model__attention_dropout": 0.0}  # fmt: skip
    changes = {"model__window": 128} if name == "gemma2:2b" else {}
    compiled = traced(load(name, **small, **changes), "v5e:4x4").compile()
    assert "splash" in compiled.as_text()


@pytest.mark.parametrize("name", ["bert:base", "transformer:base"])
def test_encoders_share_their_rows_with_splash_attention(name):
    """A full mask is the same for all devices that share a row."""
    small = {"model__num_layers": 2, "model__vocab_size": 2048, "batch_size": 8,
             "data__vocab_size": 512, "data__sequence_length": 512, "model__max_length": 512,
             "mesh__context": 2, "model__attention_dropout": 0.0}  # fmt: skip
    step = traced(load(name, **small), "v5e:2x2")
    assert step.config.model.attention == "splash"
    assert "splash" in str(step.traced.jaxpr)


@pytest.mark.slow
def test_devices_that_share_the_heads_scatter_what_they_sum_and_never_the_whole_of_it():
    changes = {"mesh__data": 1, "mesh__fsdp": 2, "mesh__tensor": 4}
    config = load("llama3_8b", model__num_layers=2, batch_size=2, **changes)
    compiled = traced(config, "v5p:2x2x2").compile()
    # One that the compiler has fused with the slice after it is a reduce-scatter.
    parts = re.split(r"\n(?=%|ENTRY)", compiled.as_text())
    rest = "\n".join(part for part in parts if not part.startswith("%all-reduce-scatter"))
    sums = re.findall(r"= \(?(\w+)\[([\d,]*)\]\S* all-reduce\(", rest)
    sizes = [math.prod(map(int, shape.split(","))) for _, shape in sums if shape]
    assert max(sizes) < 8192 * 4096, "an all-reduce as large as the states"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "sizes"),
    [("v5p:2x2x1", {"fsdp": 2}), ("v5p:2x2x2", {"data": 2, "fsdp": 2})],
)
def test_stages_hand_states_to_their_neighbours(topology, sizes):
    small = ModelConfig(
        vocab_size=1024, num_layers=4, dim=256, num_heads=2, mlp_dim=512, max_length=128
    )
    mesh = MeshConfig(**{"data": 1, "stage": 2} | sizes)
    config = Config(batch_size=16, model=small, data=DataConfig(sequence_length=128), mesh=mesh)
    text = traced(config, topology).traced.lower().compile().as_text()
    assert "collective-permute" in text
    assert 'custom_call_target="tpu_custom_call"' in text  # splash attention


def test_a_slice_that_does_not_exist_is_refused():
    with pytest.raises(UserError, match="topology 'v5e:5x7': the compiler knows no such slice"):
        ahead_of_time.devices("v5e:5x7")


@pytest.mark.slow
def test_what_a_layer_reads_waits_in_the_memory_of_the_host():
    def memory(remat):
        small = {"num_layers": 4, "dim": 256, "num_heads": 2, "mlp_dim": 512, "vocab_size": 512}
        config = Config.parse({
            "batch_size": 32, "model": small | {"remat": remat, "max_length": 512},
            "data": {"sequence_length": 512}, "mesh": {"data": 1, "fsdp": 4},
        })  # fmt: skip
        return traced(config, "v5e:2x2").compile().memory_analysis()

    states = 4 * 8 * 512 * 256 * 2  # layers, windows, tokens, width, bytes
    full, offload = memory("full"), memory("offload")
    assert (full.host_temp_size_in_bytes, offload.host_temp_size_in_bytes) == (0, states)
