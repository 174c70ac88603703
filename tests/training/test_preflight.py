"""Does the self-check fail, and name the setting, when the thing that it checks is broken?"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm_jax.config import Config, DataConfig, MeshConfig, ModelConfig
from lm_jax.config.model import DROPOUTS
from lm_jax.devices import sharding
from lm_jax.errors import MachineError
from lm_jax.models.attention import kernels
from lm_jax.training import preflight, train_step
from lm_jax.training.train_step import init_state

CONFIG = Config(
    batch_size=8, microbatches=2,
    model=ModelConfig(vocab_size=64, num_layers=1, dim=32, num_heads=4, max_length=16,
                      attention="xla", dtype="float32"),
    data=DataConfig(sequence_length=16),
)  # fmt: skip
right = kernels.xla


@pytest.fixture(params=["fsdp", "context"])
def mesh(request):
    mesh = sharding.make_mesh(MeshConfig(data=2, **{request.param: 2}, tensor=2))
    jax.clear_caches()  # the kernels below are found by name when a function is traced
    with jax.set_mesh(mesh):
        yield mesh
    jax.clear_caches()


def test_a_sound_run_passes_and_says_what_was_found(mesh, tmp_path):
    abstract = jax.eval_shape(lambda: init_state(CONFIG))
    line = preflight.run(CONFIG, mesh, abstract, str(tmp_path))
    assert line.startswith("preflight: attention xla within ")
    for part in ("documents isolated", "accumulation within", "checkpoint written and read"):
        assert part in line
    assert list(tmp_path.iterdir()) == []


def blind(q, k, v, mask, scores):
    return right(q, k, v, dataclasses.replace(mask, segments=None), scores)


def leaking(q, k, v, mask, scores):
    return right(q, k, v, mask, scores) + 1e-8 * jnp.sum(v, 1)[:, None, :, None]


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (blind, "differs from the reference"),
        (leaking, "packed documents see each other"),
    ],
)
def test_a_wrong_kernel_is_refused(mesh, monkeypatch, kernel, message):
    monkeypatch.setitem(kernels.RUN, "xla", kernel)
    with pytest.raises(MachineError, match=message) as error:
        preflight.check_attention(CONFIG)
    assert "config.model.attention" in str(error.value)
    assert "\n" not in str(error.value)


def top(jaxpr):
    """Names of the operations of a program outside of its loops."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        if equation.primitive.name in ("jit", "pjit"):
            yield from top(equation.params["jaxpr"].jaxpr)


def test_no_program_has_a_loop_beside_collectives(monkeypatch):
    """jax 0.12 on CPU runs both at once, and devices would wait for each other in unlike ones."""
    programs, compiled = [], jax.jit

    def watched(function, **options):
        def call(*args):
            programs.append(list(top(jax.make_jaxpr(function, **options)(*args).jaxpr)))
            return compiled(function, **options)(*args)

        return call

    with jax.set_mesh(sharding.make_mesh(MeshConfig(data=2, context=2, tensor=2))):
        monkeypatch.setattr(jax, "jit", watched)
        preflight.check_attention(CONFIG)
    assert any("shard_map" in program for program in programs)
    assert any("scan" in program for program in programs)
    for program in programs:
        assert "shard_map" not in program or not {"scan", "while"} & set(program)


def test_a_large_parameter_that_is_whole_on_every_device_is_refused(mesh):
    def leaf(*axes):
        place = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=place)

    spread = {"w": leaf("fsdp", "tensor"), "small": jax.ShapeDtypeStruct((8,), jnp.float32)}
    preflight.check_sharded(spread, mesh)
    for axes in ((), ("data",)):
        bad = {"model": {"head": leaf(*axes)}}
        if axes:  # over data alone: every device of fsdp x tensor holds the same part
            preflight.check_sharded(bad, mesh)
            continue
        with pytest.raises(
            MachineError, match=r"model/head \(1024, 1024\) is whole on every device"
        ):
            preflight.check_sharded({**spread, **bad}, mesh)
    alone = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    preflight.check_sharded({"model": {"head": leaf()}}, alone)


def test_an_average_of_averages_is_refused(monkeypatch):
    def averaging(sums, model, batch, key, layout):
        """Each microbatch divided by its own tokens, then averaged."""
        grad = jax.value_and_grad(sums, has_aux=True)
        count, found = batch["tokens"].shape[0], []
        for i in range(count):
            (loss, totals), g = grad(model, {k: x[i] for k, x in batch.items()}, key)
            weight = 1 / (totals["tokens"] * count)
            found.append(jax.tree.map(lambda x, w=weight: x * w, ((loss, totals), g)))
        (loss, totals), g = jax.tree.map(lambda *x: sum(x), *found)
        return (loss, {**totals, "tokens": jnp.ones(())}), g

    monkeypatch.setattr(train_step, "accumulate", averaging)
    with pytest.raises(MachineError, match=r"config\.microbatches=2 gives another update"):
        preflight.check_accumulation(CONFIG)


@pytest.mark.parametrize("architecture", ["encoder", "encoder_decoder", "lstm", "hmm"])
def test_accumulation_is_checked_in_every_architecture(architecture):
    model = dataclasses.replace(CONFIG.model, architecture=architecture)
    assert preflight.check_accumulation(dataclasses.replace(CONFIG, model=model)) < 1e-3


@pytest.mark.parametrize("name", [name for name in DROPOUTS if name != "dropout"])
def test_accumulation_is_checked_without_what_dropout_draws_for_each_microbatch(name):
    model = dataclasses.replace(CONFIG.model, **{name: 0.5})
    assert preflight.check_accumulation(dataclasses.replace(CONFIG, model=model)) < 1e-3


def test_attention_is_checked_where_a_model_has_some(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "check_attention", lambda config: 1 / 0)
    model = dataclasses.replace(CONFIG.model, architecture="lstm")
    config = dataclasses.replace(CONFIG, model=model, microbatches=1)
    line = preflight.run(config, sharding.make_mesh(MeshConfig(), jax.devices()[:1]), {}, tmp_path)
    assert line.startswith("preflight: checkpoint written and read (")


def test_a_directory_that_cannot_be_written_is_refused(mesh, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight, "check_attention", lambda config: 0.0)
    (tmp_path / "file").write_text("mine")
    config = dataclasses.replace(CONFIG, microbatches=1)
    for place in (str(tmp_path / "file"), "/proc/lm_jax"):
        with pytest.raises(MachineError, match="cannot hold a checkpoint"):
            preflight.run(config, mesh, {}, place)
    assert (tmp_path / "file").read_text() == "mine"
