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
from lm_jax.models import remat
from lm_jax.models.attention.attention import Attention, kernels
from lm_jax.models.attention.positions import RelativeBias, Rotation, alibi
from lm_jax.models.layers import MLP, Norm, dropout
from lm_jax.models.moe import Experts
from lm_jax.models.pipeline import pipelined, with_layers


class AttentionInputs(NamedTuple):
    """Attention inputs shared by the layers of one kind (local, global): mask, rotation, bias of
    the scores.
    """

    mask: kernels.Mask
    rotation: Rotation | None
    bias: jax.Array | None


class Block(nnx.Module):
    """A Transformer block: residual branches of self-attention, cross-attention where `cross`, and
    the feed-forward layer, x + branch(norm(x)); config.norm_order has other places of the norms.
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

    def __call__(self, x_BLD, inputs: AttentionInputs, memory=None, cache=None, key=None):
        """Runs the block; returns (states [B, L, D], the longer cache, expert losses).

        memory: (mask, an encoder's states or their keys and values).
        """
        keys = (None,) * 6 if key is None else jax.random.split(key, 6)
        with jax.named_scope("attention"):
            y_BLD = self.branch_input("attn", x_BLD)
            y_BLD, cache = self.attn(
                y_BLD, inputs.mask, inputs.rotation, cache, inputs.bias, key=keys[3]
            )
            x_BLD = self.add_branch("attn", x_BLD, y_BLD, keys[0])
        if memory is not None:
            with jax.named_scope("cross_attention"):
                mask, states = memory
                kv = states if isinstance(states, dict) else self.cross.keys(states)
                y_BLD = self.branch_input("cross", x_BLD)
                y_BLD, _ = self.cross(y_BLD, mask, memory=kv, key=keys[4])
                x_BLD = self.add_branch("cross", x_BLD, y_BLD, keys[2])
        with jax.named_scope("mlp"):
            y_BLD, aux = self.branch_input("mlp", x_BLD), {}
            if self.config.num_experts:
                y_BLD, aux = self.mlp(y_BLD, inputs.mask, dropless=cache is not None)
            else:
                y_BLD = self.mlp(y_BLD, keys[5])
            return self.add_branch("mlp", x_BLD, y_BLD, keys[1]), cache, aux

    def branch_input(self, name: str, x_BLD: jax.Array) -> jax.Array:
        """Input of the branch `name`: the residual stream, normalised where norms come first."""
        norm_first = self.config.norm_order in ("pre", "sandwich")
        return getattr(self, f"{name}_norm")(x_BLD) if norm_first else x_BLD

    def add_branch(self, name: str, x_BLD: jax.Array, y_BLD: jax.Array, key: Any) -> jax.Array:
        """The residual stream x plus the output y of the branch `name`, with dropout and norms."""
        if self.config.norm_order == "output":
            y_BLD = getattr(self, f"{name}_norm")(y_BLD)
        if self.config.norm_order == "sandwich":
            y_BLD = getattr(self, f"{name}_out_norm")(y_BLD)
        x_BLD += dropout(y_BLD, self.config.dropout, key)
        return getattr(self, f"{name}_norm")(x_BLD) if self.config.norm_order == "post" else x_BLD


class Stack(nnx.Module):
    """`layers` blocks in one loop over the periods of their pattern, and the final norm."""

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

    def __call__(
        self, x_BLD, inputs: dict[str, AttentionInputs], memory=None, cache=None, key=None
    ):
        """(states [B, L, D], cache [N, ...], expert losses [N, ...]).

        inputs: by the letters of the pattern. memory: (mask, states of an encoder [B, S, D] or the
        layers' keys and values of them, [N, B, S, K, H]).
        """
        keys = None if key is None else jax.random.split(key, self.layers)
        mask, states = memory or (None, None)
        memory_kv = states if isinstance(states, dict) else None
        shared = inputs, None if memory is None else (mask, None if memory_kv else states)
        run = self.run_layers
        run = partial(pipelined, run, self.config) if ways("layers") > 1 else run
        x_BLD, cache, aux = run(x_BLD, shared, (self.blocks, keys), (cache, memory_kv))
        return sharding.whole(self.norm(x_BLD) if self.config.final_norm else x_BLD), cache, aux

    def run_layers(self, x_BLD, shared, layers, by_layer, part=None):
        """Runs the layers in order; returns (states, cache, expert losses).

        shared: (attention inputs, memory). layers: blocks and dropout keys [N]. by_layer: (cache,
        keys and values of the memory) [N, B, ...]. part: index of these rows among the parts of a
        pipeline.
        """
        config, kinds = self.config, self.config.kinds
        (inputs, memory), (blocks, keys), (cache, memory_kv) = shared, layers, by_layer
        if part is not None and keys is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, part)
        xs = (blocks, cache, keys, memory_kv)

        def one_layer(kind: str, x_BLD, layer):
            block, cache, key, kv = layer
            seen = memory and (memory[0], memory[1] if kv is None else kv)
            x_BLD, *rest = block(x_BLD, inputs[kind], seen, cache, key)
            return x_BLD, rest

        def one_period(kinds: str, x_BLD, layers):
            """As many layers as letters; trees [letters, ...] in and out."""
            outputs = []
            for index, kind in enumerate(kinds):
                layer = jax.tree.map(lambda x: x[index], layers)  # noqa: B023
                x_BLD, rest = one_layer(kind, x_BLD, layer)
                outputs.append(rest)
            return x_BLD, jax.tree.map(lambda *x: jnp.stack(x), *outputs)

        checkpointed = partial(remat.layer, policy=config.remat)
        size = len(kinds)
        count, rest = divmod(len(jax.tree.leaves(blocks)[0]), size)
        unroll = max(1, min(config.scan_unroll // size, count))
        if size == 1:
            body = checkpointed(partial(one_layer, kinds))
            x_BLD, out = jax.lax.scan(body, x_BLD, xs, unroll=unroll)
        else:
            periods, left = split_layers(xs, count * size)
            periods = jax.tree.map(lambda x: with_layers(x, 1, count, size), periods)
            body = checkpointed(partial(one_period, kinds))
            x_BLD, out = jax.lax.scan(body, x_BLD, periods, unroll=unroll)
            out = jax.tree.map(lambda x: with_layers(x, 2, count * size), out)
            if rest:
                x_BLD, more = checkpointed(partial(one_period, kinds[:rest]))(x_BLD, left)
                out = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, more)
        return x_BLD, *out

    def inspect(
        self, x_BLD, inputs: dict[str, AttentionInputs], memory=None
    ) -> tuple[list, list, list]:
        """Runs one layer after the other; returns (states before the first and after each,
        attention weights, cross-attention weights), in lists by layer. Arguments as in a call;
        memory: (mask, states [B, S, D]).
        """
        states, weights, cross_weights = [x_BLD], [], []
        for layer in range(self.layers):
            block = jax.tree.map(lambda x: x[layer], self.blocks)  # noqa: B023
            own = inputs[self.config.kinds[layer % len(self.config.kinds)]]
            y_BLD = block.branch_input("attn", x_BLD)
            weights.append(block.attn.weights(y_BLD, own.mask, own.rotation, own.bias))
            if memory is not None:
                y_BLD, _ = block.attn(y_BLD, own.mask, own.rotation, None, own.bias)
                y_BLD = block.branch_input("cross", block.add_branch("attn", x_BLD, y_BLD, None))
                kv = block.cross.keys(memory[1])
                cross_weights.append(block.cross.weights(y_BLD, memory[0], memory=kv))
            x_BLD, _, _ = block(x_BLD, own, memory)
            states.append(x_BLD)
        if self.config.final_norm:
            states[-1] = self.norm(states[-1])
        return states, weights, cross_weights

    def bias(self, q_places_BL: jax.Array, k_places_S: jax.Array) -> jax.Array | None:
        """Bias of the scores [1 or B, K, G, L, S] by distance; None unless config.positions is
        alibi or relative.
        """
        distance_BLS = k_places_S[None, None] - q_places_BL[:, :, None]
        if self.config.positions == "alibi":
            return alibi(self.config, distance_BLS)
        return self.relative(distance_BLS) if self.config.positions == "relative" else None


def split_layers(tree: Any, at: int) -> tuple[Any, Any]:
    """Splits arrays [N, ...] into the first `at` layers and the rest."""
    return jax.tree.map(lambda x: x[:at], tree), jax.tree.map(lambda x: x[at:], tree)
