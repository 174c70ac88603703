"""Does preparing text keep every byte, keep the sides of the split apart, and leave nothing behind
when it fails?
"""

import errno
import inspect
import io
import json
import os
import pickle
import shutil
import string
import subprocess
import sys
import textwrap
import typing

import numpy as np
import pytest

from lm_jax import prepare as prepare_module
from lm_jax.config import Config, DataConfig
from lm_jax.data import inspect as store_inspect
from lm_jax.data.build import prepare
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.writer import Hashed, Writer
from lm_jax.errors import DataError, MachineError

MODULES = [argparse := __import__("argparse"), inspect, pickle, string, textwrap, typing, json]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Functions of the standard library as files, with duplicates and near-duplicates among
    them.
    """
    path = tmp_path_factory.mktemp("text")
    number = 0
    for module in MODULES:
        for name, value in sorted(vars(module).items()):
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                (path / f"{module.__name__}_{name}.py").write_text(inspect.getsource(value))
                number += 1
    assert number > 80
    source = inspect.getsource(inspect.getdoc)
    (path / "again.py").write_text(source.replace("\n", "\r\n"))
    long = inspect.getsource(inspect.signature(inspect.Signature.replace).__class__)
    for i in range(4):
        (path / f"similar{i}.py").write_text(long.replace("parameter", f"parametro{i}", 40 * i))
    return path


def open_prepared(folder, output, **options):
    data = DataConfig(input=str(folder), vocab_size=500, **options)
    return TokenStore.open(prepare(data, str(output)))


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    return open_prepared(folder, tmp_path_factory.mktemp("out") / "store", heldout_fraction=0.1)


def test_every_byte_of_every_document_is_in_the_store_once(folder, store):
    files = {p.name: p.read_text() for p in folder.iterdir()}
    kept = list(store.text("train")) + list(store.text("heldout"))
    assert set(kept) <= {t.replace("\r\n", "\n") for t in files.values()}
    assert len(kept) == len(set(kept))
    assert store.metadata["exact_duplicates"] == 1
    assert len(kept) == len(files) - 1 - store.metadata["near_duplicates"]
    assert store.metadata["round_trips_checked"] == len(kept)
    assert store.num_bytes("train") == sum(len(t.encode()) for t in store.text("train"))
    store.verify()


def test_held_out_documents_are_whole_and_share_no_near_duplicate(folder, store):
    heldout = list(store.heldout())
    assert [h["text"] for h in heldout] == list(store.text("heldout"))
    share = store.num_bytes("heldout") / (store.num_bytes("heldout") + store.num_bytes("train"))
    assert 0.08 < share < 0.13
    for h in heldout:
        with open(h["source"], newline="") as file:
            assert file.read().replace("\r\n", "\n") == h["text"]
    sides = {"similar" in h["source"] for h in heldout if "similar" in h["source"]}
    in_train = sum("parametro" in t for t in store.text("train"))
    assert not (sides and in_train)


def test_the_store_is_the_same_again_and_for_any_number_of_cores(
    folder, store, tmp_path, monkeypatch
):
    monkeypatch.setattr("lm_jax.data.tokens.tokenizer.cores", lambda: 5)
    again = open_prepared(folder, tmp_path / "again", heldout_fraction=0.1)
    assert again.fingerprint == store.fingerprint


def test_the_same_text_elsewhere_gives_the_same_tokens(folder, store, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    moved = open_prepared(tmp_path / "moved", tmp_path / "store", heldout_fraction=0.1)
    assert moved.fingerprint == store.fingerprint


def test_a_single_file_is_cut_at_its_end(tmp_path):
    text = inspect.getsource(argparse) + "é" * 50
    (tmp_path / "one.txt").write_text(text)
    store = open_prepared(
        tmp_path / "one.txt", tmp_path / "store", tokenizer="bytes", heldout_fraction=0.1
    )
    middle = int(len(text) * 0.9)
    assert list(store.text("train")) == [text[:middle]]
    assert list(store.text("heldout")) == [text[middle:]]
    assert "the last 10.0% of the characters" in store.metadata["heldout"]


def test_a_given_tokenizer_is_used_as_it_is(folder, tmp_path):
    data = DataConfig(input=str(folder), heldout_fraction=0.0)
    given = Tokenizer.byte_level()
    store = TokenStore.open(prepare(data, str(tmp_path / "store"), tokenizer=given))
    assert store.tokenizer_hash == given.hash
    assert store.splits == ("train",)


def test_a_tokenizer_that_loses_text_is_refused(folder, tmp_path):
    class Lossy(Tokenizer):
        def __init__(self):
            super().__init__("bytes")

        def encode_batch(self, texts, threads=0):
            return [np.delete(ids, 0) for ids in super().encode_batch(texts, threads)]

    with pytest.raises(DataError, match=r"\.py: the tokenizer does not give this text back"):
        prepare(DataConfig(input=str(folder)), str(tmp_path / "store"), tokenizer=Lossy())
    assert list(tmp_path.iterdir()) == []


def test_bad_records_above_the_threshold_refuse_the_input(tmp_path):
    lines = [json.dumps({"text": f"line {i} " * 9}) for i in range(60)]
    lines[30] = "broken"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"1 of 60 records .*a\.jsonl:31: not JSON"):
        open_prepared(tmp_path / "a.jsonl", tmp_path / "store", tokenizer="bytes")
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]
    store = open_prepared(
        tmp_path / "a.jsonl", tmp_path / "store", tokenizer="bytes", max_bad_fraction=0.02
    )
    assert store.metadata["bad"] == {"not JSON": 1}
    assert "a.jsonl:31" in store_inspect.table(store)


def test_a_full_or_read_only_disk_is_one_line_and_leaves_nothing(folder, tmp_path, monkeypatch):
    def full(self, metadata):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "finish", full)
        with pytest.raises(MachineError, match="store: the disk is full"):
            open_prepared(folder, tmp_path / "store", tokenizer="bytes")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write here"):
        open_prepared(folder, tmp_path / "file" / "store", tokenizer="bytes")


SIGNALLED = """
import os, signal, sys
from lm_jax import cli, prepare
from lm_jax.data import build
def signalled(*arguments):
    os.kill(os.getpid(), signal.{name})
