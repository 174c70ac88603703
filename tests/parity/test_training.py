"""A hundred steps of training beside torch: models and losses of `transformers`, optimizers of
torch and transformers, float32. Needs the extra: launch/test.sh --parity.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lm_jax import convert
from lm_jax.config import Config, DataConfig, OptimizerConfig
from lm_jax.training import optimizers
from lm_jax.training.train_step import TrainState, make_train_step

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]
REASON = "not installed; the parity extra has it: pip install 'lm_jax[parity]'"
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")
transformers = pytest.importorskip("transformers", reason=f"transformers is {REASON}")

STEPS, B, L, V, D = 100, 4, 12, 40, 16
TOLERANCE = 1e-5  # of losses, and of parameters beside the largest of their tensor
# Orthogonalization multiplies what is small in a matrix, rounding too, by 3.4 in each of 5 steps.
OF_PARAMETERS = {"Muon": 1e-4}
MODELS = {
    "GPT-2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=V, n_positions=32, n_embd=D, n_layer=2, n_head=2, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)),
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)),
    "BERT": lambda: transformers.BertForPreTraining(transformers.BertConfig(
        vocab_size=V, hidden_size=D, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0)),
    "T5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=V, d_model=D, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        relative_attention_num_buckets=8, relative_attention_max_distance=20)),
}  # fmt: skip
# eps: where a gradient is hardly more than its rounding, Adam with a smaller one makes whole steps
# of the rounding.
OPTIMIZERS = {
    "AdamW": OptimizerConfig(learning_rate=3e-3, clip_norm=0.0, eps=1e-4),
    "AdamW, clipped": OptimizerConfig(learning_rate=3e-3, clip_norm=0.5, eps=1e-4),
    "Muon": OptimizerConfig(name="muon", learning_rate=3e-3, muon_learning_rate=5e-3,
                            clip_norm=1.0, eps=1e-4),
    "Adafactor": OptimizerConfig(name="adafactor", learning_rate=2e-2, weight_decay=0.0,
                                 clip_norm=0.0),
}  # fmt: skip


def batches(family):
    """For each step (batch of lm_jax [1, B, L], arguments of the model of transformers)."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(3, V, shape)
    for _ in range(STEPS):
        tokens = draw(B, L + 1)
        # Something to learn; never id 0, which BERT's embeddings there take for padding.
        tokens[:, 1::2] = (tokens[:, :-1:2] * 7 + 1) % (V - 3) + 3
        ours = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": np.ones((B, L))}
        theirs = {"input_ids": tokens, "labels": tokens}
        if family == "BERT":
            kept = rng.random((B, L)) < np.linspace(0.1, 0.8, B)[:, None]  # rows of unlike weight
            kept[:, 0] = True
            types, pair = np.sort(rng.integers(0, 2, (B, L)), 1), tokens[:, 1] % 2
            masked = np.where(kept, 1, tokens[:, :-1])
            ours = {"tokens": masked, "targets": tokens[:, :-1], "weights": kept,
                    "token_types": types, "pair_label": pair}  # fmt: skip
            theirs = {"input_ids": masked, "labels": np.where(kept, tokens[:, :-1], -100),
                      "token_type_ids": types, "next_sentence_label": pair}  # fmt: skip
        if family == "T5":
            kept, inputs = rng.random((B, L)) < 0.8, draw(B, L + 3)
            ours |= {"inputs": inputs, "weights": kept}
            theirs = {"input_ids": inputs, "decoder_input_ids": tokens[:, :-1],
                      "labels": np.where(kept, tokens[:, 1:], -100)}  # fmt: skip
        kinds = {"weights": np.float32}
        yield (
            {name: x.astype(kinds.get(name, np.int32)) for name, x in ours.items()},
            {name: torch.tensor(x) for name, x in theirs.items()},
        )


# ---- torch ---------------------------------------------------------------------------------------


def leaves_of(model):
    """{name: parameter} of what an optimizer sees: matrices [out, in], each by itself. GPT-2 keeps
    them transposed, and queries, keys and values in one; T5's relative positions, which its
    authors did not factor, are a vector.
    """
    found = {}
    for name, x in model.named_parameters():
        x = x.detach()
        conv = isinstance(model.get_submodule(name.rpartition(".")[0]),
                          transformers.pytorch_utils.Conv1D)  # fmt: skip
        x = x.T if conv and x.ndim == 2 else x
        x = x.flatten() if "relative_attention_bias" in name else x
        parts = x.chunk(3) if "c_attn" in name else [x]
        for index, part in enumerate(parts):
            found[f"{name}:{index}:{int(conv)}"] = torch.nn.Parameter(part.clone())
    return found


