"""Certificates of exports: logits and greedy tokens in `transformers`, compared with ours."""

# The only file of lm_jax that imports torch and transformers, and only where they are installed.

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lm_jax.config import ModelConfig
from lm_jax.config.cost import depths
from lm_jax.config.field import with_role
from lm_jax.convert.same_tokenizer import TEXT, compare_tokenizer
from lm_jax.data.tokens.frame import Frame
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.devices import versions
from lm_jax.errors import CheckpointError
from lm_jax.inference.generation import generate
from lm_jax.models import Transformer

FILE = "certificate.json"
TOLERANCE = 1e-4  # relative to the largest logit: float32 sums in another order
MAX_LENGTH, MAX_PROMPT, MAX_GREEDY = 1024, 16, 50  # tokens: read, as a prompt, generated


def certify(
    directory: str | os.PathLike[str],
    model: Transformer,
    tokenizer: Tokenizer | None = None,
    frame: Frame | None = None,
) -> dict[str, Any]:
    """Writes certificate.json beside the weights and returns it: figures, versions, verdict.

    The logits on a text (random ids without a tokenizer) may differ by TOLERANCE; 50 greedy tokens
    must be equal, up to one whose logits are so near. The ids of texts, with special tokens in them
    and `frame` around them (the tokenizer's own by default), and the chat template must be the
    same; see compare_tokenizer. Raises CheckpointError when they are not. Without transformers and
    torch the verdict is "not proven", with a line on stderr.
    """
    path = Path(directory)
    packages = ("transformers", "torch")
    installed = {name: versions.installed(name) for name in ("lm_jax", "jax", *packages)}
    certificate: dict[str, Any] = {"verdict": "not proven", "versions": installed}
    if all(importlib.util.find_spec(name) for name in packages):
        certificate |= compare(path, reference(model), tokenizer)
        if tokenizer is not None and "logits" in certificate:
            certificate |= with_tokenizer(certificate, path, tokenizer, frame)
    else:
        print(
            "WARNING: NOTHING WAS PROVEN about this export: transformers and torch are not "
            "installed; pip install 'lm_jax[parity]' and export again.",
            file=sys.stderr,
            flush=True,
        )
    (path / FILE).write_text(json.dumps(certificate, indent=2) + "\n")
    if certificate["verdict"] == "failed":
        why = certificate["why"]
        raise CheckpointError(f"{path}: the export is not the model: {why}; see {FILE} there.")
    return certificate


