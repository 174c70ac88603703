"""Cost of modules, sharding rules and configs: our step beside a hand-written one, in turns.

    python benchmarks/framework_tax.py [--rounds=5] [--steps=4]

Plain JAX below: arrays in dicts, no Flax, no optax, no sharding; the same mathematics (GPT-2, two
query blocks a window, AdamW, clipping), from the same weights on the same batches. The losses must
agree before anything is timed. Prints the median ratio of the pairs, by CPU time and by wall time.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import lm_jax_gpt
import numpy as np

from lm_jax.devices import runtime, sharding
from lm_jax.models.attention.kernels import BLOCK
from lm_jax.training.optimizers import schedule
from lm_jax.training.train_step import init_state, make_train_step


def norm(x, scale):
    y = x - x.mean(-1, keepdims=True)
    return y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + 1e-5) * scale


def forward(p, tokens, targets, layers):
    L = tokens.shape[1]
    x = p["tokens"][tokens] + p["positions"][:L]
    for i in range(layers):
        h = norm(x, p["norm1"][i])
        q = jnp.einsum("bld,dnh->bnlh", h, p["wq"][i]) * p["wq"].shape[-1] ** -0.5
        k = jnp.einsum("bld,dnh->bnlh", h, p["wk"][i])
        v = jnp.einsum("bld,dnh->bnlh", h, p["wv"][i])
        parts = []
        for start in range(0, L, BLOCK):
            stop = min(start + BLOCK, L)
            a = jnp.einsum("bnlh,bnsh->bnls", q[:, :, start:stop], k[:, :, :stop])
            a = jnp.where(np.tril(np.ones((stop - start, stop), bool), start), a, -1e30)
            parts.append(jnp.einsum("bnls,bnsh->bnlh", jax.nn.softmax(a), v[:, :, :stop]))
        x = x + jnp.einsum("bnlh,nhd->bld", jnp.concatenate(parts, 2), p["wo"][i])
        h = gelu(norm(x, p["norm2"][i]) @ p["up"][i])
        x = x + h @ p["down"][i]
    logits = norm(x, p["norm"]) @ p["tokens"].T
    picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - picked).mean()


def make_step(config):
    o, layers = config.optimizer, config.model.num_layers
    rate = schedule(o, config.steps)
    decayed = lambda name: 0.0 if "norm" in name else o.weight_decay

    def step(state, tokens, targets):
        p, m, v, n = state
        loss, g = jax.value_and_grad(forward)(p, tokens, targets, layers)
        size = jnp.sqrt(sum((x * x).sum() for x in g.values()))
        scale = jnp.minimum(1.0, o.clip_norm / size)
        t, lr = n + 1, rate(n)
        new_p, new_m, new_v = {}, {}, {}
        for name in p:
            grad = g[name] * scale
            new_m[name] = o.b1 * m[name] + (1 - o.b1) * grad
            new_v[name] = o.b2 * v[name] + (1 - o.b2) * grad * grad
            root = jnp.sqrt(new_v[name] / (1 - o.b2**t)) + o.eps
            update = new_m[name] / (1 - o.b1**t) / root + decayed(name) * p[name]
            new_p[name] = p[name] - lr * update
        return (new_p, new_m, new_v, t), loss

    return jax.jit(step, donate_argnums=0)


def weights(model):
    b = model.decoder.blocks
    flat = lambda x: x[...].reshape(*x.shape[:3], *x.shape[4:])  # one query head a key head
    values = {
        "tokens": model.embed.tokens[...], "positions": model.embed.positions[...],
        "norm1": b.attn_norm.scale[...], "norm2": b.mlp_norm.scale[...],
        "norm": model.decoder.norm.scale[...],
        "wq": flat(b.attn.wq), "wk": b.attn.wk[...], "wv": b.attn.wv[...],
        "wo": b.attn.wo[...][:, :, 0], "up": b.mlp.up[...][:, :, 0], "down": b.mlp.down[...],
    }  # fmt: skip
    return {name: jnp.array(np.asarray(x)) for name, x in values.items()}


def gelu(x):
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def main():
    parser = lm_jax_gpt.parser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.set_defaults(steps=4)
    a = parser.parse_args()
    runtime.huge_pages()  # as every command of lm_jax does
    runtime.start()
    c, stream = lm_jax_gpt.config(a), lm_jax_gpt.batches(a)
    mesh = sharding.make_mesh(c.mesh)
    with jax.set_mesh(mesh):
        ours = jax.jit(lambda: init_state(c))()
        our_step = jax.jit(make_train_step(c), donate_argnums=0)
    p = weights(ours.model)
    zeros = lambda: jax.tree.map(jnp.zeros_like, p)
    theirs, their_step = (p, zeros(), zeros(), jnp.zeros((), jnp.int32)), make_step(c)

    def run_ours(batch):
        nonlocal ours
        with jax.set_mesh(mesh):
            ours, metrics = our_step(ours, batch)
        return float(metrics["loss"])

    def run_theirs(batch):
        nonlocal theirs
        theirs, loss = their_step(theirs, batch["tokens"][0], batch["targets"][0])
        return float(loss)

    for _ in range(3):
        batch = next(stream)
        pair = run_ours(batch), run_theirs(batch)
        assert abs(pair[0] - pair[1]) < 1e-4, f"not the same mathematics: {pair}"
    print(f"losses agree: {pair[0]:.6f} {pair[1]:.6f}")
    ratios: dict[str, list[float]] = {"CPU": [], "wall": []}
    for _ in range(a.rounds):
        took = {}
        for run in (run_ours, run_theirs):
            batch = next(stream)
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(a.steps):
                run(batch)
            took[run] = time.process_time() - cpu, time.perf_counter() - wall
        for i, kind in enumerate(ratios):
            ratios[kind].append(took[run_ours][i] / took[run_theirs][i])
    for kind, values in ratios.items():
        shown = ", ".join(f"{v:.3f}" for v in values)
        print(
            f"lm_jax / plain JAX by {kind} time: median {statistics.median(values):.3f} of {shown}"
        )


if __name__ == "__main__":
    main()
