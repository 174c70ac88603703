"""Rows of figures as Markdown: a table for each part, and docs/accelerators.md of all machines."""

import json
import re
import shutil
from pathlib import Path

ABOUT = ("part", "date", "name")  # of every row, beside its figures
HEAD = """# Accelerators

Figures of `bash benchmarks/accelerator.sh`, written from `docs/accelerators/*.jsonl` by its
`--report`. tok/s: tokens of training a second. MFU: share of the chip's published bfloat16 rate;
"full" counts 6 N + 12 L d T FLOPs a token (PaLM), "blocks" counts 6 FLOPs for each weight of the
layers' matrices, without embeddings, head and attention.

"""


def shown(value) -> str:
    """A figure as text."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def line(row: dict) -> str:
    """A row as one line."""
    rest = ", ".join(f"{k} {shown(v)}" for k, v in row.items() if k not in (*ABOUT, "note"))
    return ": ".join(filter(None, [row["name"], "; ".join(filter(None, [rest, row.get("note")]))]))


def page(rows: list[dict]) -> str:
    """A table for each part, in the order in which they ran."""
    texts = []
    for part in dict.fromkeys(row["part"] for row in rows):
        mine = [row for row in rows if row["part"] == part]
        names = list(dict.fromkeys(k for row in mine for k in row if k not in ABOUT))
        names.sort(key="note".__eq__)  # last
        lines = [
            f"### {part}", "", f"| |{' | '.join(names)}|", "|---" * (len(names) + 1) + "|",
            *(cells(row, names) for row in mine), "",
        ]  # fmt: skip
        texts.append("\n".join(lines))
    return "\n".join(texts)


def cells(row: dict, names: list[str]) -> str:
    """A line of a table."""
    values = [shown(row[name]) if name in row else "" for name in names]
    return f"| {' | '.join(text.replace('|', '/') for text in (row['name'], *values))} |"


def read(path: Path) -> list[dict]:
    """The rows of a file."""
    return [json.loads(text) for text in path.read_text().splitlines() if text.strip()]


def machine(rows: list[dict]) -> dict:
    """The row that says which machine it is; {} where that part did not run."""
    return next((row for row in rows if row["name"] == "device"), {})


def report(out: Path, docs: Path) -> int:
    """Keeps the results of `out` and writes the page of all that are kept."""
    source = out / "results.jsonl"
    if not source.is_file() or not read(source):
        print(
            f"error: --out={out}: has no results.jsonl; run accelerator.sh without --report first."
        )
        return 2
    rows = read(source)
    kind = machine(rows).get("kind", "unknown")
    name = re.sub(r"[^a-z0-9]+", "_", f"{kind} {rows[0]['date'][:10]}".lower()).strip("_")
    folder = docs / "accelerators"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, folder / f"{name}.jsonl")
    texts = [HEAD]
    for path in sorted(folder.glob("*.jsonl")):
        rows = read(path)
        about = machine(rows)
        versions = about.get("versions", "versions not known")
        texts.append(f"## {about.get('kind', path.stem)}, {rows[0]['date']}\n\n{versions}\n\n")
        texts.append(page(rows))
    (docs / "accelerators.md").write_text("".join(texts))
    print(f"written: {docs / 'accelerators.md'}")
    return 0
