"""Published configurations: where their config.json lie, and the sizes of those that load."""

from pathlib import Path

PUBLISHED = Path(__file__).parents[1] / "convert" / "published"
PARAMETERS = {  # of the published weights, tied tensors counted once
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "Llama-2-7b-hf": 6_738_415_616,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.2-1B-Instruct-unsloth": 1_235_814_400,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mixtral-8x7B-v0.1": 46_702_792_704,
    "OLMo-2-0425-1B": 1_484_916_736,
    "Qwen2-0.5B": 494_032_768,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-Math-1.5B": 1_543_714_304,
    "Qwen3-0.6B": 596_049_920,
    "SmolLM2-1.7B-Instruct": 1_711_376_384,
    "SmolLM2-135M-Instruct": 134_515_008,
    "TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "Yi-1.5-6B": 6_061_035_520,
    "all-MiniLM-L6-v2": 22_744_506,  # with the head that its file lacks
    "bert-base-chinese": 102_290_312,
    "bert-base-uncased": 109_514_298,
    "deepseek-coder-1.3b-base": 1_346_471_936,
    "distilgpt2": 81_912_576,
    "flan-t5-base": 247_577_856,
    "gemma-2-2b": 2_614_341_888,
    "gemma-3-1b-it": 999_885_952,
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "mt5-small": 300_176_768,
    "roberta-base": 124_697_433,
    "t5-small": 60_506_624,
    "vicuna-7b-v1.5": 6_738_415_616,
    "xlm-roberta-base": 278_295_186,
}
REFUSED = {
    "Llama-3.1-8B-Instruct-bnb-4bit": r"quantization_config=.*not supported in a llama: the we",
    "albert-base-v2": r"model_type='albert': not supported\. Supported: gpt2, llama",
    "gemma-3-4b-it": r"model_type='gemma3': not supported: it reads images; its text model alone",
}
