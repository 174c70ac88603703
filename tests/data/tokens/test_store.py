"""A store gives back what was written, and refuses what is damaged."""

import contextlib
import functools
import http.server
import json
import os
import pickle
import platform
import socket
import threading

import numpy as np
import pytest
from small_stores import without_sums

from lm_jax.data.tokens import files
from lm_jax.data.tokens import store as store_module
from lm_jax.data.tokens import writer as writer_module
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.tokens.tokenizer_training import train
from lm_jax.data.tokens.writer import Writer
from lm_jax.errors import DataError, MachineError


def test_documents_come_back_between_bos_and_eos(store):
    tokenizer = store.tokenizer
    assert store.num_documents("train") == 6
    assert store.num_bytes("train") == 443 == len("".join(store.text("train")))
    assert store.num_tokens("train") == 443 + 2 * 6 == store.ends("train")[-1]
    for i, text in enumerate(store.text("train")):
        ids = store.document("train", i)
        assert ids[0] == tokenizer.bos_id
        assert ids[-1] == tokenizer.eos_id
        assert tokenizer.decode(ids) == text
    assert [h["text"] for h in store.heldout()] == list(store.text("heldout"))


@pytest.mark.parametrize(
    "manifest", ["", "[]", "no JSON", "[" * 100_000, '{"format": "lm_jax token store 1"}'],
    ids=["empty", "list", "no JSON", "deep", "format alone"],
)  # fmt: skip
def test_what_is_no_store_is_one_line(tmp_path, manifest):
    (tmp_path / "store.json").write_text(manifest)
    for path in (tmp_path, tmp_path / "store.json"):  # a folder; a file
        with pytest.raises(DataError, match=r"not a token store|its own fingerprint") as error:
            TokenStore.open(path)
        assert "\n" not in str(error.value)


def test_a_store_may_be_made_in_an_empty_folder_that_is_linked_to(tmp_path, write_store):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_store(tmp_path / "link").verify()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "store.json").exists()


def test_what_a_killed_process_left_is_deleted_but_for_those_of_other_machines(
    tmp_path, write_store, monkeypatch
):
    monkeypatch.setattr(writer_module, "alive", lambda pid: pid == "1")
    host = platform.node()
    left = [tmp_path / f".store.unfinished-{who}-ab" for who in
            (f"{host}~999", f"{host}~1", "another-host~999")]  # fmt: skip
    for folder in left:
        folder.mkdir()
    write_store(tmp_path / "store")
    assert [folder.exists() for folder in left] == [False, True, True]
    mine = writer_module.unfinished(str(tmp_path / "other"))
    writer_module.discard(str(tmp_path / "other"))
    assert not mine.exists()


def test_a_mount_point_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    (tmp_path / "disk").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/disk: is where a disk is mounted"):
        Writer(tmp_path / "disk", Tokenizer.byte_level())
    assert [*tmp_path.iterdir()] == [tmp_path / "disk"]


def test_a_url_that_takes_no_file_is_one_line(write_store):
    with pytest.raises(MachineError, match="file:///proc/none: cannot write here") as error:
        write_store("file:///proc/none")
    assert "\n" not in str(error.value)


def test_the_id_that_is_none_is_named(tmp_path):
    with Writer(tmp_path / "store", Tokenizer.byte_level()) as writer:
        for id in (-5, 259):
            with pytest.raises(DataError, match=f"token id {id} in document 0 of train"):
                writer.add("train", np.array([id, 3]), 2)


def test_a_store_on_a_url_reads_the_same(tmp_path, write_store):
    local = write_store(tmp_path / "local")
    url = f"file://{tmp_path}/far"
    remote = write_store(url)
    assert remote.fingerprint == local.fingerprint
    assert not (tmp_path / ".far").exists()
    starts = np.array([0, 17, 300, 17])
    for split in ("train", "heldout"):
        np.testing.assert_array_equal(remote.ends(split), local.ends(split))
        np.testing.assert_array_equal(remote.tokens(split), local.tokens(split))
    np.testing.assert_array_equal(
        remote.gather("train", starts, 99), local.gather("train", starts, 99)
    )
    assert list(remote.heldout()) == list(local.heldout())
    assert remote.tokenizer.hash == local.tokenizer.hash
    remote.verify()
    with pytest.raises(DataError, match="holds a token store already"):
        write_store(url)


def test_a_url_that_does_not_answer_is_one_line(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/store"
        monkeypatch.setattr(files, "PATIENCE", 0.2)
        for call in (TokenStore.exists, TokenStore.open):
            with pytest.raises(MachineError, match=f"{url}: no answer within 0.2 s; check the"):
                call(url)


def test_a_store_on_a_web_server_is_found(tmp_path, write_store):
    write_store(tmp_path / "store")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert TokenStore.exists(f"{url}/store")
        assert not TokenStore.exists(f"{url}/other")
        server.shutdown()


@pytest.mark.parametrize("change", ["cut", "longer", "gone", "emptied"])
@pytest.mark.parametrize("place", ["local", "url"])
def test_a_file_of_another_size_is_named_at_open(tmp_path, change, place, write_store):
    write_store(tmp_path / "store")
    file = tmp_path / "store" / "train.tokens"
    data = file.read_bytes()
    changed = {"cut": data[:-2], "longer": data + b"\0\0", "emptied": b""}
    file.unlink() if change == "gone" else file.write_bytes(changed[change])
    path = tmp_path / "store" if place == "local" else f"file://{tmp_path}/store"
    with pytest.raises(DataError, match=r"train\.tokens: (missing|.*should be|longer)"):
        TokenStore.open(path)


def test_one_flipped_bit_is_found_at_open_or_by_verify(tmp_path, monkeypatch, write_store):
    write_store(tmp_path / "store")
    file = tmp_path / "store" / "heldout.tokens"
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"heldout\.tokens: its checksum is wrong"):
        TokenStore.open(tmp_path / "store")
    monkeypatch.setattr(store_module, "CHECKED_AT_OPEN", 0)
    large = TokenStore.open(tmp_path / "store")
    with pytest.raises(DataError, match=r"heldout\.tokens: its checksum is wrong"):
        large.verify()


