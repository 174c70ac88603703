"""The train step of GPT-2 124M: its speed, and what each setting changes."""

import time
from typing import Any

import jax
import numpy as np

from accelerator.part import Measure
from accelerator.step import GPT2, Step, batch_of, config_of, measured
from lm_jax.devices import runtime, sharding, xla_options

KERNELS = {"gpu": "cudnn", "tpu": "splash"}  # beside xla
# On a GPU, beside xla_options: tried one by one, then those that helped together.
OPTIONS: tuple[dict[str, Any], ...] = (
    {"xla_gpu_enable_triton_gemm": False},
    {"xla_gpu_enable_cublaslt": True},
    {"xla_gpu_enable_latency_hiding_scheduler": True},
    {"xla_gpu_graph_min_graph_size": 1},
)
HELPS = 1.005  # times as fast


def run(measure: Measure) -> None:
    """The rows of this part."""
    runtime.start()
    seconds = 0.3 if measure.tiny else 2.0
    layers = 2 if measure.tiny else GPT2["model.num_layers"]
    rates: dict[str, float] = {}

    def tried(name: str, documents: int = 4, options: dict | None = None, **changes: Any) -> None:
        """A row of one variant; its rate is kept."""

        def one() -> None:
            config = config_of(GPT2, measure.tiny, **changes)
            figures = measured(config, seconds, documents, options)
            rates[name] = figures["tok/s"]
            over = rates["base"] and rates[name] / rates["base"]
            about = {"attention": config.model.attention} if name == "base" else {}
            measure.row(name, **about, **figures, **{"over base": round(over, 3)})

        measure.each(name, one)

    batch = 4 if measure.tiny else 64
    loop: dict[str, Any] = {"model__scan_unroll": layers}
    tried("base", batch_size=batch)
    if "base" not in rates:
        return
    tried("unrolled", **loop, batch_size=batch)
    best: dict[str, Any] = loop if rates.get("unrolled", 0) > rates["base"] else {}
    for size in (2 * batch, batch // 2):
        tried(f"batch {size}", **best, batch_size=size)
    kernel = KERNELS.get(jax.default_backend())
    tried("attention xla", **best, batch_size=batch, model__attention="xla")
    if not kernel:
        measure.row("kernel", note=f"{jax.default_backend()} has xla attention only")
    tried("one document a row", 1, **best, batch_size=batch)
    tried("not packed", 1, **best, batch_size=batch, data__packed=False)
    for size in (0, 256, 512) if not measure.tiny else (0, 32):
        tried(f"loss in chunks of {size or 'its own choice'}", **best, batch_size=batch,
              loss__chunk_size=size)  # fmt: skip
    for remat in ("dots", "names", "full"):
        tried(f"remat {remat}", **best, batch_size=batch, model__remat=remat)
    with_options(tried, rates, {**best, "batch_size": batch})
    measure.each("loop", overhead, measure, {**best, "batch_size": batch})


def with_options(tried: Any, rates: dict[str, float], changes: dict[str, Any]) -> None:
    """The compiler's options one by one, and those that help together."""
    tried("no compiler options", options={}, **changes)
    if jax.default_backend() != "gpu":
        return
    plain = rates.get("no compiler options", 0.0)
    helping: dict[str, Any] = {}
    for options in OPTIONS:
        name = ", ".join(f"{key}={value}" for key, value in options.items())
        tried(name, options=options, **changes)
        if rates.get(name, 0.0) > HELPS * plain:
            helping |= options
    if len(helping) > 1:
        tried("options that help, together", options=helping, **changes)


def overhead(measure: Measure, changes: dict[str, Any]) -> None:
    """The step with a new batch, its metrics read one step late, beside the bare step."""

    step = Step(config_of(GPT2, measure.tiny, **changes))
    bare = step.rate(0.3 if measure.tiny else 1.5)
    host, steps = batch_of(step.config), max(10, int(1500 / bare["ms a step"]))
    late: Any = step()
    began = time.perf_counter()
    for number in range(steps):
        fresh = {k: np.roll(v, number, 1) for k, v in host.items()}
        step.batch = sharding.put(fresh, step.mesh, 1)
        metrics = step()
        {name: float(value) for name, value in late.items()}
        late = metrics
    jax.block_until_ready(late)
    each = (time.perf_counter() - began) / steps * 1e3
    measure.row("loop", **{"ms a step": each, "over bare step": each / bare["ms a step"]},
                options=str(xla_options.wanted(step.mesh)) or None)  # fmt: skip
