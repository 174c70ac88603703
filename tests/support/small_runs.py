"""Small runs of the configs of configs/: their text, their token stores, and what they wrote."""

import dataclasses
import json
import math
import random
from pathlib import Path
from typing import Any

from in_process import Ended, command
from scaled import CONFIGS, published, scaled, small

from lm_jax.run.checkpoint import SavedSteps


def flags(changes: dict[str, Any]) -> list[str]:
    """{dotted field: value} as --config.FIELD=VALUE."""
    return [f"--config.{name}={value}" for name, value in changes.items()]


def config_flag(name: str) -> str:
    """--config=configs/FILE.py:VARIANT."""
    file, _, variant = name.partition(":")
    return f"--config={CONFIGS / file}.py" + f":{variant}" * bool(variant)


class Stores:
    """Token stores of one text in a folder, one for each kind of tokenizer.

    The text: two hundred documents of made-up sentences, with a tab in each, which makes them pairs
    where pairs are asked for.
    """

    def __init__(self, folder: Path):
        self.folder, self.text = folder, folder / "text.jsonl"
        choose = random.Random(0)
        words = ["".join(choose.choices("abcdefghij", k=choose.randint(2, 7))) for _ in range(200)]
        sentence = lambda: " ".join(choose.choices(words, k=8)).capitalize() + "."
        document = lambda: "\t".join(" ".join(sentence() for _ in range(3)) for _ in range(2))
        rows = (json.dumps({"text": document()}) + "\n" for _ in range(200))
        self.text.write_text("".join(rows))

    def of(self, name: str) -> Path:
        """The store for the config NAME, prepared when it is first asked for."""
        data = small(name).data
        path = self.folder / f"{data.tokenizer}_{data.vocab_size}"
        if not path.exists():
            fields = ("tokenizer", "vocab_size", "heldout_fraction")
            made = command("lm_jax.prepare", f"--input={self.text}", f"--output={path}",
                           *(f"--{field}={getattr(data, field)}" for field in fields))  # fmt: skip
            assert made.code == 0, made.err
        return path


class Run:
    """The run of a config, made small, in a folder."""

    def __init__(self, name: str, folder: Path, store: Path):
        self.name, self.folder, self.config = name, folder, small(name)
        self.kind = self.config.model.architecture
        # As few devices as the mesh can have: what is on one is compiled soonest.
        sizes = dataclasses.astuple(self.config.mesh)
        self.devices = math.prod(size for size in sizes if size > 0)
        self.flags = [config_flag(name), *flags(scaled(published(name))),
                      f"--config.data.store={store}"]  # fmt: skip

    def command(self, module: str, *arguments: str, code: int = 0, **more: Any) -> Ended:
        """Runs a command, which must end with `code`, and a mistake with one line."""
        done = command(f"lm_jax.{module}", *arguments, **more)
        assert done.code == code, done.out + done.err
        if code == 2:
            assert done.err.splitlines()[-1].startswith("error: ")
            assert done.err.count("error: ") == 1
        return done

    def train(self, workdir: str, *more: str, **how: Any) -> str:
        """Trains; what was printed."""
        where = f"--workdir={self.folder / workdir}"
        how = {"devices": self.devices, **how}
        return self.command("train", where, *self.flags, *more, **how).out

    def losses(self, workdir: str) -> dict[int, tuple[float, int]]:
        """{step: (loss, checksum of its batch)}."""
        lines = (self.folder / workdir / "metrics.jsonl").read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
        return {row["step"]: (row["loss"], row["batch_crc"]) for row in rows}

    def bits(self, workdir: str) -> dict[str, bytes]:
        """Every array of the last checkpoint, bit for bit."""
        arrays, about = SavedSteps(self.folder / workdir).arrays(within="")
        assert about["step"] == self.config.steps
        return {name: x.tobytes() for name, x in arrays.items()}
