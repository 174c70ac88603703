"""Eight simulated CPU devices, and JAX strict: promotions of rank raise."""

import os

# libtpu, which the compile tests use, must not be taken for a device.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
