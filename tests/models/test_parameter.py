"""Roles of parameters: set at creation, kept by all transformations of a model."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.errors import UserError
from lm_jax.models import Transformer, create
from lm_jax.models.parameter import TABLE, by_role, hidden, vector
from lm_jax.run.checkpoint import Checkpoints, flatten

SMALL = ModelConfig(vocab_size=16, num_layers=2, dim=8, num_heads=2, mlp_dim=12, max_length=8,
                    attention="xla", dtype="float32")  # fmt: skip
WQ, KV, WO = hidden((-4,), (-3, -2, -1)), hidden((-3,), (-2, -1)), hidden((-4, -3, -2), (-1,))


def roles(tree):
    return flatten(by_role(tree, lambda role: role))


def model():
    return Transformer(SMALL, rngs=nnx.Rngs(0))


def test_what_a_layer_is_made_of_says_its_role_also_stacked():
    blocks = {name.removeprefix("decoder/blocks/"): role for name, role in roles(model()).items()}
    assert blocks == {
        "attn/wq": WQ, "attn/wk": KV, "attn/wv": KV, "attn/wo": WO,
        "mlp/up": hidden((-3,), (-1,)), "mlp/down": hidden((-2,), (-1,)),
        "attn_norm/scale": vector(), "mlp_norm/scale": vector(), "decoder/norm/scale": vector(),
        "embed/tokens": TABLE,
    }  # fmt: skip


@pytest.mark.parametrize("options", [
    {"architecture": "encoder", "token_types": 2, "head_transform": True, "pooler": True,
     "head_bias": True, "positions": "learned", "embed_norm": True, "bias": True,
     "norm": "layernorm"},
    {"architecture": "encoder_decoder", "positions": "relative", "tie_embeddings": False},
    {"num_experts": 2, "shared_experts": 1, "qk_norm": True, "bias": True},
    {"architecture": "lstm", "tie_embeddings": False},
    {"architecture": "hmm"},
], ids=lambda options: options.get("architecture", "experts"))  # fmt: skip
def test_matrices_of_every_family_decay_and_vectors_do_not(options):
    made = jax.eval_shape(lambda: create(ModelConfig(**{**vars(SMALL), **options}),
                                         rngs=nnx.Rngs(0)))  # fmt: skip
    shapes = flatten(made)
    for name, role in roles(made).items():
        axes = role.rows + role.columns
        assert len(set(axes)) == len(axes), name
        assert all(-shapes[name].ndim <= axis < 0 for axis in axes), name
        assert role.decays == bool(role.rows) or name == "start", name
        assert role.rows or not role.hidden, name


def test_a_role_outlives_gradients_updates_and_a_checkpoint(tmp_path):
    first = model()
    expected = roles(first)
    grads = jax.grad(lambda m: jnp.sum(m(jnp.zeros((1, 4), jnp.int32))))(first)
    assert roles(grads) == expected
    assert roles(optax.apply_updates(first, grads)) == expected
    abstract = jax.eval_shape(model)
    assert roles(abstract) == expected
    with Checkpoints(tmp_path) as saved:
        saved.save(1, {"model": first})
        saved.wait()
        assert roles(saved.restore({"model": abstract})[0]["model"]) == expected


def test_what_is_no_parameter_is_named():
    with pytest.raises(UserError, match=r"^parameter a: has no role"):
        by_role({"a": jnp.zeros(2)}, lambda role: role)
