"""Sampling: a key/value cache, and chunks of drawn tokens."""

# Shapes: B rows, L tokens of a block, D model width, V vocabulary, T tokens of a chunk.
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.config.field import INT_MAX
from lm_jax.data.tokens.specials import decoder_start
from lm_jax.devices import sharding
from lm_jax.devices.sharding import shard, ways
from lm_jax.errors import UserError
from lm_jax.inference.prompts import Prompt, Reading, reading_of
from lm_jax.models.classical.counted import NGram

CHUNK = 8  # tokens a dispatch: Python's share is small, and text still streams
BLOCKS = (32, 256)  # widths in which prompts are read: two programs whatever their lengths
TEMPERATURE, TOP_P = 0.8, 0.95  # a little safer than the model's own distribution
NEVER = -1e30  # a logit that is never drawn
MOST = 256  # new tokens when no number is asked for
NOTHING = -1  # what a row gives after its end


def sample(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    temperature: float | jax.Array = TEMPERATURE,
    top_k: int | jax.Array = 0,
    top_p: float | jax.Array = TOP_P,
) -> jax.Array:
    """One token id a row, [B] int32, drawn from softmax(logits / temperature); 0 takes the largest.

    top_k > 0 keeps that many of the likeliest; top_p < 1 keeps, of these, the fewest whose
    probabilities reach top_p (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751); tokens
    equal to the last that is kept stay too. keys_B:
    one random key a row. All settings may be traced: changing one compiles nothing.
    """
    B, V = logits_BV.shape
    temperature, top_k, top_p = jnp.asarray(temperature), jnp.asarray(top_k), jnp.asarray(top_p)
    drawn = temperature > 0
    scaled_BV = logits_BV / jnp.where(drawn, temperature, 1.0)

    def cut(scaled_BV):
        p_BV = jax.nn.softmax(scaled_BV, -1)
        most = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)
        keep_BV = likeliest(p_BV, jnp.ones_like(p_BV), jnp.full((B, 1), most, jnp.float32))
        p_BV = jnp.where(keep_BV, p_BV, 0.0)
        keep_BV &= likeliest(p_BV, p_BV, top_p * jnp.sum(p_BV, -1, keepdims=True))
        return jnp.where(keep_BV, scaled_BV, NEVER)

    some = drawn & ((top_k > 0) | (top_p < 1))
    scaled_BV = jax.lax.cond(some, cut, lambda scaled_BV: scaled_BV, scaled_BV)
    # The largest of logits + Gumbel noise is a draw from their softmax.
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, (V,)))(keys_B)
    return jnp.argmax(scaled_BV + jnp.where(drawn, noise_BV, 0.0), -1).astype(jnp.int32)


def likeliest(p_BV: jax.Array, weights_BV: jax.Array, need_B1: jax.Array) -> jax.Array:
    """Mask [B, V] of the fewest tokens of largest `p` whose weights sum to `need`; equal ones stay
    together.

    Bisects the threshold over the bits of a float32 in 0..1, which are ordered as the numbers are:
    exact, and 0.8 ms on a CPU core for 50,304 tokens, where sorting them takes 24.
    """
    as_float = lambda bits: jax.lax.bitcast_convert_type(bits, jnp.float32)

    def halve(_, bounds):
        low_B1, high_B1 = bounds
        middle_B1 = (low_B1 + high_B1) // 2
        kept_BV = jnp.where(p_BV >= as_float(middle_B1), weights_BV, 0.0)
        enough_B1 = jnp.sum(kept_BV, -1, keepdims=True) >= need_B1
        return jnp.where(enough_B1, middle_B1, low_B1), jnp.where(enough_B1, high_B1, middle_B1)

    low_B1 = jnp.zeros(need_B1.shape, jnp.int32)
    high_B1 = jnp.full(need_B1.shape, np.float32(1).view(np.int32) + 1, jnp.int32)
    return p_BV >= as_float(jax.lax.fori_loop(0, 31, halve, (low_B1, high_B1))[0])


def check_settings(temperature: float, top_k: int, top_p: float) -> None:
    """Raises UserError at the first setting of `sample` that cannot be."""
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature}: must be 0 (the likeliest token) or more.")
    if not 0 <= top_k <= INT_MAX or top_k != int(top_k):
        raise UserError(f"top_k={top_k}: must be 0 (off) or a number of tokens, up to {INT_MAX}.")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p={top_p}: must be above 0 and at most 1 (off).")


