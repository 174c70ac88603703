"""Speed of preparing text beside the tokenizer alone: same text, same tokenizer, same threads.

    python benchmarks/prepare.py [--input=stdlib] [--repeat=3]

Preparing reads, tidies, hashes, finds near-duplicates, encodes, decodes and compares, and writes
the store; the tokenizer alone encodes lists of texts that are in memory already. Target: at least
80 % of its rate.
"""

import shutil
import tempfile
import time

from absl import app, flags

from lm_jax.config import DataConfig
from lm_jax.data.build import prepare
from lm_jax.data.text.clean import tidy
from lm_jax.data.text.sources import documents
from lm_jax.data.tokens.tokenizer import Tokenizer, chunks, cores
from lm_jax.data.tokens.tokenizer_training import SAMPLE_BYTES, train

INPUT = flags.DEFINE_string("input", "stdlib", "Text, as for lm_jax.prepare.")
REPEAT = flags.DEFINE_integer("repeat", 3, "Each row is the best of so many runs, taken in turns.")


def main(argv: list[str]) -> None:
    """Prints a table."""
    del argv
    texts = [tidy(d.text) for d in documents(INPUT.value)]
    size = sum(len(t.encode()) for t in texts)
    start, cpu = time.monotonic(), time.process_time()
    sample, total = [], 0
    for text in texts:
        sample.append(text)
        total += len(text)
        if total > SAMPLE_BYTES:
            break
    tokenizer = train("bpe", sample, 4096)
    trained = time.monotonic() - start, time.process_time() - cpu
    best: dict[str, tuple[float, float]] = {}
    for _ in range(REPEAT.value):
        for name, run in ROWS.items():
            start, cpu = time.monotonic(), time.process_time()
            run(tokenizer, texts)
            took = time.monotonic() - start, time.process_time() - cpu
            least = best.get(name, took)
            best[name] = min(took[0], least[0]), min(took[1], least[1])
    print(f"{size / 1e6:.1f} MB, {len(texts)} documents, {cores()} cores")
    print(f"training the tokenizer: {trained[0]:.1f} s ({trained[1]:.1f} CPU-s), not in the rows")
    print(f"{'':<40}{'MB/s':>8}{'MB per CPU-s':>14}{'ratio':>8}{'by CPU-s':>10}")
    wall, used = best[next(iter(ROWS))]
    for name, (seconds, cpu) in best.items():
        print(
            f"{name:<40}{size / 1e6 / seconds:>8.2f}{size / 1e6 / cpu:>14.2f}"
            f"{wall / seconds:>8.2f}{used / cpu:>10.2f}"
        )


def alone(tokenizer: Tokenizer, texts: list[str]) -> None:
    """SentencePiece on the parts that we give it, all cores."""
    parts = [part for text in texts for part in chunks(text)]
    tokenizer.processor.encode(parts, num_threads=cores())


def whole(tokenizer: Tokenizer, texts: list[str]) -> None:
    """SentencePiece on whole documents, all cores."""
    tokenizer.processor.encode(texts, num_threads=cores())


def everything(tokenizer: Tokenizer, texts: list[str]) -> None:
    """`prepare`, from the files to the store."""
    folder = tempfile.mkdtemp()
    data = DataConfig(input=INPUT.value, heldout_fraction=0.05)
    prepare(data, f"{folder}/store", tokenizer=tokenizer)
    shutil.rmtree(folder)


ROWS = {
    "tokenizer alone": alone,
    "tokenizer alone, documents uncut": whole,
    "lm_jax.prepare": everything,
}

if __name__ == "__main__":
    app.run(main)
