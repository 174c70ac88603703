"""Each chip gets the compiler options of the table, and never one that its compiler refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lm_jax.config import Config, DataConfig, ModelConfig
from lm_jax.devices import xla_options
from lm_jax.training import ahead_of_time, start

TOPOLOGIES = {"v4": "v4:2x2x2", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2",
              "tpu7x": "tpu7x:2x2x1"}  # fmt: skip


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))


@pytest.fixture
def for_cpu(monkeypatch):
    """Sets the options of the table for this machine."""
    monkeypatch.setattr(xla_options, "chip_name", lambda mesh: "cpu")
    return lambda options: monkeypatch.setitem(xla_options.TABLE, "cpu", options)


@pytest.fixture
def cache(tmp_path):
    """Files that a call leaves in an empty cache that keeps all programs."""
    settings = {"jax_compilation_cache_dir": str(tmp_path),
                "jax_persistent_cache_min_compile_time_secs": 0.0}  # fmt: skip
    before = {name: getattr(jax.config, name) for name in settings}

    def kept(call):
        call()
        return [path.name for path in tmp_path.iterdir() if path.name.endswith("-cache")]

    set_all = lambda values: [jax.config.update(*pair) for pair in values.items()]
    compilation_cache.reset_cache()
    set_all(settings)
    yield kept
    set_all(before)
    compilation_cache.reset_cache()


def of_slice(topology, slices=1):
    pytest.importorskip("libtpu")
    return jax.sharding.Mesh(np.array(ahead_of_time.devices(topology, slices)), ("data",))


def test_an_option_that_the_compiler_does_not_know_is_left_out_with_a_line(mesh, for_cpu, capsys):
    for_cpu({"xla_cpu_enable_fast_min_max": False, "xla_no_such_option": True})
    assert xla_options.accepted(mesh) == {"xla_cpu_enable_fast_min_max": False}
    line = "compiler option xla_no_such_option=True is left out: INVALID_ARGUMENT: No such compile"
    assert capsys.readouterr().out.startswith(line)


def test_a_value_that_the_compiler_does_not_know_is_left_out_with_a_line(mesh, for_cpu, capsys):
    for_cpu({"xla_cpu_enable_fast_min_max": "maybe"})
    assert xla_options.accepted(mesh) == {}
    assert "is not a valid bool value" in capsys.readouterr().out


def test_what_cannot_be_loaded_again_is_not_kept_in_the_cache_of_programs(cache):
    mesh = of_slice("v4:2x2x1")
    kept = cache(lambda: xla_options.refusal(mesh, {}))
    assert kept == []
    assert len(cache(lambda: jax.jit(lambda x: x + 3).lower(1.0).compile())) == 1


def test_on_cpu_there_are_none_and_a_program_is_what_it_was(mesh, capsys):
    options = xla_options.accepted(mesh)
    assert (options, capsys.readouterr().out) == ({}, "")
    x = jnp.arange(64.0).reshape(8, 8)
    f = lambda x: jnp.tanh(x @ x).sum()
    plain, same = jax.jit(f).lower(x), jax.jit(f, compiler_options=options).lower(x)
    assert plain.compile().as_text() == same.compile().as_text()


@pytest.mark.jax10
@pytest.mark.parametrize("generation", TOPOLOGIES)
def test_the_tpu_compiler_takes_every_option_of_a_generation(generation, capsys):
    mesh = of_slice(TOPOLOGIES[generation])
    assert xla_options.accepted(mesh) == xla_options.TABLE[generation]
    assert capsys.readouterr().out == ""


@pytest.mark.jax10
def test_between_slices_there_are_more(capsys):
    mesh = of_slice("v5e:4x4", slices=2)
    assert xla_options.accepted(mesh) == xla_options.TABLE["v5e"] | xla_options.SLICES
    assert capsys.readouterr().out == ""


def test_the_options_of_gpus_are_known_to_the_same_parser_on_cpu(mesh):
    assert xla_options.refusal(mesh, xla_options.TABLE["h100"]) == ""
    assert xla_options.refusal(mesh, {"xla_gpu_no_such_option": True}) != ""


def test_what_makes_losses_wrong_is_on_nowhere():
    for options in (*xla_options.TABLE.values(), xla_options.SLICES):
        assert not any(options.get(name) for name in xla_options.BROKEN)


def test_what_the_environment_sets_stays_and_is_warned_of(mesh, for_cpu, capsys, monkeypatch):
    for_cpu({"xla_cpu_enable_fast_min_max": False})
    broken = "xla_gpu_enable_host_memory_offloading"
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_enable_fast_min_max --{broken}=true")
    assert xla_options.accepted(mesh) == {}
    assert capsys.readouterr().out.startswith(f"WARNING: {broken}=true is known to fail (openxla")
    monkeypatch.setenv("XLA_FLAGS", f"--{broken}=false")
    assert xla_options.accepted(mesh) == {"xla_cpu_enable_fast_min_max": False}
    assert capsys.readouterr().out == ""


@pytest.fixture
def refused(monkeypatch):
    """The error of a step that is compiled with the accepted options."""
    monkeypatch.setattr(xla_options, "accepted", lambda mesh: {f"xla_of_{mesh.size}": True})
    return pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_of_")


def test_the_step_of_a_run_is_compiled_with_them(refused, tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    config = Config(
        batch_size=8,
        model=ModelConfig("rnn", vocab_size=384, num_layers=1, dim=16),
        data=DataConfig(f"{tmp_path}/text.txt", tokenizer="bytes", sequence_length=16,
                        heldout_fraction=0.1),
    )  # fmt: skip
    with refused:
        start.train(config, str(tmp_path / "run"), check=False)


def test_a_step_that_is_compiled_ahead_of_time_has_those_of_a_run(refused):
    pytest.importorskip("libtpu")
    step = ahead_of_time.trace_step(Config(batch_size=4), ahead_of_time.devices("v5e:2x2"))
    with refused:
        step.compile()
