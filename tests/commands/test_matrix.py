"""Every config of configs/, made small, goes through every command."""

import importlib.util
import json
import os
import shutil
import signal

import numpy as np
import pytest
from exported_families import WITHOUT
from scaled import FIRST, NAMES, kind, small
from small_runs import Run, Stores

import lm_jax
from lm_jax.errors import EXIT_PREEMPTED, UserError

# Of each kind of config one is trained: of each architecture one in the usual suite, all others
# where the slow tests run, which check themselves before the start and get a real signal besides
# (in the usual suite test_resume.py sends one).
KINDS = {kind(name): name for name in reversed([*FIRST, *NAMES])}  # the first name of each
USUAL = {small(name).model.architecture: name for name in reversed(FIRST)}.values()
EACH = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in USUAL))
    for name in dict.fromkeys([*USUAL, *FIRST, *KINDS.values()])
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return Stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def run(request, stores, tmp_path):
    return Run(request.param, tmp_path, stores.of(request.param))


@pytest.mark.parametrize("run", EACH, indirect=True)
def test_a_config_goes_through_every_command(run):
    run.train("run", *["--nopreflight"] * (run.name in USUAL))
    if run.kind != "ngram":  # which is counted in one go
        goes_on_after_a_kill(run)
    if run.name not in USUAL and run.kind != "ngram":
        goes_on_after_a_signal(run)
    lm = lm_jax.load(run.folder / "run")
    is_evaluated(run, lm)
    writes(run, lm)
    is_exported_and_comes_back(run, lm)


def goes_on_after_a_kill(run):
    """A run that was killed behind the save of step 2 takes step 3 as the one that was not."""
    shutil.copytree(run.folder / "run", run.folder / "killed")
    shutil.rmtree(run.folder / "killed" / "checkpoints" / "3")
    assert "after step 2" in run.train("killed", "--nopreflight")
    is_as_the_whole(run, "killed")


def goes_on_after_a_signal(run):
    """SIGTERM while step 2 is under way, then the same command."""

    def seen(text):
        if text.startswith("step 1/"):
            os.kill(os.getpid(), signal.SIGTERM)

    said = run.train("stopped", "--nopreflight", code=EXIT_PREEMPTED, seen=seen)
    assert "saved step 2" in said
    assert "after step 2" in run.train("stopped", "--nopreflight")
    is_as_the_whole(run, "stopped")


def is_as_the_whole(run, other):
    """Every batch, every loss and every bit are those of the run that was left alone."""
    assert run.losses(other) == run.losses("run")
    assert [*run.losses("run")] == [1, 2, 3]
    assert run.bits(other) == run.bits("run")


def is_evaluated(run, lm):
    """The command finds the loss that the run ended with; Python has that of a text."""
    summary = json.loads((run.folder / "run" / "summary.json").read_text())["model"]
    stride = f"--stride={summary.get('stride', 0)}"
    done = run.command("evaluate", f"--checkpoint={run.folder / 'run'}", "--json", stride)
    assert json.loads(done.out)["loss"] == pytest.approx(summary["loss"], rel=1e-5)
    if run.kind == "encoder_decoder":
        with pytest.raises(UserError, match="encoder_decoder"):
            lm.loss("abc")
    else:
        assert np.isfinite(lm.loss("Abc def. Ghi?").loss)


def writes(run, lm):
    """The command prints what Python returns; an encoder says that it writes nothing."""
    prompt, count = run.config.eval.prompt, run.config.eval.sample_tokens
    flags = f"--prompt={prompt}", f"--max_new_tokens={count}"
    code = 2 * (run.kind == "encoder")
    done = run.command("generate", f"--checkpoint={run.folder / 'run'}", *flags, code=code)
    if run.kind != "encoder":
        assert done.out == prompt + lm.generate(prompt, max_new_tokens=count) + "\n"


def is_exported_and_comes_back(run, lm):
    """As the same function and tokenizer; what has no family in transformers is refused."""
    out, back = run.folder / "out", run.folder / "back"
    without = {run.name, run.name.partition(":")[0]} & {*WITHOUT}
    done = run.command(
        "convert", f"--from={run.folder / 'run'}", f"--to={out}", code=2 * bool(without)
    )
    if without:
        assert not out.exists()
        return
    proven = importlib.util.find_spec("transformers") is not None
    verdict = json.loads((out / "certificate.json").read_text())["verdict"]
    assert verdict == ("proven" if proven else "not proven")
    assert proven or "NOTHING WAS PROVEN" in done.err
    reads_tokenizers = importlib.util.find_spec("tokenizers") is not None
    if not reads_tokenizers:  # the extra `hf`
        assert "lm_jax[hf]" in run.command("convert", f"--from={out}", f"--to={back}", code=2).err
        (out / "tokenizer.json").unlink()
    run.command("convert", f"--from={out}", f"--to={back}")
    again, text = lm_jax.load(back), "Abc def\tghi. 12 é\n"
    if reads_tokenizers:
        assert [*again.tokenizer.encode(text)] == [*lm.tokenizer.encode(text)]
    ids = np.arange(10, 10 + run.config.data.sequence_length)
    both = [ids] * (1 + (run.kind == "encoder_decoder"))
    np.testing.assert_allclose(again.logits(*both), lm.logits(*both), rtol=1e-5, atol=1e-5)
