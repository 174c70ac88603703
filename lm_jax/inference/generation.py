"""Generation: prompts are read into a key/value cache, and continued in chunks of drawn tokens."""

# Shapes: B rows, L tokens of a block, D model width, V vocabulary, T tokens of a chunk.

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm_jax.config.values import number
from lm_jax.data.tokens.specials import decoder_start
from lm_jax.devices import sharding
from lm_jax.devices.sharding import shard, ways
from lm_jax.errors import UserError
from lm_jax.inference.prompts import Prompt, Reading, reading_of
from lm_jax.inference.sampling import TEMPERATURE, TOP_P, check_settings, draw, drawn

CHUNK = 8  # tokens a dispatch: Python's share is small, and text still streams
BLOCKS = (32, 256)  # widths in which prompts are read: two programs whatever their lengths
MAX_NEW_TOKENS = 256  # when no number is given
NO_TOKEN = -1  # of a row after its end


def generate(
    model: Any,
    prompts: Sequence[Sequence[int] | np.ndarray],
    max_new_tokens: int,
    key: jax.Array,
    *,
    temperature: float = TEMPERATURE,
    top_k: int = 0,
    top_p: float = TOP_P,
    eos_id: int | Sequence[int] = NO_TOKEN,
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
    max_new_tokens = number("max_new_tokens", max_new_tokens, whole=True)
    if not model.generates:
        raise UserError("an encoder (BERT) continues no text; it fills in what is masked.")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: must be at least 1.")
    longest, limit = max(len(prompt) for prompt in prompts), model.config.max_length
    if min(len(prompt) for prompt in prompts) < 1:
        raise UserError("a prompt has no token: give it bos at least.")
    if longest + max_new_tokens > limit:
        room = f"set it to at most {limit - longest}" if limit > longest else "shorten it"
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
    if model.on_host:
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
    MAX_NEW_TOKENS, or fewer where the model's length ends. `settings`: temperature, top_k, top_p of
    `sample`.
    """
    kind = model.config.architecture
    reading = reading or reading_of(tokenizer, kind)
    ids, inputs = [reading.ids(tokenizer, prompt, kind) for prompt in prompts], []
    if kind == "encoder_decoder":
        start = decoder_start(tokenizer, model.config.decoder_start)
        inputs, ids = ids, [np.array([start]) for _ in prompts]
    longest, limit = max(len(prompt) for prompt in ids), model.config.max_length
    max_new_tokens = max_new_tokens or max(1, min(MAX_NEW_TOKENS, limit - longest))
    allowed = reading.allowed(tokenizer, model.config.vocab_size)
    seed = number("seed", seed, whole=True)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: must be a whole number from 0 to {2**32 - 1}.")
    steps = generate(
        model, ids, max_new_tokens, jax.random.key(seed),
        eos_id=reading.stop_ids or NO_TOKEN, allowed=allowed, inputs=inputs, **settings,
    )  # fmt: skip
    decoders, silent = [tokenizer.decoder() for _ in prompts], {NO_TOKEN, *reading.stop_ids}

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
            if (token_B[:rows] == NO_TOKEN).all():
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
        yield np.where(done_B, NO_TOKEN, token_B)
        done_B |= np.isin(token_B, ends)


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
        token_B = jnp.where(done_B, NO_TOKEN, token_B)
        ended_B = (token_B[:, None] == ends[None]).any(-1)
        return (cache, x_BLD[:, 0], done_B | ended_B), token_B

    (cache, x_BD, done_B), tokens_TB = jax.lax.scan(step, (cache, x_BD, done_B), length=CHUNK)
    return cache, x_BD, done_B, tokens_TB
