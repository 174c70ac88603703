"""Hidden Markov language models: hidden states, each with a distribution of tokens and of the next
state, trained by gradients or by expectation maximisation.

L. R. Rabiner, "A Tutorial on Hidden Markov Models" (1989). A segment of a batch is one sequence:
its tokens, and its last target. The forward algorithm runs in log space except for the product with
the transition matrix in each step, of probabilities that sum to 1. Probabilities are at least the
smallest normal float32, so no token is impossible and no gradient is infinite.
"""

# Shapes: B batch, L length, N states, V vocabulary.

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.devices.sharding import gather, shard, spec
from lm_jax.errors import DataError
from lm_jax.models.arguments import check_inputs, ready
from lm_jax.models.layers import weight
from lm_jax.models.parameter import TABLE, Role

Batch = dict[str, jax.Array]
Tables = dict[str, jax.Array]  # log p: start [N], transition [N, N] (from, to), emission [N, V]

MIN_PROBABILITY = float(jnp.finfo(jnp.float32).tiny)
MIN_COUNT = 1e-30  # an expected count below this comes from MIN_PROBABILITY alone
STD = 1.0  # initial, of the logits: states must differ before they can specialise
AXES = {"start": (None,), "transition": ("embed", None), "emission": ("embed", "vocab")}