def compare(path: Path, model: Transformer, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The figures and the verdict of a comparison with the model that transformers reads."""
    import torch
    import transformers

    architecture = json.loads((path / "config.json").read_text())["architectures"][0]
    try:
        theirs = getattr(transformers, architecture).from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
    except Exception as error:  # of any kind
        why = f"transformers cannot read it: {type(error).__name__}: {str(error)[:300]}"
        return {"verdict": "failed", "why": " ".join(why.split())}
    theirs.eval()
    config = model.config
    ids = sample_ids(config, tokenizer)
    prompt = ids[:, : max(1, min(MAX_PROMPT, config.max_length - MAX_GREEDY))]
    # The encoder of an encoder_decoder reads `ids`, its decoder the prompt.
    inputs = ids if depths(config)[0] else None
    read = ids if inputs is None else prompt
    with jax.default_matmul_precision("highest"):
        more = {} if inputs is None else {"inputs": inputs}
        here, there = np.asarray(forward(model, read, more)), their_logits(theirs, read, inputs)
        largest = float(np.abs(here - there).max())
        tolerance = TOLERANCE * max(1e-2, float(np.abs(there).max()))
        tokens = equal = 0
        near = True
        if config.architecture != "encoder":
            begin = prompt[:1] if inputs is None else prompt[:1, :1]
            tokens, equal, near = compare_greedy(model, theirs, begin, inputs, tolerance)
    return {
        "verdict": "proven" if largest <= tolerance and near else "failed",
        "why": f"in transformers, logits differ by {largest:.2g} at most, "
        f"{equal} of {tokens} greedy tokens are equal",
        "architecture": architecture,
        "logits": {
            "largest_difference": largest,
            "tolerance": tolerance,
            "shape": here.shape,
            "ids": "random" if tokenizer is None else "text",
        },
        "greedy": {"tokens": tokens, "equal": equal},
    }


def their_logits(theirs: Any, ids: np.ndarray, inputs: np.ndarray | None) -> np.ndarray:
    """Logits [B, L, V] of a model of transformers for `ids` [B, L], which the decoder of an
    encoder_decoder reads beside the encoder's `inputs` [B, S].
    """
    import torch

    given = their_inputs(ids, inputs)
    with torch.no_grad():
        out = theirs(**{name: torch.tensor(x) for name, x in given.items()})
    # With a second head (BERT) this one has another name.
    return (out.logits if "logits" in out else out.prediction_logits).numpy()


def their_inputs(ids: np.ndarray, inputs: np.ndarray | None) -> dict[str, np.ndarray]:
    """Arguments of a model of transformers by name."""
    if inputs is None:
        return {"input_ids": ids}
    return {"input_ids": inputs[: len(ids)], "decoder_input_ids": ids}


def with_tokenizer(
    certificate: dict[str, Any], path: Path, tokenizer: Tokenizer, frame: Frame | None
) -> dict[str, Any]:
    """The entries of a certificate that the comparison of tokenizers adds or changes."""
    found = compare_tokenizer(path, tokenizer, tokenizer.frame if frame is None else frame)
    verdict = certificate["verdict"] if found["same"] else "failed"
    return {"verdict": verdict, "why": f"{certificate['why']}, {found['why']}", "tokenizer": found}


def compare_greedy(
    model: Transformer, theirs: Any, begin: np.ndarray, inputs: np.ndarray | None, tolerance: float
) -> tuple[int, int, bool]:
    """(tokens, equal, near) of the greedy continuations of `begin` [1, L] by both models: their
    number, how many are equal from the first on, and whether the first that differ are as likely.
    """
    ours, other = greedy(model, theirs, begin, None if inputs is None else inputs[:1])
    equal = int(np.argmin([*(ours == other), False]))
    if equal == len(ours):
        return len(ours), equal, True
    row = their_logits(theirs, np.concatenate([begin, other[None, :equal]], 1), inputs)[0, -1]
    return len(ours), equal, bool(abs(row[ours[equal]] - row[other[equal]]) <= tolerance)


def greedy(
    model: Transformer, theirs: Any, begin: np.ndarray, inputs: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy continuations of `begin` [1, L] by both models: ids, MAX_GREEDY or fewer. inputs
    [1, S]: those of the encoder of an encoder_decoder; else None.
    """
    import torch
    import transformers

    count = min(MAX_GREEDY, model.config.max_length - begin.shape[1])
    columns = generate(model, [*begin], count, jax.random.key(0), temperature=0.0,
                       inputs=() if inputs is None else [*inputs])  # fmt: skip
    ours = np.stack([*columns], 1)[0]
    theirs.generation_config = transformers.GenerationConfig(
        max_new_tokens=count, do_sample=False, pad_token_id=0,
        use_cache=inputs is None,  # theirs fails where the stacks differ in depth
        decoder_start_token_id=None if inputs is None else int(begin[0, 0]),
    )  # fmt: skip
    given = their_inputs(begin, inputs)
    # Every id is read: without a mask, generate takes those of pad_token_id, which may be BOS, for
    # padding.
    given["attention_mask"] = np.ones_like(given["input_ids"])
    written = theirs.generate(**{name: torch.tensor(x) for name, x in given.items()})
    return ours, written.numpy()[0, begin.shape[1] :]


def sample_ids(config: ModelConfig, tokenizer: Tokenizer | None) -> np.ndarray:
    """Ids [B, L] of a text, or random without a tokenizer; longer than a window if affordable."""
    length = min(config.max_length, MAX_LENGTH, max(128, 2 * config.window))
    if tokenizer is None:
        # Above the usual ids of padding, which has no position in RoBERTa.
        low = min(8, config.vocab_size - 1)
        return np.random.default_rng(0).integers(low, config.vocab_size, (2, length))
    text = Frame((tokenizer.bos_id,)).around(tokenizer.encode(TEXT))
    return np.resize(text, length)[None].astype(np.int64)


def reference(model: Transformer) -> Transformer:
    """The model in float32 on the plain kernel, with all other execution options at defaults."""
    plain = {name: getattr(ModelConfig(), name) for name in with_role(ModelConfig, "execution")}
    config = dataclasses.replace(model.config, **{**plain, "dtype": "float32", "attention": "xla"})
    like = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(model))


@jax.jit
def forward(model: Transformer, tokens_BL: jax.Array, more: dict[str, jax.Array]) -> jax.Array:
    """Logits [B, L, V]."""
    return model(tokens_BL, **more)
