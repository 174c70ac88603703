"""In scripts without spaces, pieces end at sentence marks, digits, line ends and other scripts."""
# ruff: noqa: RUF001

import pytest

from lm_jax.config import DataConfig
from lm_jax.data.build import prepare
from lm_jax.data.tokens import scripts, tokenizer_training
from lm_jax.data.tokens.store import TokenStore
from lm_jax.data.tokens.tokenizer import replaced
from lm_jax.data.tokens.tokenizer_training import train, training_lines

BOILERPLATE = "\n\n本页面中文版由中文 man 手册页计划提供。"
CHINESE = [
    "春天来了，河边的柳树开始发芽。孩子们放学以后，常常在那里放风筝。",
    "他每天早上6点30分起床，先喝一杯热水，然后出门跑步5公里。",
    "图书馆在学校的东边，里面有20000多本书；学生可以借3本。",
    "「你吃饭了吗？」她问道。「还没有，我正在写作业！」",
    "这座城市有800年的历史，城墙用石头建成，至今保存完好。",
    "老师说：学习语言没有捷径，只能多听、多说、多读、多写。",
    "列车将于12:45到达北京站，请乘客提前10分钟做好准备。",
    "秋天的山上，红叶像火一样；游客从各地赶来，拍照留念。",
]
JAPANESE = "東京は2024年に人口1400万人を超えました。「はい、そうです」と彼は言った。\n"
THAI = "ภาษาไทย 2567 เป็นภาษาราชการ ของประเทศไทย\n"


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request):
    texts = [text + BOILERPLATE for text in CHINESE * 3] + [JAPANESE * 4, THAI * 4]
    return train(request.param, texts, {"bpe": 620, "unigram": 475}[request.param])


def mixed(piece):
    """Whether a piece has letters of such scripts and anything else."""
    text = piece.decode(errors="ignore")
    letters = len(scripts.UNSPACED.findall(text))
    return 0 < letters < len(text)


def test_no_piece_reaches_over_a_border(tokenizer):
    assert not [piece.decode() for piece in tokenizer.pieces if mixed(piece)]
    assert max(len(piece) for piece in tokenizer.pieces) > 4  # there are words nonetheless
    ids = tokenizer.encode(BOILERPLATE)
    assert [tokenizer.decode([i]) for i in ids].count("。") == 1
    assert len(ids) >= 6


def test_every_text_comes_back(tokenizer):
    others = [
        "鼎 鼐\t龘、 )\u3000 ，",
        " ",
        "a 東 b\n 京 ",
        "ก า ๕๖",
        "\u2581 中 \u2581国",
        "".join(CHINESE),
    ]
    for text in [*CHINESE, BOILERPLATE, JAPANESE, THAI, *others]:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_space_that_is_no_piece_comes_back_as_a_space(kind, monkeypatch):
    texts = ["".join(CHINESE) * 3]
    assert train(kind, texts, {"bpe": 500, "unigram": 418}[kind]).encode(" ").tolist() != [4 + 0x20]
    # Another character in its place, which is there: SentencePiece 0.2.2 aborts where it is not.
    monkeypatch.setattr(tokenizer_training, "SPACE", texts[0][0])
    monkeypatch.setattr(tokenizer_training, "with_a_space", lambda lines: lines)
    tokenizer = train(kind, texts, {"bpe": 500, "unigram": 418}[kind])
    assert tokenizer.spaceless
    for text in (" ", "春 天", "\u2581 \u2581", "\u2580 \u2582 "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(" ").tolist() == [4 + 0x20]
    assert replaced([1, 2, 3, 1, 2], [1, 2], 9) == [9, 3, 9]


def test_lines_are_cut_where_such_a_script_begins_or_ends():
    found = list(training_lines([BOILERPLATE + "\n在2024年"]))
    assert found == [
        "\n\n", "本页面中文版由中文", " man ", "手册页计划提供", "。", "\n", "在", "2024", "年",
    ]  # fmt: skip
    plain = "def f(x):\n    return x  # été, 안녕 하세요, 123\n"
    assert list(training_lines([plain])) == ["def f(x):", plain[9:-1], "\n"]


def test_a_text_says_what_vocabulary_it_wants(tmp_path, capsys):
    many = "".join(chr(0x4E00 + i) for i in range(1000))
    line = scripts.advice([many], 2000)
    assert "100 % of the text" in line
    assert "1,000 characters" in line
    assert "config.data.vocab_size=2000 leaves few pieces for words; 4096 is better" in line
    assert scripts.advice([many], 4096) == ""
    assert scripts.advice(["a" * 20_000 + many], 300) == ""
    assert scripts.advice([], 300) == ""
    (tmp_path / "zh.txt").write_text("\n".join(CHINESE * 4))
    data = DataConfig(input=str(tmp_path / "zh.txt"), vocab_size=480, heldout_fraction=0.1)
    store = TokenStore.open(prepare(data, str(tmp_path / "store")))
    assert "config.data.vocab_size=480 leaves few pieces" in capsys.readouterr().err
    assert not any(map(mixed, store.tokenizer.pieces))
