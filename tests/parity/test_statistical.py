"""Are the statistical models those of others? Of KenLM (n-grams, ARPA files) and hmmlearn."""

import argparse
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from real_text import KENLM, LICENSE, documents

from lm_jax.config import ModelConfig
from lm_jax.models.classical import arpa
from lm_jax.models.classical.hmm import HMM, expected_counts
from lm_jax.models.classical.ngram import KneserNey

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]
REASON = "not installed; the parity extra has it: pip install 'lm_jax[parity]'"


@pytest.fixture(scope="module")
def text():
    """Real text that every Python has."""
    return documents(Path(argparse.__file__).read_text("utf-8"))


def kenlm_scores(path, lines, words):
    """log p of every token of lines of ids, [tokens], as kenlm.Model gives it for the file."""
    kenlm = pytest.importorskip("kenlm", reason="kenlm is not installed: pip install kenlm")
    model = kenlm.Model(str(path))
    scores = [
        score
        for line in lines
        for score, *_ in model.full_scores(" ".join(words[i] for i in line[:-1]))
    ]
    return np.log(10) * np.array(scores)


@pytest.mark.parametrize(
    ("order", "ending"), [(2, "arpa"), (3, "arpa.gz"), (5, "arpa"), (6, "arpa")]
)
def test_kenlm_reads_our_files_and_finds_the_same(text, order, ending, tmp_path):
    train, held, words = text
    model = KneserNey(order, len(words)).fit(train)
    arpa.write(model, tmp_path / f"model.{ending}", words)
    found = kenlm_scores(tmp_path / f"model.{ending}", held, words)
    np.testing.assert_allclose(found, model.log_prob(held), rtol=0, atol=1e-5)


def lmplz(order, lines, words, path):
    """The ARPA file that KenLM estimates from lines of ids that end with </s>."""
    if not (program := shutil.which("lmplz")):
        pytest.skip("no lmplz on the PATH; it is built from KenLM's sources")
    text = "".join(" ".join(words[i] for i in line[:-1]) + "\n" for line in lines)
    done = subprocess.run(
        [program, "-o", str(order), "-S", "100M", "--discount_fallback", "-T", str(path)],
        input=text.encode(), capture_output=True, check=True,
    )  # fmt: skip
    (path / "kenlm.arpa").write_bytes(done.stdout)
    return path / "kenlm.arpa"


@pytest.mark.parametrize("order", [2, 3, 4, 5, 6])
def test_estimates_are_those_of_lmplz(text, order, tmp_path):
    train, held, words = text
    model = KneserNey(order, len(words)).fit(train)
    path = lmplz(order, train, words, tmp_path)
    expected = kenlm_scores(path, held, words)
    np.testing.assert_allclose(model.log_prob(held), expected, rtol=0, atol=1e-4)
    theirs, names = arpa.read(path)
    ids = {name: i for i, name in enumerate(names)}
    renamed = [np.array([ids[words[i]] for i in line]) for line in held]
    np.testing.assert_allclose(theirs.log_prob(renamed), expected, rtol=0, atol=1e-4)
    sizes = [len(level.keys) for level in theirs.levels]
    assert sizes == [len(level.keys) for level in model.levels]


def test_the_golden_estimates_are_those_of_lmplz(tmp_path):
    train, held, words = documents(LICENSE)
    found = {
        f"order_{order}": kenlm_scores(lmplz(order, train, words, tmp_path), held, words)
        for order in (2, 3, 4, 5, 6)
    }
    np.savez(tmp_path / KENLM.name, **{name: x.astype(np.float32) for name, x in found.items()})
    golden = np.load(KENLM)
    for name, x in found.items():
        np.testing.assert_allclose(golden[name], x, rtol=0, atol=1e-5)


def test_likelihood_is_that_of_hmmlearn():
    hmmlearn = pytest.importorskip("hmmlearn.hmm", reason=f"hmmlearn is {REASON}")
    rng = np.random.default_rng(0)
    N, V, lengths = 6, 30, [1, 17, 40, 2]
    model = HMM(ModelConfig(architecture="hmm", dim=N, vocab_size=V), rngs=nnx.Rngs(0))
    model = jax.tree.map(lambda x: jnp.asarray(3 * rng.standard_normal(x.shape)), model)
    theirs = hmmlearn.CategoricalHMM(N)
    p = {name: np.exp(np.float64(x)) for name, x in model.tables().items()}
    p = {name: x / x.sum(-1, keepdims=True) for name, x in p.items()}
    theirs.startprob_, theirs.transmat_ = p["start"], p["transition"]
    theirs.emissionprob_, theirs.n_features = p["emission"], V

    sequences = [rng.integers(0, V, length) for length in lengths]
    expected = theirs.score(np.concatenate(sequences)[:, None], lengths)
    batch = {name: np.zeros((2, 48), np.int32) for name in ("tokens", "targets", "segment_ids")}
    # Two sequences a row; no target is known but those that follow in the same sequence.
    for i, ids in enumerate(sequences):
        at = 0 if i % 2 == 0 else lengths[i - 1]
        batch["tokens"][i // 2, at : at + len(ids)] = ids
        batch["targets"][i // 2, at : at + len(ids) - 1] = ids[1:]
        batch["segment_ids"][i // 2, at : at + len(ids)] = 1 + i % 2
    batch["weights"] = np.zeros((2, 48), np.float32)
    found, counts = expected_counts(model, batch)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    assert float(jnp.sum(counts["emission"])) == pytest.approx(sum(lengths), rel=1e-4)
    posterior = theirs.predict_proba(np.concatenate(sequences)[:, None], lengths)
    np.testing.assert_allclose(
        np.sum(counts["emission"], 1), posterior.sum(0), rtol=1e-3, atol=1e-4
    )
    with jax.enable_x64():
        double = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), model)
        found = expected_counts(double, batch)[0]
        assert found.dtype == jnp.float64
        assert float(found) == pytest.approx(expected, rel=1e-6)
