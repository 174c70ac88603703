"""Inspection of a token store: a table of figures, and examples as text."""

from collections.abc import Iterator

import numpy as np

from lm_jax.config import Config
from lm_jax.data.tokens.specials import Specials
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import Tokenizer
from lm_jax.data.views import by_objective

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
    if about.get("kinds"):
        rows.append(("files", ", ".join(f"{n:,} x {kind}" for kind, n in about["kinds"].items())))
    if about.get("round_trips_failed"):
        lost, all_of_them = about["round_trips_failed"], about["round_trips_checked"]
        rows.append(("not lossless", f"{lost:,} of {all_of_them:,} texts differ from their ids'"))
    if about.get("heldout"):
        rows.append(("held out", about["heldout"]))
    names = {
        "exact_duplicates": "exact duplicates",
        "near_duplicates": "near-duplicates",
    }
    left = [f"{about[k]} {name}" for k, name in names.items() if about.get(k)]
    left += [f"{count} {reason}" for reason, count in about.get("skipped", {}).items() if count]
    lost = about.get("lost_bytes", {})
    for reason in {**about.get("bad", {}), **lost}:
        count = about.get("bad", {}).get(reason, 0)
        what = f"{count} refused" if count else "lines refused"
        left.append(f"{what}: {reason} ({lost.get(reason, 0):,} bytes)")
    rows.append(("left out", "; ".join(left) or "nothing"))
    rows += [("refused", example) for example in about.get("bad_examples", [])]
    rows.append(("fingerprint", store.fingerprint[:12]))
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


def examples(store: TokenStore, config: Config, count: int) -> Iterator[str]:
    """The first `count` training examples of config.loss.objective, each with its pieces in
    columns, inputs above targets; what the encoder of an encoder-decoder reads is above both.
    """
    if count <= 0:
        return
    windows = by_objective.make(store, "train", config, config.seed)
    names = Names(
        store.tokenizer, Specials.from_tokenizer(store.tokenizer, config.model.vocab_size)
    )
    batch = windows.rows(np.arange(count))
    for i in range(count):
        row = {name: value[i] for name, value in batch.items()}
        title = (
            f"example {i}: window {row['example']} of {len(windows)}, {len(row['tokens'])} tokens,"
            f" {row['segment_ids'].max()} segments, {int(row['weights'].sum())} targets that count"
        )
        if "pair_label" in row:
            title += f", pair_label {row['pair_label']}"
        if row.get("prefix", np.zeros(1)).any():
            title += f", {row['prefix'].sum()} {{prefix}}"
        yield "\n".join(["", title, *encoder_lines(row, names), *decoder_lines(row, names)])


class Names:
    """An id as visible text: specials by name, spaces as dots."""

    def __init__(self, tokenizer: Tokenizer, specials: Specials):
        self.tokenizer, self.specials = tokenizer, specials
        roles = {"<bos>": tokenizer.bos_id, "<eos>": tokenizer.eos_id, "<pad>": tokenizer.pad_id}
        ids = [*roles.values()]  # one with several roles has the tokenizer's own name
        self.own = {i: name for name, i in roles.items() if ids.count(i) == 1}

    def __call__(self, token: int) -> str:
        if name := self.own.get(int(token)) or self.specials.name(int(token)):
            return name
        text = self.tokenizer.decode_bytes([token])
        if not text:  # another special token of the tokenizer
            return self.tokenizer.name_of(int(token))
        try:
            return repr(text.decode())[1:-1].replace(" ", "\u00b7")
        except UnicodeDecodeError:
            return repr(text)[2:-1]


def encoder_lines(row: dict[str, np.ndarray], names: Names) -> Iterator[str]:
    """Lines with the pieces that the encoder reads."""
    if "inputs" not in row:
        return
    tokens, line, lines = row["inputs"][row["input_segment_ids"] > 0], "encoder", 0
    for shown, token in enumerate(tokens):
        text = names(token)
        if len(line) + 1 + len(text) > WIDTH:
            yield line
            lines, line = lines + 1, " " * 7
            if lines == ROWS:
                line = f"... {len(tokens) - shown} tokens more"
                break
        line += " " + text
    yield from (line, "")


def decoder_lines(row: dict[str, np.ndarray], names: Names) -> Iterator[str]:
    """Pairs of lines: the piece of each input (in braces: of the prefix), and under it that of its
    target (in brackets: weight 0).
    """
    above, below, pairs = "inputs  ", "targets ", 0
    prefix = row.get("prefix", np.zeros_like(row["tokens"]))
    tokens = zip(row["tokens"], row["targets"], row["weights"], prefix, strict=True)
    for shown, (token, target, weight, given) in enumerate(tokens):
        first = f"{{{names(token)}}}" if given else names(token)
        second = names(target) if weight else f"[{names(target)}]"
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
