"""The MaxText side of cpu_gpt.py: MaxText's own trainer on a GPT of the same shape, synthetic data.

Needs Python 3.12 and `pip install maxtext` with what it imports. Without rematerialization of the
products and without a scan over the layers, which are its fastest settings on a CPU. Prints JSON
like torch_gpt.py.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import tempfile
import time
from importlib import metadata, resources

os.environ.update(DECOUPLE_GCLOUD="TRUE", TF_CPP_MIN_LOG_LEVEL="3")

SHAPE = {"layers": 6, "heads": 6, "dim": 384, "length": 256, "batch": 12, "vocab": 128}
FIRST = 5  # steps before the timed ones: it compiles in step 0, and reports a step or two late


class Clock(logging.Handler):
    """When each of MaxText's steps was reported: wall seconds and CPU seconds."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[float, float]] = []

    def emit(self, record):
        if record.getMessage().startswith("completed step"):
            self.seen.append((time.perf_counter(), time.process_time()))


def settings(a, folder: str) -> dict[str, object]:
    """MaxText's fields for this shape."""
    return {
        "run_name": "gpt", "base_output_directory": folder, "hardware": "cpu",
        "skip_jax_distributed_system": True, "enable_checkpointing": False,
        "dataset_type": "synthetic", "steps": FIRST + a.steps + 1, "decoder_block": "gpt3",
        "base_emb_dim": a.dim, "base_mlp_dim": 4 * a.dim, "base_num_query_heads": a.heads,
        "base_num_kv_heads": a.heads, "head_dim": a.dim // a.heads,
        "base_num_decoder_layers": a.layers, "vocab_size": a.vocab, "max_target_length": a.length,
        "per_device_batch_size": a.batch, "mlp_activations": '["gelu"]', "fused_qkv": True,
        "trainable_position_size": a.length, "logits_via_embedding": True, "use_iota_embed": False,
        "attention": "dot_product", "dtype": "bfloat16" if a.bfloat16 else "float32",
        "weight_dtype": "float32", "remat_policy": a.remat, "scan_layers": False,
        "gradient_clipping_threshold": 1.0, "enable_goodput_recording": False,
        "monitor_goodput": False,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser()
    for name, value in {**SHAPE, "steps": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--bfloat16", action="store_true", help="activations in bfloat16")
    parser.add_argument("--remat", default="minimal_with_context", help="MaxText's remat_policy")
    a = parser.parse_args()
    from absl import logging as absl_logging
    from maxtext.trainers.pre_train import train

    clock = Clock()
    absl_logging.get_absl_logger().addHandler(clock)
    absl_logging.set_verbosity("info")
    base = resources.files("maxtext") / "configs" / "base.yml"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train.main(["", str(base), *[f"{k}={v}" for k, v in settings(a, folder).items()]])
    if len(clock.seen) <= FIRST + a.steps:
        raise SystemExit(f"MaxText reported {len(clock.seen)} steps of {FIRST + a.steps + 1}.")
    wall, cpu = (y - x for x, y in zip(clock.seen[FIRST], clock.seen[FIRST + a.steps], strict=True))
    tokens = a.steps * a.batch * a.length
    version = f"{metadata.version('maxtext')}, jax {metadata.version('jax')}"
    row = {"name": "MaxText", "version": version, "wall": tokens / wall, "cpu": tokens / cpu}
    print(json.dumps(row))


if __name__ == "__main__":
    main()
