"""Gradients in bfloat16 beside those in float32: what many tokens share is summed in float32."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax.config import LossConfig, MeshConfig, ModelConfig
from lm_jax.devices import sharding
from lm_jax.models import create
from lm_jax.models.parameter import by_role
from lm_jax.run.checkpoint import flatten
from lm_jax.tasks.objectives import loss

V, B, L = 64, 16, 128
SMALL = ModelConfig(
    vocab_size=V, num_layers=2, dim=32, num_heads=4, mlp_dim=64, max_length=L, attention="xla",
    norm="layernorm", positions="learned", activation="gelu", gated=False, bias=True,
)  # fmt: skip
MODELS = {
    "BERT": dataclasses.replace(
        SMALL, architecture="encoder", norm_order="post", final_norm=False, embed_norm=True,
        token_types=2, head_transform=True, head_bias=True, pooler=True,
    ),
    # Every token asks both experts: which ones it would choose may depend on the precision.
    "experts": dataclasses.replace(SMALL, num_experts=2, gated=True),
    "T5": dataclasses.replace(
        SMALL, architecture="encoder_decoder", positions="relative", tie_embeddings=False,
        bias=False, norm="rmsnorm",
    ),
}  # fmt: skip
MESHES = {"one": {}, "data 8": {"data": 8}, "all": {"data": 2, "fsdp": 2, "tensor": 2}}


def batch_of(config):
    """Tokens of natural frequencies: the first of them is a quarter of all."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, V + 1)
    draw = lambda *shape: rng.choice(V, shape, p=share / share.sum()).astype(np.int32)
    tokens = draw(B, L + 1)
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:],
             "weights": np.ones((B, L), np.float32)}  # fmt: skip
    if config.pooler:
        batch["pair_label"] = rng.integers(0, 2, B).astype(np.int32)
        batch["token_types"] = np.tile(np.arange(L) > L // 3, (B, 1)).astype(np.int32)
    return batch | ({"inputs": draw(B, L)} if config.architecture == "encoder_decoder" else {})


def gradients(config, mesh, chunk):
    """({name: gradient}, {name: role})."""
    of = lambda model, batch: loss(model, batch, None, LossConfig(chunk_size=chunk))[0]
    mesh = sharding.make_mesh(MeshConfig(**mesh), jax.devices()[: 8 if mesh else 1])
    with jax.set_mesh(mesh):
        model = jax.jit(lambda: create(config, rngs=nnx.Rngs(0)))()
        found = jax.jit(jax.grad(of))(model, sharding.put(batch_of(config), mesh))
    found = {name: np.asarray(x, np.float64) for name, x in flatten(found).items()}
    return found, flatten(by_role(model, lambda role: role))


@pytest.mark.jax10  # on CPU, older XLA has no product of bfloat16 into float32 in this program
@pytest.mark.parametrize(("name", "mesh"), [
    ("BERT", "all"),
    *(pytest.param(*pair, marks=pytest.mark.slow)
      for pair in [("BERT", "data 8"), ("experts", "one"), ("experts", "all"), ("T5", "all")]),
])  # fmt: skip
def test_embeddings_and_biases_have_the_gradients_of_float32(name, mesh):
    config, chunk = MODELS[name], 0 if mesh == "one" else 16
    exact, roles = gradients(dataclasses.replace(config, dtype="float32"), MESHES[mesh], chunk)
    found, _ = gradients(dataclasses.replace(config, dtype="bfloat16"), MESHES[mesh], chunk)
    shared = [n for n in exact if not roles[n].hidden]
    assert sum(not roles[name].decays for name in shared) >= 6
    for name in shared:
        # A bias of keys moves all scores of a query alike: its gradient is 0. Beside the queries'.
        whole = np.linalg.norm(exact[name.replace("/bk", "/bq")])
        assert np.linalg.norm(found[name] - exact[name]) < 0.01 * whole, name
    most, row = exact["embed/tokens"][0], found["embed/tokens"][0]
    assert np.linalg.norm(row - most) < 0.01 * np.linalg.norm(most)