def generate(
    model: Any,
    prompts: Sequence[Sequence[int] | np.ndarray],
    max_new_tokens: int,
    key: jax.Array,
    *,
    temperature: float = TEMPERATURE,
    top_k: int = 0,
    top_p: float = TOP_P,
    eos_id: int | Sequence[int] = NOTHING,
    allowed: np.ndarray | None = None,
    inputs: Sequence[Sequence[int] | np.ndarray] = (),
) -> Iterator[np.ndarray]:
    """Columns [B] int32 of new tokens, for up to `max_new_tokens` steps, as they are made.

    prompts: ids of each row, at least one (bos), of any lengths. A row that gave `eos_id` (or one
    of several) gives -1 from then on, and the columns end when every row has. What row i draws
    depends on (key, i) and its own prompt alone. allowed: bool [V], the ids that may be drawn; all
    by default. inputs: of an encoder_decoder, ids a row; the prompts are then how its answers
    begin. Raises UserError, at once, for an encoder, and when a prompt and its continuation do not
    fit `model.config.max_length`.
    """
    check_settings(temperature, top_k, top_p)
    if model.config.architecture == "encoder":
        raise UserError("an encoder (BERT) continues no text; it fills in what is masked.")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1.")
    longest, limit = max(len(prompt) for prompt in prompts), model.config.max_length
    if min(len(prompt) for prompt in prompts) < 1:
        raise UserError("a prompt has no token: give it bos at least.")
    if longest + max_new_tokens > limit:
        room = f"ask for at most {limit - longest}" if limit > longest else "shorten it"
        raise UserError(
            f"max_new_tokens={max_new_tokens} after a prompt of {longest} tokens: the model sees "
            f"{limit} (model.max_length) at most; {room}."
        )
    if (read := max(map(len, inputs), default=0)) > limit and model.config.positions == "learned":
        raise UserError(
            f"an input of {read} tokens: the encoder has {limit} positions (model.max_length); "
            "shorten it."
        )
    if allowed is None:
        allowed = np.ones(model.config.vocab_size, bool)
    ends = np.atleast_1d(np.asarray(eos_id, np.int32))
    settings = (np.float32(temperature), np.int32(top_k), np.float32(top_p), ends)
    if isinstance(model, NGram):
        return counted(model, prompts, max_new_tokens, key, settings, allowed)
    return columns(model, prompts, max_new_tokens, key, settings, allowed, padded(inputs))


def texts(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    seed: int = 0,
    reading: Reading | None = None,
    **settings: Any,
) -> Iterator[list[str]]:
    """Yields what each step adds to each prompt's continuation: [a str of whole characters a
    prompt].

    reading: how prompts become ids and what ends an answer; by default as in training here: each
    prompt stands at the start of a document (bos), an encoder_decoder reads it with eos at its end
    and writes from bos on, and special tokens other than eos are never drawn. max_new_tokens 0:
    MOST, or fewer where the model's length ends. `settings`: temperature, top_k, top_p of `sample`.
    """
    kind = model.config.architecture
    reading = reading or reading_of(tokenizer, kind)
    ids, inputs = [reading.ids(tokenizer, prompt, kind) for prompt in prompts], []
    if kind == "encoder_decoder":
        start = decoder_start(tokenizer, model.config.decoder_start)
        inputs, ids = ids, [np.array([start]) for _ in prompts]
    longest, limit = max(len(prompt) for prompt in ids), model.config.max_length
    max_new_tokens = max_new_tokens or max(1, min(MOST, limit - longest))
    allowed = reading.allowed(tokenizer, model.config.vocab_size)
    if not 0 <= seed < 2**32 or seed != int(seed):
        raise UserError(f"seed={seed}: must be a whole number from 0 to {2**32 - 1}.")
    steps = generate(
        model, ids, max_new_tokens, jax.random.key(int(seed)),
        eos_id=reading.stop_ids or NOTHING, allowed=allowed, inputs=inputs, **settings,
    )  # fmt: skip
    decoders, silent = [tokenizer.decoder() for _ in prompts], {NOTHING, *reading.stop_ids}

    def pieces() -> Iterator[list[str]]:
        for token_B in steps:
            yield [
                decoder.push(token) if int(token) not in silent else ""
                for decoder, token in zip(decoders, token_B, strict=True)
            ]
        yield [decoder.flush() for decoder in decoders]

    return pieces()


def sample_text(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    max_new_tokens: int = 0,
    seed: int = 0,
    **settings: Any,
) -> str:
    """The continuation of `prompt`, without it; arguments as in `texts`."""
    return "".join(
        added for (added,) in texts(model, tokenizer, [prompt], max_new_tokens, seed, **settings)
    )


def columns(model, prompts, max_new_tokens, key, settings, allowed_V, inputs):
    """The loop of `generate`."""
    rows = len(prompts)
    more = -rows % ways("batch")
    prompts = [*prompts, *[prompts[-1]] * more]
    inputs = {name: np.concatenate([x, x[-1:].repeat(more, 0)]) for name, x in inputs.items()}
    cache, x_BD = prefill(model, prompts, max_new_tokens, inputs)
    keys_B = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(prompts)))
    done_B = jnp.zeros(len(prompts), bool)
    allowed_V = jnp.asarray(allowed_V)
    for start in range(0, max_new_tokens, CHUNK):
        cache, x_BD, done_B, tokens_TB = continued(
            model, cache, x_BD, done_B, keys_B, settings, allowed_V
        )
        for token_B in np.asarray(tokens_TB)[: max_new_tokens - start]:
            if (token_B[:rows] == NOTHING).all():
                return
            yield token_B[:rows]


