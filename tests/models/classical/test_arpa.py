"""ARPA files: n-gram models round-trip, and errors name the line."""

import gzip
import re

import numpy as np
import pytest

from lm_jax.errors import DataError, UserError
from lm_jax.models.classical import arpa
from lm_jax.models.classical.ngram import KneserNey

WORDS = [
    "<unk>",
    "</s>",
    "a",
    "b\u00a0c",
    "é",
    "\u3000",
    "#",
    "\\end\\",
]  # white space, not ASCII's


def some_documents(seed, sizes=(0, 1, 2, 40, 90, 3, 150)):
    rng = np.random.default_rng(seed)
    return [np.minimum(rng.geometric(0.3, n), len(WORDS) - 1) for n in sizes]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("ending", ["arpa", "arpa.gz"])
def test_a_model_comes_back_from_its_file(order, ending, tmp_path):
    model = KneserNey(order, len(WORDS)).fit(some_documents(0))
    arpa.write(model, tmp_path / f"model.{ending}", WORDS)
    again, words = arpa.read(tmp_path / f"model.{ending}")
    assert (again.order, again.bos_id, words) == (order, None, WORDS)
    held = some_documents(1)
    np.testing.assert_allclose(again.log_prob(held), model.log_prob(held), rtol=0, atol=1e-6)
    found, expected = again.next_probabilities([2, 1, 3]), model.next_probabilities([2, 1, 3])
    np.testing.assert_allclose(np.log(found), np.log(expected), rtol=0, atol=1e-6)


def test_a_token_that_is_the_begin_symbol_comes_back(tmp_path):
    words = ["x", "<s>", *WORDS[2:]]
    model = KneserNey(3, len(words), bos_id=1).fit([d[d != 1] for d in some_documents(0)])
    arpa.write(model, tmp_path / "model.arpa", words)
    again, found = arpa.read(tmp_path / "model.arpa")
    assert (found, again.bos_id) == (words, 1)
    for context in ([1], [1, 2], [2], []):
        np.testing.assert_allclose(
            again.next_probabilities(context), model.next_probabilities(context), rtol=1e-6
        )


def test_the_file_is_what_others_write(tmp_path):
    model = KneserNey(2, 2).fit([np.array([0, 1]), np.array([0])])
    arpa.write(model, tmp_path / "model.arpa", ["a", "</s>"])
    lines = (tmp_path / "model.arpa").read_text().splitlines()
    # Continuation counts: a 1, </s> 1; discounts 0.5: each (0.5 + 1 / 2) / 2.
    half = f"{np.log10(0.5):.9g}"
    assert lines[:4] == ["\\data\\", "ngram 1=4", "ngram 2=2", ""]
    assert lines[4:7] == ["\\1-grams:", f"{half}\ta\t{half}", f"{half}\t</s>\t0"]
    # <s> a: 2 less 1, of 2, and half of a's; a </s>: 1 less 0.5, and half of </s>'s.
    assert lines[7:9] == [f"-99\t<s>\t{half}", "-99\t<unk>\t0"]
    both = f"{np.log10(0.75):.9g}"
    assert lines[9:] == ["", "\\2-grams:", f"{both}\ta </s>", f"{both}\t<s> a", "", "\\end\\"]


# Of SRILM: another order, no backoff where nothing follows, text before \data\.
OTHERS = """written by another program

\\data\\
ngram 1=5
ngram 2=3

\\1-grams:
-0.6\t</s>
-99\t<s>\t-0.3
-0.5\tb
-99\t<unk>
-0.4\ta\t-0.2

\\2-grams:
-0.1 a b
-0.7 <s> b 0
-0.25\ta\ta

\\end\\
"""


def test_backoff_is_as_the_format_says(tmp_path):
    (tmp_path / "model.arpa").write_text(OTHERS)
    model, words = arpa.read(tmp_path / "model.arpa")
    assert words == ["</s>", "b", "a"]
    log10 = model.log_prob([np.array([1, 2, 2, 1, 0]), np.array([2])]) / np.log(10)
    expected = [-0.7, -0.4, -0.25, -0.1, -0.6, -0.3 - 0.4]
    np.testing.assert_allclose(log10, expected, atol=1e-12)


