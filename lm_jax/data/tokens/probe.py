"""A trial of a foreign tokenizer's regular expressions, in a process with limits.

What a pattern costs cannot be read from it: (a+)+$ takes exponential time on a run of a's. So the
normalizer and the pre-tokenizer of a tokenizer.json are run on long runs of characters, in a
process that may be ended, before they are used here.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from lm_jax.data.tokens.definition import is_linear, patterns_of
from lm_jax.errors import DataError

SECONDS = 10  # of CPU time for a trial; usual patterns need a few hundredths
WAIT = 60  # seconds for its end, however busy the machine is
MEMORY = 2 << 30  # bytes
RUNS = (40, 5000)  # characters: exponential time shows in a short run, other powers in a long one
KINDS = "aA1 \n\t-.'é東\u0301\u05d0\u3042"  # characters of the usual classes
LIMITS = """
import json, resource, sys
limits = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (limits["memory"],) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"],) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""
CODE = """
import tokenizers
try:
    tokenizer = tokenizers.Tokenizer.from_str(limits["definition"])
    for text in limits["texts"]:
        tokenizer.encode(text)
except BaseException as error:
    print("failed:", " ".join(str(error).split())[:200])
else:
    print("fine")
"""


def check(definition: Mapping[str, Any]) -> None:
    """Raises DataError when what comes before the model fails on a text, or takes more than SECONDS
    or MEMORY; tries nothing where every step is known to be linear.
    """
    if is_linear(definition):
        return
    try:
        import tokenizers  # noqa: F401
    except ImportError:  # then nothing is encoded here at all
        return
    before = {name: definition.get(name) for name in ("normalizer", "pre_tokenizer")}
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    small: dict[str, Any] = {"version": "1.0", "added_tokens": [], "model": model, **before}
    found = limited(LIMITS + CODE, json.dumps(small), texts_for(patterns_of(definition)))
    if found != "fine":
        what = ", ".join(repr(pattern[:60]) for pattern in patterns_of(definition)[:2])
        shown = f" (pattern {what})" if what else ""
        raise DataError(
            f"its normalizer or pre_tokenizer{shown} does not work on every text: {found}."
        )


def limited(code: str, definition: str, texts: list[str]) -> str:
    """Runs `code` in a Python process limited to SECONDS and MEMORY; returns its output, or why it
    ended.
    """
    given = {"definition": definition, "texts": texts, "memory": MEMORY, "seconds": SECONDS}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(given), capture_output=True, text=True,
            timeout=WAIT, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"it takes over {SECONDS} s for {max(RUNS)} characters"
    if done.stdout:
        return done.stdout.strip().removeprefix("failed: ")
    if done.returncode in (-9, -24):  # SIGKILL, SIGXCPU
        return f"it takes over {SECONDS} s for {max(RUNS)} characters"
    if done.returncode < 0 or "MemoryError" in done.stderr:
        return f"it takes over {MEMORY >> 30} GiB for {max(RUNS)} characters"
    last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
    return last[0][:200]


def texts_for(patterns: list[str]) -> list[str]:
    """Runs of each character that the patterns name, and of KINDS: alone, before one that nothing
    matches, and in a line before all that the patterns may look for.
    """
    letters = "".join(c for pattern in patterns for c in pattern)
    units = [*dict.fromkeys((letters[:4096] + KINDS).replace("\0", ""))][:128]
    for pattern in patterns:
        literal = "".join(c for c in pattern if c.isalnum())
        units += [literal[:32]] if literal else []
        units += [a + b for a, b in itertools.pairwise(literal[:32])]
    ends = ("", "\0", "\0\n" + "".join(units))
    return [unit * (n // len(unit)) + end for unit in units for n in RUNS for end in ends]
