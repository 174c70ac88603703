"""Does the page of a run show what the run measured, whatever is missing?"""

import json
import re
from html.parser import HTMLParser

import pytest

from lm_jax.config import Config
from lm_jax.run import report

VOID = {"meta", "line", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """Collects text and attributes, and fails on a tag that is not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.words, self.attributes, self.tags = [], [], [], []
        self.feed(html)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def rows(steps=50):
    for step in range(1, steps + 1):
        loss = 2 + 5 / step
        yield {"step": step, "kind": "train", "loss": loss, "bpb": loss / 2.5, "lr": 1e-3,
               "gnorm": 0.5, "tokens_per_second": 12_345.0, "mfu": None, "data_fraction": 0.01,
               "time": 1000.0 + step}  # fmt: skip
    yield {"step": steps, "kind": "eval", "loss": 2.2, "bpb": 0.88, "perplexity": 9.03,
           "tokens": 1000, "seconds": 1.0, "time": 1100.0}  # fmt: skip
    yield {
        "step": steps,
        "kind": "sample",
        "prompt": "if a<b",
        "text": "</pre><script>x()</script>",
    }


SUMMARY = {
    "model": {"bpb": 1.1, "loss": 2.1, "perplexity": 8.2, "tokens": 5000},
    "baselines": {"xz": 1.5, "byte_5gram": 1.9, "token_5gram": 1.045},
    "parameters": 1_234_567,
    "versions": {"jax": "0.10.2"},
    "mesh": {"data": 4, "fsdp": 2, "tensor": 1},
    "data": {"documents": 77, "bytes": 987_654, "bad_records": 3},
}


@pytest.fixture
def run(tmp_path):
    config = Config(steps=50, name="small").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows()))
    return tmp_path


def test_page_shows_figures_curves_and_settings(run):
    page = Page(report.write(run).read_text("utf-8"))
    for text in (
        "small",
        "50 steps, complete.",
        "The model beats xz -9 and the byte 5-gram; "
        "the token 5-gram needs 5.0 % fewer bits than the model.",
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Throughput",
        "12.3k",
        "parameters 1.23M",
        "documents 77",
        "bad_records 3",
        "jax 0.10.2",
        "fsdp 2",
        "model.num_layers",
    ):
        assert text in page.text
    assert page.tags.count("svg") == 6  # no MFU where none was known
    assert re.search(r"step 50 training: 2.1 nats a token held-out: 2.2 nats a token", page.text)


def test_only_what_differs_from_the_defaults_is_listed_as_different(run):
    html = report.write(run).read_text("utf-8")
    changed = html.split("What differs from the defaults")[1].split("</details>")[0]
    assert re.findall(r"<tr><td>(.*?)</td>", changed) == ["name", "steps"]


def test_text_of_the_model_is_escaped(run):
    html = report.write(run).read_text("utf-8")
    assert "<script" not in html
    assert "if a&lt;b" in html
    assert "&lt;/pre&gt;&lt;script&gt;" in html


def test_page_needs_nothing_from_outside(run):
    html = report.write(run).read_text("utf-8")
    assert not re.search(r"(src|href)=|url\(|@import|https?://", html)


@pytest.mark.parametrize("missing", ["config.json", "summary.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["gone", '{"model": {"bp', "[1, 2]\n", "[" * 100_000],
                         ids=["gone", "broken", "wrong kind", "deep"])  # fmt: skip
def test_page_is_written_without_any_one_file(run, missing, damage):
    (run / missing).unlink()
    if damage != "gone":
        (run / missing).write_text(damage)
    page = Page(report.write(run).read_text("utf-8"))
    assert ("Curves" in page.text) == (missing != "metrics.jsonl")
    assert ("small" in page.text) == (missing != "config.json")


def test_an_empty_run_says_that_nothing_was_measured(tmp_path):
    assert "Nothing was measured" in Page(report.write(tmp_path).read_text("utf-8")).text


def test_an_interrupted_run_says_how_far_it_came(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()[:20]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 21, "ki')
    (run / "summary.json").unlink()
    page = Page(report.write(run).read_text("utf-8"))
    assert "Stopped after step 20 of 50" in page.text
    assert "Bits per byte bits" in page.text


def test_values_that_are_not_numbers_leave_holes(tmp_path):
    bad = [{"step": 1, "kind": "train", "loss": None, "lr": "x"}, {"kind": "train", "loss": 2.0},
           {"step": 2, "kind": "train", "loss": float("nan")},
           {"step": 3, "kind": "train", "loss": 3.5},
           {"step": "4", "kind": "eval", "bpb": True}, {"kind": "sample", "text": 5}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in bad))
    (tmp_path / "summary.json").write_text('{"model": 3, "baselines": {"xz": null}}')
    page = Page(report.write(tmp_path).read_text("utf-8"))
    assert "step 3 training: 3.5" in page.text
    assert "nan" not in page.text.lower()


def test_what_no_chart_and_no_file_has_room_for_is_left_out(tmp_path):
    rows = [{"step": 1, "kind": "train", "loss": 10**400, "bpb": 1e308},
            {"step": 2, "kind": "train", "loss": 3.5, "bpb": -1e308},
            {"step": 2, "kind": "sample", "text": "a\ud800b"}]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = Page(report.write(tmp_path).read_text("utf-8"))
    assert "step 2 training: 3.5" in page.text
    assert "a?b" in page.text


@pytest.mark.parametrize(
    ("model", "baselines", "said"),
    [
        (1.0, {"xz": 2.0}, "The model beats xz -9."),
        (2.0, {"xz": 1.0}, "Xz -9 needs 50.0 % fewer bits than the model."),
        (1.0, {}, "The model needs 1.000 bits per byte. No baseline was measured."),
        (None, {"xz": 1.0}, "The model was not evaluated."),
        (0.0, {"xz": 0.0}, "Xz -9 needs 0.0 % fewer bits than the model."),
    ],
)
def test_whichever_wins_is_said(model, baselines, said):
    summary = {"model": {"bpb": model}, "baselines": baselines}
    assert said in Page(report.page({}, summary, [], "run")).text