def counted(model, prompts, max_new_tokens, key, settings, allowed_V):
    """The loop of `generate` for n-grams, whose tables are on the host."""
    *settings, ends = settings
    rows = [[*map(int, prompt)] for prompt in prompts]
    keys_B = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(rows)))
    done_B = np.zeros(len(rows), bool)
    for _ in range(max_new_tokens):
        length_B = np.array([len(row) for row in rows], np.int32)
        token_B = np.asarray(
            draw(model.next_log_probs(rows), keys_B, length_B, settings, allowed_V)
        )
        for row, token in zip(rows, token_B.tolist(), strict=True):
            row.append(token)
        if done_B.all():
            return
        yield np.where(done_B, NOTHING, token_B)
        done_B |= np.isin(token_B, ends)


def drawn(logits_BV, keys_B, length_B, settings, allowed_V):
    """The next token [B] of each row; its place there gives its key, so no state is carried."""
    logits_BV = jnp.where(allowed_V[None], logits_BV, NEVER)
    return sample(logits_BV, jax.vmap(jax.random.fold_in)(keys_B, length_B), *settings)


draw = jax.jit(drawn)


def padded(inputs: Sequence[Sequence[int] | np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays that `forward` takes, of rows of ids of any lengths; {} without rows."""
    if not len(inputs):
        return {}
    # A power of two: few programs.
    width = max(16, 1 << (max(len(row) for row in inputs) - 1).bit_length())
    ids, segments = np.zeros((2, len(inputs), width), np.int32)
    for index, row in enumerate(inputs):
        ids[index, : len(row)], segments[index, : len(row)] = row, 1
    return {"inputs": ids, "input_segment_ids": segments}


def prefill(model, prompts, max_new_tokens: int, inputs: dict[str, Any]):
    """(a cache that holds the prompts and has room, hidden states [B, D] of their last tokens)."""
    B, limit = len(prompts), model.config.max_length
    lengths_B = np.array([len(prompt) for prompt in prompts], np.int32)
    longest = int(lengths_B.max())
    width = next((size for size in BLOCKS if longest <= size), BLOCKS[-1])
    # No slot lies beyond the last position that the model has. A power of two: few programs.
    padded = min(-(-longest // width) * width, limit)
    slots = min(max(64, 1 << (max(padded, longest + max_new_tokens) - 1).bit_length()), limit)
    tokens = np.zeros((B, padded), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    cache = model.init_cache(B, slots, **inputs)
    x_BD = shard(jnp.zeros((B, model.config.dim), model.config.dtype), "batch", None)
    for start in range(0, padded, width):
        cache, x_BD = extended(model, cache, x_BD, tokens[:, start : start + width], lengths_B)
    # After a row's own length comes padding: new tokens overwrite it before anything sees it.
    return {**cache, "length": shard(jnp.asarray(lengths_B), "batch")}, x_BD


@partial(jax.jit, donate_argnames=("cache", "x_BD"))
@sharding.whole_rows()
def extended(model, cache, x_BD, tokens_BL, lengths_B):
    """The cache with a block more of the prompts, and the last states of rows that end in it."""
    at_B = lengths_B - 1 - cache["length"]
    x_BLD, cache = model.decode(tokens_BL, cache, jnp.clip(at_B + 1, 0, tokens_BL.shape[1]))
    inside_B = (at_B >= 0) & (at_B < tokens_BL.shape[1])
    at_B11 = jnp.clip(at_B, 0, tokens_BL.shape[1] - 1)[:, None, None]
    last_BD = jnp.take_along_axis(x_BLD, at_B11, 1)[:, 0]
    return cache, jnp.where(inside_B[:, None], last_BD, x_BD)


@partial(jax.jit, donate_argnames=("cache", "x_BD", "done_B"))
@sharding.whole_rows()
def continued(model, cache, x_BD, done_B, keys_B, settings, allowed_V):
    """CHUNK tokens more: (cache, x_BD, done_B, tokens_TB). The next token is drawn from `x_BD`."""
    *settings, ends = settings

    def step(carry, _):
        cache, x_BD, done_B = carry
        logits_BV = shard(model.logits(x_BD[:, None])[:, 0], None, None)
        token_B = drawn(logits_BV, keys_B, shard(cache["length"], None), settings, allowed_V)
        x_BLD, cache = model.decode(token_B[:, None], cache)
        token_B = jnp.where(done_B, NOTHING, token_B)
        ended_B = (token_B[:, None] == ends[None]).any(-1)
        return (cache, x_BLD[:, 0], done_B | ended_B), token_B

    (cache, x_BD, done_B), tokens_TB = jax.lax.scan(step, (cache, x_BD, done_B), length=CHUNK)
    return cache, x_BD, done_B, tokens_TB
