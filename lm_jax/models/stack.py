"""A stack of blocks of attention and feed-forward layers, stored stacked and scanned."""

# Shapes: B batch, L query length, S key length, D model width, N layers.

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.devices import sharding
from lm_jax.devices.sharding import shard, ways
from lm_jax.errors import UserError
from lm_jax.models import remat as again
from lm_jax.models.attention.attention import Attention, kernels
from lm_jax.models.attention.positions import RelativeBias, Rotation, alibi
from lm_jax.models.layers import MLP, Norm, dropout
from lm_jax.models.moe import Experts
from lm_jax.models.pipeline import pipelined, with_layers


class Sight(NamedTuple):
    """Attention inputs of the layers of one kind (local, global): mask, rotation and bias."""

    mask: kernels.Mask
    rotation: Rotation | None
    bias: jax.Array | None


class Block(nnx.Module):
    """x + attention(norm(x)), then the same of an encoder's states where there are, then of the
    feed-forward layer; `norm_order` says where the norms are.
    """

    def __init__(self, config: ModelConfig, cross: bool = False, *, rngs: nnx.Rngs):
        self.config = config
        self.attn = Attention(config, rngs=rngs)
        self.mlp: Any = (Experts if config.num_experts else MLP)(config, rngs=rngs)
        if cross:
            self.cross = Attention(config, rngs=rngs)
        for name in ("attn", "cross", "mlp") if cross else ("attn", "mlp"):
            setattr(self, f"{name}_norm", Norm(config, rngs=rngs))
            if config.norm_order == "sandwich":
                setattr(self, f"{name}_out_norm", Norm(config, rngs=rngs))

    def __call__(self, x_BLD, sight: Sight, memory=None, cache=None, key=None):
        """(x_BLD, the longer cache, sums of the experts); memory: (mask, states of an encoder or
        their keys).
        """
        keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        with jax.named_scope("attention"):
            y_BLD = self.before("attn", x_BLD)
            y_BLD, cache = self.attn(
                y_BLD, sight.mask, sight.rotation, cache, sight.bias, key=keys[3]
            )
            x_BLD = self.after("attn", x_BLD, y_BLD, keys[0])
        if memory is not None:
            with jax.named_scope("cross_attention"):
                mask, seen = memory
                seen = seen if isinstance(seen, dict) else self.cross.keys(seen)
                y_BLD, _ = self.cross(self.before("cross", x_BLD), mask, memory=seen, key=keys[4])
                x_BLD = self.after("cross", x_BLD, y_BLD, keys[2])
        with jax.named_scope("mlp"):
            y_BLD, aux = self.before("mlp", x_BLD), {}
            if self.config.num_experts:
                y_BLD, aux = self.mlp(y_BLD, sight.mask, dropless=cache is not None)
            else:
                y_BLD = self.mlp(y_BLD, keys[5])
            return self.after("mlp", x_BLD, y_BLD, keys[1]), cache, aux

    def before(self, name: str, x_BLD: jax.Array) -> jax.Array:
        """Input of the branch `name`."""
        first = self.config.norm_order in ("pre", "sandwich")
        return getattr(self, f"{name}_norm")(x_BLD) if first else x_BLD

    def after(self, name: str, x_BLD: jax.Array, y_BLD: jax.Array, key: Any) -> jax.Array:
        """The sum of x and what the branch `name` says."""
        if self.config.norm_order == "output":
            y_BLD = getattr(self, f"{name}_norm")(y_BLD)
        if self.config.norm_order == "sandwich":
            y_BLD = getattr(self, f"{name}_out_norm")(y_BLD)
        x_BLD += dropout(y_BLD, self.config.dropout, key)
        return getattr(self, f"{name}_norm")(x_BLD) if self.config.norm_order == "post" else x_BLD


