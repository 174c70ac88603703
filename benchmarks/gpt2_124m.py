"""GPT-2 124M on one accelerator: tokens a second and MFU, each attention backend in turns.

    python benchmarks/gpt2_124m.py [--attention=cudnn,xla] [--batch_size=64] [--rounds=3]
        [--steps=20] [--set=model.remat=none ...]

The train step of configs/gpt2_124m.py on packed random tokens that are on the device; the first
losses of the backends must agree. MFU counts 6 N + 12 L d T FLOPs a token (PaLM's convention)
against the bfloat16 peak of the device; a device that is not in the table gives n/a.
"""

import argparse
import ast
import contextlib
import dataclasses
import runpy
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from lm_jax.config.cost import flops_per_token
from lm_jax.devices import runtime
from lm_jax.devices.chips import peak_flops

CONFIG = Path(__file__).parent.parent / "configs" / "gpt2_124m.py"


def parsed(a, attention: str):
    """The config of one backend."""
    import jax

    from lm_jax.config import Config
    from lm_jax.devices.resolve import resolved

    raw = runpy.run_path(str(CONFIG))["get_config"]()
    raw.batch_size, raw.model.attention = a.batch_size, attention
    for name, value in (item.split("=", 1) for item in a.set):
        with contextlib.suppress(ValueError):  # a word stays a word
            value = ast.literal_eval(value)
        raw.update_from_flattened_dict({name: value})
    c = Config.parse(raw.to_dict())
    return dataclasses.replace(c, model=resolved(c.model, jax.default_backend()))


def packed(c) -> dict[str, np.ndarray]:
    """A batch [1, B, L] of random tokens, two documents a window."""
    B, L = c.batch_size, c.data.sequence_length
    rows = np.random.default_rng(0).integers(0, c.model.vocab_size, (1, B, L + 1), np.int32)
    places = np.arange(L, dtype=np.int32)
    spread = lambda x: np.broadcast_to(x, (1, B, L)).copy()
    return {
        "tokens": rows[..., :-1].copy(), "targets": rows[..., 1:].copy(),
        "weights": np.ones((1, B, L), np.float32), "segment_ids": spread(places // (L // 2)),
        "positions": spread(places % (L // 2)),
    }  # fmt: skip


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--attention", default="cudnn,xla")
    p.add_argument("--batch_size", type=int, default=64)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--set", action="append", default=[], help="section.field=value of the config")
    a = p.parse_args()
    runtime.start()
    import jax

    from lm_jax.devices import sharding
    from lm_jax.training.train_step import init_state, make_train_step

    device = runtime.devices()[0]
    built, losses = {}, {}
    for attention in a.attention.split(","):
        c = parsed(a, attention)
        mesh = sharding.make_mesh(c.mesh, [device])
        with jax.set_mesh(mesh):
            state, batch = jax.jit(lambda c=c: init_state(c))(), sharding.put(packed(c), mesh, 1)
            started = time.perf_counter()
            step = jax.jit(make_train_step(c), donate_argnums=0).lower(state, batch).compile()
            seconds = time.perf_counter() - started
            state, out = step(state, batch)
        losses[attention], built[attention] = float(out["loss"]), [step, state, batch, mesh]
        analysis: Any = step.memory_analysis()
        memory = analysis.temp_size_in_bytes
        print(f"{attention}: compiled in {seconds:.0f} s, {memory / 2**30:.1f} GiB of temporaries,"
              f" first loss {losses[attention]:.4f}")  # fmt: skip
    assert max(losses.values()) - min(losses.values()) < 1e-2, f"not the same model: {losses}"
    rates: dict[str, list[float]] = {name: [] for name in built}
    for _ in range(a.rounds):
        for name, (step, state, batch, mesh) in built.items():
            with jax.set_mesh(mesh):
                state, out = step(state, batch)
                jax.block_until_ready(out)
                started = time.perf_counter()
                for _ in range(a.steps):
                    state, out = step(state, batch)
                jax.block_until_ready(out)
            built[name][1] = state
            rates[name].append(batch["tokens"].size * a.steps / (time.perf_counter() - started))
    peak = peak_flops(device.device_kind)
    flops = flops_per_token(c.model, c.data.sequence_length)
    machine = f"{device.device_kind}, jax {jax.__version__}, batch {c.batch_size}"
    print(f"{machine}, {flops:.3g} FLOPs a token")
    for name, values in rates.items():
        rate = statistics.median(values)
        mfu = f"{100 * rate * flops / peak:.1f}%" if peak else "n/a"
        shown = ", ".join(f"{v:.4g}" for v in values)
        print(f"{name:<8}{rate:>12.4g} tok/s  mfu {mfu}  of {shown}")


if __name__ == "__main__":
    main()
