"""Arrays of a model from tensors of files, one layer at a time onto the devices, and back."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from lm_jax.config import ModelConfig
from lm_jax.convert.mapping import check_model
from lm_jax.convert.rows import Row, sizes_of
from lm_jax.convert.safetensors_file import Tensor
from lm_jax.devices.sharding import AXES, mesh_is_set, need_axes
from lm_jax.models import Transformer

Sources = dict[str, tuple[Tensor, list[Row]]]  # a tensor of theirs, and the rows that are its parts


def abstract_model(config: ModelConfig, where: str) -> Transformer:
    """Shapes and shardings of the model, without arrays."""
    if mesh_is_set():
        need_axes(*AXES)
        check_model(config, where, jax.sharding.get_abstract_mesh().shape)
    config = config.without_dropout()  # only training has another kernel
    return jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))


def load_array(leaf: Any, rows: list[Row], config: ModelConfig, sources: Sources) -> jax.Array:
    """One of our arrays from its tensors; a stacked one is filled layer by layer on its devices."""
    sharding = concrete_sharding(leaf.sharding)
    if not rows[0].stacked:
        return put(assemble(leaf.shape, rows, 0, config, sources), sharding)
    stack = jnp.zeros(leaf.shape, leaf.dtype, device=sharding)
    inner = sharding and NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    for layer in range(leaf.shape[0]):
        # Not named and waited for: the host holds one layer at a time.
        stack = jax.block_until_ready(
            put_layer(
                stack, put(assemble(leaf.shape[1:], rows, layer, config, sources), inner), layer
            )
        )
    return stack


def assemble(
    shape: tuple[int, ...], rows: list[Row], layer: int, config: ModelConfig, sources: Sources
) -> np.ndarray:
    """One layer of one of our arrays, float32 on the host."""
    if len(rows) == 1:
        return read_part(rows[0], layer, config, sources).reshape(shape)
    values = np.empty(shape, np.float32)
    for row in rows:
        values[row.place] = read_part(row, layer, config, sources)
    return values


def read_part(row: Row, layer: int, config: ModelConfig, sources: Sources) -> np.ndarray:
    """The part of a tensor of theirs that `row` maps, in our order of axes."""
    tensor, siblings = sources[row.theirs.format(layer=layer)]
    widths = [other.shape(sizes_of(config))[-1] for other in siblings]
    number = siblings.index(row)
    start = sum(widths[:number])
    return row.to_ours(tensor.read()[..., start : start + widths[number]], sizes_of(config))


def concrete_sharding(sharding: Any) -> NamedSharding | None:
    """The abstract sharding of eval_shape on the devices of the mesh that is set; None without."""
    if not mesh_is_set():
        return None
    # From any array: jax.sharding.get_mesh came after jax 0.7.
    here: Any = jnp.zeros(()).sharding
    return NamedSharding(here.mesh, sharding.spec)


def put(values: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    """Host values on the devices, of which each receives its own part only."""
    if sharding is None:
        return jnp.asarray(values)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


@functools.partial(jax.jit, donate_argnums=0)
def put_layer(stack: jax.Array, one: jax.Array, layer: int) -> jax.Array:
    """`stack` with one layer written in place."""
    return jax.lax.dynamic_update_index_in_dim(stack, one, layer, 0)


@jax.jit
def get_layer(stack: jax.Array, layer: int) -> jax.Array:
    """One layer of `stack`."""
    return jax.lax.dynamic_index_in_dim(stack, layer, 0, keepdims=False)
