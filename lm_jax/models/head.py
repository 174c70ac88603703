"""The head: logits of hidden states, and log-probabilities of given targets."""

# Shapes: B batch, L length, D model width, V vocabulary.

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.devices import collectives
from lm_jax.devices.products import einsum
from lm_jax.devices.sharding import shard, table, ways
from lm_jax.errors import UserError
from lm_jax.models.arguments import check_inputs, ready
from lm_jax.models.layers import HeadTransform, constant, softcap, std_of, weight
from lm_jax.models.parameter import TABLE, vector

MAX_LOGITS = 256 * 2**20  # bytes of float32 logits that may exist at once on one device


class Network(nnx.Module):
    """Base of neural language models: the head, from hidden states to logits. Subclasses have
    `embed`, `forward(batch, key)`, and `inputs`, the names that a batch may have beside `tokens`.
    """

    embed: Any
    forward: Any
    inputs: Any
    generates: Any = True
    conditional: Any = False
    on_host = False

    def __init__(self, config: ModelConfig):
        self.config = ready(config)

    def make_head(self, rngs: nnx.Rngs) -> None:
        """Creates the head's own weights; a tied head without bias or transform has none."""
        config = self.config
        if not config.head:
            return
        if not config.tie_embeddings:
            V, D = config.vocab_size, config.dim
            self.head = weight(rngs, (V, D), table(V), std_of(config, D, V), TABLE)
        if config.head_transform:
            self.head_transform = HeadTransform(config, rngs=rngs)
        if config.head_bias:
            self.head_bias = constant((config.vocab_size,), ("vocab",), 0.0, vector())

    def __call__(self, tokens_BL: jax.Array, **more: Any) -> jax.Array:
        """Logits [B, L, V] float32 at each token; `more` as in `hidden`.

        Raises TypeError for an argument that the model does not have, ValueError for an array of
        another shape than its tokens. Ids outside the vocabulary and positions beyond the table
        raise ValueError; under jax.jit, where they are not known, they are clamped to the nearest
        row.
        """
        return self.logits(self.hidden(tokens_BL, **more))

    def hidden(self, tokens_BL: jax.Array, key: jax.Array | None = None, **more: Any) -> jax.Array:
        """Last hidden states [B, L, D]; `more`: other arrays of a batch, by their names in
        `inputs`.

        key: a random key turns dropout on.
        """
        check_inputs(self, tokens_BL, more)
        return self.forward({"tokens": tokens_BL, **more}, key)[0]

    def logits(self, x_BLD: jax.Array) -> jax.Array:
        """Logits [B, L, V] float32 of hidden states."""
        return all_logits(self.head_states(x_BLD), self.readout(), self.config.logit_softcap)

    def head_states(self, x_BLD: jax.Array) -> jax.Array:
        """Input of the output projection, [B, L, D], from hidden states."""
        if not self.config.head:
            raise UserError(
                "config.model.head=False: this model is a body without an output head: it has "
                "hidden states (model.hidden), no logits; import it with new_head=True."
            )
        x_BLD = self.head_transform(x_BLD) if self.config.head_transform else x_BLD
        scale = self.config.logit_scale
        return x_BLD if scale == 1.0 else x_BLD * jnp.asarray(scale, x_BLD.dtype)

    def readout(self) -> dict[str, jax.Array]:
        """The head's table [V, D], and its bias [V] where it has one."""
        bias = {"bias": self.head_bias[...]} if self.config.head_bias else {}
        return {"table": self.output_table(), **bias}

    def output_table(self) -> jax.Array:
        """The head's weights [V, D]; the token embeddings when tied."""
        return (self.embed.tokens if self.config.tie_embeddings else self.head)[...]

    def log_probs(self, batch: Mapping[str, jax.Array]) -> jax.Array:
        """log p(target) [B, L] float32 of batch["targets"], in nats."""
        x_BLD = self.head_states(self.forward(dict(batch))[0])
        return log_probs(x_BLD, self.readout(), batch["targets"], self.config.logit_softcap)


AXES: dict[str, tuple[str | None, ...]] = {"table": ("vocab", None), "bias": ("vocab",)}


