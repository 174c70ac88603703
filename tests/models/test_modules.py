"""Modules used alone: checks of their options and arguments, attention, activations by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.config import Config, ModelConfig
from lm_jax.errors import UserError
from lm_jax.models import HMM, Attention, MultiHeadAttention, Transformer, create

SMALL = {"vocab_size": 64, "num_layers": 2, "dim": 32, "num_heads": 4, "max_length": 16,
         "dtype": "float32", "attention": "xla"}  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(1), (2, 8), 0, 64)


def made(**options):
    return create(ModelConfig(**{**SMALL, **options}), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("segmet_ids", "did you mean 'segment_ids'?"),
        ("attention_mask", "segment_ids"),
        ("output_hidden_states", "inspect(tokens)"),
        ("token_type_ids", "token_types"),
        ("inputs", "allowed: segment_ids"),
    ],
)
@pytest.mark.parametrize("kind", ["decoder", "encoder", "lstm", "hmm"])
def test_an_argument_that_a_model_does_not_have_is_a_type_error(kind, argument, hint):
    model = made(architecture=kind)
    with pytest.raises(TypeError, match=argument) as error:
        model(TOKENS, **{argument: jnp.ones_like(TOKENS)})
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer_norm"}, "config.model.norm='layer_norm': not known. Did you mean"),
        ({"positions": "rotary"}, "config.model.positions='rotary': not known."),
        ({"num_kv_heads": 3}, "config.model.num_kv_heads=3: must divide"),
        ({"activation": "swish"}, "config.model.activation='swish': not known."),
        ({"dim": 30}, "config.model.dim=30: not divisible"),
        ({"norm_eps": -1.0}, "config.model.norm_eps=-1.0: must be above 0."),
        ({"dropout": 2.0}, "config.model.dropout=2.0: must be at least 0 and below 1."),
        ({"architecture": "bert"}, "config.model.architecture='bert': not known."),
    ],
)
def test_a_model_refuses_the_options_that_the_command_line_refuses_in_its_words(options, message):
    config = dataclasses.replace(ModelConfig(**SMALL), **options)
    for make in (Transformer, create):
        with pytest.raises(UserError) as error:
            make(config, rngs=nnx.Rngs(0))
        assert str(error.value).startswith(message)
    with pytest.raises(UserError) as error:
        Config.parse({"model": dataclasses.asdict(config), "data": {"sequence_length": 8}})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "tokens", "more", "message"),
    [
        ({}, [[0, 64]], {}, "tokens: 64 is not one of 0 to 63"),
        ({}, [[-1, 0]], {}, "tokens: -1 is not"),
        ({"positions": "learned"}, [[0] * 17], {}, "positions: 16 is not one of 0 to 15"),
        ({"positions": "learned"}, [[0, 1]], {"positions": [[3, 16]]}, "positions: 16 is not"),
        ({"architecture": "encoder", "token_types": 2}, [[0, 1]], {"token_types": [[0, 2]]},
         "token_types: 2 is not one of 0 to 1"),
        ({"architecture": "encoder_decoder"}, [[0, 1]], {"inputs": [[70]]}, "inputs: 70 is not"),
    ],
)  # fmt: skip
def test_ids_and_positions_beyond_their_tables_are_refused_where_they_are_known(
    options, tokens, more, message
):
    model = made(**options)
    with pytest.raises(ValueError, match=message):
        model(jnp.array(tokens), **{name: jnp.array(x) for name, x in more.items()})


def test_a_hidden_markov_model_checks_what_it_is_made_from_and_called_with():
    with pytest.raises(UserError, match=r"config\.model\.dim=0"):
        HMM(dataclasses.replace(ModelConfig(architecture="hmm"), dim=0), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="tokens: 64 is not one of 0 to 63"):
        made(architecture="hmm")(jnp.array([[0, 64]]))


def test_ngrams_are_counted_and_not_created():
    with pytest.raises(UserError, match=r"config\.model\.architecture=.ngram.: .*NGram"):
        made(architecture="ngram")


@pytest.mark.parametrize("kind", ["decoder", "encoder", "lstm", "hmm"])
def test_arrays_of_another_shape_than_the_tokens_are_refused(kind):
    model = made(architecture=kind)
    with pytest.raises(ValueError, match=r"tokens: shape \[8\]; expected \[B, L\]"):
        model(TOKENS[0])
    for shape in ((2, 7), (2, 1), (3, 8), (8,)):
        with pytest.raises(ValueError, match=r"segment_ids: shape .*; expected \[2, 8\]"):
            model(TOKENS, segment_ids=jnp.ones(shape, jnp.int32))


def test_an_encoder_decoder_without_inputs_is_refused_by_name():
    model = made(architecture="encoder_decoder")
    for call in (model, model.inspect):
        with pytest.raises(UserError, match=r"an encoder_decoder .*`inputs`"):
            call(TOKENS)
    with pytest.raises(ValueError, match=r"input_segment_ids: shape \[2, 8\]; expected \[2, 6\]"):
        model(TOKENS, inputs=TOKENS[:, :6], input_segment_ids=jnp.ones_like(TOKENS))


def test_a_cache_takes_inputs_for_an_encoder_alone():
    with pytest.raises(TypeError, match=r"decoder: has no encoder, which \['inputs'\] are for"):
        made().init_cache(2, 8, inputs=TOKENS)
    model = made(architecture="encoder_decoder")
    with pytest.raises(TypeError, match="input_segmet_ids"):
        model.init_cache(2, 8, inputs=TOKENS, input_segmet_ids=TOKENS)
    with pytest.raises(UserError, match=r"an encoder_decoder needs `inputs`"):
        model.init_cache(2, 8)


def test_positions_without_a_table_have_no_end():
    assert made()(jnp.zeros((1, 20), jnp.int32)).shape == (1, 20, 64)


def test_under_jit_where_ids_are_not_known_the_same_call_works():
    model = made()
    expected = model(TOKENS)
    np.testing.assert_allclose(jax.jit(lambda m, x: m(x))(model, TOKENS), expected, atol=1e-5)
    constant = jax.jit(lambda m: m(TOKENS))  # known, while the call is traced
    np.testing.assert_allclose(constant(model), expected, atol=1e-5)


def test_attention_works_on_defaults_and_with_a_boolean_mask():
    attention = Attention(ModelConfig(dim=32, num_heads=4, dtype="float32"))
    x_BLD = jax.random.normal(jax.random.key(0), (2, 6, 32))
    causal = np.tril(np.ones((6, 6), bool))
    y_BLD, cache = attention(x_BLD)
    assert cache is None
    np.testing.assert_allclose(attention(x_BLD, causal)[0], y_BLD, atol=1e-6)
    unmasked = attention(x_BLD, np.ones((1, 6), bool))[0]
    assert np.abs(unmasked - y_BLD).max() > 1e-3
    weights = attention.weights(x_BLD, causal)
    assert weights.shape == (2, 4, 6, 6)
    assert np.all(np.asarray(weights)[:, :, ~causal] == 0)
    with pytest.raises(TypeError, match="expected booleans"):
        attention(x_BLD, jnp.zeros((6, 6)))
    with pytest.raises(TypeError, match=r"cache: needs a kernels\.Mask with q_places"):
        attention(x_BLD, cache=attention.keys(x_BLD))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_attention_on_defaults_takes_no_kernel_that_cannot_do_what_a_call_wants(
    monkeypatch, platform
):
    x_BLD, config = jax.random.normal(jax.random.key(0), (2, 6, 32)), ModelConfig(dim=32)
    causal = np.tril(np.ones((6, 6), bool))
    expected = Attention(config)(x_BLD)[0]
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    attention = Attention(config)
    assert attention.config.attention != "xla"
    for mask in (None, causal):  # float32 on a GPU, six tokens and a free mask on a TPU
        np.testing.assert_allclose(attention(x_BLD, mask)[0], expected, atol=1e-6)
    named = Attention(dataclasses.replace(config, attention=attention.config.attention))
    with pytest.raises(UserError, match=f"config.model.attention='{named.config.attention}'"):
        named(x_BLD, causal)


def test_multi_head_attention_is_the_equation_of_the_paper():
    layer = MultiHeadAttention(num_heads=2, d_model=8, d_k=3, d_v=5, dropout=0.5)
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 4, 8))
    mask = np.tril(np.ones((4, 4), bool))
    y, weights = layer(q, k, v, mask)
    assert (y.shape, weights.shape) == ((2, 4, 8), (2, 2, 4, 4))
    heads = []
    for i in range(2):
        a = (q @ layer.wq[...][:, i]) @ (k @ layer.wk[...][:, i]).swapaxes(1, 2) / np.sqrt(3)
        p = jax.nn.softmax(jnp.where(mask[None], a, -jnp.inf), -1)
        np.testing.assert_allclose(weights[:, i], p, atol=1e-6)
        heads.append(p @ (v @ layer.wv[...][:, i]))
    expected = jnp.concatenate(heads, -1) @ layer.wo[...].reshape(10, 8)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    dropped, same = layer(q, k, v, mask, dropout_key=jax.random.key(1))
    assert np.array_equal(same, weights)
    assert not np.allclose(dropped, y)
    with pytest.raises(ValueError, match="num_heads=3 must divide d_model=8"):
        MultiHeadAttention(3, 8)
    with pytest.raises(ValueError, match="d_k=-3"):
        MultiHeadAttention(2, 8, d_k=-3)
    np.testing.assert_array_equal(layer(q, k, v, mask.tolist())[0], y)
    for wrong in (mask.astype(np.int32), np.ones((1, 1, 1, 4, 4), bool)):
        with pytest.raises(TypeError, match=r"mask: .*expected booleans .*\[B, N, L, S\]"):
            layer(q, k, v, wrong)


INSIDE = {
    "llama": {"num_kv_heads": 2, "window": 3, "layer_pattern": "lg"},
    "gpt": {"positions": "learned", "norm": "layernorm", "attn_softcap": 5.0},
    "bert": {"architecture": "encoder", "norm_order": "post", "final_norm": False,
             "token_types": 2},
    "t5": {"architecture": "encoder_decoder", "positions": "relative", "encoder_layers": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_states_and_weights_of_all_layers_are_those_of_the_forward_pass(name):
    model = made(**INSIDE[name])
    segments = jnp.array([[1] * 5 + [2] * 3, [1] * 8])
    more = {"segment_ids": segments}
    if name == "t5":
        more |= {"inputs": TOKENS[:, :6], "input_segment_ids": segments[:, :6]}
    inside = model.inspect(TOKENS, **more)
    assert len(inside.states) == 3
    assert len(inside.attention) == 2
    np.testing.assert_allclose(inside.states[-1], model.hidden(TOKENS, **more), atol=1e-5)
    for weights in (*inside.attention, *inside.cross_attention):
        assert weights.shape[:3] == (2, 4, 8)
        np.testing.assert_allclose(np.sum(weights, -1), 1, atol=1e-5)
        assert not np.asarray(weights)[0, :, 5:, :5].any()  # another document
    if name == "t5":
        assert len(inside.encoder.states) == 4
        assert inside.cross_attention[0].shape == (2, 4, 8, 6)
