"""python -m lm_jax.plan --config=configs/llama3_8b.py --topology=v5p:4x4x4: will it fit, how fast
will it be, what will it cost?

The train step is compiled by the real TPU compiler, which needs no TPU (pip install libtpu); what
it holds, does and sends is counted in the program, and the time is that of the roofline: at least
the slowest part, at most all parts one after the other. --mesh=fsdp:16,tensor:4 replaces the mesh
of the config. Any field is overridden by --config.FIELD=VALUE, as in training. A topology of
several slices is written v6e:16x16*2.
"""

import json
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from lm_jax import cli
from lm_jax.config import Config
from lm_jax.errors import UserError


def define_flags() -> None:
    """The command line; not at import, since other commands have some of the names."""
    config_flags.DEFINE_config_file(
        "config", None, "File with get_config(), e.g. configs/llama3_8b.py."
    )
    flags.DEFINE_string("topology", "", "Chip and shape, e.g. v5p:4x4x4, v5e:16x16, v6e:16x16*2.")
    flags.DEFINE_string("mesh", "", "Sizes by axis, e.g. fsdp:16,tensor:4; the config's if empty.")
    flags.DEFINE_integer("batch", 0, "Sequences a step; the config's if 0.", lower_bound=0)
    flags.DEFINE_string("remat", "", "none, names, dots or full; the config's if empty.")
    flags.DEFINE_float("tokens", 0.0, "Of the whole run; the config's if 0.", lower_bound=0)
    flags.DEFINE_float("price", 0.0, "USD for an hour of a chip.", lower_bound=0)
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 1 where it does not fit; raises UserError."""
    del argv
    asked = flags.FLAGS
    if asked.config is None:
        raise UserError("--config: missing. Name a file, e.g. --config=configs/llama3_8b.py.")
    if not asked.topology:
        raise UserError("--topology: missing. Name chip and shape, e.g. --topology=v5p:4x4x4.")
    from lm_jax.plan import chips, request

    topology = chips.parse(asked.topology)
    config = Config.parse(asked.config)
    config = request.asked(config, topology, asked.mesh, asked.batch, asked.remat)
    if not topology.chip.is_tpu:
        raise UserError(
            f"--topology={topology}: there is no compiler for GPUs that are not here; name a TPU."
        )
    from lm_jax.plan import measure, roofline, show

    found = measure.measure(config, topology)
    tokens = asked.tokens or config.steps * config.tokens_per_step
    needed = measure.model_flops(config)
    runs = {
        name: roofline.forecast(topology, step, config.tokens_per_step, needed, tokens, asked.price)
        for name, step in (found.moved.times.ends if found.moved else {}).items()
    }
    if asked.json:
        print(json.dumps(show.as_dict(config, topology, found, runs)))
    else:
        print(show.text(config, topology, found, runs))
    return 0 if found.fits else 1


if __name__ == "__main__":
    define_flags()
    cli.run(main)