def all_logits(x_BLD: jax.Array, readout: dict[str, jax.Array], cap: float = 0.0) -> jax.Array:
    """Logits [B, L, V] float32; readout: the `table` [V, D], optionally a `bias` [V]."""
    # Gathered first: jax 0.12 aborts on the product of a table that fsdp cuts along the words.
    table_VD = shard(readout["table"].astype(x_BLD.dtype), *AXES["table"])
    logits_BLV = einsum("bld,vd->blv", x_BLD, table_VD, "batch", "length", "vocab")
    return as_logits(logits_BLV, readout.get("bias"), cap)


def as_logits(products_BLV: jax.Array, bias_V: jax.Array | None, cap: float) -> jax.Array:
    """Logits [B, L, V] float32 from the products of states and table: bias and cap applied."""
    logits_BLV = products_BLV.astype(jnp.float32)
    if bias_V is not None:
        logits_BLV += bias_V.astype(jnp.float32)[None, None]
    return softcap(logits_BLV, cap)


def target_log_probs(logits_BLV: jax.Array, targets_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(log p(target), log Z), both [B, L]; inside `on_each_device` the logits are a device's own.
    Targets are selected by comparison: a gather would move a sharded vocabulary.
    """
    V = logits_BLV.shape[-1]
    ids = jax.lax.broadcasted_iota(jnp.int32, (1, 1, V), 2) + collectives.index("vocab") * V
    hit_BLV = shard(ids, None, None, "vocab") == targets_BL[..., None]
    hit_BL = collectives.summed(jnp.sum(jnp.where(hit_BLV, logits_BLV, 0.0), -1), "vocab")
    log_z_BL = logsumexp(logits_BLV)
    return hit_BL - log_z_BL, log_z_BL


def logsumexp(logits_BLV: jax.Array) -> jax.Array:
    """log Z [B, L], also of a vocabulary that is cut over devices."""
    if not collectives.inside("vocab"):
        return jax.nn.logsumexp(logits_BLV, -1)
    top_BL = collectives.maximum(jnp.max(logits_BLV, -1), "vocab")
    z_BL = collectives.summed(jnp.sum(jnp.exp(logits_BLV - top_BL[..., None]), -1), "vocab")
    return jnp.log(z_BL) + top_BL


def log_probs(x_BLD, readout: dict[str, jax.Array], targets_BL, cap: float = 0.0) -> jax.Array:
    """log p(target) [B, L] in nats, computed in chunks of `chunk_size` positions."""
    size = chunk_size(x_BLD.shape, len(readout["table"]), 0)

    def local(x_BLD, readout, targets_BL):
        def part(chunk):
            products_BLV = jnp.einsum("bld,vd->blv", chunk[0], readout["table"])
            logits_BLV = as_logits(products_BLV, readout.get("bias"), cap)
            return target_log_probs(logits_BLV, chunk[1])[0]

        if size >= x_BLD.shape[1]:
            return part((x_BLD, targets_BL))
        chunks = jax.lax.map(part, split(size, x_BLD, targets_BL))
        return jnp.moveaxis(chunks, 0, 1).reshape(targets_BL.shape)

    low = readout | {"table": readout["table"].astype(x_BLD.dtype)}
    rows = ("batch", "length")
    inputs = ((*rows, None), AXES, rows)
    return collectives.on_each_device(local, inputs, rows, own=False)(x_BLD, low, targets_BL)


def chunk_size(shape: tuple[int, ...], vocab_size: int, requested: int) -> int:
    """Positions of each row whose logits exist at once on a device: the largest divisor of its
    length up to `requested` or, where that is 0, to what fits into MAX_LOGITS.
    """
    B, L = shape[0], shape[1] // ways("length")
    bytes_of_position = 4 * B * vocab_size // ways("batch", "vocab")
    limit = requested or max(1, MAX_LOGITS // bytes_of_position)
    return next(size for size in range(min(limit, L), 0, -1) if L % size == 0)


def split(size, *arrays):
    """[B, L, ...] as [L / size, B, size, ...]."""
    return tuple(jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0) for x in arrays)
