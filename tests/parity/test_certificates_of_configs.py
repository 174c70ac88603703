"""What a config of configs/ trains, exported, is the same model in transformers: the certificate
of each is proven there.
"""

import json

import pytest
from exported_families import FAMILY, WITHOUT
from scaled import FIRST
from small_runs import Run, Stores

# Minutes: launch/test.sh --parity -m "parity and slow"
pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]
pytest.importorskip("torch")
pytest.importorskip("transformers")

EXPORTED = [name for name in FIRST if name.partition(":")[0] not in WITHOUT]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return Stores(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("name", EXPORTED)
def test_what_a_config_trains_is_proven_in_transformers(name, stores, tmp_path):
    run = Run(name, tmp_path, stores.of(name))
    run.train("run", "--nopreflight")
    flags = f"--from={tmp_path / 'run'}", f"--to={tmp_path / 'out'}"
    assert "certificate proven" in run.command("convert", *flags).out
    certificate = json.loads((tmp_path / "out" / "certificate.json").read_text())
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert certificate["verdict"] == "proven"
    assert exported["model_type"] == FAMILY[name.partition(":")[0]]
