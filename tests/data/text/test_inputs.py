"""A text that was edited under the same name is noticed; one that was only touched is the same."""

import json
import os

from lm_jax.data.text import inputs
from lm_jax.data.text.documents import Report
from lm_jax.data.text.sources import documents


def known(folder):
    report = Report()
    list(documents(str(folder), "text", report))
    return json.loads(json.dumps(inputs.recorded(report)))  # as a store keeps it


def test_an_edited_a_new_and_a_missing_file_are_named(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text of {name}")
    before = known(tmp_path)
    assert inputs.changes(str(tmp_path), before) == ""
    (tmp_path / "a.txt").write_text("text of b")  # of the same size
    os.utime(tmp_path / "a.txt", (1, 1))
    assert inputs.changes(str(tmp_path), before) == f"{tmp_path}/a.txt has changed"
    (tmp_path / "a.txt").write_text("text of a")
    os.utime(tmp_path / "a.txt", (2, 2))
    assert inputs.changes(str(tmp_path), before) == "", "another time, the same text"
    (tmp_path / "c.txt").unlink()
    found = inputs.changes(str(tmp_path), before)
    assert found == f"{tmp_path}/c.txt is gone; 2 files, 3 then"


def test_an_input_that_is_not_on_this_machine_is_no_change(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    before = known(tmp_path / "a.txt")
    (tmp_path / "a.txt").unlink()
    assert inputs.changes(str(tmp_path / "a.txt"), before) == ""
