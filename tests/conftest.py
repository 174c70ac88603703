"""Eight simulated CPU devices, programs compiled without optimization, and JAX strict."""

import os
import signal

from quick_xla import xla_flags

# libtpu, which the compile tests use, must not be taken for a device.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags(8)}"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_runtest_setup():
    """What a test starts heeds signals: under nohup, or behind & in a script, a process ignores
    them and so do its children; libtpu, once loaded, ignores SIGHUP.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# Minutes each: they begin first, so that neither process ends long after the other.
LONG = ("test_tpu_compile", "test_resume", "test_families", "test_moe", "test_golden", "test_stack")


def pytest_collection_modifyitems(items):
    """The longest files go first: beside them, the other process runs all the rest."""
    if jax.__version_info__ < (0, 10):
        for item in items:
            if item.get_closest_marker("jax10"):
                item.add_marker(pytest.mark.skip(reason=f"needs jax 0.10, is {jax.__version__}"))
    place = lambda item: next((i for i, name in enumerate(LONG) if name in item.nodeid), len(LONG))
    items.sort(key=place)
