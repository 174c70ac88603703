"""Is every mistake one line that names the fix, with its exit code, and is nothing touched?"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import EIGHT, ONE, Commands
from mistakes import MISTAKES

from lm_jax.config import Config, MeshConfig
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.data.tokens.writer import Writer
from lm_jax.devices import sharding
from lm_jax.run import rundir
from lm_jax.run.checkpoint import Checkpoints, SavedSteps
from lm_jax.training.train_step import init_state

CONFIG = """
from lm_jax import config as lm_config

def get_config():
    config = lm_config.new()
    config.steps, config.batch_size, config.log_every = 6, 8, 1
    config.model.vocab_size, config.model.num_layers, config.model.dim = 384, 1, 16
    config.model.num_heads, config.model.max_length = 2, 32
    config.data.input, config.data.tokenizer, config.data.vocab_size = {text!r}, "bytes", 259
    config.data.sequence_length, config.data.heldout_fraction = 16, 0.1
    config.eval.tokens, config.eval.samples, config.eval.every = 64, 0, 0
    config.checkpoint.every = 1
    config.optimizer.warmup_steps = 0
    return config
"""
TEXT = "The quick brown fox jumps over the lazy dog, again.\n" * 60


# ---- A place with a run in it --------------------------------------------------------------------


def write_store(path, tokenizer, text, data=None):
    with Writer(path, tokenizer) as writer:
        for split, part in (("train", text), ("heldout", text[: len(text) // 5])):
            writer.add(split, tokenizer.encode(part), len(part.encode()))
        writer.finish({"data": data} if data else {})
    return TokenStore.open(path)


def write_checkpoints(run, config, store, steps):
    """What the train loop saves, of weights that numpy draws: there is nothing to compile."""
    abstract, rng = jax.eval_shape(lambda: init_state(config)), np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.standard_normal(x.shape).astype(x.dtype))
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    with Checkpoints(run) as checkpoints:
        for step in steps:
            state = dataclasses.replace(jax.tree.map(draw, abstract), step=jnp.int32(step))
            about = rundir.metadata(config, run, store, mesh)
            checkpoints.save(step, state, about, rundir.tokenizer_files(store.tokenizer))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with texts good and bad, configs good and bad, and runs."""
    place = tmp_path_factory.mktemp("place")
    (place / "text.txt").write_text(TEXT)
    (place / "empty.txt").write_text("")
    (place / "blank.txt").write_text(" \n\n")
    (place / "binary.txt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)
    (place / "latin1.txt").write_bytes(("fine\n" * 3 + "caf\xe9\n").encode("latin-1"))
    (place / "rows.jsonl").write_text('{"body": "x"}\n{"text": 3}\n{"text"\n')
    (place / "cut.txt.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc")
    (place / "folder").mkdir()
    (place / "strange").mkdir()
    (place / "strange" / "thesis.tex").write_text("years of work")

    (place / "c.py").write_text(CONFIG.format(text=str(place / "text.txt")))
    (place / "binary.py").write_bytes(bytes(range(256)))
    (place / "without.py").write_text("config = {}\n")
    (place / "nothing.py").write_text("def get_config():\n    pass\n")
    (place / "syntax.py").write_text("def get_config(:\n")
    (place / "broken.py").write_text("def get_config():\n    x = {}\n    return x['steps']\n")
    (place / "field.py").write_text(
        "from lm_jax import config as c\n"
        "def get_config():\n    x = c.new()\n    x.model.dmi = 3\n    return x\n"
    )

    values: dict = {}
    exec((place / "c.py").read_text(), values)
    config = Config.parse(values["get_config"]())
    as_made = dataclasses.asdict(config.data)
    store = write_store(place / "run" / "data", Tokenizer.byte_level(), TEXT, as_made)
    rundir.create(place / "run", config)
    write_checkpoints(place / "run", config, store, (2, 4))

    # Runs in which something was exchanged.
    (place / "nocheckpoint").mkdir()
    shutil.copytree(place / "run" / "data", place / "nocheckpoint" / "data")
    shutil.copytree(place / "run", place / "damaged")
    (place / "damaged" / "config.json").write_text('{"steps": ')
    write_store(place / "othertext", Tokenizer.byte_level(), TEXT.replace("fox", "cat"))
    write_store(place / "otherpieces", train("bpe", [TEXT], 330), TEXT)
    write_store(place / "manypieces", train("bpe", [dictionary()], 600), TEXT)
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, dim=32))
    shutil.copytree(place / "run", place / "otherwidth")
    rundir.create(place / "otherwidth", wide)
    shutil.copytree(place / "run", place / "exchanged")
    files = place / "exchanged" / "checkpoints" / "4" / "files"
    other = rundir.tokenizer_files(TokenStore.open(place / "otherpieces").tokenizer)
    shutil.rmtree(place / "exchanged" / "checkpoints")
    with Checkpoints(place / "exchanged") as checkpoints:
        about = {"config": config.to_dict(), "tokenizer_hash": store.tokenizer_hash}
        checkpoints.save(4, {"model": jnp.zeros(3)}, about, other)
    assert files.exists()
    return place


