"""Certificates of exports: the export is read by `transformers`, its logits and greedy tokens are
compared with ours.
"""

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
from lm_jax.config.field import with_role
from lm_jax.convert.same_tokenizer import TEXT, compare_tokenizer
from lm_jax.data.tokens.frame import Frame
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.devices import versions
from lm_jax.errors import CheckpointError
from lm_jax.inference.generation import generate
from lm_jax.models import Transformer

FILE = "certificate.json"
TOLERANCE = 1e-4  # of the largest logit: float32 in another order of sums
LENGTH, PROMPT, GREEDY = 1024, 16, 50  # most tokens that are read, begun with, and written


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
    same; see compare_tokenizer. Raises CheckpointError when they are not. The
    verdict without transformers and torch is "not proven", and a line on stderr says so.
    """
    path = Path(directory)
    needs = ("transformers", "torch")
    found = {name: versions.installed(name) for name in ("lm_jax", "jax", *needs)}
    certificate: dict[str, Any] = {"verdict": "not proven", "versions": found}
    if all(importlib.util.find_spec(name) for name in needs):
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


def compare(path: Path, model: Transformer, tokenizer: Any) -> dict[str, Any]:
    """The figures and the verdict."""
    import torch
    import transformers

    architecture = json.loads((path / "config.json").read_text())["architectures"][0]
    try:
        theirs = getattr(transformers, architecture).from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
    except Exception as error:  # whatever they think of the files
        why = f"transformers cannot read it: {type(error).__name__}: {str(error)[:300]}"
        return {"verdict": "failed", "why": " ".join(why.split())}
    theirs.eval()
    config, ids = model.config, ids_of(model.config, tokenizer)
    begin = ids[:, : max(1, min(PROMPT, config.max_length - GREEDY))]
    # An encoder_decoder reads `ids`, and says what else reads them itself.
    both = config.architecture == "encoder_decoder"
    inputs = {"inputs": ids} if both else {}
    said, first = (begin, "decoder_input_ids") if both else (ids, "input_ids")

    def logits_there(said: np.ndarray) -> np.ndarray:
        named = {"input_ids": ids[: len(said)], first: said}
        with torch.no_grad():
            found = theirs(**{name: torch.tensor(x) for name, x in named.items()})
        # With a second head (BERT) this one is called so.
        return (found.logits if "logits" in found else found.prediction_logits).numpy()

    with jax.default_matmul_precision("highest"):
        here, there = np.asarray(forward(model, said, inputs)), logits_there(said)
        largest = float(np.abs(here - there).max())
        most = TOLERANCE * max(1e-2, float(np.abs(there).max()))
        tokens = equal = 0
        near = True
        if config.architecture != "encoder":
            said = said[:1, :1] if both else begin[:1]
            ours, other = greedy(model, theirs, said, ids[:1] if both else None)
            tokens, equal = len(ours), int(np.argmin([*(ours == other), False]))
            if equal < tokens:  # or two tokens that are as likely
                row = logits_there(np.concatenate([said, other[None, :equal]], 1))[0, -1]
                near = bool(abs(row[ours[equal]] - row[other[equal]]) <= most)
    return {
        "verdict": "proven" if largest <= most and near else "failed",
        "why": f"in transformers, logits differ by {largest:.2g} at most, "
        f"{equal} of {tokens} greedy tokens are equal",
        "architecture": architecture,
        "logits": {
            "largest_difference": largest,
            "tolerance": most,
            "shape": here.shape,
            "ids": "random" if tokenizer is None else "text",
        },
        "greedy": {"tokens": tokens, "equal": equal},
    }


def with_tokenizer(
    certificate: dict[str, Any], path: Path, tokenizer: Tokenizer, frame: Frame | None
) -> dict[str, Any]:
    """Changes of a certificate by the comparison of tokenizers."""
    found = compare_tokenizer(path, tokenizer, tokenizer.frame if frame is None else frame)
    verdict = certificate["verdict"] if found["same"] else "failed"
    return {"verdict": verdict, "why": f"{certificate['why']}, {found['why']}", "tokenizer": found}


def greedy(model: Transformer, theirs: Any, said: np.ndarray, read: Any) -> tuple[Any, Any]:
    """Greedy continuations of `said` [1, L] by both models: ids, and ids [GREEDY] or fewer. read
    [1, L]: the encoder's input of an encoder_decoder; else None.
    """
    import torch
    import transformers

    count, both = min(GREEDY, model.config.max_length - said.shape[1]), read is not None
    columns = generate(model, [*said], count, jax.random.key(0), temperature=0.0,
                       inputs=[*read] if both else ())  # fmt: skip
    ours = np.stack([*columns], 1)[0]
    theirs.generation_config = transformers.GenerationConfig(
        max_new_tokens=count, do_sample=False, pad_token_id=0,
        use_cache=not both,  # theirs fails where the stacks differ in depth
        decoder_start_token_id=int(said[0, 0]) if both else None,
    )  # fmt: skip
    asked = {"input_ids": read, "decoder_input_ids": said} if both else {"input_ids": said}
    # Every id is read: without a mask, generate takes those of pad_token_id, which may be BOS, for
    # padding.
    asked["attention_mask"] = np.ones_like(asked["input_ids"])
    written = theirs.generate(**{name: torch.tensor(x) for name, x in asked.items()})
    return ours, written.numpy()[0, said.shape[1] :]


def ids_of(config: Any, tokenizer: Any) -> np.ndarray:
    """Rows of ids, long enough to leave a window where that is affordable: a text, or random."""
    length = min(config.max_length, LENGTH, max(128, 2 * config.window))
    if tokenizer is None:
        # Not the first ones: padding among them would have no position (RoBERTa).
        first = min(8, config.vocab_size - 1)
        return np.random.default_rng(0).integers(first, config.vocab_size, (2, length))
    text = Frame((tokenizer.bos_id,)).around(tokenizer.encode(TEXT))
    return np.resize(text, length)[None].astype(np.int64)


def reference(model: Transformer) -> Transformer:
    """The model in float32, on the plain kernel, every other way to run it at its default."""
    plain = {name: getattr(ModelConfig(), name) for name in with_role(ModelConfig, "execution")}
    config = dataclasses.replace(model.config, **{**plain, "dtype": "float32", "attention": "xla"})
    like = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(model))


@jax.jit
def forward(model: Transformer, tokens_BL: jax.Array, more: dict[str, jax.Array]) -> jax.Array:
    """Logits [B, L, V]."""
    return model(tokens_BL, **more)