build.encode_parts = signalled
prepare.define_flags()
cli.run(prepare.main)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("output", ["a/b/store", "file://{}/a/store"])
def test_a_signal_leaves_nothing(folder, tmp_path, name, code, output):
    line = "error: stopped by the keyboard.\n" if name == "SIGINT" else ""
    words = [f"--input={folder}", f"--output={output.format(tmp_path)}", "--tokenizer=bytes"]
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED.format(name=name), *words], cwd=tmp_path, timeout=60,
        capture_output=True, text=True, env=os.environ | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (code, "", line)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_last_write_leaves_nothing(folder, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def opened(self, path):
        real_init(self, path)
        self.file.close()
        self.file = io.BufferedWriter(Full(path, "w"), 1 << 30)

    real_init = Hashed.__init__
    monkeypatch.setattr(Hashed, "__init__", opened)
    with pytest.raises(MachineError, match="store: the disk is full"):
        open_prepared(folder, tmp_path / "store", tokenizer="bytes")
    assert list(tmp_path.iterdir()) == []


def test_kinds_lost_bytes_and_the_files_are_kept_and_shown(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(b"a line of text\n" * 300 + b"\xff\n")
    (tmp_path / "in" / "b.json").write_text(json.dumps([{"text": "one\r\ntwo"}]))
    store = open_prepared(tmp_path / "in", tmp_path / "store", tokenizer="bytes")
    about, shown = store.metadata, store_inspect.table(store)
    assert about["kinds"] == {"plain text": 1, "JSON array": 1}
    assert about["lost_bytes"] == {"invalid UTF-8": 2}
    assert sorted(about["inputs"]["files"]) == [f"{tmp_path}/in/a.txt", f"{tmp_path}/in/b.json"]
    assert "1 x plain text, 1 x JSON array" in shown
    assert "lines refused: invalid UTF-8 (2 bytes)" in shown


def test_nothing_but_blank_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match="no text in it"):
        open_prepared(tmp_path / "a.txt", tmp_path / "store")


def test_examples_are_shown_with_targets_below_inputs(store):
    config = Config.parse({"data": {"sequence_length": 32}})
    (text,) = store_inspect.examples(store, config, 1)
    lines = text.splitlines()
    assert lines[1].startswith("example 0: window ")
    inputs = " ".join(line[8:] for line in lines[2::3]).split()
    targets = " ".join(line[8:] for line in lines[3::3]).split()
    assert inputs[1:] == [t.strip("[]") if t.startswith("[<") else t for t in targets[:-1]]


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "lm_jax.prepare", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_command_prepares_shows_and_refuses_in_one_line(folder, tmp_path):
    output = f"--output={tmp_path}/store"
    done = run(f"--input={folder}", output, "--tokenizer=bytes", "--show=1")
    assert done.returncode == 0, done.stderr
    assert "bytes a token" in done.stdout
    assert "targets" in done.stdout
    shown = run(output, "--show=2")
    assert shown.returncode == 0
    assert shown.stdout.count("example ") == 2
    for flags, code, words in (
        ([f"--input={folder}", output], 3, "exists already"),
        ([f"--input={folder}/no*", f"--output={tmp_path}/b"], 3, "no file matches this pattern"),
        ([f"--input={folder}"], 2, "--output: missing"),
        (
            [f"--input={folder}", f"--output={tmp_path}/b", f"--tokenizer={tmp_path}"],
            3,
            "tokenizer.json: no such file",
        ),
        (
            [f"--input={folder}", f"--output={tmp_path}/b", "--heldout_fraction=1.5"],
            2,
            "config.data.heldout_fraction=1.5",
        ),
    ):
        failed = run(*flags)
        assert failed.returncode == code, failed.stderr
        assert len(failed.stderr.splitlines()) == 1, failed.stderr
        assert words in failed.stderr
    assert os.listdir(tmp_path) == ["store"]


def test_importing_the_command_imports_no_jax():
    code = (
        "import sys, lm_jax.prepare; assert 'jax' not in sys.modules and 'grain' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert prepare_module.prepare is prepare
