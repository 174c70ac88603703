"""Host names in the compressed lists that SLURM writes, such as SLURM_STEP_NODELIST."""

import itertools
import os
import re
from collections.abc import Mapping

from lm_jax.errors import UserError

MAX_HOSTS = 1 << 16
OF_A_TASK = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\],\s]+)")


def host_names(text: str) -> list[str]:
    """'a[1-3,5],b07' -> a1, a2, a3, a5, b07; 'n[001-002]-ib[1-2]' -> n001-ib1, n001-ib2, n002-ib1,
    n002-ib2; a box of a torus, 't[00x11]' -> t00, t01, t10, t11. Raises UserError.
    """
    names: list[str] = []
    for item in re.split(r",(?![^\[]*\])", text.strip()):  # commas outside of brackets
        if "".join(piece[0] for piece in PIECE.finditer(item)) != item or not item:
            raise UserError(f"SLURM's list of hosts {text!r}: {item!r} is no host or list of them.")
        pieces = [
            [found[2]] if found[2] else numbers(found[1], text) for found in PIECE.finditer(item)
        ]
        room = MAX_HOSTS - len(names)
        names += itertools.islice(map("".join, itertools.product(*pieces)), room)
    return names


def numbers(inside: str, text: str) -> list[str]:
    """Numbers of a bracket: '1-3,005' -> 1, 2, 3, 005. Raises UserError, also for a range that
    ends before it begins.
    """
    found: list[str] = []
    for part in inside.split(","):
        if span := re.fullmatch(r"(\d+)(?:-(\d+))?", part):
            low, high = int(span[1]), int(span[2] or span[1])
            high = min(high, low + MAX_HOSTS)
            several = [f"{i:0{len(span[1])}d}" for i in range(low, high + 1)]
        elif (box := re.fullmatch(r"([\dA-Z]+)x([\dA-Z]+)", part)) and len(box[1]) == len(box[2]):
            digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
            sides = [digits[digits.index(a) : digits.index(b) + 1]
                     for a, b in zip(*box.groups(), strict=True)]  # fmt: skip
            boxed = map("".join, itertools.product(*sides))
            several = list(itertools.islice(boxed, MAX_HOSTS))
        else:
            several = []
        if not several:
            raise UserError(f"SLURM's list of hosts {text!r}: [{part}] is no range of numbers.")
        found += several
    return found


def need_task(environment: Mapping[str, str] = os.environ) -> None:
    """Raises UserError where `srun` set a part only of what it tells each task, as in a shell that
    took over some of the environment of a job.
    """
    if lacking := [name for name in OF_A_TASK if not environment.get(name)]:
        raise UserError(
            f"SLURM_STEP_NUM_TASKS={environment.get('SLURM_STEP_NUM_TASKS')} without "
            f"{', '.join(lacking)}: not a task of srun. Start it by srun; or, to run alone, unset "
            "SLURM_STEP_NUM_TASKS."
        )


def coordinator(environment: Mapping[str, str] = os.environ) -> str:
    """HOST:PORT of the coordinator of a job step: its first host, at a port derived from the job's
    number; "" where SLURM does not name the hosts.

    The same port as jax chooses, which takes the first host from the list by itself, but not from
    every form of it (jax 0.10: of 'n[1-2]-ib1' it takes 'n1', of 'n[7]' 'n7]').
    """
    text = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not text:
        return ""
    port = 65535 - 2**12 + 1 + int(environment.get("SLURM_JOB_ID") or 0) % 2**12
    return f"{host_names(text)[0]}:{port}"
