"""What is in a token store, and what does the model see? A table of figures, and examples as
text.
"""

from collections.abc import Iterator

import numpy as np

from lm_jax.data.examples import Windows
from lm_jax.data.store import TokenStore
from lm_jax.data.tokenizer import Tokenizer

WIDTH = 100
ROWS = 6  # pairs of lines that are shown of an example


def table(store: TokenStore) -> str:
    """One row a line: sizes, tokenizer, and what cleaning left out."""
    tokenizer, about = store.tokenizer, store.metadata
    rows = [
        ("store", store.path),
        ("tokenizer", f"{tokenizer.kind}, {tokenizer.vocab_size} ids, {tokenizer.hash[:12]}"),
    ]
    for split in store.splits:
        tokens, text = store.num_tokens(split), store.num_bytes(split)
        rows.append(
            (
                split,
                f"{store.num_documents(split):,} documents, {text / 1e6:,.2f} MB, {tokens:,}"
                f" tokens, {text / tokens:.2f} bytes a token",
            )
        )
    if about.get("heldout"):
        rows.append(("held out", about["heldout"]))
    names = {
        "exact_duplicates": "exact duplicates",
        "near_duplicates": "near-duplicates",
    }
    left = [f"{about[k]} {name}" for k, name in names.items() if about.get(k)]
    left += [f"{count} {reason}" for reason, count in about.get("skipped", {}).items() if count]
    left += [f"{count} refused: {reason}" for reason, count in about.get("bad", {}).items()]
    rows.append(("left out", "; ".join(left) or "nothing"))
    rows += [("refused", example) for example in about.get("bad_examples", [])]
    rows.append(("fingerprint", store.fingerprint[:12]))
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


def examples(store: TokenStore, count: int, length: int, seed: int, packed: bool) -> Iterator[str]:
    """The first `count` training examples, each with its pieces in columns, inputs above
    targets.
    """
    if count <= 0:
        return
    windows = Windows(store, "train", length, seed, packed)
    batch = windows.batch(0, count)
    for i in range(count):
        row = {name: value[i] for name, value in batch.items()}
        title = (
            f"example {i}: window {row['example']} of {len(windows)}, {length} tokens,"
            f" {row['segment_ids'].max()} segments, {int(row['weights'].sum())} targets that count"
        )
        yield "\n".join(["", title, *columns(row, store.tokenizer)])


def columns(row: dict[str, np.ndarray], tokenizer: Tokenizer) -> Iterator[str]:
    """Pairs of lines: the piece of each input, and under it that of its target (in brackets:
    weight 0).
    """
    above, below, pairs = "inputs  ", "targets ", 0
    tokens = zip(row["tokens"], row["targets"], row["weights"], strict=True)
    for shown, (token, target, weight) in enumerate(tokens):
        first = piece(tokenizer, token)
        second = piece(tokenizer, target) if weight else f"[{piece(tokenizer, target)}]"
        width = max(len(first), len(second)) + 1
        if len(above) + width > WIDTH:
            yield from (above.rstrip(), below.rstrip(), "")
            pairs += 1
            if pairs == ROWS:
                yield f"... {len(row['tokens']) - shown} tokens more"
                return
            above, below = " " * 8, " " * 8
        above, below = above + f"{first:<{width}}", below + f"{second:<{width}}"
    yield from (above.rstrip(), below.rstrip())


def piece(tokenizer: Tokenizer, token: int) -> str:
    """An id as visible text: specials by name, spaces as dots."""
    names = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>", tokenizer.pad_id: "<pad>"}
    if int(token) in names:
        return names[int(token)]
    text = tokenizer.decode_bytes([token])
    try:
        return repr(text.decode())[1:-1].replace(" ", "\u00b7")
    except UnicodeDecodeError:
        return repr(text)[2:-1]
