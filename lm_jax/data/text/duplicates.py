"""Near-duplicate documents by MinHash over every run of 16 bytes that are not white space, so that
indentation, line breaks and the language of the text do not matter.
"""

import numpy as np

HASHES = 128  # values of a signature: a similarity J is estimated to sqrt(J (1 - J) / 128)
BAND = 3  # values of a band; documents that share a band are compared: 99.6 % of those at J = 0.5
BANDS = HASHES // BAND
SIMILAR = 0.5  # documents from here on stay on one side of the split
SAME = 0.8  # of those from here on one is kept (Lee et al., 2021, arXiv:2107.06499)
LOWER = bytes(range(256)).lower()
WHITE = bytes(range(33))
EMPTY = np.uint32(0xFFFFFFFF)


def signature(text: bytes) -> np.ndarray:
    """[HASHES] uint32; two texts agree in about the Jaccard similarity of their 16-byte runs.

    One-permutation MinHash: each run's hash names a bin and a value, the least value of a bin
    counts (Li, Owen and Zhang, 2012), and an empty bin takes the value of the next one
    (Shrivastava and Li, 2014). All EMPTY: too short.
    """
    hashes = np.frombuffer(text.translate(LOWER, WHITE), np.uint8).astype(np.uint32)
    for shift in (1, 2, 4, 8):  # a polynomial over 2, 4, 8 and 16 bytes, from the halves of each
        if len(hashes) <= shift:
            return np.full(HASHES, EMPTY)
        hashes = hashes[:-shift] * np.uint32(pow(0x9E3779B1, shift, 1 << 32)) + hashes[shift:]
    hashes ^= hashes >> np.uint32(16)  # the finaliser of MurmurHash3
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes ^= hashes >> np.uint32(16)
    values = np.full(HASHES, EMPTY)
    np.minimum.at(values, hashes >> np.uint32(25), hashes & np.uint32(0x1FFFFFF))
    filled = np.flatnonzero(values != EMPTY)
    following = np.searchsorted(filled, np.arange(HASHES)) % len(filled)
    return values[filled[following]]


def pairs(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n, 2] document numbers, [n] estimated similarity) of those that share a band and are
    SIMILAR.
    """
    there = np.flatnonzero((signatures != EMPTY).any(axis=1))
    keys = signatures[there, : BANDS * BAND].reshape(-1, BANDS, BAND).astype(np.uint64)
    weights = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    found = []
    for key in (keys * weights).sum(axis=2, dtype=np.uint64).T:
        order = np.argsort(key, kind="stable")
        same = np.flatnonzero(key[order][1:] == key[order][:-1])
        # Each document with its neighbour and with the first of those that share its band.
        run = np.concatenate([[0], np.cumsum(key[order][1:] != key[order][:-1])])
        first = np.searchsorted(run, run[same])
        found.append(np.stack([order[same], order[same + 1]], axis=1))
        found.append(np.stack([order[first], order[same + 1]], axis=1))
    candidates = there[np.unique(np.sort(np.concatenate(found), axis=1), axis=0)]
    a, b = signatures[candidates[:, 0]], signatures[candidates[:, 1]]
    similarity = (a == b).mean(axis=1) if len(candidates) else np.zeros(0)
    keep = similarity >= SIMILAR
    return candidates[keep], similarity[keep]


def groups(count: int, links: np.ndarray) -> np.ndarray:
    """[count] int64: the least document number that each is linked to through `links` [n, 2]."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in links.tolist():
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(count)], np.int64)
