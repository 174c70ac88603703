"""python -m lm_jax.plan --config=configs/llama3_8b.py --topology=v5p:4x4x4: memory, speed, best
mesh and cost of a run, before anything is rented.

Meshes, remat policies and microbatches are estimated and ranked, and the best few compiled by the
real TPU compiler, which needs no TPU (pip install libtpu); what a program holds, does and sends is
counted in it, and the time is that of the roofline: at least the slowest part, at most all parts
one after the other. --mesh=fsdp:16,tensor:4 is compiled alone, and --mesh=config, that of the
config. Any field is overridden by --config.FIELD=VALUE, as in training. A topology of several
slices is written v6e:16x16*2, of four hosts of GPUs h100:8*4, which are estimated only; the names
that clouds have are understood, too: v5litepod-16, tpu-v6e-slice:4x8, a3-highgpu-8g;
--topology=auto ranks chips and slice sizes, by hours of chips or by --price.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from lm_jax import cli
from lm_jax.config import Config
from lm_jax.devices import runtime
from lm_jax.errors import UserError


def define_flags() -> None:
    """The command line; not at import, since other commands have some of the names."""
    cli.define_config("config", None, "File with get_config(), e.g. configs/llama3_8b.py.")
    text, number = flags.DEFINE_string, flags.DEFINE_float
    text("topology", "", "Chip and shape, e.g. v5p:4x4x4, v5e:16x16, v6e:16x16*2; auto.")
    text("mesh", "", "Sizes by axis, e.g. fsdp:16,tensor:4; config: its own; searched if empty.")
    flags.DEFINE_integer("batch", 0, "Sequences a step; the config's if 0.", lower_bound=0)
    text(
        "remat",
        "",
        "none, names, dots, full or offload; the config's, or all but offload, if empty.",
    )
    number("tokens", 0.0, "Of the whole run; the config's if 0.", lower_bound=0)
    text("price", "", "USD for an hour of a chip: 4.2, or by chip: v5p:4.2,v6e:2.7.")
    text("deadline", "", "What a run may take, for --topology=auto: 30d, 12h.")
    flags.DEFINE_integer("compile", 3, "How many plans of a search to compile.", lower_bound=0)
    text("plot", "", "File for an HTML page of the parts of a step, and memory.")
    flags.DEFINE_bool("json", False, "Print one JSON object.")


def main(argv: Sequence[str]) -> int:
    """Exit code 0, or 1 where nothing fits; raises UserError."""
    del argv
    given = flags.FLAGS
    check_flags(given)
    from lm_jax.devices import chips
    from lm_jax.plan import request, terms

    price, deadline = terms.prices(given.price), terms.days(given.deadline)
    config = Config.parse(given.config)
    tokens = given.tokens or config.steps * (given.batch or config.batch_size) * (
        config.data.sequence_length
    )
    topology = None if given.topology == "auto" else chips.parse(given.topology)
    if topology and given.mesh:
        mesh = "" if given.mesh == "config" else given.mesh
        config = request.for_topology(config, topology, mesh, given.batch, given.remat)
    else:
        config = request.for_search(config, given.batch, given.remat)
    runtime.start()  # nothing before it needed jax
    if not topology:
        plans = search_topologies(config, given, tokens, price, deadline)
        return print_ranking(plans, tokens, price, given)
    if not given.mesh:
        return print_ranking(search_meshes(config, given, topology), tokens, price, given)
    if topology.chip.is_tpu:
        return print_measured(config, topology, tokens, price.get(topology.chip.name, 0.0), given)
    from lm_jax.plan import estimate, search

    return print_ranking([search.Plan(estimate.estimate(config, topology))], tokens, price, given)


def check_flags(given: Any) -> None:
    """Raises UserError at a flag that cannot work; prints a line at one without effect."""
    if given.config is None:
        raise UserError("--config: missing. Name a file, e.g. --config=configs/llama3_8b.py.")
    if not given.topology:
        raise UserError("--topology: missing. Name chip and shape, e.g. --topology=v5p:4x4x4.")
    if not math.isfinite(given.tokens):
        raise UserError(f"--tokens={given.tokens}: must be a finite number.")
    if given.plot and not Path(given.plot).parent.is_dir():
        raise UserError(f"--plot={given.plot}: {Path(given.plot).parent} is no folder.")
    if given.deadline and given.topology != "auto":
        print(f"--deadline={given.deadline}: passed over, only --topology=auto chooses by it",
              file=sys.stderr)  # fmt: skip


def search_meshes(config: Config, given: Any, topology: Any) -> list[Any]:
    """All plans for a topology, the best of them compiled where there is a compiler for it."""
    from lm_jax.plan import search

    plans = search.search(config, topology, given.remat)
    return search.compiled(plans, given.compile) if topology.chip.is_tpu else plans


def search_topologies(config: Config, given: Any, tokens: float, price: dict[str, float],
                      deadline: float) -> list[Any]:  # fmt: skip
    """The best plan of each chip and slice size that is fast enough, the cheapest first."""
    from lm_jax.plan import ranking, search

    plans = ranking.affordable(search.everywhere(config, given.remat), tokens, price, deadline)
    if not plans:
        raise UserError(f"--deadline={given.deadline}: no slice that there is is fast enough.")
    return plans


def print_ranking(plans: list[Any], tokens: float, price: dict[str, float], given: Any) -> int:
    """Prints plans; 0 where the first one fits."""
    from lm_jax.plan import ranking

    auto = given.topology == "auto"
    if given.plot:
        Path(given.plot).write_text(ranking.page(plans, f"{plans[0].config.name}: plans"), "utf-8")
    if given.json:
        price_of = lambda plan: price.get(plan.estimate.topology.chip.name, 0.0)
        print(json.dumps({"plans": [ranking.as_dict(p, tokens, price_of(p)) for p in plans]}))
    else:
        print(ranking.text(plans, tokens, price, auto))
    return 0 if plans[0].fits else 1


def print_measured(config: Config, topology: Any, tokens: float, price: float, given: Any) -> int:
    """Compiles one plan and prints its figures; 0 where it fits."""
    from lm_jax.plan import compiler_process, estimate, measure, ranking, roofline, search, show

    # Before the compiler's minutes: a model without an estimate has no page.
    estimated = estimate.estimate(config, topology) if given.plot else None
    found = compiler_process.measure(config, topology)
    needed = measure.model_flops(config)
    runs = {
        name: roofline.forecast(topology, step, config.tokens_per_step, needed, tokens, price)
        for name, step in (found.moved.times.ends if found.moved else {}).items()
    }
    if estimated:
        plan = search.Plan(estimated, found)
        Path(given.plot).write_text(ranking.page([plan], f"{config.name}: a plan"), "utf-8")
    if given.json:
        print(json.dumps(show.as_dict(config, topology, found, runs)))
    else:
        print(show.text(config, topology, found, runs))
    return 0 if found.fits else 1


if __name__ == "__main__":
    define_flags()
    cli.run(main)