def test_an_id_outside_the_vocabulary_is_refused_when_written_and_when_read(
    tmp_path, monkeypatch, write_store
):
    with Writer(tmp_path / "bad", Tokenizer.byte_level()) as writer:
        with pytest.raises(DataError, match="token id 259 in document 0 of train"):
            writer.add("train", np.array([1, 259]), 2)
    assert list(tmp_path.iterdir()) == []
    write_store(tmp_path / "store")
    file = tmp_path / "store" / "train.tokens"
    data = bytearray(file.read_bytes())
    data[101] = 9
    file.write_bytes(data)
    without_sums(tmp_path / "store")
    monkeypatch.setattr(store_module, "CHECKED_AT_OPEN", 0)
    store = TokenStore.open(tmp_path / "store")
    with pytest.raises(DataError, match=r"train\.tokens: token id 2\d\d\d near document 2"):
        store.gather("train", np.array([0, 46]), 40)


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_a_tokenizer_that_cannot_be_read_is_damaged_or_missing(tmp_path, write_store, content):
    write_store(tmp_path / "store")
    path = tmp_path / "store" / "tokenizer" / "tokenizer.json"
    path.unlink() if content is None else path.write_text(content)
    what = r"/tokenizer: missing" if content is None else r"/tokenizer/tokenizer\.json: damaged"
    with pytest.raises(DataError, match=f"{what}; prepare the data again"):
        TokenStore.open(tmp_path / "store")


def test_another_tokenizer_or_an_edited_manifest_is_refused(tmp_path, write_store):
    write_store(tmp_path / "store")
    train("bpe", ["some other words " * 50], 270).save(tmp_path / "store" / "tokenizer")
    with pytest.raises(DataError, match="the tokens were made with"):
        TokenStore.open(tmp_path / "store")
    for damage in ("[]", "[" * 100_000, "no JSON"):
        (tmp_path / "store" / "tokenizer" / "tokenizer.json").write_text(damage)
        with pytest.raises(DataError, match="prepare the data again"):
            TokenStore.open(tmp_path / "store")
    write_store(tmp_path / "edited")
    manifest = tmp_path / "edited" / "store.json"
    about = json.loads(manifest.read_text())
    about["splits"]["train"]["tokens"] -= 1
    manifest.write_text(json.dumps(about))
    with pytest.raises(DataError, match="edited or damaged"):
        TokenStore.open(tmp_path / "edited")


def test_what_is_no_store_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere", f"file://{tmp_path}/far"):
        with pytest.raises(DataError, match="not a token store"):
            TokenStore.open(path)


def test_an_interrupted_writer_leaves_nothing_that_looks_like_a_store(
    tmp_path, monkeypatch, write_store
):
    with (
        contextlib.suppress(ZeroDivisionError),
        Writer(tmp_path / "store", Tokenizer.byte_level()) as writer,
    ):
        writer.add("train", np.arange(3), 3)
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []
    killed = Writer(tmp_path / "store", Tokenizer.byte_level())  # as kill -9 leaves it
    for file in killed.files.values():
        file.file.close()
    assert not (tmp_path / "store").exists()
    assert killed.folder.exists()
    monkeypatch.setattr(writer_module, "alive", lambda pid: False)
    write_store(tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_nothing_is_overwritten(tmp_path, store, write_store):
    with pytest.raises(DataError, match="exists already"):
        write_store(tmp_path / "store")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        write_store(tmp_path / "file")
    with pytest.raises(MachineError, match="cannot write here"):
        write_store(tmp_path / "file" / "store")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert write_store(tmp_path / "empty").fingerprint == store.fingerprint


def test_the_fingerprint_changes_with_the_text_and_not_with_the_place(tmp_path, store, write_store):
    assert write_store(tmp_path / "again").fingerprint == store.fingerprint
    assert write_store(tmp_path / "other", sizes=(40, 2)).fingerprint != store.fingerprint


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path):
    class Large(Tokenizer):
        def __init__(self):
            super().__init__("bytes")
            self.vocab_size = 70_000

    with Writer(tmp_path / "large", Large()) as writer:
        writer.add("train", np.array([5, 69_999]), 2)
        writer.finish({})
    store = TokenStore.open(tmp_path / "large")
    assert store.dtype == np.dtype("<u4")
    assert store.tokens("train").tolist() == [256, 5, 69_999, 257]


def test_a_store_travels_to_another_process_by_its_path(store):
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(again.tokens("train"), store.tokens("train"))
    with pytest.raises(IndexError):
        store.tokens("train", 450, 456)
