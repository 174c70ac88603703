"""Copies of golden models with changed tensors or options."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"


@pytest.fixture
def copy(tmp_path):
    """A copy of a golden model, its tensors and its config.json changed by two functions."""

    def make(name: str, tensors=lambda found: found, options=lambda values: values) -> Path:
        path = tmp_path / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(GOLDEN / name, path)
        found = tensors(load_file(path / "model.safetensors"))
        save_file(found, path / "model.safetensors", {"format": "pt"})
        config = path / "config.json"
        config.write_text(json.dumps(options(json.loads(config.read_text()))))
        return path

    return make
