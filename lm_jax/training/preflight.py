"""Self-check before a run: seconds of comparisons with references; a failure names the setting."""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lm_jax.config import Config, MeshConfig
from lm_jax.config.field import facts_of
from lm_jax.devices import sharding
from lm_jax.errors import MachineError
from lm_jax.models.attention import context, kernels
from lm_jax.models.attention.softmax import MASKED_LOGIT
from lm_jax.run.checkpoint import write_test
from lm_jax.training.train_step import init_state, make_train_step

LARGE = 2**18  # elements from which on a parameter that is whole on every device is a mistake
TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 1e-2}  # of outputs of order 1


def run(config: Config, mesh: Any, abstract: Any, workdir: str) -> str:
    """Runs all checks and returns a line of results; raises MachineError at the first failure."""
    start = time.perf_counter()
    results, model = [], config.model
    if facts_of(model)["attention"].acts(model, model.architecture):
        error = check_attention(config)
        results += [f"attention {model.attention} within {error:.0e} of the reference",
                  "documents isolated"]  # fmt: skip
    check_sharded(abstract, mesh)
    if config.microbatches > 1:
        results.append(f"accumulation within {check_accumulation(config):.0e} of the full batch")
    write_test(workdir)
    results.append("checkpoint written and read")
    return f"preflight: {', '.join(results)} ({time.perf_counter() - start:.1f} s)"


