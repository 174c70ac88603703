"""The hidden Markov model against Rabiner's definition, by sums over all paths, and itself."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm_jax.config import Config, MeshConfig, ModelConfig
from lm_jax.devices.sharding import make_mesh, put
from lm_jax.errors import DataError, UserError
from lm_jax.models.classical.hmm import HMM, em_step, expected_counts, fit_em

N, V, B, L = 3, 5, 2, 8
CONFIG = ModelConfig(architecture="hmm", dim=N, vocab_size=V)
# Documents of 4, 3 and 5 tokens, the last of each being the target that ends it; then padding.
DOCUMENTS = [[1, 4, 0, 2], [3, 3, 1], [0, 1, 2, 3, 4]]


def packed(rows, length=L):
    """The batch of rows of documents, each a list of ids of which all but the last are inputs."""
    names = ("tokens", "targets", "segment_ids")
    batch = {name: np.zeros((len(rows), length), np.int32) for name in names}
    for row, documents in enumerate(rows):
        at = 0
        for segment, ids in enumerate(documents, 1):
            here = slice(at, at + len(ids) - 1)
            batch["tokens"][row, here], batch["targets"][row, here] = ids[:-1], ids[1:]
            batch["segment_ids"][row, here] = segment
            at = here.stop
    batch["weights"] = (batch["segment_ids"] > 0).astype(np.float32)
    return batch


BATCH = packed([DOCUMENTS[:2], DOCUMENTS[2:]])


@pytest.fixture(scope="module")
def model():
    return HMM(CONFIG, rngs=nnx.Rngs(0))


def tables(model):
    return {name: np.exp(np.float64(x)) for name, x in model.tables().items()}


def paths(model, tokens):
    """[(states, p(states, tokens))] of all paths."""
    p = tables(model)
    for states in itertools.product(range(N), repeat=len(tokens)):
        found = p["start"][states[0]]
        for i, token in enumerate(tokens):
            found *= p["emission"][states[i], token]
            found *= p["transition"][states[i], states[i + 1]] if i + 1 < len(tokens) else 1
        yield states, found


def likelihood(model, tokens):
    return sum(p for _, p in paths(model, tokens))


log_probs = jax.jit(lambda model, batch: model.log_probs(batch))
forward = jax.jit(lambda model, batch: model.forward(batch)[0])


def test_log_probs_are_sums_over_all_paths_of_each_document(model):
    found = log_probs(model, BATCH)
    conditional = lambda ids: [
        np.log(likelihood(model, ids[: i + 1]) / likelihood(model, ids[:i]))
        for i in range(1, len(ids))
    ]
    first, second, third = map(conditional, DOCUMENTS)
    np.testing.assert_allclose(found[0, :5], first + second, rtol=1e-5)
    np.testing.assert_allclose(found[1, :4], third, rtol=1e-5)


def test_logits_are_log_probabilities_and_give_those_of_the_targets(model):
    logits = model.logits(forward(model, BATCH))
    np.testing.assert_allclose(jax.nn.logsumexp(logits, -1), 0, atol=1e-6)
    of_targets = np.take_along_axis(np.asarray(logits), BATCH["targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(of_targets, log_probs(model, BATCH), rtol=1e-5)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(model.nll(BATCH), -np.sum(of_targets * BATCH["weights"]), rtol=1e-5)


def test_padding_and_other_documents_change_nothing(model):
    other = {name: x.copy() for name, x in BATCH.items()}
    other["tokens"][0, 3:5] = 4  # another second document
    other["tokens"][:, 5:] = other["targets"][:, 5:] = 3  # other padding
    changed = log_probs(model, other)
    np.testing.assert_array_equal(changed[0, :3], log_probs(model, BATCH)[0, :3])
    np.testing.assert_array_equal(changed[1, :4], log_probs(model, BATCH)[1, :4])
    same = {**other, "tokens": BATCH["tokens"].copy()}
    same["tokens"][:, 5:] = 3
    assert expected_counts(model, same)[0] == expected_counts(model, BATCH)[0]


def test_decoding_in_pieces_is_the_same_and_padding_moves_no_state(model):
    tokens = np.random.default_rng(0).integers(0, V, (B, L)).astype(np.int32)
    whole = forward(model, {"tokens": tokens})
    decode = jax.jit(lambda model, *arguments: model.decode(*arguments))
    cache = model.init_cache(B, L)
    x, cache = decode(model, tokens, cache, jnp.array([3, 5]))
    np.testing.assert_allclose(x[0, :3], whole[0, :3], rtol=1e-5)
    np.testing.assert_allclose(x[1, :5], whole[1, :5], rtol=1e-5)
    np.testing.assert_array_equal(cache["length"], [3, 5])
    rest = np.stack([np.roll(tokens[0], -3), np.roll(tokens[1], -5)])
    x, cache = decode(model, rest, cache, jnp.array([5, 3]))
    np.testing.assert_allclose(x[0, :5], whole[0, 3:], rtol=1e-5)
    np.testing.assert_allclose(x[1, :3], whole[1, 5:], rtol=1e-5)
    np.testing.assert_allclose(cache["state"], whole[:, -1], rtol=1e-5)
    x, again = model.decode(tokens[:, :1], cache)
    np.testing.assert_array_equal(again["length"], [9, 9])


def test_the_gradient_is_what_each_path_is_expected_to_count(model):
    found, counts = expected_counts(model, BATCH)
    expected = {name: np.zeros(x.shape) for name, x in counts.items()}
    total = 0.0
    for document in DOCUMENTS:
        z = likelihood(model, document)
        total += np.log(z)
        for states, p in paths(model, document):
            expected["start"][states[0]] += p / z
            np.add.at(expected["transition"], (states[:-1], states[1:]), p / z)
            np.add.at(expected["emission"], (states, document), p / z)
    assert found == pytest.approx(total, rel=1e-5)
    for name, count in counts.items():
        np.testing.assert_allclose(count, expected[name], atol=1e-5)


def test_a_target_of_weight_0_is_not_counted(model):
    batch = {**BATCH, "weights": BATCH["weights"].copy()}
    batch["weights"][1, 3] = 0
    expected = [DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[2][:-1]]
    found = expected_counts(model, batch)[0]
    assert found == pytest.approx(sum(np.log(likelihood(model, d)) for d in expected), rel=1e-5)


def test_one_round_of_em_takes_the_shares_of_the_counts(model):
    counts = expected_counts(model, BATCH)[1]
    new, found = em_step(model, BATCH)
    assert found == expected_counts(model, BATCH)[0]
    for name, p in tables(new).items():
        np.testing.assert_allclose(
            p, counts[name] / np.sum(counts[name], -1, keepdims=True), atol=1e-6
        )
    smooth, _ = em_step(model, BATCH, prior=0.5)
    start = (counts["start"] + 0.5) / (3 + 0.5 * N)
    np.testing.assert_allclose(tables(smooth)["start"], start, atol=1e-6)


def test_the_likelihood_never_falls(model):
    rng = np.random.default_rng(0)
    rows = [[(7 * np.arange(9) % V + (rng.random(9) < 0.2)).astype(int) % V] for _ in range(4)]
    batches = [packed(rows[:2]), packed(rows[2:])]
    trained, history = fit_em(model, batches, 30)
    assert (np.diff(history) >= -1e-5 * np.abs(history[1:])).all()
    assert history[-1] > history[0] + 5
    assert sum(expected_counts(trained, b)[0] for b in batches) >= history[-1] - 1e-4


def test_a_state_that_is_never_used_keeps_what_it_had(model):
    alone = jax.tree.map(lambda x: x, model)
    alone.start[...] = jnp.array([0, 0, -1e9])
    alone.transition[...] = jnp.array([[0, 0, -1e9]] * N, jnp.float32)
    new, _ = em_step(alone, BATCH)
    np.testing.assert_array_equal(new.emission[2], alone.emission[2])
    assert np.isfinite(fit_em(new, [BATCH], 3)[1]).all()


def test_the_impossible_costs_much_but_stays_finite(model):
    """One state that emits token 0 only, and stays."""
    stubborn = jax.tree.map(lambda x: jnp.full_like(x, -jnp.inf).at[..., 0].set(0.0), model)
    value, gradient = jax.jit(jax.value_and_grad(lambda model: model.nll(BATCH)))(stubborn)
    assert 8 * 80 < value < 8 * 200  # eight targets are not 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_gradients_train_it_on_any_mesh():
    batch = packed([DOCUMENTS[:2], DOCUMENTS[2:]] * 4)
    config = ModelConfig(architecture="hmm", dim=4, vocab_size=6)

    @jax.jit
    def everything(model, batch):
        value, gradient = jax.value_and_grad(lambda model: model.nll(batch))(model)
        return value, gradient, em_step(model, batch), model.logits(model.forward(batch)[0])

    alone = HMM(config, rngs=nnx.Rngs(0))
    here = everything(alone, batch)
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    with jax.set_mesh(mesh):
        model = HMM(config, rngs=nnx.Rngs(0))
        there = everything(model, put(batch, mesh))
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for a, b in ((model, there[1]), (model, there[2][0])):
        assert a.emission[...].sharding == b.emission[...].sharding
        assert a.transition[...].sharding == b.transition[...].sharding
    value, gradient, *_ = here
    lower = jax.tree.map(lambda p, g: p - 0.02 * g, alone, gradient)
    assert everything(lower, batch)[0] < value


def test_nothing_to_count_is_refused(model):
    with pytest.raises(DataError, match="no batch"):
        fit_em(model, [], 1)


def test_a_config_needs_no_heads_but_the_causal_objective():
    values = {"model": {"architecture": "hmm", "dim": 13}}
    assert Config.parse(values).model.dim == 13
    with pytest.raises(UserError, match=r"config.loss.objective='mlm'.*hmm"):
        Config.parse({**values, "loss": {"objective": "mlm"}})
