"""Mixture of experts: a router, feed-forward layers for the tokens routed to them, and the losses
that balance them.
"""

# Shapes: B batch, L length, D model width, C 2 when gated else 1, F width of an expert, E experts,
# K choices of a token, T tokens and R rows (T K) of one device and those that share its tokens.

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lm_jax.config import ModelConfig
from lm_jax.devices import collectives, sharding
from lm_jax.devices.products import einsum
from lm_jax.devices.sharding import shard
from lm_jax.models import ragged
from lm_jax.models.attention import context
from lm_jax.models.attention.kernels import Mask
from lm_jax.models.layers import ACTIVATIONS, MLP, constant, std_of, weight
from lm_jax.models.parameter import TABLE, hidden, vector

AXES = {
    "up": ("experts", None, None, "mlp"),
    "down": ("experts", "mlp", None),
    "up_bias": ("experts", None, "mlp"),
}


class Experts(nnx.Module):
    """The sum of the `experts_per_token` feed-forward layers with the highest router probabilities,
    weighted by the softmax over these (Mixtral, arXiv:2401.04088, section 2.1), plus the shared
    experts, which process every token.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        E, D, C, F = config.num_experts, config.dim, 1 + config.gated, config.mlp_size
        std, end_std = std_of(config, D, F), std_of(config, F, D, ends_branch=True)
        self.router = weight(rngs, (D, E), ("embed", None), std_of(config, D, E), TABLE)
        self.up = weight(rngs, (E, D, C, F), ("experts", "embed", None, "mlp"), std,
                         hidden((-3,), (-1,)))  # fmt: skip
        self.down = weight(rngs, (E, F, D), ("experts", "mlp", "embed"), end_std,
                           hidden((-2,), (-1,)))  # fmt: skip
        if config.bias:
            self.up_bias = constant((E, C, F), ("experts", None, "mlp"), 0.0, vector())
            self.down_bias = constant((E, D), ("experts", None), 0.0, vector())
        if config.shared_experts:
            width = config.shared_experts * F
            self.shared = MLP(dataclasses.replace(config, mlp_dim=width), rngs=rngs)

    def __call__(
        self, x_BLD: jax.Array, mask: Mask | None = None, dropless: bool = False
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """([B, L, D], {balance, router_z, load [E]}: means over the tokens of the global batch).

        mask: tokens with segment 0 are padding: they go to no expert and count nowhere. dropless:
        as if capacity_factor were 0 (for decoding: a row must not depend on its neighbours).
        """
        x_BLD, mask = sharding.whole(x_BLD), mask or Mask()
        ids_BLK, weights_BLK, aux = self.route(x_BLD, mask.segments)
        if self.config.capacity_factor and not dropless:
            ids_BLK = self.dropped(ids_BLK, mask.balanced)
        kernels = {name: getattr(self, name)[...] for name in AXES if hasattr(self, name)}
        rows = ("batch", "length", None)
        y_BLD = collectives.on_each_device(self.local, (rows,) * 3 + (AXES,), rows)(
            x_BLD, ids_BLK, weights_BLK, kernels
        )
        if self.config.bias:
            share_BLE = jnp.sum(self.chosen(ids_BLK) * weights_BLK[..., None], 2)
            bias_ED = shard(self.down_bias[...], None, None).astype(x_BLD.dtype)
            y_BLD += einsum("ble,ed->bld", share_BLE.astype(x_BLD.dtype), bias_ED, *rows)
        y_BLD = shard(y_BLD, *sharding.stream(x_BLD.shape[2]))
        return y_BLD + self.shared(x_BLD) if self.config.shared_experts else y_BLD, aux

    def route(self, x_BLD, segments_BL) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(expert of each choice [B, L, K], best first, E for none; its weight, float32; losses),
        all computed in float32 (Switch, arXiv:2101.03961, section 2.4).
        """
        E, K = self.config.num_experts, self.config.experts_per_token
        with jax.default_matmul_precision("float32"):
            x, rows = x_BLD.astype(jnp.float32), ("batch", "length", None)
            logits_BLE = einsum("bld,de->ble", x, self.router[...], *rows)
        probs_BLE = jax.nn.softmax(logits_BLE)
        ids_BLK = jax.lax.top_k(jax.lax.stop_gradient(probs_BLE), K)[1]
        weights_BLK = jnp.sum(self.chosen(ids_BLK) * probs_BLE[:, :, None], -1)
        weights_BLK /= jnp.sum(weights_BLK, -1, keepdims=True)
        real_BL = jnp.ones(x.shape[:2], bool) if segments_BL is None else segments_BL > 0
        real_BL = shard(real_BL, "batch", "length")
        ids_BLK = jnp.where(real_BL[..., None], ids_BLK, E)
        tokens = jnp.maximum(jnp.sum(real_BL, dtype=jnp.float32), 1.0)
        # Switch, equations 4 to 6, with shares of the choices: 1 when all experts have equal load.
        load_E = jnp.sum(self.chosen(ids_BLK), (0, 1, 2)) / (tokens * K)
        prob_E = jnp.sum(probs_BLE * real_BL[..., None], (0, 1)) / tokens
        log_z_BL = jax.nn.logsumexp(logits_BLE, -1)
        aux = {
            "balance": E * jnp.sum(load_E * prob_E),
            # ST-MoE, arXiv:2202.08906, equation 5.
            "router_z": jnp.sum(jnp.square(log_z_BL) * real_BL) / tokens,
            "load": load_E,
        }
        if collectives.inside("layers"):  # of a part of the batch: for `merge_parts`
            aux |= {"prob": prob_E, "tokens": jnp.sum(real_BL, dtype=jnp.float32)}
        return ids_BLK, weights_BLK, aux

    def chosen(self, ids_BLK: jax.Array) -> jax.Array:
        """1.0 at the expert of each choice, [B, L, K, E]."""
        every = jnp.arange(self.config.num_experts)[None, None, None]
        return (ids_BLK[..., None] == every).astype(jnp.float32)

    def dropped(self, ids_BLK: jax.Array, balanced: bool) -> jax.Array:
        """The choices with E in place of those beyond the capacity of their expert, which is
        `capacity_factor` times the mean load, rounded up. In the order of the batch (Switch,
        section 2.2); with capacity_order "choices" all first choices of the batch before any
        second one (GShard, arXiv:2006.16668, algorithm 1).
        """
        ids_BLK = context.rows_of(ids_BLK, balanced)
        config, (B, L, K) = self.config, ids_BLK.shape
        E = config.num_experts
        capacity = math.ceil(config.capacity_factor * B * L * K / E)
        chosen_BLKE = self.chosen(ids_BLK).astype(jnp.int32)
        if config.capacity_order == "choices":
            each = [places(chosen_BLKE[:, :, k]) for k in range(K)]
            # Second choices come after all first choices of their expert, and so on.
            totals_KE = jnp.stack([total_E for _, total_E in each])
            before_KE = jnp.cumsum(totals_KE, 0) - totals_KE
            place_BLKE = jnp.stack([place_BLE for place_BLE, _ in each], 2) + before_KE[None, None]
        else:
            place_BLKE = places(chosen_BLKE.reshape(B, L * K, E))[0].reshape(B, L, K, E)
        place_BLK = jnp.sum(place_BLKE * chosen_BLKE, -1)
        return context.parts_of(jnp.where(place_BLK < capacity, ids_BLK, E), balanced)

    def local(self, x_BLD, ids_BLK, weights_BLK, kernels: dict[str, jax.Array]) -> jax.Array:
        """Output of this device's experts for the tokens of all devices that share them,
        reduce-scattered to these; without a mesh, of all experts.
        """
        x, ids, weights = (collectives.joined(x, "experts") for x in (x_BLD, ids_BLK, weights_BLK))
        E, D, C, F = kernels["up"].shape
        dtype, K, bits = x.dtype, ids.shape[-1], self.config.bits("experts")
        ids = ids.reshape(-1, K) - collectives.index("experts") * E
        ids = jnp.where((ids >= 0) & (ids < E), ids, E)  # E: on another device, or dropped
        choice_R, row_TK, sizes_E = ragged.plan(ids, E)
        x_RD = ragged.dispatch(x.reshape(-1, D), choice_R, row_TK)
        h = ragged.grouped(bits, x_RD, kernels["up"].reshape(E, D, C * F).astype(dtype), sizes_E)
        h_RCF = checkpoint_name(h, "product").reshape(-1, C, F)
        if self.config.bias:
            mine_RE = ids.reshape(-1)[choice_R][:, None] == jnp.arange(E)[None]
            bias_ECF = kernels["up_bias"].astype(dtype)
            h_RCF += jnp.einsum("re,ecf->rcf", mine_RE.astype(dtype), bias_ECF)
        h_RF = ACTIVATIONS[self.config.activation](h_RCF[:, 0])
        h_RF = checkpoint_name(h_RF * h_RCF[:, 1] if self.config.gated else h_RF, "mlp")
        y_RD = ragged.grouped(bits, h_RF, kernels["down"].astype(dtype), sizes_E)
        y_RD = checkpoint_name(y_RD, "product")
        y_TD = ragged.combine(y_RD, weights.reshape(-1, K), choice_R, row_TK)
        y_TD = collectives.summed(y_TD, "mlp").reshape(x.shape)
        return collectives.summed_part(y_TD, "experts")


def places(chosen_BRE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(number of choices of each expert before each choice [B, R, E], number of all [E]), for
    choices [B, R, E] that are 1 at their expert, in the order of the batch.
    """
    # Counts of a row start after those of the rows before it, on whatever device these are.
    counts_BE = shard(jnp.sum(chosen_BRE, 1), None, None)
    before_BE = shard(jnp.cumsum(counts_BE, 0) - counts_BE, "batch", None)
    place_BRE = before_BE[:, None] + jnp.cumsum(chosen_BRE, 1) - chosen_BRE
    return place_BRE, jnp.sum(counts_BE, 0)


def merge_parts(aux: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The expert losses [N, ...] of a batch from those of its parts [M, N, ...], weighted by their
    tokens: equal to those computed on the whole batch.
    """
    tokens_MN = aux["tokens"]
    share_MN = tokens_MN / jnp.maximum(jnp.sum(tokens_MN, 0, keepdims=True), 1.0)
    mean = {n: jnp.einsum("mn,mn...->n...", share_MN, aux[n]) for n in ("load", "prob", "router_z")}
    balance_N = aux["load"].shape[-1] * jnp.sum(mean["load"] * mean.pop("prob"), -1)
    return {"balance": balance_N, **mean}
