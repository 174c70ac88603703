"""The report of a run: one self-contained page with figures beside baselines, curves, samples,
settings.

Reads config.json, summary.json and metrics.jsonl; what a run that was cut short lacks is left out.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lm_jax.config import Config
from lm_jax.config.values import from_json
from lm_jax.progress import duration, human
from lm_jax.run import metrics
from lm_jax.run.chart import Series, line_chart
from lm_jax.run.report_style import STYLE
from lm_jax.run.rundir import replace_text

# Names of the baselines of summary.json; any other is shown under its own.
LABELS = {"xz": "xz -9", "byte_5gram": "byte 5-gram", "token_5gram": "token 5-gram"}
MAX_SAMPLES = 6
LARGEST = 1e300  # twice it, the width of an axis, is a float too


def write(workdir: str | os.PathLike) -> Path:
    """Writes <workdir>/report.html and returns its path; what cannot be read is left out."""
    folder = Path(workdir)
    config, summary = _json(folder / "config.json"), _json(folder / "summary.json")
    rows = metrics.read(folder / "metrics.jsonl")
    path = folder / "report.html"
    replace_text(path, page(config, summary, rows, folder.name))
    return path


def page(config: dict, summary: dict, rows: Sequence[dict], name: str) -> str:
    """The HTML of a run's config, summary and metrics rows; `name` is the folder's."""
    kinds: dict[str, list[dict]] = {"train": [], "eval": [], "sample": []}
    for row in rows:
        kinds.setdefault(str(row.get("kind")), []).append(row)
    title = str(config.get("name") or name)
    if name not in ("", ".", title):
        title += f" ({name})"
    parts = [
        f"<header><h1>{escape(title)}</h1>{_state(config, rows)}</header>",
        _headline(summary, kinds["eval"]),
        _cards(config, summary, kinds["train"], kinds["eval"]),
        _curves(kinds["train"], kinds["eval"], _numbers(summary.get("baselines"))),
        _samples(kinds["sample"]),
        _details(config, summary),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main></body></html>\n"
    )


def _state(config: dict, rows: Sequence[dict]) -> str:
    """One line: how far the run came."""
    last = max((row["step"] for row in rows if isinstance(row.get("step"), int)), default=None)
    steps = config.get("steps")
    if last is None:
        return "<p>Nothing was measured: the run ended before its first step was reported.</p>"
    if isinstance(steps, int) and last < steps:
        return (
            f"<p>Stopped after step {last:,} of {steps:,}; these are the figures up to there. "
            "The same command goes on from the last checkpoint.</p>"
        )
    return f"<p>{last:,} steps, complete.</p>"


def _headline(summary: dict, evals: Sequence[dict]) -> str:
    """Held-out bits per byte as bars beside the baselines, and who wins in words."""
    model = _numbers(summary.get("model")).get("bpb")
    where = "held-out text"
    if model is None and (known := [r["bpb"] for r in evals if _is_number(r.get("bpb"))]):
        model, where = known[-1], "held-out text, last evaluation of the run"
    baselines = _numbers(summary.get("baselines"))
    bars = [(LABELS.get(k, k), v, "rival") for k, v in baselines.items()]
    if model is not None:
        bars.append(("this model", model, "ours"))
    if not bars:
        return ""
    bars.sort(key=lambda bar: bar[1])
    largest = max(value for _, value, _ in bars) or 1
    rows = "".join(
        f'<div class="bar {kind}" title="{escape(name)}: {value:.4f} bits per byte">'
        f'<span>{escape(name)}</span><i><b style="width:{100 * value / largest:.1f}%"></b></i>'
        f"<em>{value:.3f}</em></div>"
        for name, value, kind in bars
    )
    return (
        f"<section><h2>Bits per byte</h2>"
        f'<p class="verdict">{escape(_verdict(model, baselines))}</p>{rows}'
        f'<p class="note">Of {where}; lower is better. 8 would be no prediction at all.</p>'
        "</section>"
    )


def _verdict(model: float | None, baselines: Mapping[str, float]) -> str:
    """The comparison with the baselines, in words."""
    if model is None:
        return "The model was not evaluated."
    if not baselines:
        return f"The model needs {model:.3f} bits per byte. No baseline was measured."
    names = {k: f"the {LABELS.get(k, k)}".replace("the xz", "xz") for k in baselines}
    beaten = [names[k] for k, v in baselines.items() if model < v]
    text = [f"the model beats {_list(beaten)}"] if beaten else []
    text += [
        f"{names[k]} needs {100 * (1 - v / model) if model else 0:.1f} % fewer bits than the model"
        for k, v in baselines.items()
        if v <= model
    ]
    sentence = "; ".join(text)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _cards(config: dict, summary: dict, train: Sequence[dict], evals: Sequence[dict]) -> str:
    """The few numbers that one asks for first."""
    model = _numbers(summary.get("model")) or _numbers(evals[-1] if evals else {})
    last = _numbers(train[-1] if train else {})
    rates = [
        r["tokens_per_second"] for r in train[1:] or train if _is_number(r.get("tokens_per_second"))
    ]
    times = [r["time"] for r in (*train, *evals) if _is_number(r.get("time"))]
    cards: list[tuple[str, Any, Callable[[float], str], str]] = [
        ("held-out loss", model.get("loss"), "{:.4f}".format, "nats a token"),
        ("perplexity", model.get("perplexity"), "{:.2f}".format, "per token"),
        ("training loss", last.get("loss"), "{:.4f}".format, "last reported"),
        ("parameters", summary.get("parameters"), human, ""),
        ("throughput", sum(rates) / len(rates) if rates else None, human, "tokens/s"),
        ("time", max(times) - min(times) if len(times) > 1 else None, duration, "training"),
    ]
    if _is_number(summary.get("seconds")):
        cards[-1] = ("time", summary["seconds"], duration, "whole run")
    shown = "".join(
        f'<div class="card"><small>{name}</small>'
        f"<strong>{form(value)}</strong><small>{unit}</small></div>"
        for name, value, form, unit in cards
        if _is_number(value)
    )
    return f'<section class="cards">{shown}</section>' if shown else ""


def _curves(train: Sequence[dict], evals: Sequence[dict], baselines: Mapping[str, float]) -> str:
    """All charts over steps."""

    def curve(rows: Sequence[dict], field: str, times: float = 1.0) -> list[tuple]:
        known = [row for row in map(_numbers, rows) if "step" in row and field in row]
        return [(row["step"], row[field] * times) for row in known]

    def both(field: str) -> list[Series]:
        return [
            Series("training", curve(train, field), 1),
            Series("held-out", curve(evals, field), 2, dots=True),
        ]

    def one(field: str, times: float = 1.0) -> list[Series]:
        return [Series(field, curve(train, field, times), 1)]

    gnorm = [y for _, y in curve(train, "gnorm") if y > 0]
    wide = bool(gnorm) and max(gnorm) > 30 * min(gnorm)
    rivals = [(LABELS.get(k, k), v) for k, v in baselines.items()]
    charts = [
        line_chart("Loss", "nats a token", both("loss")),
        line_chart("Bits per byte", "bits", both("bpb"), rivals),
        line_chart("Learning rate", "", one("lr"), zero=True),
        line_chart(
            "Gradient norm", "before clipping" + ", log" * wide, one("gnorm"), zero=True, log=wide
        ),
        line_chart("Throughput", "tokens/s", one("tokens_per_second"), zero=True),
        line_chart("Model FLOPs utilisation", "%", one("mfu", 100), zero=True),
        line_chart("Waiting for data", "% of time", one("data_fraction", 100), zero=True, top=10),
    ]
    shown = "".join(charts)
    return f'<section><h2>Curves</h2><div class="charts">{shown}</div></section>' if shown else ""


def _samples(rows: Sequence[dict]) -> str:
    """Samples of the model, newest first; the first one of all closes the list."""
    rows = [row for row in rows if isinstance(row.get("text"), str)][::-1]
    if len(rows) > MAX_SAMPLES:
        rows = [*rows[: MAX_SAMPLES - 1], rows[-1]]
    shown = "".join(
        f"<article><small>step {escape(str(row.get('step')))}</small>"
        f"<pre><b>{escape(str(row.get('prompt') or ''))}</b>{escape(row['text'])}</pre></article>"
        for row in rows
    )
    return f"<section><h2>Samples</h2>{shown}</section>" if shown else ""


def _details(config: dict, summary: dict) -> str:
    """Settings, versions and everything else in the summary."""
    flat, default = flatten(config), flatten(Config().to_dict())
    changed = {k: v for k, v in flat.items() if k not in default or default[k] != v}
    parts = [
        _table(
            "What differs from the defaults",
            [(k, v, default.get(k, "")) for k, v in changed.items()],
            ("field", "this run", "default"),
            True,
        )
    ]
    loose = {}
    for key, value in summary.items():
        if key in ("model", "baselines"):
            continue
        if isinstance(value, dict):
            parts.append(_table(key.replace("_", " ").capitalize(), list(flatten(value).items())))
        else:
            loose[key] = value
    model = summary.get("model")
    if isinstance(model, dict):
        parts.insert(1, _table("Held-out figures", list(flatten(model).items()), shown=True))
    parts.append(_table("Run", list(loose.items())))
    parts.append(_table("All settings", list(flat.items())))
    shown = "".join(parts)
    return f"<section><h2>Settings and figures</h2>{shown}</section>" if shown else ""


def _table(title: str, rows: Sequence[tuple], head: Sequence[str] = (), shown: bool = False) -> str:
    """A table that folds; "" when there is nothing in it."""
    if not rows:
        return ""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_text(value))}</td>" for value in row) + "</tr>"
        for row in rows
    )
    return (
        f"<details{' open' * shown}><summary>{escape(title)} <small>{len(rows)}</small></summary>"
        f'<div class="scroll"><table>{f"<thead><tr>{top}</tr></thead>" * bool(head)}'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(values, dict):
        return {}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _text(value: Any) -> str:
    """A value as a table shows it."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _list(names: Sequence[str]) -> str:
    """["a", "b", "c"] -> 'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is_number(value: Any) -> bool:
    """Whether it is a number that a chart has room for (JSON has null where there was none)."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and abs(value) < LARGEST


def _numbers(values: Any) -> dict[str, float]:
    """The fields of a dict that are finite numbers."""
    return {k: v for k, v in values.items() if _is_number(v)} if isinstance(values, dict) else {}


def _json(path: Path) -> dict:
    """A JSON object from a file, {} when there is none that can be read."""
    try:
        value = from_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