def assembled(leaves, model):
    """{name: tensor} of the model's parameters, made of `leaves`."""
    found, shapes = {}, {name: x.shape for name, x in model.named_parameters()}
    for key, x in leaves.items():
        name, _, conv = key.split(":")
        found.setdefault(name, ([], int(conv)))[0].append(x)
    whole = {name: torch.cat(parts) for name, (parts, _) in found.items()}
    return {
        name: (x.T if found[name][1] and x.ndim == 2 else x).reshape(shapes[name])
        for name, x in whole.items()
    }


@contextlib.contextmanager
def float32_muon():
    """torch.optim.Muon orthogonalizes in bfloat16; here in float32."""
    kept, torch.Tensor.bfloat16 = torch.Tensor.bfloat16, lambda x: x.clone()
    yield
    torch.Tensor.bfloat16 = kept


def torch_optimizers(config, leaves):
    """Those that move `leaves` as `config` says."""
    decays = lambda x: config.weight_decay * (x.ndim > 1)
    inside = lambda name: any(part in name for part in (".h.", ".layers.", ".layer.", ".block."))
    hidden = [x for name, x in leaves.items() if inside(name) and x.ndim == 2]
    if config.name == "adafactor":
        return [transformers.optimization.Adafactor(
            leaves.values(), lr=config.learning_rate, relative_step=False)]  # fmt: skip
    found, others = [], list(leaves.values())
    if config.name == "muon":
        others = [x for x in others if not any(x is y for y in hidden)]
        found = [torch.optim.Muon(hidden, lr=config.muon_learning_rate,
                                  weight_decay=config.weight_decay)]  # fmt: skip
    groups = [{"params": [x], "weight_decay": decays(x)} for x in others]
    betas = config.b1, config.b2
    return [*found, torch.optim.AdamW(groups, config.learning_rate, betas, config.eps)]


def trained_by_torch(model, config, family):
    """(losses of the steps, parameters after them)."""
    leaves, losses = leaves_of(model), []
    using = torch_optimizers(config, leaves)
    for _, batch in batches(family):
        whole = assembled(leaves, model)
        loss = torch.func.functional_call(model, whole, kwargs=batch).loss
        for optimizer in using:
            optimizer.zero_grad()
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(leaves.values(), config.clip_norm)
        with float32_muon():
            for optimizer in using:
                optimizer.step()
        losses.append(loss.item())
    return losses, {name: x.detach().numpy() for name, x in assembled(leaves, model).items()}


# ---- Side by side --------------------------------------------------------------------------------


def trained_by_us(directory, options, family, path):
    """The same, of the model in a directory; the model comes back under the names of theirs."""
    model_config, model = convert.import_hf(directory)
    config = Config(
        batch_size=B, microbatches=2 if family == "BERT" else 1, steps=STEPS, model=model_config,
        data=DataConfig(sequence_length=L), optimizer=options,
    )  # fmt: skip
    step = jax.jit(make_train_step(config))
    opt = optimizers.make(options, STEPS).init(model)
    state, losses = TrainState(jnp.zeros((), jnp.int32), model, opt), []
    for batch, _ in batches(family):
        parts = {n: x.reshape(config.microbatches, -1, *x.shape[1:]) for n, x in batch.items()}
        state, metrics = step(state, parts)
        losses.append(float(metrics["loss"] + metrics.get("pair_nll", 0.0)))
    convert.export_hf(state.model, model_config, path)
    return losses, load_file(path / "model.safetensors")


def with_gradient(name, x):
    """x without the biases of keys: they move all scores of a query alike, so that their gradient
    is rounding and nothing else, of which Adafactor makes whole steps.
    """
    if name.endswith("c_attn.bias"):
        return np.concatenate([x[:D], x[2 * D :]])
    return x[:0] if name.endswith("key.bias") else x


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("family", MODELS)
def test_a_hundred_steps_are_those_of_torch(family, optimizer, tmp_path):
    options = OPTIMIZERS[optimizer]
    options = OptimizerConfig(**{**vars(options), "schedule": "constant", "warmup_steps": 0}
                              | ({"eps": 1e-3} if family in ("BERT", "T5") else {}))  # fmt: skip
    torch.manual_seed(0)
    torch.set_num_threads(1)  # of so small tensors, threads wait for each other
    model = MODELS[family]().train()
    model.save_pretrained(tmp_path / "start")
    expected, theirs = trained_by_torch(model, options, family)
    losses, ours = trained_by_us(tmp_path / "start", options, family, tmp_path / "end")
    assert np.mean(expected[-20:]) < np.mean(expected[:5])  # it learns
    np.testing.assert_allclose(losses, expected, rtol=TOLERANCE)
    compared = [name for name in theirs if name in ours]
    assert len(compared) >= len(theirs) - 1  # a tied head may be written under its other name
    tolerance = OF_PARAMETERS.get(optimizer, TOLERANCE)
    for name in compared:
        found, right = (with_gradient(name, x[name]) for x in (ours, theirs))
        largest = np.abs(right).max(initial=0.0)
        np.testing.assert_allclose(found, right, rtol=0, atol=tolerance * largest, err_msg=name)
