"""XLA_FLAGS of tests: most of a test is compilation of what then runs for a millisecond."""

import importlib.metadata

# It takes half of the time without optimization, and half of the rest without the newer emitters of
# fused loops, which alone are there since jax 0.11.
QUICK = "--xla_backend_optimization_level=0"
if [*map(int, importlib.metadata.version("jax").split(".")[:2])] < [0, 11]:
    QUICK += " --xla_cpu_use_fusion_emitters=false"


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for simulated CPU devices, programs compiled quickly."""
    return f"--xla_force_host_platform_device_count={devices} {QUICK}"
