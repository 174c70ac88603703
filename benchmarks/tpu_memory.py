"""Memory of Llama 3 8B on a TPU slice by the compiler, beside that of MaxText.

    python benchmarks/tpu_memory.py [--rows=1,2,3,4] [--layers=32]

The train step of configs/llama3_8b.py at 8,192 tokens of context, compiled by libtpu: float32
weights and Adam, bfloat16 computation, full rematerialization, scanned layers. MaxText's figures
are of its own ahead-of-time compile (train_compile) of Llama-3.1-8B with the same slice, mesh and
tokens a step, as they were given to us. Bytes a device from memory_analysis()
(temporaries include what is donated), and the CPU seconds from tracing to the program.
"""

import argparse
import dataclasses
import importlib.metadata
import os
import runpy
import time

from lm_jax.config import Config, MeshConfig
from lm_jax.training.ahead_of_time import devices, trace_step

CONFIG = os.path.join(os.path.dirname(__file__), os.pardir, "configs", "llama3_8b.py")
ROWS = (  # topology, fsdp, tensor, sequences a step; MaxText: arguments and temporaries in GB
    ("v5p:4x4x4", 16, 4, 16, 1.507, 3.837),
    ("v5p:4x4x4", 64, 1, 64, 1.509, 9.943),
    ("v5e:16x16", 256, 1, 256, 0.380, 8.673),
    ("v6e:16x16", 256, 1, 256, 0.380, 9.692),
)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1,2,3,4")
    parser.add_argument("--layers", type=int, default=32)
    a = parser.parse_args()
    versions = " ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "libtpu"))
    print(f"{versions}; GB a device, MaxText's in brackets")
    print("slice      fsdp tensor tokens     arguments      temporaries      ratio  CPU s")
    for row in a.rows.split(","):
        topology, fsdp, tensor, batch, arguments, temporaries = ROWS[int(row) - 1]
        config = Config.parse(runpy.run_path(CONFIG)["get_config"]())
        config = dataclasses.replace(
            config,
            batch_size=batch,
            mesh=MeshConfig(data=1, fsdp=fsdp, tensor=tensor),
            model=dataclasses.replace(config.model, num_layers=a.layers),
        )
        began = time.process_time()
        memory = trace_step(config, devices(topology)).compile().memory_analysis()
        seconds = time.process_time() - began
        held, temp = memory.argument_size_in_bytes / 1e9, memory.temp_size_in_bytes / 1e9
        print(f"{topology:10} {fsdp:4} {tensor:6} {batch * 8192:9,} {held:5.3f} ({arguments:5.3f}) "
              f"{temp:7.3f} ({temporaries:5.3f}) {temp / temporaries:7.3f} {seconds:6.0f}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
