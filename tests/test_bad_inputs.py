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
from commands import ONE, Commands

from lm_jax import rundir, sharding
from lm_jax.checkpoint import Checkpoints, SavedSteps
from lm_jax.config import Config, MeshConfig
from lm_jax.data.store import TokenStore
from lm_jax.data.tokenizer import Tokenizer
from lm_jax.data.tokenizer_training import train
from lm_jax.data.writer import Writer
from lm_jax.train_step import init_state

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
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


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
            about = rundir.metadata(step, config, run, store, mesh)
            checkpoints.save(step, state, about, rundir.tokenizer_files(store))


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
    other = rundir.tokenizer_files(TokenStore.open(place / "otherpieces"))
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

TRAIN = "train --config={p}/c.py "
NEW = TRAIN + "--workdir={p}/new "
MISTAKES = {
    # The command line and the config file.
    "misspelt field": (NEW + "--config.model.num_layer=8", 2,
        "config.model.num_layer: no such field. Did you mean 'num_layers'?"),
    "misspelt group": (NEW + "--config.modle.dim=8", 2,
        "config.modle: no such field. Did you mean 'model'?"),
    "wrong type": (NEW + "--config.steps=many", 2, "config.steps='many': expected a whole number."),
    "not true or false": (NEW + "--config.data.packed=perhaps", 2, "expected true or false"),
    "not finite": (NEW + "--config.optimizer.learning_rate=nan", 2,
        "learning_rate=nan: must be finite"),
    "unknown flag": (NEW + "--worker=3", 2, "Unknown command line flag 'worker'", "workdir"),
    "flag without value": ("train --config={p}/c.py --workdir", 2,
        "Missing value for flag --workdir"),
    "stray word": (NEW + "runs/q", 2, "'runs/q': not a flag. Write --name=value"),
    "no config": ("train --workdir={p}/new", 2, "--config: missing. Name a file"),
    "no workdir": (TRAIN, 2, "--workdir: missing. Name a folder"),
    "profile of a run too short": (NEW + "--profile", 2, "config.steps=6 is too few"),
    "field without config": ("train --workdir={p}/new --config.steps=3", 2,
        "needs a --config=FILE"),
    "no such config": ("train --config={p}/cc.py --workdir={p}/new", 2,
        "cc.py: no such file. Did you mean 'c.py'?"),
    "config is a folder": ("train --config={p}/folder --workdir={p}/new", 2, "no such file"),
    "config is a text": ("train --config={p}/text.txt --workdir={p}/new", 2, "not a Python file"),
    "config is binary": ("train --config={p}/binary.py --workdir={p}/new", 2, "binary.py",
        "correct the file"),
    "config with wrong syntax": ("train --config={p}/syntax.py --workdir={p}/new", 2,
        "(syntax.py, line 1)"),
    "config without get_config": ("train --config={p}/without.py --workdir={p}/new", 2,
        "has no get_config()"),
    "config that returns nothing": ("train --config={p}/nothing.py --workdir={p}/new", 2,
        "get_config()"),
    "config that raises": ("train --config={p}/broken.py --workdir={p}/new", 2,
        "broken.py, line 3: KeyError: 'steps'"),
    "config with misspelt field": ("train --config={p}/field.py --workdir={p}/new", 2,
        "config.model.dmi: no such field. Did you mean 'dim'?"),
    "unknown variant": ("train --config=configs/quickstart.py:gpu --workdir={p}/new", 2, "'gpu'",
        "accelerator"),
    # Values that cannot work.
    "negative learning rate": (NEW + "--config.optimizer.learning_rate=-1e-3", 2,
        "config.optimizer.learning_rate=-0.001: must not be negative."),
    "no steps": (NEW + "--config.steps=0", 2, "config.steps=0: must be at least 1."),
    "unknown choice": (NEW + "--config.optimizer.schedule=cosin", 2, "Did you mean 'cosine'?"),
    "heads do not divide width": (NEW + "--config.model.num_heads=3", 2,
        "not divisible by model.num_heads=3"),
    "warm-up longer than the run": (NEW + "--config.optimizer.warmup_steps=7", 2,
        "longer than config.steps=6"),
    "window longer than the model": (NEW + "--config.data.sequence_length=33", 2,
        "longer than config.model.max_length=32"),
    # The machine.
    "mesh of other devices": (NEW + "--config.mesh.data=3", 2,
        "data 3 does not make 1 devices"),
    "mesh too small": ("8 " + NEW + "--config.mesh.data=4", 2, "does not make 8 devices",
        "product is 8"),
    "batch not divisible": ("8 " + NEW + "--config.batch_size=12", 2,
        "must be divisible by 8 devices", "nearest: 8 or 16"),
    "microbatches do not divide": (NEW + "--config.microbatches=3", 2,
        "divisible by config.microbatches=3"),
    "heads do not divide over tensor": ("8 " + NEW + "--config.mesh.tensor=4 --config.mesh.data=2",
        2, "config.mesh.tensor=4: must divide config.model.num_kv_heads=2"),
    "heads do not divide over what is left": (
        "8 " + NEW + "--config.mesh.tensor=-1 --config.mesh.data=1", 2,
        "config.mesh.tensor=8: must divide"),
    "attention of another machine": (NEW + "--config.model.attention=splash", 2,
        "cannot run on cpu", "auto or xla"),
    # The text.
    "no such text": (NEW + "--config.data.input={p}/nope.txt", 3,
        "nope.txt: no such file or folder"),
    "no match": (NEW + "--config.data.input={p}/*.text", 3, "*.text: no file matches this pattern"),
    "empty text": (NEW + "--config.data.input={p}/empty.txt", 3, "empty.txt: empty file"),
    "blank text": (NEW + "--config.data.input={p}/blank.txt", 3, "no text in it"),
    "binary text": (NEW + "--config.data.input={p}/binary.txt", 3, "binary.txt: not text", "PNG"),
    "not UTF-8": (NEW + "--config.data.input={p}/latin1.txt", 3,
        "latin1.txt:4: invalid UTF-8 (byte 0xe9)"),
    "JSON lines without text": (NEW + "--config.data.input={p}/rows.jsonl", 3,
        "rows.jsonl:1: no field 'text'", "text_field"),
    "empty folder": (NEW + "--config.data.input={p}/folder", 3, "the folder holds no files"),
    "cut short": (NEW + "--config.data.input={p}/cut.txt.gz", 3,
        "cut.txt.gz: damaged or cut short"),
    "no text at all": (NEW + "--config.data.input=", 3, "config.data.input"),
    "no such store": (NEW + "--config.data.input= --config.data.store={p}/none", 3,
        "no token store at", "lm_jax.prepare"),
    "a file as a store": (NEW + "--config.data.store={p}/text.txt", 3, "text.txt: exists already"),
    "tokenizer of another vocabulary": (NEW + "--config.data.store={p}/manypieces", 3,
        "config.model.vocab_size=384: smaller than the 6", "set it to 640"),
    "too little text": (
        NEW + "--config.data.store={p}/run/data --config.data.sequence_length=4000 "
        "--config.model.max_length=4000", 3, "do not fill one window"),
    "too little held out": (
        NEW + "--config.data.store={p}/run/data --config.data.sequence_length=700 "
        "--config.model.max_length=700", 3, "held-out tokens do not fill", "heldout_fraction"),
    # The work directory.
    "another run": (TRAIN + "--workdir={p}/run --config.model.dim=32", 2,
        "holds another run: config.model.dim is 16 there, 32 here. Name another --workdir."),
    "a folder with other things": (TRAIN + "--workdir={p}/strange", 2,
        "holds 'thesis.tex' but no run"),
    "a file": (TRAIN + "--workdir={p}/text.txt", 4, "is a file; name a folder"),
    "under a file": (TRAIN + "--workdir={p}/text.txt/run", 4, "text.txt is a file; name a folder"),
    "where nothing can be made": (TRAIN + "--workdir=/proc/lm_jax", 4, "/proc/lm_jax"),
    "damaged config.json": (TRAIN + "--workdir={p}/damaged", 2, "config.json: cannot be read",
        "another --workdir"),
    "another text in the same run": (
        TRAIN + "--workdir={p}/nocheckpoint --config.data.input={p}/c.py", 3, "was made with",
        "name another --workdir"),
    # Checkpoints.
    "checkpoint of another architecture": (
        TRAIN + "--workdir={p}/otherwidth --config.model.dim=32 --nopreflight", 3,
        "is of another model", "attn_norm/scale: checkpoint (1, 16) vs model (1, 32)"),
    "data changed under a checkpoint": (
        TRAIN + "--workdir={p}/run --config.data.store={p}/othertext --nopreflight", 3,
        "the token store has changed since the checkpoint was saved"),
    "another tokenizer under a checkpoint": (
        TRAIN + "--workdir={p}/run --config.data.store={p}/otherpieces --nopreflight", 3,
        "the checkpoint's tokenizer", "is not the token store's"),
    "tokenizer exchanged in a checkpoint": ("generate --checkpoint={p}/exchanged", 3,
        "its tokenizer", "is not the one that the model was trained with"),
    "no such run": ("generate --checkpoint={p}/nope", 3, "nope: no such path"),
    "no checkpoint": ("generate --checkpoint={p}/nocheckpoint", 3, "no checkpoint; train"),
    "no such step": ("evaluate --checkpoint={p}/run --step=3", 3,
        "no checkpoint of step 3; has 2, 4."),
    "checkpoint missing": ("evaluate", 2, "--checkpoint: missing. Name a run"),
    # Using a model.
    "more tokens than the model sees": (
        "generate --checkpoint={p}/run --prompt=abc --max_new_tokens=30", 2,
        "a prompt of 4 tokens: the model sees 32", "ask for at most 28"),
    "prompt longer than the model": ("generate --checkpoint={p}/run --prompt=" + "a" * 40, 2,
        "a prompt of 41 tokens", "shorten it"),
    "no sample": ("generate --checkpoint={p}/run --num_samples=0", 2,
        "num_samples=0: must be at least 1"),
    "top_p too large": ("generate --checkpoint={p}/run --top_p=2", 2, "top_p=2.0: must be above 0"),
    "wrong type of a setting": ("generate --checkpoint={p}/run --top_k=few", 2, "--top_k=few"),
    "window longer than what was trained": ("evaluate --checkpoint={p}/run --window=64", 2, "64",
        "32"),
    "no such text to evaluate": ("evaluate --checkpoint={p}/run --data={p}/nope", 3, "--data=",
        "nope: no such file or folder"),
    # Preparing text.
    "no output": ("prepare --input={p}/text.txt", 2, "--output: missing"),
    "output is there": ("prepare --input={p}/text.txt --output={p}/run/data --tokenizer=bytes", 3,
        "run/data: exists already"),
    "unknown tokenizer": ("prepare --input={p}/text.txt --output={p}/made --tokenizer=bppe", 3,
        "bppe"),
    "too many pieces": ("prepare --input={p}/text.txt --output={p}/made --vocab_size=9000", 3,
        "vocab_size"),
}  # fmt: skip


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
    quick = {"XLA_FLAGS": ONE["XLA_FLAGS"] + " --xla_backend_optimization_level=0"}
    for _ in range(2):  # the same command again resumes, and comes to the same end
        result = commands("lm_jax.train", *flags, **quick)
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
