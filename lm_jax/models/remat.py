"""Activation checkpointing: what the backward pass keeps and what it recomputes."""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

NAMES: dict[str, tuple[str, ...]] = {  # what is kept of a layer; "mlp" is what its last one reads
    "full": (),
    "dots": ("product", "context"),
    "names": ("qkv", "context", "mlp"),
}
READ = "layer_input"
keeping = jax.checkpoint_policies.save_only_these_names
POLICIES = {policy: keeping(*names) for policy, names in NAMES.items()} | {
    # What a layer reads, and nothing else, goes to the memory of the host and comes back.
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[READ],
        offload_src="device", offload_dst="pinned_host",
    ),
}  # fmt: skip


def layer(body: Callable, policy: str) -> Callable:
    """`body(x, layer)` of a loop over layers, computed again as the policy says."""
    if policy == "none":
        return body
    named = lambda x, *more: body(checkpoint_name(x, READ), *more)
    return jax.checkpoint(named, policy=POLICIES[policy], prevent_cse=False)


def layers_taken(function: Callable, policy: str) -> Callable:
    """`function`, which first takes some layers out of more and then goes through them: taken again
    for the way back, where keeping them would be a copy for each call. All else is kept, or not, as
    by `layer`, whose policy says nothing about what it reads.
    """
    kept: Any = all_but_parts
    if policy != "none":
        kept = POLICIES[policy] if policy == "offload" else keeping(*NAMES[policy], READ)
    return jax.checkpoint(function, policy=kept)


def all_but_parts(operation: Any, *_: Any, **__: Any) -> bool:
    """A policy: what is only a part, or another type, of something else is not kept."""
    parts = ("dynamic_slice", "squeeze", "slice", "reshape", "convert_element_type")
    return operation.name not in parts
