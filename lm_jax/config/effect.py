"""Options that a config sets and that change nothing in it: a run names them in one line."""

from typing import Any

from lm_jax.config.field import walk

COUNTED = (  # what n-grams, which are counted once, do not read
    "optimizer.", "loss.", "checkpoint.", "mesh.", "microbatches", "log_every", "data.packed",
    "data.shifted", "data.workers", "eval.every", "eval.tokens",
)  # fmt: skip
OFF = (0, False, "", "none")  # values that ask for nothing


def without_effect(config: Any) -> list[str]:
    """["loss.z_loss=0.001", ...]: the options that differ from their default, ask for something,
    and have no effect beside the others.

    Within a group the facts of each field decide (config/field.py), between groups `across`.
    """
    found, architecture = [], config.model.architecture
    idle = across(config)
    for name, field, value in walk(config):
        group = getattr(config, name.partition(".")[0]) if "." in name else config
        acts = field.metadata["facts"].acts(group, architecture) and name not in idle
        if not acts and value != field.default and value not in OFF:
            found.append(f"{name}={value}")
    return found


def across(config: Any) -> set[str]:
    """Dotted names of the options that have no effect because of an option of another group."""
    model, mesh = config.model, config.mesh
    encoder = model.architecture == "encoder"  # it generates nothing
    idle = {
        "loss.balance_loss": not model.num_experts,
        "loss.router_z_loss": not model.num_experts,
        "optimizer.shard_state": mesh.data == 1,
        "model.context_attention": mesh.context == 1,
        "model.pipeline_parts": mesh.stage == 1,
        "model.pipeline_rounds": mesh.stage == 1,
        "eval.samples": encoder,
        "eval.sample_tokens": encoder,
        "eval.prompt": encoder,
    }
    counted = COUNTED if model.architecture == "ngram" else ()
    names = {name for name, _, _ in walk(config) if name.startswith(counted)}
    return names | {name for name, is_so in idle.items() if is_so}
