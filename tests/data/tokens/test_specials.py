"""The special ids of the objectives lie above those of the tokenizer."""

from types import SimpleNamespace

import pytest

from lm_jax.data.tokens.specials import NAMES, Specials, decoder_start
from lm_jax.errors import UserError


def test_they_lie_above_the_tokenizer_and_sentinels_descend():
    specials = Specials(4096, 4224)
    assert [specials.id(name) for name in NAMES] == list(range(4096, 4105))
    assert specials.sentinels == 100
    assert specials.last_sentinel == 4204
    names = [specials.name(i) for i in range(4095, 4206)]
    assert names[0] is names[-1] is None
    assert names[1:10] == list(NAMES)
    assert names[10:-1] == [f"<extra_id_{99 - k}>" for k in range(100)]


def test_sentinels_take_what_is_left():
    assert Specials(259, 288).sentinels == 20
    assert Specials(259, 261).sentinels == 0


def test_no_room_names_the_field_and_a_size_that_has_it():
    Specials(4096, 4097).need(("<mask>",))
    with pytest.raises(UserError, match=r"config\.model\.vocab_size=4096: .* <mask> .*4224"):
        Specials(4096, 4096).need(("<mask>",))
    with pytest.raises(UserError, match="28 sentinels above them; set it to 384"):
        Specials(259, 288).need((), 28)


def test_a_tokenizer_that_has_them_keeps_its_own():
    extra = {f"<extra_id_{k}>": 99 - k for k in range(20)}
    tokenizer = SimpleNamespace(vocab_size=100, specials={"mask": 4, "cls": 0, "eos": 1, **extra})
    specials = Specials.from_tokenizer(tokenizer, 100)
    assert (specials.id("<mask>"), specials.id("<cls>")) == (4, 0)
    assert (specials.sentinels, specials.last_sentinel) == (20, 99)
    specials.need(("<mask>", "<cls>"), 20)
    for names, count in ((("<sep>",), 0), ((), 21)):
        with pytest.raises(UserError, match="vocab_size=100"):
            specials.need(names, count)


def test_a_decoder_starts_from_what_its_tokenizer_names_else_by_the_rule():
    plain = SimpleNamespace(bos_id=1, pad_id=3, specials={"bos": 1, "pad": 3})
    assert (decoder_start(plain, "bos"), decoder_start(plain, "pad")) == (1, 3)
    named = SimpleNamespace(bos_id=1, pad_id=3, specials={"decoder_start": 0})
    assert decoder_start(named, "bos") == decoder_start(named, "pad") == 0