def test_a_begin_symbol_as_kenlm_writes_it_is_no_token(tmp_path):
    (tmp_path / "model.arpa").write_text(OTHERS.replace("-99\t<s>", "0\t<s>"))
    assert arpa.read(tmp_path / "model.arpa")[1] == ["</s>", "b", "a"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "data", "19: the file ends here"),
        ("\n\\end\\\n", "", "17: the file ends here"),
        ("ngram 2=3", "ngram 3=3", "5: orders must be 1, 2"),
        ("ngram 2=3", "ngram 2=4", "19: not a row of 2-grams"),
        ("ngram 2=3", "ngram 2=2", r"17: expected \\end\\, found '-0.25"),
        ("ngram 1=5\nngram 2=3\n", "", "5: expected ngram 1="),
        ("\\2-grams:", "\\3-grams:", r"14: expected \\2-grams:, found '\\\\3-grams:'"),
        ("-0.4\ta", "-0.4\tb", "12: a word comes twice"),
        ("-0.4\ta", "0.4\ta", "12: not a row of 1-grams"),
        ("-0.4\ta", "nan\ta", "12: not a row of 1-grams"),
        ("-0.1 a b", "-0.1 b", "15: not a row of 2-grams"),
        ("-0.1 a b", "-0.1 a b c d", "15: not a row of 2-grams"),
        ("-0.1 a b", "-0.1 a b inf", "15: not a row of 2-grams"),
        ("-0.1 a b", "-0.1 a z", "15: a word is not among the 1-grams"),
        ("-0.1 a b", "-0.25 a a", "17: an n-gram comes twice"),
        ("-0.1 a b", "-0.1 \udcff b", "15: not a row of 2-grams"),
    ],
)
def test_a_wrong_file_is_one_line_with_its_place(old, new, message, tmp_path):
    path = tmp_path / "model.arpa"
    path.write_bytes(OTHERS.replace(old, new, 1).encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as found:
        arpa.read(path)
    assert re.match(re.escape(f"{path}:") + message, str(found.value)), found.value
    assert "\n" not in str(found.value)


def test_an_ngram_without_its_context_is_refused(tmp_path):
    model = KneserNey(3, 3).fit(np.array([0, 1, 2, 1, 0]))
    arpa.write(model, tmp_path / "model.arpa", ["a", "b", "c"])
    text = (tmp_path / "model.arpa").read_text().replace("a b c", "a c b")
    (tmp_path / "model.arpa").write_text(text)
    with pytest.raises(DataError, match="not among the 2-grams"):
        arpa.read(tmp_path / "model.arpa")


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent.arpa:0: cannot be read"):
        arpa.read(tmp_path / "absent.arpa")
    (tmp_path / "plain.gz").write_text(OTHERS)
    with pytest.raises(DataError, match=r"plain.gz:0: cannot be read"):
        arpa.read(tmp_path / "plain.gz")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(OTHERS.encode())[:-20])
    with pytest.raises(DataError, match=r"cut.gz:\d+: cannot be read"):
        arpa.read(tmp_path / "cut.gz")
    (tmp_path / "empty.arpa").write_text("\\data\\\nngram 1=1\n\\1-grams:\n-99 <s>\n\\end\\\n")
    with pytest.raises(DataError, match="there is no token"):
        arpa.read(tmp_path / "empty.arpa")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a"], "1 words for a model of vocab_size=2"),
        (["a", "a"], r"words\[1\]='a': the name of token 0"),
        (["a", ""], r"words\[1\]='': must not be empty"),
        (["a b", "c"], r"words\[0\]='a b'.*white space"),
        (["a", "<s>"], r"words\[1\]='<s>': <s> must name bos_id=None"),
    ],
)
def test_words_that_a_file_cannot_hold_are_refused(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        arpa.write(KneserNey(2, 2), tmp_path / "model.arpa", words)
