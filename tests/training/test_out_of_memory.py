"""Does a lack of memory end in words, with fields that exist and make it smaller?"""

import dataclasses
import itertools
import math
import re
import types

import jax
import pytest

from lm_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig
from lm_jax.devices import sharding
from lm_jax.devices.resolve import resolved
from lm_jax.errors import MachineError, value_of
from lm_jax.training import ahead_of_time, out_of_memory
from lm_jax.training.ahead_of_time import trace
from lm_jax.training.out_of_memory import WORDS, Array, advice, amounts, held, in_text, remedies

MODEL = ModelConfig(num_layers=2, dim=1024, num_heads=8, vocab_size=32_000, max_length=4096)
LARGE = Config(
    batch_size=512, model=MODEL, data=DataConfig(sequence_length=4096), mesh=MeshConfig(data=16)
)
EARLY = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
EARLY += "temporaries (21.25G) exceeds available HBM (15.75G)."


def filled(config, devices=8, **sizes):
    """The config, its mesh, for `devices` of this machine."""
    mesh = sharding.make_mesh(MeshConfig(**sizes), jax.devices()[:devices])
    model = resolved(config.model, "cpu")
    return dataclasses.replace(config, model=model, mesh=MeshConfig(**mesh.shape)), mesh


def with_fields(config, text):
    """The config with the values of the fields that `text` names, and checked."""
    values = config.to_dict()
    for field, value in re.findall(r"config\.([\w.]+)=(\w+)", text):
        *groups, name = field.split(".")
        group = values[groups[0]] if groups else values
        kind = type(value_of(config, field))  # AttributeError: there is no such field
        group[name] = value == "True" if kind is bool else kind(value)
    return Config.parse(values)


GIB = 2**30


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (EARLY, (21.25 * GIB, 15.75 * GIB)),
        ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
         "hbm. Used 63.80G of 30.75G hbm. Exceeded", (63.8 * GIB, 30.75 * GIB)),
        ("RESOURCE_EXHAUSTED: Aborting compilation early because it's unlikely to have enough "
         "device memory. Requires 40.00G, has 15.75G available.", (40 * GIB, 15.75 * GIB)),
        ("RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 1.50G. That "
         "was not possible. There are 512.00M free.; (0x0x0_HBM0)", (1.5 * GIB, GIB / 2)),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 27.93GiB.", (27.93 * GIB, 0)),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 bytes.",
         (4770354232, 0)),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 35184372088832 bytes.", (2**45, 0)),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.00M of 16.00M vmem.",
         None),
        ("RESOURCE_EXHAUSTED: Quota exceeded for requests", None),
        ("INVALID_ARGUMENT: No such compile option: 'memory'", None),
    ],
)  # fmt: skip
def test_what_is_needed_and_what_is_there_is_read_from_each_kind_of_error(text, found):
    assert amounts(text) == (found and tuple(map(round, found)))
    assert bool(advice(text, LARGE)) == bool(found)


GPU = """RESOURCE_EXHAUSTED: Out of memory while trying to allocate 6291456 bytes.
BufferAssignment OOM Debugging.
Peak buffers:
\tBuffer 1:
\t\tSize: 6.00MiB
\t\tOperator: op_name="jit(concatenate)/jit(main)/concatenate[dimension=0]" source_line=689
\t\tXLA Label: concatenate
\t\tShape: f32[4096,128,3]
\t\t==========================

\tBuffer 2:
\t\tSize: 384.0KiB
\t\tEntry Parameter Subshape: f32[256,128,3]
\t\t==========================
"""  # of jax-ml/jax#13428

TPU = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space \
hbm. Used 63.80G of 30.75G hbm. Exceeded hbm capacity by 33.05G.

Total hbm usage >= 65.05G:
    reserved          1.25G
    program          63.80G
    arguments            0B

  Largest program allocations in hbm:

  1. Size: 2.00G
     Operator: op_name="jit(train_step)/self_attention/...qhd,...khd->...hqk/dot_general" \
source_file="attention_module.py" source_line=1059
     Shape: f32[32,4096,4096]{1,2,0:T(8,128)}
     Unpadded size: 2.00G
     XLA label: fusion.1265.remat3 = fusion(custom-call.224, custom-call.241), kind=kOutput
     Allocation type: HLO temp
     ==========================
