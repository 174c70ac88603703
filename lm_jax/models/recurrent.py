"""Recurrent models: layers of RNN, LSTM or GRU cells between embeddings and a head."""

# Shapes: B batch, L length, D width, V vocabulary, N layers, G gates.

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.devices.sharding import shard, whole
from lm_jax.models.head import Network
from lm_jax.models.layers import Embed, Norm, constant, dropout, std_of, weight
from lm_jax.models.parameter import hidden, vector
from lm_jax.models.recurrence import CELLS, recurrence

Carried = dict[str, jax.Array]  # h, of an LSTM also c: [N, B, D] float32
NAMES = ("h", "c")


class Layers(nnx.Module):
    """Layers with the weights of torch.nn.RNN, LSTM and GRU: gates i f g o, or r z n.

    Dropout applies to the inputs of the layers and the output of the last one, never to the state
    (Zaremba et al., arXiv:1409.2329).
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        N, G, D = config.num_layers, CELLS[config.architecture].gates, config.dim
        axes, std = (None, None, "mlp", "embed"), std_of(config, D, D)
        self.wx = weight(rngs, (N, G, D, D), axes, std, hidden((-1,), (-2,)))  # weight_ih
        self.wh = weight(rngs, (N, G, D, D), axes, std, hidden((-1,), (-2,)))  # weight_hh
        self.bx = constant((N, G, D), axes[:3], 0.0, vector(2))  # bias_ih
        self.bh = constant((N, G, D), axes[:3], 0.0, vector(2))  # bias_hh
        if config.architecture == "lstm":
            # The forget gate is open at first (Jozefowicz et al. 2015).
            self.bx[...] = self.bx[...].at[:, 1].set(1.0)

    def __call__(
        self,
        x_BLD: jax.Array,
        keep_BL: jax.Array,
        start: Carried,
        key: jax.Array | None = None,
        count_B: jax.Array | None = None,
    ) -> tuple[jax.Array, Carried]:
        """(outputs [B, L, D] of the last layer, the states of all layers after `count` steps, by
        default all).

        keep: 0 where the state is reset before a step, else 1.
        """
        N, dtype, rate = self.config.num_layers, x_BLD.dtype, self.config.dropout
        cell = CELLS[self.config.architecture]
        names = NAMES[: cell.states]
        keys = [None] * (N + 1) if key is None else list(jax.random.split(key, N + 1))
        x_BLD, ends = dropout(x_BLD, rate, keys[0]), []
        for layer in range(N):
            wx, wh, bx, bh = (w[...][layer] for w in (self.wx, self.wh, self.bx, self.bh))
            wx_GHD = shard(wx.astype(dtype), None, "mlp", "embed")
            wh_GHK = shard(wh.astype(dtype), None, "mlp", None)
            initial = tuple(shard(start[name][layer].T, "mlp", "batch") for name in names)
            states = recurrence(
                cell, x_BLD.transpose(1, 2, 0), keep_BL.T.astype(jnp.float32), initial,
                wx_GHD, wh_GHK, bx, bh,
            )  # fmt: skip
            x_BLD = shard(states[0].astype(dtype).transpose(2, 0, 1), "batch", None, None)
            x_BLD = dropout(x_BLD, rate, keys[layer + 1])
            ends.append([state_after(*pair, count_B) for pair in zip(initial, states, strict=True)])
        state = [jnp.stack(layers).swapaxes(1, 2) for layers in zip(*ends, strict=True)]
        return x_BLD, laid_out(dict(zip(names, state, strict=True)))


def state_after(start_DB, x_LDB, count_B):
    """The state [D, B] after the first `count` steps of each row; None: after all steps."""
    if count_B is None:
        return x_LDB[-1]
    step_L11 = jnp.arange(1, len(x_LDB) + 1)[:, None, None]
    after_DB = jnp.sum(jnp.where(step_L11 == count_B[None, None], x_LDB, 0.0), 0)
    return jnp.where(count_B[None] == 0, start_DB, after_DB)


class Recurrent(Network):
    """Recurrent language model, config.architecture rnn, lstm or gru: `Recurrent(ModelConfig(
    architecture="lstm"), rngs=nnx.Rngs(0))(tokens)` gives logits.

    The width of the embeddings is that of the state.
    """

    inputs = ("segment_ids", "positions", "state")

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        config = self.config
        self.embed = Embed(dataclasses.replace(config, positions="none"), rngs=rngs)
        self.layers = Layers(config, rngs=rngs)
        if config.final_norm:
            self.norm = Norm(config, rngs=rngs)
        self.make_head(rngs)

    def forward(
        self,
        batch: dict[str, jax.Array],
        key: jax.Array | None = None,
        state: Carried | None = None,
    ) -> tuple[jax.Array, dict[str, Carried]]:
        """(last hidden states [B, L, D], {}); with a `state` to start from, {"state": the last}.

        batch: tokens [B, L], optional state, segment_ids and positions: the state is reset where
        the segment changes and at each position 0, so a row that continues a text from the window
        before must not begin at 0. key: a random key turns dropout on.
        """
        tokens_BL, carried = batch["tokens"], batch.get("state")
        state = cast(Carried, carried) if state is None else state
        start = self.init_state(len(tokens_BL)) if state is None else state
        x_BLD, state_after = self.layers(self.embedded(tokens_BL), keep(batch), start, key)
        return self.normed(x_BLD), {} if state is None else {"state": state_after}

    def init_state(self, batch: int) -> Carried:
        """The zero state of `batch` rows: h and, for an LSTM, c, [N, B, D] float32."""
        shape = (self.config.num_layers, batch, self.config.dim)
        names = NAMES[: CELLS[self.config.architecture].states]
        return laid_out({name: jnp.zeros(shape) for name in names})

    def init_cache(self, batch: int, length: int) -> dict[str, jax.Array]:
        """`init_state`, which needs no slots, and the number of tokens read, `length` [B]."""
        del length
        return {**self.init_state(batch), "length": shard(jnp.zeros(batch, jnp.int32), "batch")}

    def decode(
        self,
        tokens_BL: jax.Array,
        cache: dict[str, jax.Array],
        count_B: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Hidden states [B, L, D] of tokens after those of the cache, and the new cache.

        count_B: number of real tokens in each row; those after them do not change the state.
        """
        if count_B is None:
            count_B = jnp.full_like(cache["length"], tokens_BL.shape[1])
        start = {name: x for name, x in cache.items() if name != "length"}
        x_BLD = self.embedded(tokens_BL)
        x_BLD, state = self.layers(x_BLD, jnp.ones_like(tokens_BL), start, None, count_B)
        return self.normed(x_BLD), {**state, "length": cache["length"] + count_B}

    def embedded(self, tokens_BL: jax.Array) -> jax.Array:
        """Token embeddings, without positions."""
        x_BLD = self.embed(tokens_BL, jnp.zeros_like(tokens_BL), jnp.dtype(self.config.dtype))
        return whole(x_BLD)

    def normed(self, x_BLD: jax.Array) -> jax.Array:
        """Input of the head: outputs of the last layer, normalised with config.final_norm."""
        return self.norm(x_BLD) if self.config.final_norm else x_BLD


def keep(batch):
    """[B, L] bool, false where a document starts."""
    keep_BL = jnp.ones_like(batch["tokens"], bool)
    if (ids_BL := batch.get("segment_ids")) is not None:
        keep_BL = keep_BL.at[:, 1:].set(ids_BL[:, 1:] == ids_BL[:, :-1])
    if (positions_BL := batch.get("positions")) is not None:
        keep_BL &= positions_BL != 0
    return keep_BL


def laid_out(state):
    """A carried state, sharded over the batch."""
    return {name: shard(x_NBD, None, "batch", None) for name, x_NBD in state.items()}
