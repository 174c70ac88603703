"""Every config of configs/, in its full size, is ready to run and can be planned: shapes, checks
and requests, nothing computed.
"""

import dataclasses
import json
import math

import jax
import pytest
from in_process import command
from scaled import FIRST, NAMES, published
from small_runs import Stores, config_flag

from lm_jax.config.model import TRANSFORMERS
from lm_jax.devices import chips
from lm_jax.errors import UserError
from lm_jax.plan import request


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return Stores(tmp_path_factory.mktemp("stores"))


EACH = [pytest.param(name, marks=[pytest.mark.slow] * (name not in FIRST)) for name in NAMES]


def divided(batch, devices):
    """The next batch size that divides: those for two cores are smaller than the mesh here."""
    return -(-batch // devices) * devices


@pytest.mark.parametrize("name", EACH)
def test_a_config_in_its_full_size_is_ready_to_run(name, stores, tmp_path):
    config, workdir = published(name), tmp_path / "run"
    batch = divided(config.batch_size, jax.device_count())
    done = command("lm_jax.train", config_flag(name), f"--workdir={workdir}", "--dry_run",
                   "--config.data.store=", f"--config.data.input={stores.text}",
                   f"--config.batch_size={batch}")  # fmt: skip
    assert done.code == 0, done.err
    assert config.name in done.out
    assert not workdir.exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_config_can_be_planned_on_its_own_mesh(name):
    config, topology = published(name), chips.parse("v5p:4x4x4")
    if config.model.architecture in ("hmm", "ngram"):
        with pytest.raises(UserError, match="is no network"):
            request.for_topology(config, topology)
        return
    found = request.for_topology(
        config, topology, batch=divided(config.batch_size, topology.devices)
    )
    assert math.prod(dataclasses.astuple(found.mesh)) == topology.devices


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [x for x in FIRST if published(x).model.architecture in TRANSFORMERS]
)
def test_a_config_is_estimated_by_the_command(name):
    batch = divided(published(name).batch_size, 32)
    flags = "--topology=h100:8*4", "--mesh=config", f"--batch={batch}", "--json"
    done = command("lm_jax.plan", config_flag(name), *flags)
    assert done.code in (0, 1), done.err  # 1: it does not fit
    (plan,) = json.loads(done.out)["plans"]
    assert plan["source"] == "estimated"
    assert plan["peak"] > 0
