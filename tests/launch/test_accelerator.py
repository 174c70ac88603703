"""Does benchmarks/accelerator.sh end in time, with a line for every part, whatever its parts do?"""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "accelerator.sh"
BODIES = {
    "rows": "measure.row('speed', rate=12345.6, note='of two')\n    measure.row('other', size=3)",
    "hangs": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    "crashes": "import os; print('on the way'); os.abort()",
    "raises": "measure.row('first', rate=1.0)\n    raise ValueError('no such kernel')",
    "leaves": "import subprocess; p = subprocess.Popen(['sleep', '611']); print(p.pid)",
}


def call(*flags, **environment):
    """(exit code, output, seconds) of the script."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHON": sys.executable, **environment}
    done = subprocess.run(
        ["bash", str(SCRIPT), *flags], env=environment, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr, time.monotonic() - began


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """(rows by part, the table, output, seconds, folder) of parts that do all that is wrong."""
    folder = tmp_path_factory.mktemp("accelerator")
    for name, body in BODIES.items():
        (folder / f"{name}.py").write_text(f"def run(measure):\n    {body}\n")
    parts = ",".join(str(folder / f"{name}.py") for name in BODIES)
    code, out, seconds = call(
        "--minutes=0.5", f"--out={folder / 'out'}", "--platform=cpu", f"--parts={parts}"
    )
    assert code == 0, out
    rows = list(map(json.loads, (folder / "out" / "results.jsonl").read_text().splitlines()))
    by_part = {name: [row for row in rows if row["part"] == name] for name in BODIES}
    return by_part, (folder / "out" / "table.md").read_text(), out, seconds, folder / "out"


def test_rows_are_in_the_results_and_the_table(measured):
    rows, text, *_ = measured
    assert [(row["name"], row.get("rate"), row.get("size")) for row in rows["rows"]] == [
        ("speed", 12345.6, None), ("other", None, 3),
    ]  # fmt: skip
    assert "### rows" in text
    assert "| speed | 12,346 |  | of two |" in text


def test_a_part_that_hangs_is_a_line_and_the_limit_holds(measured):
    rows, _, _, seconds, _ = measured
    assert "its limit" in rows["hangs"][-1]["note"]
    assert seconds < 0.5 * 60 + 20


@pytest.mark.parametrize(
    ("part", "why"),
    [("crashes", r"code -6: on the way"), ("raises", "code 1: ValueError: no such")],
)
def test_a_part_that_fails_is_a_line_and_not_the_end(measured, part, why):
    rows, _, out, _, _ = measured
    assert why in rows[part][-1]["note"]
    assert rows["leaves"] == []  # which ran after it, and had nothing to say
    assert "== leaves" in out.replace(f"{measured[4].parent}/", "").replace(".py", "")


def test_what_a_part_has_started_ends_with_it(measured):
    pid = int((measured[4] / "leaves.log").read_text())
    stat = Path(f"/proc/{pid}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"  # killed, and not yet collected


def test_the_report_keeps_the_results_of_each_machine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = importlib.import_module("accelerator.table")

    (tmp_path / "docs").mkdir()
    for kind in ("H200", "TPU v5e"):
        row = {"part": "machine", "date": "2026-01-02 03:04 UTC", "name": "device", "kind": kind,
               "versions": f"jax of {kind}"}  # fmt: skip
        (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
        assert table.report(tmp_path, tmp_path / "docs") == 0
    text = (tmp_path / "docs" / "accelerators.md").read_text()
    assert text.index("## H200, 2026-01-02") < text.index("## TPU v5e, 2026-01-02")
    assert "jax of TPU v5e" in text
    assert len(list((tmp_path / "docs" / "accelerators").glob("*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("flags", "code", "line"),
    [
        (["--minutes=0"], 2, "--minutes=0.0: must be 0.1 to 600."),
        (["--parts=gpt3"], 2, "--parts=gpt3: no such part; there are machine, gpt2,"),
        (["--parts=none.py"], 2, "--parts=none.py: no such file."),
        (["--report", "--out=/nowhere"], 2, "--out=/nowhere: has no results.jsonl"),
        (["--help"], 0, "usage: bash benchmarks/accelerator.sh"),
    ],
)
def test_flags_are_checked(flags, code, line):
    found, out, _ = call(*flags)
    assert found == code
    assert line in out
