"""A tokenizer.json of ten words, and a small program in place of the library that reads it."""

import json
import types

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "."]
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
BERT = {
    "version": "1.0",
    "truncation": {"max_length": 4},
    "added_tokens": [
        {"id": i, "content": name, "special": True, **SPECIAL} for i, name in enumerate(WORDS[:5])
    ] + [{"id": 10, "content": "<tab>", "special": False, **SPECIAL}],
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {"type": "WordPiece", "vocab": {word: i for i, word in enumerate(WORDS)}},
}  # fmt: skip


class Words:
    """Words between spaces, in lower case; others are [UNK]."""

    def __init__(self, text):
        definition = json.loads(text)
        assert definition["truncation"] is None
        self.vocab = definition["model"]["vocab"] | {"<tab>": 10}

    from_str = classmethod(lambda cls, text: cls(text))

    def get_vocab(self, with_added_tokens):
        return self.vocab if with_added_tokens else {}

    def encode_batch_fast(self, texts, add_special_tokens):
        assert not add_special_tokens
        assert self.encode_special_tokens
        ids = lambda text: [self.vocab.get(word, 1) for word in text.lower().split()]
        return [types.SimpleNamespace(ids=ids(text)) for text in texts]

    def id_to_token(self, i):
        return {i: word for word, i in self.vocab.items()}[i]


def write_tokenizer(path, definition=BERT, **files):
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(definition))
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    return path
