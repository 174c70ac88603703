"""The family of transformers that each config of configs/ is exported to."""

FAMILY = {  # the first that has the options: mT5 and ByT5 are a T5, XLM-R is a RoBERTa
    "bert": "bert", "byt5": "t5", "gemma2": "gemma2", "gemma3": "gemma3_text", "gpt2": "gpt2",
    "gpt2_124m": "gpt2", "gpt3": "gpt2", "llama2": "llama", "llama3": "llama",
    "llama3_1b": "llama", "llama3_8b": "llama", "mistral": "mistral", "mixtral_8x7b": "mixtral",
    "mt5": "t5", "quickstart": "llama", "quickstart:accelerator": "llama", "qwen2": "qwen2",
    "qwen3": "qwen3", "roberta": "roberta", "shakespeare": "gpt2", "t5": "t5", "xlmr": "roberta",
}  # fmt: skip
WITHOUT = {  # and what is said of those that transformers has no family for
    "gpt3:13b": "head_dim=",  # 40 heads of 128 are not its width of 5140, as GPT-2's must be
    "hmm": "architecture='hmm'",
    "lstm": "positions='none'",
    "ngram": "architecture='ngram'",
    "shakespeare:accelerator": "gated=False",
    "transformer": "positions='sinusoidal'",
}