"""  # of erfanzar/EasyDeL#166, names made shorter


def test_the_lists_of_the_compilers_are_read_without_what_a_program_is_given():
    name = "jit(concatenate)/jit(main)/concatenate[dimension=0]"
    assert in_text(GPU) == [(6 * 2**20, (4096, 128, 3), name, ())]
    name = "jit(train_step)/self_attention/...qhd,...khd->...hqk/dot_general"
    assert in_text(TPU) == [(2 * GIB, (32, 4096, 4096), name, ())]
    lines = advice(TPU, LARGE)
    assert lines[0] == "63.80 GiB are needed, 30.75 GiB are there"
    assert lines[1].startswith("attention scores, 2.00 GiB: set config.model.remat=full (now none)")


def test_what_the_compiler_lists_counts_instead_of_what_was_traced():
    traced = [Array(9 * GIB, (32, 4096, 2752), "jvp()/mlp")]
    state = [Array(GIB, (2, 1024, 2, 2752), "state.model.up", (2, 1024, 2, 2752))]
    listed = advice(TPU, LARGE, state + traced)
    assert [line.split(":")[0] for line in listed[1:]] == [
        "attention scores, 2.00 GiB", "parameters, 1.00 GiB"
    ]  # fmt: skip
    early = advice(EARLY, LARGE, state + traced)
    assert [line.split(":")[0] for line in early[1:]] == [
        "activations of a microbatch, 9.00 GiB", "parameters, 1.00 GiB"
    ]  # fmt: skip


def test_every_field_that_is_named_exists_and_may_have_the_value_that_is_named():
    changes = itertools.product(
        (LossConfig(), LossConfig(chunk_size=4096)),
        (MeshConfig(data=1, fsdp=8), MeshConfig(data=4, fsdp=2), MeshConfig(data=2, tensor=4)),
        (("none", "xla", "adamw", 8), ("full", "auto", "lion", 512)),
    )
    for loss, mesh, (remat, attention, optimizer, batch_size) in changes:
        config = dataclasses.replace(
            LARGE, loss=loss, mesh=mesh, batch_size=batch_size,
            model=dataclasses.replace(MODEL, remat=remat, attention=attention),
            optimizer=dataclasses.replace(LARGE.optimizer, name=optimizer),
        )  # fmt: skip
        for kind in WORDS:
            found = remedies(kind, config, parts=3)
            assert found
            for text in found:
                assert with_fields(config, text) != config, text


def test_the_arrays_that_a_step_holds_are_told_apart_and_have_the_sizes_of_one_device():
    config = dataclasses.replace(
        LARGE, batch_size=16, loss=LossConfig(chunk_size=256), data=DataConfig(sequence_length=256)
    )
    config, mesh = filled(config, data=2, fsdp=2, tensor=2)
    found = held(trace(config, mesh))
    known = out_of_memory.shapes([x for x in found if x.name.startswith("state")])
    kinds = {name: [] for name in WORDS}
    for array in found:
        kinds[out_of_memory.kind(array, config, known)].append(array)
    sizes = {name: sum(x.bytes for x in arrays) for name, arrays in kinds.items()}
    assert sizes["optimizer"] == pytest.approx(2 * sizes["parameters"], rel=0.01)
    assert sizes["weights"] == sizes["parameters"] - 4  # gradients; the step has none
    [logits] = kinds["logits"]
    assert logits.bytes == 4 * math.prod((16 // 4, 256, 32_000 // 2))  # of batch, length, words
    assert {x.shape[0] for x in kinds["saved"]} == {MODEL.num_layers}
    [scores] = kinds["scores"]
    assert scores.shape == (16 // 4, 8 // 2, 128, 256)  # of a block of the queries
    assert "attention" in scores.name


def test_what_is_advised_makes_what_it_is_said_of_smaller():
    config = dataclasses.replace(
        LARGE, batch_size=32, loss=LossConfig(chunk_size=256), data=DataConfig(sequence_length=256),
        mesh=MeshConfig(),
    )  # fmt: skip

    def sizes(config):
        config, mesh = filled(config, **dataclasses.asdict(config.mesh))
        lines = advice(EARLY, config, held(trace(config, mesh)))[1:]
        pairs = (re.match(r"(.*), ([\d.]+) (GiB|MiB): ", line).groups() for line in lines)
        return lines, {what: float(n) * (1024 if unit == "GiB" else 1) for what, n, unit in pairs}

    lines, before = sizes(config)
    assert len(lines) >= 5
    for line in lines[:2]:
        [what, fields] = line.split(": set ")
        what = what.rpartition(", ")[0]
        after = sizes(with_fields(config, fields.split(", or ")[0]))[1]
        assert after.get(what, 0) <= 0.6 * before[what], line


def test_a_device_is_named_with_what_it_tells_of_its_memory():
    assert out_of_memory.described(jax.devices()[0]) == "cpu"
    stats = {"peak_bytes_in_use": 60 * GIB, "bytes_limit": 70 * GIB}
    device = types.SimpleNamespace(device_kind="H200", memory_stats=lambda: stats)
    assert out_of_memory.described(device) == "H200 (60.00 GiB of 70.00 GiB in use)"


def test_a_full_disk_does_not_hide_what_ran_out_of_memory(tmp_path):
    config, mesh = filled(Config(), 1)
    with pytest.raises(MachineError, match=r"on cpu: no room for 1\.00 GiB") as caught:
        with out_of_memory.explained(config, mesh, tmp_path / "nowhere"):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1073741824 bytes.")
    assert "all of it" not in str(caught.value)


def test_the_compiler_of_a_tpu_says_early_what_is_too_large_and_its_words_are_translated():
    pytest.importorskip("libtpu")
    step = ahead_of_time.trace_step(LARGE, ahead_of_time.devices("v5e:4x4"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
        step.compile()
    lines = advice(str(error.value), step.config, held(step))
    assert re.fullmatch(r"2\d\.\d\d GiB are needed, 15\.\d\d GiB are there", lines[0])
    what, fields = lines[1].split(" GiB: set ")
    assert re.fullmatch(r"saved activations of 2 layers, 1\d\.\d\d", what)
    assert fields == "config.model.remat=full (now none), or config.microbatches=2 (now 1)"
