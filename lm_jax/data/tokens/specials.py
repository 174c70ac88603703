"""Special ids of the objectives: mask, separators, modes and sentinels, in the ids of the model
that the tokenizer leaves free.
"""

import dataclasses
from typing import Any

from lm_jax.errors import UserError

NAMES = ("<mask>", "<cls>", "<sep>", "<pre>", "<suf>", "<mid>", "[R]", "[S]", "[X]")
MAX_SENTINELS = 100  # as many as T5 has


def decoder_start(tokenizer: Any, rule: str) -> int:
    """The first input of an encoder-decoder's decoder: the tokenizer's own (decoder_start_token_id
    of a config.json), else pad (T5, Raffel et al. 2020) or bos, by config.model.decoder_start.
    """
    own = tokenizer.specials.get("decoder_start")
    if own is not None:
        return own
    return tokenizer.pad_id if rule == "pad" else tokenizer.bos_id


@dataclasses.dataclass(frozen=True)
class Specials:
    """Ids first, first + 1, ... of NAMES, and above them the sentinels, which descend as T5's do:
    <extra_id_0> is the highest. A tokenizer's own specials of these names come before that.

    `first`: the tokenizer's size. `vocab_size`: the model's; sentinels take what NAMES leave.
    """

    first: int
    vocab_size: int
    own: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_tokenizer(cls, tokenizer: Any, vocab_size: int) -> "Specials":
        """The special ids of a model with this tokenizer."""
        roles = {"mask": "<mask>", "cls": "<cls>", "sep": "<sep>"}
        own = {roles.get(name, name): i for name, i in tokenizer.specials.items()}
        own = {name: i for name, i in own.items() if name in NAMES or name.startswith("<extra_id_")}
        return cls(tokenizer.vocab_size, vocab_size, own)

    @property
    def sentinels(self) -> int:
        """Number of sentinels."""
        if "<extra_id_0>" in self.own:
            last = self.own["<extra_id_0>"]
            follow = (
                k for k in range(MAX_SENTINELS) if self.own.get(f"<extra_id_{k}>") != last - k
            )
            return next(follow, MAX_SENTINELS)
        return max(0, min(MAX_SENTINELS, self.vocab_size - self.first - len(NAMES)))

    @property
    def last_sentinel(self) -> int:
        """The id of <extra_id_0>; <extra_id_k> is k below it."""
        return self.own.get("<extra_id_0>", self.first + len(NAMES) + self.sentinels - 1)

    def id(self, name: str) -> int:
        """The id of one of NAMES."""
        return self.own.get(name, self.first + NAMES.index(name))

    def name(self, token: int) -> str | None:
        """The name of an id; None when it is none of these."""
        if 0 <= token - self.first < len(NAMES):
            return NAMES[token - self.first]
        k = self.last_sentinel - token
        return f"<extra_id_{k}>" if 0 <= k < self.sentinels else None

    def need(self, names: tuple[str, ...], sentinels: int = 0) -> None:
        """Raises UserError when the model's vocabulary has no room for `names` and so many
        sentinels.
        """
        last = max((NAMES.index(name) + 1 for name in names if name not in self.own), default=0)
        if sentinels and "<extra_id_0>" not in self.own:
            last = len(NAMES) + sentinels
        size = self.first + last
        if size > self.vocab_size or sentinels > self.sentinels:
            what = ", ".join([*names, *([f"{sentinels} sentinels"] if sentinels else [])])
            raise UserError(
                f"config.model.vocab_size={self.vocab_size}: the tokenizer takes {self.first} and"
                f" config.loss.objective needs {what} above them; set it to"
                f" {-(-size // 128) * 128} (a multiple of 128)."
            )