def check_attention(config: Config) -> float:
    """Compares the chosen backend with the reference: outputs, gradients, and that no document sees
    another.
    """
    model = config.model
    length = 256 * sharding.ways("length")  # two blocks of queries on the xla backend
    rows = sharding.ways("batch")
    heads = (model.kv_heads, model.num_heads // model.kv_heads)
    what = (model.attention, model.dtype, (rows, length), heads, model.head_size)
    measure = lambda function: jax.jit(function, static_argnums=(0, 1, 2, 3, 4))(*what)
    # One program after the other: see `gaps`.
    error, gradient = (float(x) for x in measure(gaps))
    leak = float(measure(leaks))
    limit = TOLERANCE[model.dtype]
    if not (error <= limit and gradient <= 4 * limit):
        raise MachineError(
            f"preflight: config.model.attention={model.attention!r} differs from the reference by "
            f"{error:.1e} (gradients {gradient:.1e}; at most {limit:.0e}) on this device; "
            "set config.model.attention=xla."
        )
    if leak != 0.0:
        raise MachineError(
            f"preflight: with config.model.attention={model.attention!r} packed documents see each "
            f"other (by {leak:.1e}); set config.model.attention=xla or config.data.packed=False."
        )
    return error


def inputs(dtype, shape, heads, head_size):
    """Random q [B, L, K, G, H], k, v and other keys or values [B, L, K, H]; two documents a row."""
    (B, L), (K, G) = shape, heads
    keys = jax.random.split(jax.random.key(0), 4)
    names = ("batch", None, "heads")
    draw = lambda key, *shape: jax.random.normal(key, (B, L, *shape, head_size)).astype(dtype)
    q = sharding.shard(draw(keys[0], K, G), *names, None, None)
    k, v, noise = (sharding.shard(draw(key, K), *names, None) for key in keys[1:])
    documents = np.broadcast_to((np.arange(L) >= L // 3).astype(np.int32) + 1, (B, L))
    segments = sharding.shard(jnp.asarray(documents), "batch", None)
    return q, k, v, noise, kernels.Mask(causal=True, segments=segments)


def backend_attention(backend, mask, q, k, v):
    """Attention as a layer has it: over the mesh, by `backend`."""
    here, _, _ = context.shared(mask, {}, jnp.arange(q.shape[1])[None])
    parts = (context.parts_of(x, here.balanced) for x in (q, k, v))
    names = ("batch", "length", "heads")
    q, k, v = (sharding.shard(x, *names, *(None,) * (x.ndim - 3)) for x in parts)
    o = context.attention(q, k, v, here, backend)
    return sharding.shard(context.rows_of(o, here.balanced), "batch", None, "heads", None, None)


def reference_attention(mask, q, k, v):
    """The reference: the product written out, in float32."""
    L, same = q.shape[1], mask.segments[:, :, None] == mask.segments[:, None, :]
    allowed = np.tril(np.ones((1, L, L), bool)) & same
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    a = jnp.einsum("blkgh,bskh->bkgls", q, k) * q.shape[-1] ** -0.5
    p = jax.nn.softmax(jnp.where(allowed[:, None, None], a, MASKED_LOGIT))
    return jnp.einsum("bkgls,bskh->blkgh", p, v)


def gaps(backend, dtype, *sizes):
    """Largest differences of outputs and of gradients, `backend` against the reference.

    Without `leaks`, whose collectives could run beside these: on CPU, jax 0.12 runs a loop beside
    what does not depend on it, collectives of shard_map all have one number, and devices would wait
    for each other in different ones.
    """
    q, k, v, _, mask = inputs(dtype, *sizes)

    def outputs(function, *first):
        o, pull = jax.vjp(lambda *x: function(*first, *x).astype(jnp.float32), q, k, v)
        return o, pull(jnp.ones_like(o))

    o, grads = outputs(backend_attention, backend, mask)
    o_ref, grads_ref = outputs(reference_attention, mask)
    gap = lambda a, b: jnp.max(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)))
    largest = jnp.stack([gap(a, b) for a, b in zip(grads, grads_ref, strict=True)])
    return gap(o, o_ref), jnp.max(largest)


def leaks(backend, dtype, *sizes):
    """The largest difference that other keys and values in the first document make in the second,
    which must not notice at all.
    """
    q, k, v, noise, mask = inputs(dtype, *sizes)
    # One loop runs both, since programs that mean the same may round differently.
    first = (mask.segments == 1)[..., None, None]
    pairs = [jnp.stack([x, jnp.where(first, noise, x)]) for x in (k, v)]
    mine, other = jax.lax.map(lambda pair: backend_attention(backend, mask, q, *pair), pairs)
    return jnp.max(jnp.where((mask.segments == 2)[..., None, None, None], jnp.abs(other - mine), 0))


def check_sharded(abstract: Any, mesh: Any) -> None:
    """Every large array of the state is spread over the axes that shard parameters."""
    ways = mesh.shape["fsdp"] * mesh.shape["tensor"]
    if ways == 1:
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        if leaf.size >= LARGE and math.prod(leaf.sharding.shard_shape(leaf.shape)) == leaf.size:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise MachineError(
                f"preflight: {name} {leaf.shape} is whole on every device of the mesh "
                f"{dict(mesh.shape)}; its axes need a name in sharding.RULES that the mesh shards."
            )


def check_accumulation(config: Config) -> float:
    """Largest relative difference of a tiny model's gradients: microbatches against one batch."""
    tiny = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model.without_dropout(), vocab_size=128, num_layers=1, dim=32, num_heads=2,
            num_kv_heads=2, head_dim=16, mlp_dim=32, max_length=16, attention="xla",
            dtype="float32", remat="none", num_experts=0, experts_per_token=1,
        ),
        data=dataclasses.replace(config.data, sequence_length=16), mesh=MeshConfig(),
        batch_size=2 * config.microbatches, loss=dataclasses.replace(config.loss, chunk_size=0),
        optimizer=dataclasses.replace(config.optimizer, name="adamw"),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    rows = (2 * config.microbatches, 17)
    tokens = rng.integers(0, 128, rows).astype(np.int32)
    # Microbatches of unlike weight: averages of averages would show.
    weights = (rng.random((rows[0], 16)) < np.linspace(0.1, 1, rows[0])[:, None]).astype(np.float32)
    whole = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}
    if config.model.architecture == "encoder_decoder":
        whole["inputs"] = tokens[:, :0:-1]
    results = []
    with sharding.no_mesh():
        state = jax.jit(lambda: init_state(tiny))()
        step = jax.jit(make_train_step(tiny))
        for parts in (1, config.microbatches):
            batch = {name: x.reshape(parts, -1, *x.shape[1:]) for name, x in whole.items()}
            new, metrics = step(state, batch)
            # The moments are the gradients; Adam's update is hardly more than their signs, and
            # those of gradients that are zero but for rounding are anyone's guess.
            moments = jax.tree.leaves(optax.tree_utils.tree_get(new.opt, "mu"))
            gradient = np.concatenate([np.ravel(x) for x in jax.device_get(moments)])
            results.append((np.asarray(metrics["loss"]), np.asarray(metrics["gnorm"]), gradient))
    gaps = [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(*results, strict=True)]
    error = float(max(gaps))
    if not error <= 1e-3:
        raise MachineError(
            f"preflight: config.microbatches={config.microbatches} gives another update than one "
            f"batch, by {error:.1e}; set config.microbatches=1 and report this."
        )
    return error
