"""The start-up screen of a run: what differs, parameters, mesh, memory, FLOPs, tokens, data,
outputs.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax

from lm_jax.config import Config, MeshConfig
from lm_jax.config.check import mixture
from lm_jax.config.cost import flops_per_token
from lm_jax.config.effect import without_effect
from lm_jax.config.field import facts_of
from lm_jax.config.mesh_check import large_axes
from lm_jax.config.values import differences
from lm_jax.data.views import by_objective
from lm_jax.data.views.pairs import without_tab
from lm_jax.devices.chips import peak_flops
from lm_jax.devices.sharding import bytes_per_device, memory_limit
from lm_jax.progress import human

GROUPS = (
    "embed",
    "attn",
    "cross",
    "mlp",
    "layers",
    "relative",
    "head",
    "pooler",
)  # modules with a row each


def text(
    requested: Config, config: Config, workdir: str, mesh: Any, abstract: Any, store: Any | None
) -> str:
    """The start-up screen. `abstract` is the state as shapes with shardings, None of a model that
    counts; `store` None: not prepared yet.
    """
    data = config.data
    rows: list[tuple[str, str]] = [("run", f"{requested.name} in {Path(workdir)}")]
    changed = [f"{name}={value}" for name, value, _ in differences(requested, Config())]
    rows.append(("not default", "  ".join(changed) or "nothing"))
    # A model that counts has a mesh of its own.
    sizes = requested.mesh if abstract is None else MeshConfig(**mesh.shape)
    if idle := without_effect(dataclasses.replace(requested, mesh=sizes)):
        rows.append(("no effect", "  ".join(idle)))
    if abstract is not None:
        rows += network(config, mesh, abstract)
    rows.append(("training", amount(config, abstract is None, store)))
    if store is None:
        rows.append(("data", f"{data.input}: not prepared yet"))
    else:
        rows.append((
            "data",
            f"{store.path}: {human(store.num_tokens('train'))} tokens, "
            f"{human(store.num_documents('train'))} documents, "
            f"{human(store.num_bytes('train'))}B; "
            f"held out {human(store.num_tokens('heldout'))} tokens; "
            f"{store.tokenizer.kind} {store.tokenizer.vocab_size} ({store.tokenizer_hash[:12]})",
        ))  # fmt: skip
        rows += left_out(config, store)
    rows.append(("outputs", f"{Path(workdir)}/{{checkpoints,metrics.jsonl,tb,report.html}}"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def left_out(config: Config, store: Any) -> list[tuple[str, str]]:
    """Rows about documents that are no pairs, where pairs are trained on."""
    if "seq2seq" not in dict(mixture(config.loss.objective)):
        return []
    found = {split: without_tab(store, split) for split in store.splits}
    return [
        ("left out", f"{about['count']:,} documents of {split} without a tab ({about['first']})")
        for split, about in found.items()
        if about
    ]


def amount(config: Config, counts: bool, store: Any | None) -> str:
    """Amount of text that a run trains on, in tokens or pairs, and in epochs of its examples."""
    examples, length = config.steps * config.batch_size, config.data.sequence_length
    if config.loss.objective == "seq2seq":  # a row is a pair, however short
        text = f"{human(examples)} pairs: {config.steps} steps of {config.batch_size}"
    else:
        text = f"{human(examples * length)} tokens: {config.steps} steps of "
        text += f"{config.batch_size} x {length}"
    if counts:
        return f"{text}, or all: counted once"
    if store is None:
        return text
    size = len(by_objective.make(store, "train", config, config.seed))
    return f"{text} = {examples / size:.2f} epochs"


def network(config: Config, mesh: Any, abstract: Any) -> list[tuple[str, str]]:
    """Rows of the start-up screen about the network: parameters, layout, cost."""
    model, device, parts = config.model, mesh.devices.flat[0], modules(abstract.model)
    shares = "  ".join(f"{name} {human(size)}" for name, size in parts.items())
    kind = getattr(device, "device_kind", device.platform)
    axes = large_axes(mesh.shape)
    held = sum(bytes_per_device(x) for x in jax.tree.leaves(abstract))
    limit = memory_limit(device)
    has = f"; it has {human(limit)}B" if limit else ""
    flops = flops_per_token(model, config.data.sequence_length)
    peak = peak_flops(kind)
    speed = f"; peak {human(peak * mesh.size)}FLOP/s" if peak else f"; no MFU on {kind}"
    step = human(flops * config.tokens_per_step)
    precision = model.matmul_precision
    products = "" if precision == "default" else f" with products in {precision}"
    how = [f"{model.dtype}{products}"]
    for name in ("attention", "remat"):
        if facts_of(model)[name].acts(model, model.architecture):
            how.append(f"{name} {getattr(model, name)}")
    return [
        ("parameters", f"{human(sum(parts.values()))}: {shares}"),
        ("mesh", f"{axes} on {mesh.size} {kind}, {jax.process_count()} process(es)"),
        ("compute", ", ".join(how)),
        ("memory", f"{human(held)}B of parameters and optimizer a device{has}"),
        ("FLOPs", f"{human(flops)} a token, {step} a step{speed}"),
    ]


def modules(model: Any) -> dict[str, int]:
    """Number of parameters by module, {"embed": 6144, "attn": ...}: embeddings, attention, mlp,
    norms, biases, head; of a model without modules, by the name of the parameter.
    """
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        names = [part.name for part in path if hasattr(part, "name") and part.name != "value"]
        kind = next((n.partition("_")[0] for n in names if n in GROUPS or n[:5] == "head_"), "")
        if not kind:
            kind = "norms" if any("norm" in name for name in names) else names[-1]
        sizes[kind] = sizes.get(kind, 0) + math.prod(leaf.shape)
    return sizes
