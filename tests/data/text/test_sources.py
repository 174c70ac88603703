"""Every record of an input is read, or named with its file and line."""

import gzip
import json
import sys
import sysconfig

import pytest
import zstandard

from lm_jax.data.text import sources
from lm_jax.data.text.documents import Report
from lm_jax.data.text.sources import documents, total_bytes
from lm_jax.errors import DataError, MachineError

LINES = [{"text": "one\n"}, {"text": "zwei ü"}, {"text": "三", "id": 3}]


def texts(spec, **options):
    return [d.text for d in documents(str(spec), **options)]


def jsonl(records):
    return "".join(json.dumps(r) + "\n" for r in records).encode()


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_plain_and_json_lines_also_packed(tmp_path, packing):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[packing]
    whole = "a text\r\nof 2 lines\tand \0 é"
    (tmp_path / f"b.txt{packing}").write_bytes(pack(whole.encode()))
    (tmp_path / f"a.jsonl{packing}").write_bytes(pack(jsonl(LINES)))
    assert texts(tmp_path) == ["one\n", "zwei ü", "三", whole]
    assert texts(tmp_path / f"b.txt{packing}") == [whole]
    assert texts(tmp_path / "*.jsonl*") == ["one\n", "zwei ü", "三"]
    found = list(documents(str(tmp_path)))
    assert found[1].source == f"{tmp_path}/a.jsonl{packing}:2"


def test_two_zstd_frames_and_two_gzip_members_are_one_file(tmp_path):
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.txt.zst").write_bytes(pack(b"one ") + pack(b"two"))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert texts(tmp_path) == ["one two", "one two"]


def test_reading_tells_how_far_it_is(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 3_000_000)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(LINES)))
    seen = []
    list(documents(str(tmp_path), advance=seen.append))
    assert sum(seen) == total_bytes(str(tmp_path)) > 3_000_000


def test_what_is_wrong_is_named_by_file_and_line(tmp_path):
    good = jsonl(LINES)
    bad = b'{"text": 5}\n[1]\n{"txt": "a"}\n{"text": "\xff"}\nnot json\n{"text": "\\ud800"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + bad + b'\n{"text": ""}\n' + good)
    (tmp_path / "b.txt").write_bytes(b"fine\nso far \xe9\n")
    (tmp_path / "c.txt").write_bytes(b"")
    (tmp_path / "d.txt").write_bytes(gzip.compress(b"hidden"))
    (tmp_path / "e.txt").write_bytes("wide".encode("utf-16"))
    (tmp_path / "f.txt").write_bytes(bytes(range(256)))
    (tmp_path / "g.jsonl").write_bytes(b"\n \n")
    report = Report()
    assert texts(tmp_path, report=report) == [*[r["text"] for r in LINES] * 2, "fine\n"]
    folder = f"{tmp_path}/"
    assert [e.removeprefix(folder) for e in report.examples] == [
        "a.jsonl:4: field 'text' is not a string",
        "a.jsonl:5: not a JSON object",
        "a.jsonl:6: no field 'text' (it has txt; config.data.text_field)",
        "a.jsonl:7: invalid UTF-8 (byte 0xff)",
        "a.jsonl:8: not JSON",
        "a.jsonl:9: lone surrogate",
        "b.txt:2: invalid UTF-8 (byte 0xe9)",
        "c.txt: empty file",
        "d.txt: not text (it looks like gzip)",
        "e.txt: not text (it looks like UTF-16 text)",
        "f.txt: not text (it looks like binary data)",
        "g.jsonl: empty file",
    ]
    assert report.records == 19
    assert report.bad.total() == 11  # b.txt lost a line, and no more
    assert report.lost["invalid UTF-8"] == len(b'{"text": "\xff"}\n') + len(b"so far \xe9\n")
    assert report.skipped == {"empty text": 1}
    report.check(0.9)
    with pytest.raises(DataError, match=r"11 of 19 records.*max_bad_fraction=0\.5.*a\.jsonl:4: .*"):
        report.check(0.5)


def test_without_a_report_nothing_bad_passes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl(LINES) + b"oops\n")
    with pytest.raises(DataError, match=r"a\.jsonl:4: not JSON"):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/at/all.txt", "nowhere/at/all.txt: no such file or folder"),
        ("nowhere/*.txt", r"nowhere/\*.txt: no file matches this pattern"),
        ("", "config.data.input: missing"),
        ("gs://bucket/text", "copy the text to this machine first"),
    ],
)
def test_an_input_that_is_not_there_is_named(spec, message):
    with pytest.raises(DataError, match=message):
        texts(spec)


def test_an_empty_folder_is_named_and_hidden_files_are_counted(tmp_path):
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.txt").write_text("x")
    with pytest.raises(DataError, match="the folder holds no files"):
        texts(tmp_path)
    (tmp_path / "seen.txt").write_text("x")
    report = Report()
    assert texts(tmp_path, report=report) == ["x"]
    assert report.skipped == {"hidden file": 1, "hidden folder": 1}


def test_linked_folders_are_read_once_and_broken_links_are_counted(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("in the linked folder")
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "b.txt").write_text("in the folder")
    (inside / "link").symlink_to(tmp_path / "real")
    (inside / "again").symlink_to(tmp_path / "real")
    (inside / "up").symlink_to(inside)  # a circle
    (inside / "gone.txt").symlink_to(tmp_path / "no such file")
    report = Report()
    assert sorted(texts(inside, report=report)) == ["in the folder", "in the linked folder"]
    assert report.skipped == {"broken link": 1, "folder that was read under another name": 2}


