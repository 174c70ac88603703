"""GPT-2 in plain JAX: arrays in dicts, bfloat16 products, the platform's fused attention, optax's
AdamW. What one writes in an afternoon, with no documents, no sharding, no modules.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from accelerator.step import ids

CHUNKS = 8  # of the rows, for the loss: all logits at once would not fit


def parameters(model: Any) -> dict[str, Any]:
    """New weights [layers, ...], float32."""
    D, F, L = model.dim, model.mlp_dim, model.num_layers
    shapes = {"tokens": (model.vocab_size, D), "places": (model.max_length, D),
              "qkv": (L, D, 3 * D), "out": (L, D, D), "up": (L, D, F),
              "down": (L, F, D)}  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(shapes))
    p = {n: 0.02 * jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    ones, zeros = (lambda *s: jnp.ones(s)), (lambda *s: jnp.zeros(s))
    return p | {"norm1": ones(L, D), "norm2": ones(L, D), "norm": ones(D), "b_norm1": zeros(L, D),
                "b_norm2": zeros(L, D), "b_norm": zeros(D), "b_qkv": zeros(L, 3 * D),
                "b_out": zeros(L, D), "b_up": zeros(L, F), "b_down": zeros(L, D)}  # fmt: skip


def norm(x, scale, bias):
    """LayerNorm, in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    return (y * scale + bias).astype(x.dtype)


def attend(q, k, v):
    """Causal attention [B, L, N, H]."""
    kernel: Any = "cudnn" if jax.default_backend() == "gpu" else "xla"
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=kernel)


def loss_of(p, tokens, targets, heads, dtype):
    """Mean negative log-likelihood of `targets` [B, L]."""
    p = {name: x if "norm" in name else x.astype(dtype) for name, x in p.items()}
    B, L = tokens.shape
    x = p["tokens"][tokens] + p["places"][:L]
    for i in range(p["qkv"].shape[0]):
        h = norm(x, p["norm1"][i], p["b_norm1"][i]) @ p["qkv"][i] + p["b_qkv"][i]
        q, k, v = (y.reshape(B, L, heads, -1) for y in jnp.split(h, 3, -1))
        x = x + attend(q, k, v).reshape(B, L, -1) @ p["out"][i] + p["b_out"][i]
        h = norm(x, p["norm2"][i], p["b_norm2"][i]) @ p["up"][i] + p["b_up"][i]
        x = x + jax.nn.gelu(h, approximate=True) @ p["down"][i] + p["b_down"][i]
    x = norm(x, p["norm"], p["b_norm"])

    @jax.checkpoint
    def part(total, rows):
        states, wanted = rows
        logits = jnp.matmul(states, p["tokens"].T, preferred_element_type=jnp.float32)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        return total + nll.sum(), None

    chunks = CHUNKS if (B * L) % CHUNKS == 0 else 1
    rows = x.reshape(chunks, -1, x.shape[-1]), targets.reshape(chunks, -1)
    return jax.lax.scan(part, jnp.zeros(()), rows)[0] / (B * L)


def rate(config: Any, seconds: float) -> dict[str, Any]:
    """tok/s of its train step in the shape of `config`."""
    model, B, L = config.model, config.batch_size, config.data.sequence_length
    decayed = lambda p: {name: x.ndim > 1 and "norm" not in name for name, x in p.items()}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(6e-4, 0.9, 0.95, weight_decay=0.1, mask=decayed),
    )
    dtype = jnp.dtype(model.dtype)

    def step(state, tokens, targets):
        p, opt = state
        loss, grads = jax.value_and_grad(loss_of)(p, tokens, targets, model.num_heads, dtype)
        updates, opt = tx.update(grads, opt, p)
        return (optax.apply_updates(p, updates), opt), loss

    p = jax.jit(lambda: parameters(model))()
    state: Any = (p, tx.init(p))
    text = jnp.asarray(ids((B, L + 1), model.vocab_size))
    began = time.perf_counter()
    compiled: Any = (
        jax.jit(step, donate_argnums=0).lower(state, text[:, :-1], text[:, 1:]).compile()
    )
    compiling = time.perf_counter() - began
    steps, took = 3, 0.0
    while took < seconds:
        began = time.perf_counter()
        for _ in range(steps):
            state, loss = compiled(state, text[:, :-1], text[:, 1:])
        jax.block_until_ready(loss)
        took = time.perf_counter() - began
        each = took / steps
        steps = max(3, int(1.1 * seconds / each))
    return {"tok/s": B * L / each, "ms a step": each * 1e3, "compile s": compiling}
