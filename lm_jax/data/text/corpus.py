"""The text of a run: tidied, free of duplicates, split into training and held-out documents.

The input is read once, into one temporary file of UTF-8, from which the later passes read by
offset.
"""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.config import DataConfig
from lm_jax.data.text import clean, duplicates, inputs, sources
from lm_jax.errors import DataError
from lm_jax.progress import Progress


@dataclasses.dataclass(frozen=True)
class Part:
    """A document, or a part of one: bytes begin..end of the temporary file."""

    split: str
    begin: int
    end: int
    source: str


class Corpus:
    """Documents of an input in a temporary file; `with Corpus(data, folder) as corpus:`."""

    def __init__(self, data: DataConfig, folder: Path):
        self.data, self.report = data, sources.Report()
        self.file = open(folder / "text", "w+b")  # noqa: SIM115 (closed by __exit__)
        self.sources: list[str] = []
        self.keys: list[bytes] = []
        self.ends: list[int] = [0]
        self.statistics: dict[str, Any] = {"exact_duplicates": 0, "near_duplicates": 0}
        self.signatures: list[np.ndarray] = []

    def __enter__(self) -> "Corpus":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.file.close()

    def read(self) -> None:
        """Reads, tidies and hashes the input; raises DataError when too much of it, or all, is
        unusable.
        """
        seen: set[bytes] = set()
        total = sources.total_bytes(self.data.input)
        # On one thread: reading and hashing are short calls between which Python's lock changes
        # hands, and two threads took 1.6 to 1.9 times as long (documents of 3 and 15 kB).
        with Progress(f"reading {self.data.input}", total) as progress:
            for document in sources.documents(
                self.data.input, self.data.text_field, self.report, progress.add
            ):
                tidied = clean.tidy(document.text)
                self.statistics["tidied"] = self.statistics.get("tidied", 0) + (
                    tidied != document.text
                )
                text = tidied.encode()
                key = clean.digest(text)
                if not tidied.strip():
                    self.report.skipped["blank text"] += 1
                elif key in seen:
                    self.statistics["exact_duplicates"] += 1
                else:
                    seen.add(key)
                    self.keys.append(key)
                    self.sources.append(document.source)
                    self.file.write(text)
                    self.ends.append(self.ends[-1] + len(text))
                    self.signatures.append(duplicates.signature(text))
        self.report.check(self.data.max_bad_fraction)
        self.file.flush()
        if not self.sources:
            raise DataError(f"config.data.input={self.data.input}: no text in it.")

    def split(self) -> list[Part]:
        """The documents that are kept, in order, each in its split. Near-duplicates never face
        each other across it.

        Where whole documents cannot give `heldout_fraction` (a single file), the end of the
        largest is held out.
        """
        ends = np.array(self.ends)
        sizes, count = np.diff(ends), len(self.keys)
        links, similarity = duplicates.pairs(np.stack(self.signatures))
        group = duplicates.groups(count, links)
        kept = duplicates.groups(count, links[similarity >= duplicates.SAME]) == np.arange(count)
        self.statistics["near_duplicates"] = int(count - kept.sum())
        self.statistics["groups_of_similar_documents"] = int(
            (np.bincount(group[kept], minlength=count) > 1).sum()
        )
        fraction = self.data.heldout_fraction
        chosen = np.zeros(count, bool)
        chosen[kept] = clean.choose_heldout(
            sizes[kept],
            group[kept],
            [k for k, ok in zip(self.keys, kept, strict=True) if ok],
            fraction,
        )
        parts = [
            Part("heldout" if chosen[i] else "train", int(ends[i]), int(ends[i + 1]), source)
            for i, source in enumerate(self.sources)
            if kept[i]
        ]
        self.statistics["heldout"] = "whole documents, in the order of their hashes"
        if fraction and not chosen.any():
            parts = self.cut_largest(parts, fraction)
        if not any(part.split == "train" for part in parts):
            raise DataError(f"config.data.heldout_fraction={fraction}: leaves no training text.")
        return parts

    def cut_largest(self, parts: list[Part], fraction: float) -> list[Part]:
        """`parts` with the last characters of the largest one held out."""
        sizes = [part.end - part.begin for part in parts]
        largest = int(np.argmax(sizes))
        part = parts[largest]
        text = self.text(part).decode()
        share = min(0.5, fraction * sum(sizes) / sizes[largest])
        middle = part.begin + len(text[: int(len(text) * (1 - share))].encode())
        self.statistics["heldout"] = f"the last {share:.1%} of the characters of {part.source}"
        halves = [
            dataclasses.replace(part, end=middle),
            dataclasses.replace(part, split="heldout", begin=middle, source=f"{part.source} (end)"),
        ]
        return parts[:largest] + [h for h in halves if h.end > h.begin] + parts[largest + 1 :]

    def text(self, part: Part) -> bytes:
        """UTF-8 of a part; safe from several threads."""
        return os.pread(self.file.fileno(), part.end - part.begin, part.begin)

    def sample(self, parts: list[Part], max_bytes: int) -> Iterator[str]:
        """At most `max_bytes` of training text, from documents all over the input."""
        # In the order of the texts' hashes, not of their names: the same text anywhere, the same
        # tokenizer.
        order = sorted(
            (part for part in parts if part.split == "train"),
            key=lambda part: clean.digest(
                self.text(dataclasses.replace(part, end=min(part.end, part.begin + 4096)))
            ),
        )
        for part in order:
            size = min(max_bytes, part.end - part.begin)
            yield self.text(dataclasses.replace(part, end=part.begin + size)).decode(
                errors="ignore"
            )
            max_bytes -= size
            if max_bytes <= 0:
                return

    def about(self) -> dict[str, Any]:
        """Statistics of reading and cleaning, for the store's metadata."""
        return {
            "records": self.report.records,
            "kinds": dict(self.report.kinds),
            "bytes": self.report.bytes,
            "bad": dict(self.report.bad),
            "lost_bytes": dict(self.report.lost),
            "bad_examples": self.report.examples,
            "skipped": dict(self.report.skipped),
            "inputs": inputs.recorded(self.report),
            **self.statistics,
        }
