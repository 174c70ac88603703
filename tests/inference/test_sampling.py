"""Tokens are drawn from the distribution that was asked for, and a cache changes no token."""

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax.config import MeshConfig, ModelConfig
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.devices import sharding
from lm_jax.errors import UserError
from lm_jax.inference.generation import CHUNK, continued, extended, generate, sample_text, texts
from lm_jax.inference.sampling import sample
from lm_jax.models import Transformer

# Always three rows of at most 32 tokens: one program for all tests.
PROMPTS = [[5, 9, 2], [7] * 11, [3, 1] * 14]
NEW = 20  # not a multiple of CHUNK
ROWS = 4000


def abstract_model(**options):
    options = {"dim": 32, "num_heads": 4, "num_kv_heads": 2, "max_length": 60} | options
    config = ModelConfig(vocab_size=96, num_layers=2, **options)
    return jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))


def make_model(**options):
    """Weights so large that each token depends on all before it; made without compiling."""
    draw = np.random.default_rng(0).normal
    return jax.tree.map(
        lambda x: jax.numpy.asarray(draw(0, 0.3, x.shape), x.dtype), abstract_model(**options)
    )


@pytest.fixture(scope="module")
def model():
    return make_model()


def tokens(model, prompts=PROMPTS, count=NEW, seed=0, **settings):
    """[B, tokens]."""
    key = jax.random.key(seed)
    return np.stack(list(generate(model, prompts, count, key, **settings)), 1)


def uncached(model, prompts, count):
    """Greedy continuations by a whole forward pass a token."""
    forward = jax.jit(lambda model, ids: model(ids))
    ids = np.zeros((len(prompts), model.config.max_length), np.int32)
    ends = np.array([len(prompt) for prompt in prompts])
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    rows = np.arange(len(prompts))
    for _ in range(count):
        ids[rows, ends] = np.argmax(np.asarray(forward(model, ids))[rows, ends - 1], -1)
        ends += 1
    return np.stack([row[end - count : end] for row, end in zip(ids, ends, strict=True)])


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_cached_generation_equals_the_whole_forward_pass_for_prompts_of_any_length(positions):
    model = make_model(positions=positions)
    found = tokens(model, temperature=0.0)
    assert len({tuple(row) for row in found}) == len(PROMPTS)
    np.testing.assert_array_equal(found, uncached(model, PROMPTS, NEW))


def test_a_row_does_not_depend_on_the_rows_beside_it(model):
    together = tokens(model, temperature=0.0)
    alone = [tokens(model, [prompt] * 3, temperature=0.0)[0] for prompt in PROMPTS]
    np.testing.assert_array_equal(together, alone)
    beside = [PROMPTS[0], [1], [2]]
    np.testing.assert_array_equal(tokens(model, beside)[0], tokens(model)[0])


def test_prompts_are_read_in_blocks_and_the_model_is_used_to_its_last_position(model, monkeypatch):
    count = model.config.max_length - len(PROMPTS[2])
    whole = tokens(model, count=count, temperature=0.0)
    monkeypatch.setattr("lm_jax.inference.generation.BLOCKS", (16,))
    np.testing.assert_array_equal(whole, tokens(model, count=count, temperature=0.0))


def test_the_same_seed_draws_the_same_and_another_another(model):
    np.testing.assert_array_equal(tokens(model, seed=1), tokens(model, seed=1))
    assert (tokens(model, seed=1) != tokens(model, seed=2)).any()


def test_two_samples_of_one_prompt_differ(model):
    first, second, third = tokens(model, [[5]] * 3)
    assert (first != second).any()
    assert (second != third).any()


