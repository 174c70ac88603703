"""python -m lm_jax.doctor: checks this machine: versions, devices, rates, folders.

Each row is ok, warn or fail and says what to do. Exit code 4 when a row fails, else 0. In Python
and Colab, `lm_jax.diagnose()` returns the same rows and shows them as a table.
"""

import contextlib
import dataclasses
import json
from collections.abc import Sequence

from absl import flags

from lm_jax import cli
from lm_jax.devices.checks import diagnose
from lm_jax.devices.runtime import start
from lm_jax.errors import MachineError


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 4 when something is broken."""
    del argv
    with contextlib.suppress(ImportError):  # a missing jax is a row of the table
        start()
    rows = diagnose(flags.FLAGS.workdir)
    print(json.dumps([dataclasses.asdict(r) for r in rows], indent=2) if flags.FLAGS.json else rows)
    return MachineError.code if rows.broken else 0


if __name__ == "__main__":
    # Defined here, so that importing this module beside another entry point defines no flag twice.
    flags.DEFINE_string("workdir", "runs", "Folder that runs will be written to.")
    flags.DEFINE_bool("json", False, "Print the rows as JSON.")
    cli.run(main)
