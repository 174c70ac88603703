"""Are our models those of `transformers`? Against files that it made (make_golden*.py)."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from lm_jax import convert
from lm_jax.config import MeshConfig
from lm_jax.convert.mapping import effective
from lm_jax.devices.sharding import make_mesh
from lm_jax.run.checkpoint import flatten

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())


def weights(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a directory, read by the safetensors library."""
    found: dict[str, np.ndarray] = {}
    for file in directory.glob("model*.safetensors"):
        found |= load_file(file)
    return found


def bits_are_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> bool:
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[name].view(np.uint32), wanted[name].view(np.uint32)) for name in wanted
    )


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers_and_weights_go_back_bit_by_bit(name, tmp_path):
    config, model = convert.import_hf(GOLDEN / name)
    expected = load_file(GOLDEN / name / "expected.safetensors")
    batch = {key: x for key, x in expected.items() if not key.endswith("logits")}
    real = batch.get("segment_ids", np.ones_like(batch["ids"])) > 0
    logits, pair_logits = forward(model, **batch)
    np.testing.assert_allclose(logits[real], expected["logits"][real], atol=1e-4, rtol=0)
    if config.pooler:
        np.testing.assert_allclose(pair_logits, expected["pair_logits"], atol=1e-4, rtol=0)

    kind = json.loads((GOLDEN / name / "config.json").read_text())["model_type"]
    convert.export_hf(model, config, tmp_path / "out", family=kind)
    used = {key: x for key, x in weights(GOLDEN / name).items() if key not in unused(config)}
    assert bits_are_equal(weights(tmp_path / "out"), used)
    assert effective(convert.hf.read_config(tmp_path / "out")[1]) == effective(config)


@jax.jit
def forward(model, ids, **more):
    """Logits of the tokens, and of the pair where the model has them."""
    x_BLD = model.hidden(ids, **more)
    return model.logits(x_BLD), model.pooler(x_BLD) if model.config.pooler else None


def unused(config) -> set[str]:
    """An untied head there has a second bias, which nothing reads."""
    untied = config.head_bias and not config.tie_embeddings
    return {"cls.predictions.bias", "lm_head.bias"} if untied else set()


def test_tensors_land_on_their_shards_and_come_back_from_them(tmp_path):
    config, alone = convert.import_hf(GOLDEN / "llama_biases")
    # The golden vocabulary is odd on purpose; a vocabulary split in two must be even.
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    with jax.set_mesh(mesh):
        _, model = convert.import_hf(GOLDEN / "llama_biases")
        for name, leaf in flatten(model).items():
            np.testing.assert_array_equal(leaf, flatten(alone)[name])
            if name.endswith(("wq", "wo", "up", "down", "tokens", "head")):
                local = leaf.addressable_shards[0].data.size
                assert local * 4 == math.prod(leaf.shape), name
        convert.export_hf(model, config, tmp_path / "out", shard_bytes=10_000)
    assert len(list((tmp_path / "out").glob("model-0000*-of-0000*.safetensors"))) > 2
    assert bits_are_equal(weights(tmp_path / "out"), weights(GOLDEN / "llama_biases"))
    _, again = convert.import_hf(tmp_path / "out")
    assert jax.tree.all(jax.tree.map(np.array_equal, again, alone))


def test_golden_files_are_small():
    for path in GOLDEN.iterdir():
        assert sum(file.stat().st_size for file in path.iterdir()) < 100_000
