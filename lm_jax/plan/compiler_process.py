"""Compilation in a separate process: the TPU compiler can abort, which ends its process."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from lm_jax.config import Config
from lm_jax.devices import chips
from lm_jax.devices.chips import Topology
from lm_jax.errors import MachineError, UserError
from lm_jax.plan import measure as in_process
from lm_jax.plan.flops import Flops
from lm_jax.plan.roofline import Times

ROOT = Path(__file__).parents[2]
CHECK = re.compile(r"Check failed: .*")
ERRORS = {kind.__name__: kind for kind in (UserError, MachineError, jax.errors.JaxRuntimeError)}


class CompilerError(MachineError):
    """The compiler ended its process."""


def measure(config: Config, topology: Topology) -> in_process.Measured:
    """`measure.measure` in a separate process. Raises what that does, and CompilerError where the
    compiler aborts.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import main; main()"],
        input=json.dumps([config.to_dict(), str(topology)]), capture_output=True, text=True,
        errors="replace", check=False,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},  # no device is used
    )  # fmt: skip
    if done.returncode == -signal.SIGKILL:
        raise MachineError("the compilation was killed: for lack of memory here, most likely.")
    if done.returncode < 0:
        found = CHECK.search(done.stderr)
        why = found[0] if found else " ".join(done.stderr.split())[-200:]
        raise CompilerError(
            f"the TPU compiler aborts (signal {-done.returncode}), a fault of its own: {why}; "
            "try another --mesh or --remat."
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    sys.stderr.write(done.stderr)
    found = json.loads(done.stdout)
    if "error" in found:
        raise ERRORS[found["error"]](found["message"])
    return from_dict(found)


def from_dict(found: dict[str, Any]) -> in_process.Measured:
    """The inverse of dataclasses.asdict, after JSON."""
    if moved := found["moved"]:
        moved = in_process.Moved(**moved | {"times": Times(**moved["times"])})
    own = {"memory": in_process.Memory(**found["memory"]), "flops": Flops(**found["flops"]),
           "all_flops": Flops(**found["all_flops"]), "moved": moved}  # fmt: skip
    lists = {name: tuple(found[name]) for name in ("unknown", "advice")}
    return in_process.Measured(**found | own | lists)


def main() -> None:
    """Reads a config and a topology from stdin; writes the measurements or the error to stdout."""
    answer = os.dup(1)
    os.dup2(2, 1)  # what libraries print goes to stderr, so that stdout is JSON alone
    values, topology = json.load(sys.stdin)
    try:
        result = dataclasses.asdict(in_process.measure(Config.parse(values), chips.parse(topology)))
    except tuple(ERRORS.values()) as error:
        kind = next(name for name in reversed(ERRORS) if isinstance(error, ERRORS[name]))
        result = {"error": kind, "message": str(error)}
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        json.dump(result, out, default=float)
