"""python -m lm_jax.train --config=configs/quickstart.py --workdir=runs/q: pretrain a language
model.

The same command again resumes. Any field of the config is overridden by --config.FIELD=VALUE, for
example --config.model.num_layers=8.
"""

from collections.abc import Sequence

from absl import flags

from lm_jax import cli
from lm_jax.config import Config
from lm_jax.errors import UserError
from lm_jax.run import interrupts

CONFIG = cli.define_config("config", None, "File with get_config(), e.g. configs/quickstart.py.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run: checkpoints, metrics, report. Started before: resumed."
)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would run, and stop.")
PREFLIGHT = flags.DEFINE_bool(
    "preflight", True, "Check kernels, masks, sharding and disk before the start."
)
ADDRESS = flags.DEFINE_string(
    "coordinator_address", "", "HOST:PORT of process 0, where SLURM or the TPU do not give it."
)
PROCESSES = flags.DEFINE_integer(
    "num_processes", 0, "How many processes make the run.", lower_bound=0
)
PROCESS = flags.DEFINE_integer("process_id", -1, "Which one this is, from 0.", lower_bound=-1)
PROFILE = flags.DEFINE_bool(
    "profile", False, "Write an XProf trace of five steps to WORKDIR/profile."
)


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 75 when SIGTERM or SIGHUP stopped the run after a save."""
    del argv
    if CONFIG.value is None and CONFIG.present:
        raise UserError("--config: its get_config() returns nothing; return the config at its end.")
    if CONFIG.value is None:
        raise UserError("--config: missing. Name a file, e.g. --config=configs/quickstart.py.")
    if not WORKDIR.value:
        raise UserError("--workdir: missing. Name a folder for this run, e.g. --workdir=runs/q.")
    config = Config.parse(CONFIG.value)
    interrupts.own()
    with interrupts.Requests():  # until the loop has its own: imports take seconds
        from lm_jax.devices import hosts, runtime
        from lm_jax.training import start

        runtime.start()
        hosts.join(ADDRESS.value, PROCESSES.value, PROCESS.value)
        return start.train(config, WORKDIR.value, dry_run=DRY_RUN.value,
                          check=PREFLIGHT.value, profile=PROFILE.value)  # fmt: skip


if __name__ == "__main__":
    cli.run(main, needs_output=False)  # a run never stops for its log