def test_the_home_folder_is_meant_by_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("x")
    assert texts("~/a.txt") == texts("~") == texts("~/*.txt") == ["x"]


def test_a_wrong_byte_costs_its_line_and_is_counted_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOCUMENT", 1 << 10)
    before, after = "x" * 59 + "\n", "z" * 59 + "\n"
    whole = before.encode() * 100 + b"ab\xff\n" + after.encode() * 900
    (tmp_path / "a.txt").write_bytes(whole)
    report = Report()
    found = "".join(texts(tmp_path / "a.txt", report=report))
    assert found == before * 100 + after * 900
    assert (report.records, report.bytes, report.bad) == (1, len(whole), {})
    assert report.lost == {"invalid UTF-8": 4}
    assert report.examples == [f"{tmp_path}/a.txt:101: invalid UTF-8 (byte 0xff)"]
    report.check(0.01)
    # In Latin-1 most lines may do, and what is lost counts as bytes.
    (tmp_path / "b.txt").write_bytes(b"plain\n" * 3 + "grün\n".encode("latin-1") * 2)
    report = Report()
    assert texts(tmp_path / "b.txt", report=report) == ["plain\n" * 3]
    with pytest.raises(DataError, match=r"10 of 28 bytes .*max_bad_fraction=0\.01.*b\.txt:4:"):
        report.check(0.01)


def test_a_zstd_file_with_the_longest_window_is_read(tmp_path):
    # Its header says 2 GiB, as `zstd --long=31` makes it; the library takes 128 MiB by itself.
    frame = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=12)
    ).compressobj()
    packed = bytearray(frame.compress(jsonl(LINES)) + frame.flush())
    assert packed[4] & 0x20 == 0, "has a window descriptor"
    packed[5] = (31 - 10) << 3
    (tmp_path / "a.jsonl.zst").write_bytes(bytes(packed))
    assert texts(tmp_path / "a.jsonl.zst") == [r["text"] for r in LINES]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt.zst"])
def test_a_damaged_packed_file_is_refused(tmp_path, name):
    data = jsonl([{"text": "x" * 50 + str(i)} for i in range(5000)])
    pack = gzip.compress if name.endswith("gz") else zstandard.ZstdCompressor().compress
    packed = pack(data)
    for broken in (packed[: len(packed) // 2], b"no archive at all"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            texts(tmp_path / name)


def test_a_long_file_is_cut_before_a_newline_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOCUMENT", 1000)
    text = "\n".join("é" * (i % 90) for i in range(300))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("東" * 2000)
    parts = texts(tmp_path / "a.txt", report=Report())
    assert len(parts) > 10
    assert "".join(parts) == text
    assert all(p.startswith("\n") for p in parts[1:])
    assert "".join(texts(tmp_path / "b.txt", report=Report())) == "東" * 2000


def test_a_json_line_without_end_is_refused_and_the_next_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_DOCUMENT", 1000)
    (tmp_path / "a.jsonl").write_bytes(jsonl([{"text": "x" * 5000}]) + jsonl(LINES))
    report = Report()
    assert texts(tmp_path / "a.jsonl", report=report) == [r["text"] for r in LINES]
    assert report.records == 4
    assert report.bad == {"line over 0 MiB": 1}


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources, "plain_text", refuse)
    with pytest.raises(MachineError, match=r"a\.txt: cannot be read \(Permission denied\)"):
        texts(tmp_path)


def test_stdlib_is_the_sources_and_the_reference_of_this_python():
    report = Report()
    found = {d.source: d.text for d in documents("stdlib", report=report)}
    root = sysconfig.get_paths()["stdlib"]
    assert f"{root}/argparse.py" in found
    assert not any("site-packages" in source or "/test/" in source for source in found)
    assert found["pydoc_data/topics:for"].startswith('The "for" statement')
    assert report.bad.total() == 0
    assert sum(map(len, found.values())) > 5_000_000


TFDS = """
import sys
import tensorflow_datasets as tfds

class MadeUp(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(5)), "test": self._generate_examples([7])}
    def _generate_examples(self, numbers):
        for i in numbers:
            yield i, {"text": f"text number {i} é"}

folder = sys.argv[1]
builder = MadeUp(data_dir=folder, file_format="array_record")
builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))

from lm_jax.data.text.sources import Report, documents
from lm_jax.errors import DataError
report = Report()
found = [d.text for d in documents(f"tfds:{folder}/made_up/1.0.0", report=report)]
assert sorted(found) == [f"text number {i} é" for i in range(5)], found
assert (report.records, report.bytes) == (5, sum(len(text.encode()) for text in found))
assert [d.text for d in documents(f"tfds:{folder}/made_up/1.0.0:test")] == ["text number 7 é"]
for spec, field, words in (
    (f"tfds:{folder}/made_up/1.0.0", "txt", "Did you mean 'text'"),
    (f"tfds:{folder}/made_up/1.0.0:tset", "text", "tset"),
    ("tfds:no_such_data_set", "text", "knows no data set 'no_such_data_set'"),
    ("tfds:", "text", "write tfds:NAME"),
):
    try:
        list(documents(spec, text_field=field))
    except DataError as error:
        assert words in str(error), error
    else:
        raise AssertionError(spec)
assert "tensorflow" not in sys.modules
"""


def test_tfds_data_sets_are_read_without_tensorflow(tmp_path):
    import subprocess

    (tmp_path / "made.py").write_text(TFDS)
    done = subprocess.run(
        [sys.executable, tmp_path / "made.py", tmp_path / "data"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
