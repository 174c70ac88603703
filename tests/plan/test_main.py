"""The command refuses at once, compiles for real, and prints the figures."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import jax
import pytest

from lm_jax.config import Config
from lm_jax.devices.chips import parse
from lm_jax.errors import UserError
from lm_jax.plan import __main__ as command
from lm_jax.plan import compiler_process, measure
from lm_jax.plan.flops import Flops
from lm_jax.plan.request import for_topology
from lm_jax.plan.roofline import Times
from lm_jax.training import ahead_of_time

ROOT = Path(__file__).parent.parent.parent
SMALL = {
    "batch_size": 8, "steps": 1000, "data": {"sequence_length": 256}, "model": {
        "dim": 256, "num_layers": 2, "num_heads": 2, "vocab_size": 512, "attention": "xla",
        "mlp_dim": 512}}  # fmt: skip
TEXT = """
ENTRY %main (x: f32[1024,1024]) -> f32[1024,1024] {
  %x = f32[1024,1024]{1,0} parameter(0)
  ROOT %sum = f32[1024,1024]{1,0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add
}
"""


class Compiled:
    """Stands for a program that the compiler needs minutes for: one sum over four devices."""

    def memory_analysis(self):
        """5 GB at most, 1 GB of it the state, which is donated."""
        return types.SimpleNamespace(
            argument_size_in_bytes=10**9, output_size_in_bytes=10**9, alias_size_in_bytes=10**9,
            temp_size_in_bytes=9 * 10**9, peak_memory_in_bytes=5 * 10**9,
        )  # fmt: skip

    def as_text(self):
        """The program."""
        return TEXT


@pytest.fixture
def run(monkeypatch, call):
    """The command, of one mesh."""
    pytest.importorskip("libtpu", reason="pip install 'lm_jax[test]' brings libtpu")
    monkeypatch.setattr(ahead_of_time.Step, "compile", lambda self: Compiled())
    monkeypatch.setattr(compiler_process, "measure", measure.measure)  # where it is replaced
    return partial(call, config=SMALL, topology="v5e:2x2", mesh="fsdp:4")


def test_a_plan_for_programs_is_one_json_object(run):
    code, out = run(json=True, tokens=1e9, price="1.0")
    found = json.loads(out)
    assert code == 0
    assert (found["topology"], found["devices"], found["mesh"]["fsdp"]) == ("v5e:2x2", 4, 4)
    assert found["memory"]["peak"] == 5e9
    assert found["memory"]["temporaries"] == 4e9
    assert found["moved"]["sent"] == {"fsdp": 2 * 2**22 * 3 / 4}
    assert found["moved"]["traffic"] == 2 * 2**22
    config = for_topology(Config.parse(SMALL), parse("v5e:2x2"), "fsdp:4")
    assert found["memory"]["parameters"] == pytest.approx(parameters(config) / 4, rel=0.01)
    assert found["memory"]["optimizer"] == pytest.approx(2 * found["memory"]["parameters"], rel=0.1)
    assert found["all_flops"]["products"] == 4 * found["flops"]["products"]
    slow, fast = found["forecast"]["serial"], found["forecast"]["overlapped"]
    assert slow["seconds"] == pytest.approx(found["moved"]["times"]["serial"])
    assert slow["days"] > fast["days"] > 0
    assert fast["cost"] == pytest.approx(fast["days"] * 24 * 4)


def parameters(config):
    """Bytes in float32."""
    model = config.model
    layer = 4 * model.dim**2 + 3 * model.dim * model.mlp_size
    return 4 * (model.num_layers * layer + model.vocab_size * model.dim)


def test_a_plan_for_people_says_whether_it_fits_and_what_bounds_it(run):
    code, out = run()
    rows = dict(line.split(None, 1) for line in out.splitlines() if not line.startswith(" "))
    assert code == 0
    assert rows["memory"] == "fits: 5.00 GB at most, 30% of the 16.91 GB of a device"
    assert rows["sent"] == "a device: fsdp 6.3 MB"
    assert "bound by" in rows["roofline"]
    assert rows["serial"].endswith("days")


def test_a_program_that_the_compiler_refuses_does_not_fit_and_says_by_how_much(run, monkeypatch):
    def refuse(self):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.25G of 15.75G hbm."
        )

    monkeypatch.setattr(ahead_of_time.Step, "compile", refuse)
    code, out = run()
    assert code == 1
    start = "does not fit a device's 16.91 GB: 20.25 GiB are needed, 15.75 GiB are there; "
    assert re.search(rf"{re.escape(start)}.*: set config\.", out)


def test_another_error_of_the_compiler_is_shown_as_it_is(run, monkeypatch):
    def fail(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(ahead_of_time.Step, "compile", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"topology": ""}, "--topology: missing"),
        ({"config": None}, "--config: missing"),
        ({"mesh": "fsdp:8"}, "does not make 4 devices of v5e:2x2"),
        ({"tokens": float("nan")}, "--tokens=nan: must be a finite number"),
        ({"plot": "no/such/folder/plan.html"}, "--plot=.*: no/such/folder is no folder"),
        (
            {"plot": "plan.html", "mesh": "stage:2,fsdp:2"},
            "stage=2: there is no estimate of a pipeline",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused_before_the_compiler_starts(run, monkeypatch, given, why):
    monkeypatch.setattr(compiler_process, "measure", None)
    with pytest.raises(UserError, match=why):
        run(**given)


@pytest.mark.parametrize(("topology", "lines"), [("h100:8", 1), ("auto", 0)])
def test_a_deadline_that_nothing_is_chosen_by_is_passed_over_with_a_line(capsys, topology, lines):
    given = {"config": SMALL, "topology": topology, "tokens": 0.0, "plot": "", "deadline": "30d"}
    command.check_flags(types.SimpleNamespace(**given))
    err = capsys.readouterr().err
    assert err.count("\n") == err.count("--deadline=30d: passed over") == lines


def test_a_field_that_cannot_work_is_refused_before_jax_is_there():
    code = (
        "import sys; from lm_jax.devices import chips; from lm_jax.plan import request; "
        "from lm_jax.config import Config\n"
        "try: request.for_topology(Config(), chips.parse('v5e:4x4'), 'fsdp:16', 100)\n"
        "except Exception as error: print(error, {'jax', 'numpy'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.strip().endswith("nearest: 96 or 112. set()")


@pytest.mark.slow
def test_a_real_step_is_compiled_and_measured():
    pytest.importorskip("libtpu", reason="pip install 'lm_jax[test]' brings libtpu")
    model = {**SMALL["model"], "attention": "auto", "remat": "full", "num_layers": 3}
    topology = parse("v5p:2x2x1")
    config = for_topology(Config.parse({**SMALL, "model": model}), topology, "fsdp:2,tensor:2")
    found = compiler_process.measure(config, topology)
    assert found.fits
    assert not found.unknown
    assert found.flops.attention > 0
    assert found.flops.matrix * 4 == pytest.approx(found.all_flops.matrix, rel=0.01)
    # Three layers' weights, gathered for the loss and twice for the layers, and scattered.
    matrices = 3 * (4 * 256**2 + 3 * 256 * 512) / 2  # of a device's part of tensor
    assert found.moved.sent["fsdp"] > (2 + 1) * 2 * matrices / 2
    assert {"matrix", "memory", "ici:fsdp", "ici:tensor"} <= found.moved.times.parts.keys()
    assert 0 < found.memory.temporaries < found.memory.peak < found.memory.limit


def test_a_compiler_that_aborts_is_one_line_with_what_it_said(monkeypatch):
    config, topology = Config.parse(SMALL), parse("v5e:2x2")
    script = (
        "import os, sys; print('F1 x.cc:676] Check failed: a == b', file=sys.stderr); os.abort()"
    )
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **more: run([command[0], "-c", script],
                                                                       **more))  # fmt: skip
    with pytest.raises(
        compiler_process.CompilerError, match=r"aborts \(signal 6\).* Check failed: a == b;"
    ):
        compiler_process.measure(config, topology)


def test_what_is_measured_comes_back_from_another_process_as_it_was():
    flops, times = Flops(products=2.5, int8=1.0, uncounted={"cond": 1}), Times({"matrix": 0.1})
    memory = measure.Memory(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    moved = measure.Moved(1e9, {"fsdp": 2.0}, {"all-gather": 2.0}, times)
    for there in (moved, None):
        found = measure.Measured(memory, flops, flops, there, ("one",), 3.5, ("set it",))
        text = json.dumps(dataclasses.asdict(found), default=float)
        assert compiler_process.from_dict(json.loads(text)) == found


def test_what_is_refused_in_a_process_of_its_own_is_refused_here():
    topology = parse("v5e:2x2")
    config = for_topology(Config.parse(SMALL), topology, "fsdp:4")
    with pytest.raises(UserError, match="batch_size=6: must be divisible by 4"):
        compiler_process.measure(dataclasses.replace(config, batch_size=6), topology)


def test_the_command_looks_for_no_tpu_where_there_is_none():
    flags = ["--config=configs/gpt2_124m.py", "--topology=h100:8", "--mesh=data:8"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-m", "lm_jax.plan", *flags], env=environment,
                          capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    head, first = done.stdout.splitlines()
    assert head.split()[:2] == ["mesh", "remat"]
    assert first.startswith("data:8")
    assert first.endswith("estimated")