class Stack(nnx.Module):
    """`layers` blocks in one loop over the period of their pattern, and the last norm."""

    def __init__(self, config: ModelConfig, layers: int = 0, causal: bool = True,
                 cross: bool = False, *, rngs: nnx.Rngs):  # fmt: skip
        self.config, self.layers, self.causal = config, layers or config.num_layers, causal
        if config.remat == "offload" and jax.__version_info__ < (0, 10):  # 0.7.2 aborts on CPU
            raise UserError(
                "config.model.remat='offload': needs jax 0.10 or later, and this is "
                f"{jax.__version__}; set it to full."
            )
        keys = jax.random.split(rngs.params(), self.layers)
        keys = shard(keys, "layers") if ways("layers") > 1 else keys
        own = dataclasses.replace(config, num_layers=self.layers)  # the depth that scales a branch
        self.blocks = jax.vmap(lambda key: Block(own, cross, rngs=nnx.Rngs(key)))(keys)
        if config.final_norm:
            self.norm = Norm(config, rngs=rngs)
        if config.positions == "relative":
            self.relative = RelativeBias(config, causal, rngs=rngs)

    def __call__(self, x_BLD, sights: dict[str, Sight], memory=None, cache=None, key=None):
        """(states [B, L, D], cache [N, ...], sums of the experts [N, ...]).

        sights: by the letters of the pattern. memory: (mask, states of an encoder [B, S, D] or the
        layers' keys of them, [N, B, S, K, H]).
        """
        keys = None if key is None else jax.random.split(key, self.layers)
        mask, states = memory or (None, None)
        keyed = states if isinstance(states, dict) else None
        seen = sights, None if memory is None else (mask, None if keyed else states)
        run = partial(pipelined, self.through, self.config) if ways("layers") > 1 else self.through
        x_BLD, cache, aux = run(x_BLD, seen, (self.blocks, keys), (cache, keyed))
        return sharding.whole(self.norm(x_BLD) if self.config.final_norm else x_BLD), cache, aux

    def through(self, x_BLD, seen, layers, kept, part=None):
        """Runs the layers in order; returns (states, cache, expert losses).

        seen: (sights, memory). layers: blocks and keys of dropout [N]. kept: (cache, keys of the
        memory) [N, B, ...]. part: the number of these rows among those of a pipeline.
        """
        config, kinds = self.config, self.config.kinds
        (sights, memory), (blocks, keys), (cache, keyed) = seen, layers, kept
        if part is not None and keys is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, part)
        xs = (blocks, cache, keys, keyed)

        def step(kind: str, x_BLD, layer):
            block, cache, key, keyed = layer
            seen = memory and (memory[0], memory[1] if keyed is None else keyed)
            x_BLD, *rest = block(x_BLD, sights[kind], seen, cache, key)
            return x_BLD, rest

        def steps(kinds: str, x_BLD, layers):
            """As many layers as letters; trees [letters, ...] in and out."""
            found = []
            for index, kind in enumerate(kinds):
                x_BLD, rest = step(kind, x_BLD, jax.tree.map(lambda x: x[index], layers))  # noqa: B023
                found.append(rest)
            return x_BLD, jax.tree.map(lambda *x: jnp.stack(x), *found)

        remat = partial(again.layer, policy=config.remat)
        size = len(kinds)
        count, rest = divmod(len(jax.tree.leaves(blocks)[0]), size)
        unroll = max(1, min(config.scan_unroll // size, count))
        if size == 1:
            x_BLD, out = jax.lax.scan(remat(partial(step, kinds)), x_BLD, xs, unroll=unroll)
        else:
            whole, left = split(xs, count * size)
            whole = jax.tree.map(lambda x: with_layers(x, 1, count, size), whole)
            x_BLD, out = jax.lax.scan(remat(partial(steps, kinds)), x_BLD, whole, unroll=unroll)
            out = jax.tree.map(lambda x: with_layers(x, 2, count * size), out)
            if rest:
                x_BLD, more = remat(partial(steps, kinds[:rest]))(x_BLD, left)
                out = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, more)
        return x_BLD, *out

    def inspect(self, x_BLD, sights: dict[str, Sight], memory=None) -> tuple[list, list, list]:
        """Every layer by itself: (the states before the first and after each, attention weights,
        cross-attention weights). Arguments as in a call; memory: (mask, states [B, S, D]).
        """
        states, seen, crossed = [x_BLD], [], []
        for layer in range(self.layers):
            block = jax.tree.map(lambda x: x[layer], self.blocks)  # noqa: B023
            sight = sights[self.config.kinds[layer % len(self.config.kinds)]]
            y_BLD = block.before("attn", x_BLD)
            seen.append(block.attn.weights(y_BLD, sight.mask, sight.rotation, sight.bias))
            if memory is not None:
                y_BLD, _ = block.attn(y_BLD, sight.mask, sight.rotation, None, sight.bias)
                y_BLD = block.before("cross", block.after("attn", x_BLD, y_BLD, None))
                keys = block.cross.keys(memory[1])
                crossed.append(block.cross.weights(y_BLD, memory[0], memory=keys))
            x_BLD, _, _ = block(x_BLD, sight, memory)
            states.append(x_BLD)
        if self.config.final_norm:
            states[-1] = self.norm(states[-1])
        return states, seen, crossed

    def bias(self, q_places_BL: jax.Array, k_places_S: jax.Array) -> jax.Array | None:
        """[1 or B, K, G, L, S] to be added to the scores, None without such positions."""
        distance_BLS = k_places_S[None, None] - q_places_BL[:, :, None]
        if self.config.positions == "alibi":
            return alibi(self.config, distance_BLS)
        return self.relative(distance_BLS) if self.config.positions == "relative" else None


def split(tree: Any, at: int) -> tuple[Any, Any]:
    """The first `at` layers, and the others."""
    return jax.tree.map(lambda x: x[:at], tree), jax.tree.map(lambda x: x[at:], tree)
