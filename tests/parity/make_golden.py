"""Which models prove that ours are those of `transformers`? Makes the golden files, where torch is.

python tests/parity/make_golden.py writes golden/<name>/: config.json and model.safetensors as
`save_pretrained` of transformers writes them, and expected.safetensors with token ids and the
logits there. All numbers are random, biases and norms too: zeros in a wrong place prove nothing.
"""

import sys
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
GPT2 = {"vocab_size": 61, "n_positions": 24, "n_embd": 16, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
# Each has options that the others have not: grouped heads, a head size of its own, biases, an odd
# width, tied and untied heads, each rotary scaling beyond its original length, other activations.
VARIANTS = {
    "gpt2": ("GPT2", GPT2),
    "gpt2_untied": (
        "GPT2",
        GPT2 | {"tie_word_embeddings": False, "n_inner": 37, "activation_function": "gelu"}
        | {"layer_norm_epsilon": 1e-3, "n_layer": 3},
    ),
    "llama": ("Llama", LLAMA | {"num_key_value_heads": 2}),
    "llama3_tied": (
        "Llama",
        LLAMA
        | {"num_key_value_heads": 1, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}
        | {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama_biases": (
        "Llama",
        LLAMA
        | {"attention_bias": True, "mlp_bias": True, "head_dim": 6}
        | {"hidden_act": "gelu_pytorch_tanh"}
        | {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ),
}  # fmt: skip


def random_model(name: str):
    """A model of `transformers` whose every parameter is random."""
    import torch
    import transformers

    family, options = VARIANTS[name]
    torch.set_num_threads(1)  # tiny products: more threads only wait for each other
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **options, bos_token_id=1, eos_token_id=2, attn_implementation="eager"
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for label, parameter in model.named_parameters():
            centre = 1.0 if "norm.weight" in label or "layernorm.weight" in label else 0.0
            centre = 1.0 if ".ln_" in label and label.endswith("weight") else centre
            parameter.copy_(centre + 0.25 * torch.randn_like(parameter))
    return model


def token_ids(name: str):
    """Two rows of tokens, as long as the model allows up to 40."""
    import numpy as np

    _, options = VARIANTS[name]
    length = min(40, options.get("n_positions", 40))
    return np.random.default_rng(0).integers(0, options["vocab_size"], (2, length))


def logits(model, ids):
    """What `transformers` says, float32 numpy."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()


def main() -> None:
    """Writes every variant."""
    from safetensors.numpy import save_file

    for name in sys.argv[1:] or VARIANTS:
        model, ids = random_model(name), token_ids(name)
        model.save_pretrained(GOLDEN / name)
        (GOLDEN / name / "generation_config.json").unlink(missing_ok=True)
        expected = {"ids": ids, "logits": logits(model, ids)}
        save_file(expected, GOLDEN / name / "expected.safetensors")
        print(name, sum(file.stat().st_size for file in (GOLDEN / name).iterdir()), "bytes")


if __name__ == "__main__":
    main()