class HMM(nnx.Module):
    """`config.dim` states over `config.vocab_size` tokens; parameters are unnormalised logits."""

    inputs = ("segment_ids",)
    generates, conditional, on_host = True, False, False

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config = ready(config)
        N, V = config.dim, config.vocab_size
        self.start = weight(rngs, (N,), AXES["start"], STD, Role(decays=True, columns=(-1,)))
        self.transition = weight(rngs, (N, N), AXES["transition"], STD, TABLE)
        self.emission = weight(rngs, (N, V), AXES["emission"], STD, TABLE)

    def __call__(self, tokens_BL: jax.Array, **more: jax.Array) -> jax.Array:
        """Logits [B, L, V] float32 of the next tokens; `more`: segment_ids [B, L].

        Raises TypeError for another argument, ValueError for ids outside the vocabulary where they
        are known; under jax.jit they are clamped to the nearest row.
        """
        check_inputs(self, tokens_BL, more)
        return self.logits(self.forward({"tokens": tokens_BL, **more})[0])

    def forward(self, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, dict]:
        """(log p(state of the next token | tokens of the segment so far) [B, L, N], {})."""
        del key
        tables = self.tables()
        first_BL = segments(batch)[1]
        start_BN = initial_state(tables, len(first_BL))
        return filtered(tables, batch["tokens"], first_BL, start_BN)[0], {}

    def logits(self, x_BLN: jax.Array) -> jax.Array:
        """log p(next token) [B, L, V] float32: logits that are normalised already."""
        emission_NV = jnp.exp(self.tables()["emission"])
        return log(contract("bln,nv->blv", jnp.exp(x_BLN), emission_NV, "batch", None, "vocab"))

    def log_probs(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """log p(target | tokens of its segment so far) [B, L] float32."""
        x_BLN = self.forward(dict(batch))[0]
        return jax.nn.logsumexp(x_BLN + emitted(self.tables(), batch["targets"]), -1)

    def nll(self, batch: Batch) -> jax.Array:
        """Negative log-likelihood of the targets in nats, weighted and summed."""
        return -jnp.sum(self.log_probs(batch) * batch["weights"])

    def init_cache(self, batch: int, length: int) -> dict[str, jax.Array]:
        """Cache of `batch` empty rows: state, log p(first state) [B, N], and length [B]."""
        del length
        state_BN = initial_state(self.tables(), batch)
        return {"state": state_BN, "length": jnp.zeros(batch, jnp.int32)}

    def decode(
        self, tokens_BL: jax.Array, cache: dict[str, jax.Array], count_B: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Hidden states [B, L, N] after tokens that follow those of the cache, and the new cache.

        count_B: number of real tokens in each row; the others do not change the state.
        """
        L = tokens_BL.shape[1]
        count_B = jnp.full_like(cache["length"], L) if count_B is None else count_B
        no_start_BL = jnp.zeros_like(tokens_BL, bool)
        x_BLN, _, state_BN = filtered(
            self.tables(), tokens_BL, no_start_BL, cache["state"], count_B
        )
        return x_BLN, {"state": state_BN, "length": cache["length"] + count_B}

    def tables(self) -> Tables:
        """log p of start, transition and emission, laid out for the forward algorithm."""
        axes = {"start": (None,), "transition": (None, None), "emission": (None, "vocab")}
        logits = {name: shard(getattr(self, name)[...], *names) for name, names in axes.items()}
        floor = lambda x: jnp.maximum(jax.nn.log_softmax(x, -1), math.log(MIN_PROBABILITY))
        return {name: floor(x) for name, x in logits.items()}


def filtered(
    tables: Tables,
    tokens_BL: jax.Array,
    first_BL: jax.Array,
    state_BN: jax.Array,
    count_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The forward algorithm (Rabiner 1989, equations 19 and 20, as conditional probabilities).

    state: log p(state of the first token) [B, N]; first: whether a sequence starts at a token
    [B, L]; count: as in `HMM.decode`. Returns log p(state of the next token | tokens so far)
    [B, L, N], log p(token | tokens before) [B, L], and the state after the last real token.
    """
    start_1N, transition_NN = tables["start"][None], jnp.exp(tables["transition"])
    steps = [emitted(tables, tokens_BL), first_BL]
    if count_B is not None:
        steps.append(jnp.arange(tokens_BL.shape[1])[None] < count_B[:, None])

    def step(state_BN, now):
        emitted_BN, first_B, *real_B = now
        joint_BN = jnp.where(first_B[:, None], start_1N, state_BN) + emitted_BN
        log_p_B = jax.nn.logsumexp(joint_BN, -1)
        p_BN = jnp.exp(joint_BN - log_p_B[:, None])
        next_BN = log(contract("bn,nm->bm", p_BN, transition_NN, "batch", None))
        for real in real_B:
            next_BN = jnp.where(real[:, None], next_BN, state_BN)
        return next_BN, (next_BN, log_p_B)

    by_time = [jnp.swapaxes(x, 0, 1) for x in steps]
    state_BN, (x_LBN, log_p_LB) = jax.lax.scan(step, state_BN, by_time)
    return jnp.swapaxes(x_LBN, 0, 1), log_p_LB.T, state_BN


def log_likelihood(tables: Tables, batch: Batch) -> jax.Array:
    """log p of all sequences of a batch, summed: of their tokens, and of the last target of each
    unless its weight is 0. Padding does not count.
    """
    segment_BL, first_BL = segments(batch)
    x_BLN, log_p_BL, _ = filtered(
        tables, batch["tokens"], first_BL, initial_state(tables, len(first_BL))
    )
    last_BL = jnp.roll(first_BL, -1, 1) & (segment_BL > 0) & (batch["weights"] > 0)
    log_q_BL = jax.nn.logsumexp(x_BLN + emitted(tables, batch["targets"]), -1)
    total_BL = jnp.where(segment_BL > 0, log_p_BL, 0.0) + jnp.where(last_BL, log_q_BL, 0.0)
    return jnp.sum(total_BL)


@jax.jit
def expected_counts(model: HMM, batch: Batch) -> tuple[jax.Array, Tables]:
    """(log-likelihood of a batch, expected counts of starts, transitions and emissions).

    The counts of Baum-Welch are the gradient of the log-likelihood with respect to the
    log-probabilities as independent variables (J. Eisner, "Inside-Outside and Forward-Backward
    Algorithms Are Just Backprop", 2016).
    """
    return jax.value_and_grad(log_likelihood)(model.tables(), batch)


@jax.jit
def maximised(model: HMM, counts: Tables, prior: float | jax.Array = 0.0) -> HMM:
    """The model whose probabilities are the shares of `counts` + `prior`; a state without expected
    counts keeps its probabilities.
    """
    new = jax.tree.map(lambda x: x, model)
    for name, axes in AXES.items():
        param, count = getattr(new, name), shard(counts[name] + prior, *axes)
        total = jnp.sum(count, -1, keepdims=True)
        share = log(count / jnp.maximum(total, MIN_PROBABILITY))
        param[...] = jnp.where(total > MIN_COUNT, share, param[...])
    return new


def em_step(model: HMM, batch: Batch, prior: float = 0.0) -> tuple[HMM, jax.Array]:
    """One round of Baum-Welch: (the new model, the log-likelihood of the old one)."""
    log_p, counts = expected_counts(model, batch)
    return maximised(model, counts, prior), log_p


def fit_em(
    model: HMM, batches: Sequence[Batch], iterations: int, prior: float = 0.0
) -> tuple[HMM, list[float]]:
    """`iterations` rounds over all batches: (the model, the log-likelihood before each round).

    prior: added to every expected count. With 0 the log-likelihood never falls, but a token without
    counts in a state gets the smallest probability there. Raises DataError without batches.
    """
    history = []
    for _ in range(iterations):
        each = [expected_counts(model, batch) for batch in batches]
        if not each:
            raise DataError("no batch to count.")
        value, counts = jax.tree.map(lambda *x: sum(x), *each)
        history.append(float(value))
        model = maximised(model, counts, prior)
    return model, history


def segments(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(segment of each token [B, L], by default one for each row, whether it begins there)."""
    segment_BL = batch.get("segment_ids")
    segment_BL = jnp.ones_like(batch["tokens"]) if segment_BL is None else segment_BL
    begins = jnp.arange(segment_BL.shape[1]) == 0
    return segment_BL, begins[None] | (jnp.roll(segment_BL, 1, 1) != segment_BL)


def initial_state(tables: Tables, rows: int) -> jax.Array:
    """log p(first state) [rows, N]."""
    start_1N = tables["start"][None]
    return shard(jnp.broadcast_to(start_1N, (rows, start_1N.shape[1])), "batch", None)


def emitted(tables: Tables, tokens_BL: jax.Array) -> jax.Array:
    """log p(token | state) [B, L, N]."""
    return gather(shard(tables["emission"].T, "vocab", None), tokens_BL, "batch", None, None)


def log(p: jax.Array) -> jax.Array:
    """log(p), at least log(MIN_PROBABILITY)."""
    return jnp.log(jnp.maximum(p, MIN_PROBABILITY))


def contract(equation: str, x: jax.Array, w: jax.Array, *names: str | None) -> jax.Array:
    """jnp.einsum in full float32: in TF32 or bfloat16 probabilities would not sum to 1."""
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum(equation, x, w, precision=precision, out_sharding=spec(*names))
