"""Tidying of a text, exact duplicates, and the split into training and held-out text."""

import hashlib

import numpy as np


def tidy(text: str) -> str:
    """`text` without a byte order mark, with \\n for every \\r\\n and \\r; nothing else is
    changed.
    """
    if text.startswith("\ufeff"):
        text = text[1:]
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def digest(text: bytes) -> bytes:
    """16 bytes that are equal for equal texts."""
    return hashlib.blake2b(text, digest_size=16).digest()


def choose_heldout(
    sizes: np.ndarray, group: np.ndarray, keys: list[bytes], fraction: float
) -> np.ndarray:
    """[n] bool: which documents are held out, `fraction` of the bytes (sizes [n]) as near as whole
    documents allow.

    Documents of one `group` [n] go together. Chosen in the order of `keys` (hashes of the texts:
    stable, and known to nobody), those without near-duplicates first; a group larger than what is
    missing is passed over.
    """
    chosen = np.zeros(len(sizes), bool)
    target = fraction * float(sizes.sum())
    members: dict[int, list[int]] = {}
    for i, g in enumerate(group.tolist()):
        members.setdefault(g, []).append(i)
    order = sorted(members, key=lambda g: (len(members[g]) > 1, keys[members[g][0]]))
    held = 0.0
    for g in order:
        size = float(sizes[members[g]].sum())
        if held < 0.9 * target and held + size <= 1.25 * target:
            chosen[members[g]] = True
            held += size
    return chosen
