"""Do metrics survive a disk that is full for a while, and does the run go on meanwhile?"""

import contextlib
import json
import resource
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from lm_jax.config import Config
from lm_jax.run import appended
from lm_jax.run.appended import Appended
from lm_jax.run.metrics import Metrics


@contextlib.contextmanager
def no_file_larger_than(size):
    """The system refuses to make files larger, as a full disk does: in the middle of a record."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def events(folder):
    """The events of the only event file in a folder, each record verified."""
    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        size, size_sum = struct.unpack("<QI", data[:12])
        assert size_sum == masked_crc32c(data[:8])
        record, (record_sum,) = data[12 : 12 + size], struct.unpack("<I", data[12 + size :][:4])
        assert record_sum == masked_crc32c(record)
        found.append(Event.FromString(record))
        data = data[16 + size :]
    return found


@pytest.mark.parametrize("resumed_from", [3, 0])
def test_a_full_disk_stops_no_run_that_begins_again(tmp_path, capsys, resumed_from):
    path = tmp_path / "metrics.jsonl"
    rows = [f'{{"step": {step}, "kind": "eval", "loss": 0.1}}\n' for step in range(6)]
    path.write_text("".join(rows) + '{"step": 6, "kin')
    with no_file_larger_than(0):
        reported = Metrics(tmp_path, Config(), 3.0, "cpu", 1, resumed_from)
    assert path.read_text() == "".join(rows[: resumed_from + 1 if resumed_from else 0])
    reported.close()
    assert capsys.readouterr().err == ""


def test_metrics_that_cannot_be_shortened_are_a_warning(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text('\0\0\n{"step": 1, "kind": "eval", "loss": 0.1}\n')
    with no_file_larger_than(0):
        Metrics(tmp_path, Config(), 3.0, "cpu", 1, resumed_from=1)
    err = capsys.readouterr().err
    assert err == f"warning: {path}: File too large; lines of an earlier try stay in it.\n"
    path.unlink()
    path.mkdir()
    Metrics(tmp_path, Config(), 3.0, "cpu", 1).close()
    assert f"warning: {path}: Is a directory; lines of" in capsys.readouterr().err


def test_a_disk_that_is_full_for_a_while_costs_no_row_and_no_event(tmp_path, capsys):
    reported = Metrics(tmp_path, Config(), 3.0, "cpu", 1, resumed_from=7)
    for step in range(40):
        with no_file_larger_than(1000) if 5 <= step < 30 else contextlib.nullcontext():
            reported.write(step, "eval", loss=step / 2)
    reported.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(i, i / 2) for i in range(40)]
    version, start, *points = events(tmp_path / "tb")
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (8, 1)
    assert [(event.step, event.summary.value[0].tag) for event in points] == [
        (i, "eval/loss") for i in range(40)
    ]
    out, err = capsys.readouterr()
    assert "File too large; the metrics wait in memory, the run goes on." in err
    assert len(err.splitlines()) == 1
    assert out == "step 30: metrics are written again, none were lost\n"


def test_a_disk_that_stays_full_ends_nothing_and_says_what_is_lost(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(appended, "LIMIT", 2000)
    with no_file_larger_than(300):
        reported = Metrics(tmp_path, Config(), 3.0, "cpu", 1)
        for step in range(100):
            reported.write(step, "eval", loss=1.0)
        assert reported.rows.lost > 50
        reported.close()
    err = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in err] == ["warning:"] * 3
    assert "bytes are lost" in err[-1]


@pytest.mark.parametrize("place", ["missing/file", "file"])
def test_a_file_is_made_where_it_can_be(tmp_path, place):
    file = Appended(tmp_path / place)
    file.write(b"one\n")
    file.write(b"two\n")
    file.close()
    assert (tmp_path / place).read_text() == "one\ntwo\n"