def dictionary():
    """Enough different words for hundreds of pieces."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnop"), 5)) for _ in range(400)]
    return " ".join(words * 4)


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        patch.setenv("XLA_FLAGS", ONE["XLA_FLAGS"])
        with Commands(folder) as run:
            yield run


def contents(place):
    """Every file with its bytes and time of change, and every folder."""
    return {
        str(path.relative_to(place)): "folder"
        if path.is_dir()
        else (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(place.rglob("*"))
    }


def refused(result, code, *parts):
    """The one line of a command that was refused as it should be."""
    found, _, err = result
    lines = err.strip().splitlines()
    assert "Traceback" not in err, err[-2000:]
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], err
    assert found == code, err
    for part in parts:
        assert part in lines[-1]
    return lines[-1]


# ---- Mistakes that leave everything as it was ----------------------------------------------------


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_touched(mistake, place, commands):
    line, code, *parts = MISTAKES[mistake]
    env = EIGHT if line.startswith("8 ") else {}
    module, *flags = line.removeprefix("8 ").format(p=place).split()
    before = contents(place)
    refused(commands(f"lm_jax.{module}", *flags, **env), code, *parts)
    assert contents(place) == before


def test_there_are_more_than_twenty():
    assert len(MISTAKES) > 60


@pytest.mark.parametrize("flag", ["--config.model.num_layer=8", "--config.steps=many"])
def test_a_command_of_its_own_process_says_the_same(place, flag):
    command = [sys.executable, "-m", "lm_jax.train", f"--config={place}/c.py", "--workdir=x", flag]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    refused((done.returncode, done.stdout, done.stderr), 2, flag[2:].split("=")[0])


# ---- Disks ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder, options):
    """A file system of our own at `folder`; skips where none may be mounted."""
    folder.mkdir()
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if tried.returncode:
        pytest.skip(f"this machine lets us mount no file system: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_read_only_disk_is_refused_before_the_start(place, commands, tmp_path):
    with mounted(tmp_path / "disk", "ro,size=64k") as disk:
        flags = [f"--config={place}/c.py", f"--workdir={disk}/run"]
        refused(commands("lm_jax.train", *flags), 4, "cannot be written; name another folder")
        output = [f"--input={place}/text.txt", f"--output={disk}/store", "--tokenizer=bytes"]
        refused(commands("lm_jax.prepare", *output), 4, "store: cannot write here (Read-only file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(place, commands, tmp_path):
    tmp_path.chmod(0o500)
    flags = [f"--config={place}/c.py", f"--workdir={tmp_path}/run"]
    refused(commands("lm_jax.train", *flags), 4, "cannot be written; name another folder")
    tmp_path.chmod(0o700)


def test_a_full_disk_is_one_line_and_the_run_on_it_stays_as_it_was(place, commands, tmp_path):
    with mounted(tmp_path / "disk", "size=2m") as disk:
        shutil.copytree(place / "run", disk / "run")
        with contextlib.suppress(OSError), open(disk / "full", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        before = contents(disk)
        config = f"--config={place}/c.py"
        store = f"--config.data.store={place}/run/data"
        refused(commands("lm_jax.train", config, f"--workdir={disk}/run"), 4, "free on the disk")
        new = commands("lm_jax.train", config, f"--workdir={disk}/new", store)
        refused(new, 4, "No space left on device; name another folder")
        refused(commands("lm_jax.train", config, f"--workdir={disk}/new"), 4, "the disk is full")
        shutil.rmtree(disk / "new", ignore_errors=True)
        assert contents(disk) == before


# ---- Divergence ----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    place, commands, tmp_path
):
    flags = [
        f"--config={place}/c.py",
        f"--workdir={tmp_path}/run",
        "--nopreflight",
        f"--config.data.store={place}/run/data",
        "--config.optimizer.learning_rate=1e30",
    ]
    for _ in range(2):  # the same command again resumes, and comes to the same end
        result = commands("lm_jax.train", *flags, **ONE)
        line = refused(result, 5, "step 2: ", "not finite", "the checkpoint of step 1 is kept")
        assert "config.optimizer.learning_rate (now 1e+30)" in line
        config = Config.parse(json.loads((tmp_path / "run" / "config.json").read_text()))
        state, metadata = SavedSteps(tmp_path / "run").restore(
            jax.eval_shape(lambda config=config: init_state(config))
        )
        assert metadata["step"] == int(state.step) == 1
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1]


def test_the_same_command_without_a_mistake_is_not_refused(place, commands, tmp_path):
    flags = [f"--config={place}/c.py", f"--workdir={tmp_path}/run", "--dry_run"]
    code, out, err = commands("lm_jax.train", *flags)
    assert code == 0, err
    assert "parameters" in out
    assert list(tmp_path.iterdir()) == []
