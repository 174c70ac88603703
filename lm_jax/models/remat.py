"""Activation checkpointing: what the backward pass keeps and what it recomputes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

# Names of the activations that are saved; "mlp" is the input of the last projection of a layer.
NAMES: dict[str, tuple[str, ...]] = {
    "full": (),
    "dots": ("product", "context"),
    "names": ("qkv", "context", "mlp"),
}
INPUT = "layer_input"
save_only = jax.checkpoint_policies.save_only_these_names
POLICIES = {policy: save_only(*names) for policy, names in NAMES.items()} | {
    # Only the input of each layer is saved, in the memory of the host.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[INPUT],
        offload_src="device", offload_dst="pinned_host",
    ),
}  # fmt: skip


def layer(body: Callable, policy: str) -> Callable:
    """`body(x, layer)` of a loop over layers, recomputed in the backward pass by the policy."""
    if policy == "none":
        return body
    named = lambda x, *more: body(checkpoint_name(x, INPUT), *more)
    return jax.checkpoint(named, policy=POLICIES[policy], prevent_cse=False)


def layers_taken(function: Callable, policy: str) -> Callable:
    """`function`, which slices some layers out of a stack and runs them, with the slices taken
    again in the backward pass: saving them would copy the weights for each call. Other activations
    are saved or recomputed as in `layer`.
    """
    saved: Any = all_but_slices
    if policy != "none":
        saved = POLICIES[policy] if policy == "offload" else save_only(*NAMES[policy], INPUT)
    return jax.checkpoint(function, policy=saved)


def all_but_slices(operation: Any, *_: Any, **__: Any) -> bool:
    """A checkpoint policy: saves all but slices and casts of other arrays."""
    parts = ("dynamic_slice", "squeeze", "slice", "reshape", "convert_element_type")
    return operation.name not in parts