def test_top_k_of_one_is_greedy(model):
    np.testing.assert_array_equal(
        tokens(model, top_k=1, temperature=2.0), tokens(model, temperature=0.0)
    )


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 1.0, "top_p": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 1.0, "top_p": 0.79}, [0.5, 0.3]),
        ({"temperature": 1.0, "top_p": 0.81}, [0.5, 0.3, 0.15]),
        ({"temperature": 1.0, "top_p": 1e-6}, [0.5]),
        ({"temperature": 1.0, "top_p": 1e-45}, [0.5]),  # a float32 of almost nothing, or 0
        ({"temperature": 1e30, "top_p": 1.0}, [0.25] * 4),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 3}, [0.5, 0.3, 0.15]),
        ({"temperature": 1.0, "top_p": 0.7, "top_k": 3}, [0.5, 0.3]),
        ({"temperature": 1.0, "top_p": 0.82, "top_k": 2}, [0.5, 0.3]),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 99}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5, "top_p": 1.0}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"temperature": 0.0, "top_p": 1.0}, [1.0]),
    ],
)
def test_tokens_come_as_often_as_the_settings_say(settings, kept):
    order = [2, 0, 3, 1]  # the likeliest token is not the first
    logits = np.zeros(4, np.float32)
    logits[order] = np.log([0.5, 0.3, 0.15, 0.05])
    keys = jax.random.split(jax.random.key(0), ROWS)
    settings = {"top_k": 0} | settings
    found = np.asarray(drawn(np.tile(logits, (ROWS, 1)), keys, settings))
    shares = np.bincount(found, minlength=4)[order] / ROWS
    expected = np.zeros(4)
    expected[: len(kept)] = np.array(kept) / sum(kept)
    assert (shares[expected == 0] == 0).all()
    np.testing.assert_allclose(shares, expected, atol=0.03)


drawn = jax.jit(lambda logits, keys, settings: sample(logits, keys, **settings))


def test_tokens_that_are_equally_likely_stay_or_go_together():
    keys = jax.random.split(jax.random.key(0), ROWS)
    settings = {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
    logits = np.tile(np.array([2, 2, 1, 2], np.float32), (ROWS, 1))
    shares = np.bincount(np.asarray(drawn(logits, keys, settings)), minlength=4) / ROWS
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 0, 1 / 3], atol=0.03)


def test_a_row_ends_at_eos_and_all_stop_when_each_has_ended(model):
    greedy = tokens(model, temperature=0.0)[0].tolist()
    eos = next(t for i, t in enumerate(greedy) if 2 < i < CHUNK and t not in greedy[:i])
    end = greedy.index(eos)
    found = tokens(model, PROMPTS[:1] * 3, temperature=0.0, eos_id=eos)
    assert found.tolist() == [greedy[: end + 1]] * 3
    mixed = tokens(model, temperature=0.0, eos_id=eos)[0].tolist()
    assert mixed == greedy[: end + 1] + [-1] * (len(mixed) - end - 1)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 5.0, "top_p": 1.0}, {"temperature": 1e30, "top_p": 1.0},
     {"temperature": 1e30, "top_p": 0.95}, {"temperature": 1e-30, "top_p": 1e-45}],
)  # fmt: skip
def test_forbidden_tokens_are_never_drawn(model, settings):
    allowed = np.zeros(96, bool)
    allowed[[4, 8, 15]] = True
    found = set(tokens(model, allowed=allowed, **settings).ravel().tolist())
    assert found == {4, 8, 15} if settings["temperature"] > 1 else found <= {4, 8, 15}


