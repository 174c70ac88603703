"""Ids of a text by the rules of a tokenizer.json, in the plainest program for them."""

import itertools

import numpy as np

from lm_jax.data.tokens.pieces import ALPHABET


def bpe_ids(model: dict, text: str) -> list[int]:
    """The merge of lowest rank first, the leftmost of several."""
    vocab, rank = model["vocab"], {tuple(pair): i for i, pair in enumerate(model["merges"])}
    parts = list(text)
    while pairs := [(rank[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in rank]:
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    as_bytes = lambda part: [vocab[f"<0x{byte:02X}>"] for byte in part.encode()]
    return [i for part in parts for i in ([vocab[part]] if part in vocab else as_bytes(part))]


def unigram_ids(model: dict, text: str) -> list[int]:
    """The best sum of scores (Viterbi), of equal ones the longest last piece; float64."""
    pieces = {piece: (i, score) for i, (piece, score) in enumerate(model["vocab"])}
    longest = max(map(len, pieces))
    best = [(0.0, 0, -1)] + [(-np.inf, 0, -1)] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(max(0, end - longest), end):
            i, score = pieces.get(text[start:end], (0, -np.inf))
            best[end] = max(best[end], (best[start][0] + score, -start, i), key=lambda x: x[:2])
    ids, end = [], len(text)
    while end:
        ids.append(best[end][2])
        end = -best[end][1]
    return ids[::-1]


def ids_of(definition: dict, text: str) -> list[int]:
    """What tokenizer.json means, as far as ours go."""
    model = definition["model"]
    assert definition["normalizer"] is definition["post_processor"] is None
    if definition["pre_tokenizer"]:
        assert definition["pre_tokenizer"]["type"] == "ByteLevel"
        text = "".join(ALPHABET[byte] for byte in text.encode())
    return {"BPE": bpe_ids, "Unigram": unigram_ids}[model["type"]](model, text)
