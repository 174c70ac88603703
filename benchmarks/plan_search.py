"""The plan that a search picks beside the best of all that it could have picked.

    python benchmarks/plan_search.py [--case=1] [--effort=-1]

For each case, `python -m lm_jax.plan` without --mesh: the three plans that are estimated to be the
fastest are compiled, and the fastest of these by its program is picked. Here every mesh with every
policy of rematerialization whose parameters and optimizer fit is compiled, also those that are too
large by the estimate, and the picked one is compared with the best of them. All are compiled with
the compiler's `--effort`; the picked three and the best three once more as a plan compiles them.
The time is that of the roofline, without overlap (by which plans are ranked) and with full overlap.
"""

import argparse
import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lm_jax.config import Config
from lm_jax.devices import chips
from lm_jax.plan import ranking, request, search, shapes

CASES = (
    ("gpt2_124m", "v5e:2x4", 0, ""),
    ("llama3_1b", "v5e:2x4", 32, ""),
    ("mixtral_8x7b", "v5p:2x2x4", 32, "full"),
)
FIRST = 3  # plans that a search compiles


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--case", type=int, default=0)
    parser.add_argument("--effort", type=float, default=-1.0)
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))
    for case in CASES[args.case - 1 : args.case] if args.case else CASES:
        print(row(*case, args.effort), flush=True)


def row(name, topology, batch, remat, effort):
    """A row of the table of docs/plans.md, after a line for each plan."""
    print(f"== {name} {topology} batch {batch or 'of the config'} {remat}", flush=True)
    topology = chips.parse(topology)
    config = Config.parse(importlib.import_module(name).get_config())
    config = request.for_search(config, batch, remat)
    plans = search.search(config, topology, remat)
    every = {key(plan.config): plan.config for plan in plans}
    for _, tried in search.candidates(config, topology, remat):
        if key(tried) not in every and state_bytes(tried) < topology.chip.device_hbm:
            every[key(tried)] = tried
    first = [key(plan.config) for plan in plans[:FIRST]]
    os.environ["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] = str(effort)
    swept = dict(zip(every, compile_all(every.values(), topology), strict=True))
    best = sorted(swept, key=lambda each: search.rank_key(swept[each]))[:FIRST]
    del os.environ["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"]
    top = list(dict.fromkeys((*first, *best)))
    again = dict(zip(top, compile_all([every[each] for each in top], topology), strict=True))
    found = []
    for by in (swept, again):
        picked = min((by[each] for each in first), key=search.rank_key)
        lead = min(by.values(), key=search.rank_key)
        serial = picked.times.serial / lead.times.serial
        fast = min(plan.times.overlapped for plan in by.values() if plan.fits or not lead.fits)
        found += [(picked, lead, serial, picked.times.overlapped / fast)]
    (_, _, few, _), (picked, lead, serial, overlapped) = found
    fit = sum(plan.fits for plan in swept.values())
    return (f"| {name} | {topology} | {len(swept)}, {fit} fit | {words(picked)} | {words(lead)} | "
            f"{few:.3f} | {serial:.3f} | {overlapped:.3f} |")  # fmt: skip


def key(config):
    """The fields in which plans differ."""
    return config.mesh, config.model.remat, config.microbatches


def state_bytes(config):
    """Bytes of a device for parameters and optimizer."""
    held = shapes.state(config)
    sizes = shapes.sizes_of(config.mesh)
    return held.bytes("parameters", sizes) + held.bytes("optimizer", sizes)


def compile_all(configs, topology):
    """Plans of the configs, compiled two at a time."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda config: compiled(config, topology), configs))


def compiled(config, topology):
    """The compiled plan of a config; prints a line about it."""
    plan = search.with_compiler(search.Plan(search.estimate(config, topology)))
    guess = plan.estimate
    print(f"{words(plan)}: {plan.source} {'' if plan.fits else 'TOO MUCH '}"
          f"{guess.memory.total / 1e9:.2f} -> {plan.peak / 1e9:.2f} GB, serial "
          f"{guess.times.serial:.4g} -> {plan.times.serial:.4g} s, overlapped "
          f"{guess.times.overlapped:.4g} -> {plan.times.overlapped:.4g} s, "
          f"{plan.measured.compile_seconds if plan.measured else 0:.0f} CPU s {plan.failed}",
          flush=True)  # fmt: skip
    return plan


def words(plan):
    """A plan in words: data:4,tensor:2 full x2."""
    config = plan.config
    return f"{ranking.mesh(plan)} {config.model.remat} x{config.microbatches}"


if __name__ == "__main__":
    main()