def test_other_settings_and_prompts_compile_nothing_new(model):
    tokens(model)
    before = continued._cache_size(), extended._cache_size()
    tokens(model, [[1, 2, 3, 4], [5], [6]], 17, temperature=0.3, top_k=7, seed=3)
    assert (continued._cache_size(), extended._cache_size()) == before


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (
            [1] * 50,
            {"count": 11},
            "max_new_tokens=11 after a prompt of 50 tokens.* 60 .*at most 10",
        ),
        ([1] * 61, {"count": 1}, "prompt of 61 tokens.* 60 .*shorten"),
        ([1], {"count": 0}, "max_new_tokens=0"),
        ([], {"count": 1}, "no token"),
        ([1], {"temperature": -1.0}, "temperature=-1"),
        ([1], {"temperature": float("nan")}, "temperature=nan"),
        ([1], {"temperature": 1e39}, r"temperature=1e\+39: must be 0 .* up to 1e\+30"),
        ([1], {"top_k": -2}, "top_k=-2"),
        ([1], {"top_k": 2.5}, r"top_k='2\.5': expected a whole number"),
        ([1], {"top_p": 0.0}, "top_p=0"),
        ([1], {"top_p": 1.5}, "top_p=1.5"),
        ([1], {"count": 1.5}, r"max_new_tokens='1.5': expected a whole number\."),
        ([1], {"count": float("inf")}, "max_new_tokens='inf': expected a whole"),
        ([1], {"count": "3"}, "max_new_tokens='3': expected a whole number"),
        ([1], {"temperature": "hot"}, r"temperature='hot': expected a number\."),
        ([1], {"top_k": [4]}, r"top_k='\[4\]': expected a whole number"),
        ([1], {"top_p": None}, "top_p='None': expected a number"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(model, prompt, settings, message):
    count = settings.pop("count", 5)
    with pytest.raises(UserError, match=message):
        generate(model, [prompt], count, jax.random.key(0), **settings)


def test_generation_is_the_same_on_a_mesh(model):
    expected = tokens(model)
    mesh = sharding.make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        sharded = jax.tree.map(
            lambda x, like: jax.device_put(x, jax.NamedSharding(mesh, like.sharding.spec)),
            model,
            abstract_model(),
        )
        found = tokens(sharded)
    np.testing.assert_array_equal(found, expected)


def test_text_streams_in_whole_characters(monkeypatch):
    tokenizer = Tokenizer("bytes")
    text = "naïve 日本 🙂!"
    ids = [*tokenizer.encode(text), tokenizer.eos_id]
    columns = (np.array([i], np.int32) for i in ids)
    monkeypatch.setattr("lm_jax.inference.generation.columns", lambda *_: columns)
    pieces = [added for (added,) in texts(FakeModel, tokenizer, [""], len(ids))]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(ids) + 1  # each token was given when it came


def test_a_text_cut_inside_a_character_ends_in_a_replacement_character(monkeypatch):
    tokenizer = Tokenizer("bytes")
    columns = (np.array([i], np.int32) for i in tokenizer.encode("a日")[:-1])
    monkeypatch.setattr("lm_jax.inference.generation.columns", lambda *_: columns)
    assert sample_text(FakeModel, tokenizer, "", 3) == "a\ufffd"


def test_special_tokens_and_padded_vocabulary_are_never_drawn(monkeypatch):
    tokenizer, seen = Tokenizer("bytes"), []
    monkeypatch.setattr(
        "lm_jax.inference.generation.columns", lambda *args: seen.append(args) or iter(())
    )
    sample_text(FakeModel, tokenizer, "ab", 3)
    _, prompts, _, _, _, allowed, _ = seen[0]
    assert prompts[0].tolist() == [tokenizer.bos_id, 97, 98]
    assert allowed.shape == (384,)
    assert allowed[:256].all()
    assert np.flatnonzero(allowed[256:]).tolist() == [tokenizer.eos_id - 256]


def test_a_seed_that_is_no_whole_number_is_refused():
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match=f"seed={seed}: must be a whole number from 0 to 4294"):
            texts(FakeModel, Tokenizer("bytes"), ["a"], 3, seed)
    for seed in (1.5, "a", None, [1]):
        with pytest.raises(UserError, match=r"seed=.*: expected a whole number"):
            texts(FakeModel, Tokenizer("bytes"), ["a"], 3, seed)


class FakeModel:
    """A model that only says how large it is."""

    config = ModelConfig(vocab_size=384, max_length=64)
    generates, on_host = True, False


def test_an_encoder_is_refused_before_anything_is_computed():
    encoder = abstract_model(architecture="encoder")
    with pytest.raises(UserError, match="continues no text"):
        generate(encoder, PROMPTS, 1, jax.random.key(0))


def test_an_input_longer_than_the_table_of_positions_is_refused():
    model = abstract_model(architecture="encoder_decoder", positions="learned")
    with pytest.raises(UserError, match=r"an input of 61 tokens: the encoder has 60 positions"):
        generate(model, [[1]], 4, jax.random.key(0), inputs=[[2], [3] * 61])
