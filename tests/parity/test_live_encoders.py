"""Do encoders and encoder-decoders go to `transformers` and back, live, gradients and all?"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_outputs import forward, ours
from flax import nnx
from safetensors.numpy import load_file

from lm_jax import convert
from lm_jax.config import LossConfig
from lm_jax.inference import generation
from lm_jax.models import ModelConfig, Transformer
from lm_jax.models.attention.positions import bucket
from lm_jax.tasks import objectives

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("default"),  # theirs are not ours to fix
]
REASON = "not installed; the parity extra has it: pip install 'lm_jax[parity]'"
torch = pytest.importorskip("torch", reason=f"torch is {REASON}")
transformers = pytest.importorskip("transformers", reason=f"transformers is {REASON}")

from make_golden_encoders import UNTIED, VARIANTS, answers, batch_of, random_model, theirs  # noqa: E402

BERT = ModelConfig(
    architecture="encoder", vocab_size=67, num_layers=3, dim=24, num_heads=3, max_length=30,
    norm="layernorm", norm_order="post", final_norm=False, embed_norm=True, positions="learned",
    activation="gelu", gated=False, bias=True, token_types=2, head_transform=True,
    head_bias=True, pooler=True,
)  # fmt: skip
T5 = ModelConfig(
    architecture="encoder_decoder", vocab_size=67, num_layers=2, encoder_layers=3, dim=24,
    num_heads=3, head_dim=6, max_length=64, positions="relative", activation="gelu_tanh",
    attn_scale=1.0, tie_embeddings=False, relative_buckets=12, relative_distance=17,
)  # fmt: skip
OURS = {
    "bert": BERT,
    "bert_silu": dataclasses.replace(
        BERT, activation="silu", pooler=False, tie_embeddings=False, token_types=1, mlp_dim=31
    ),
    "roberta": dataclasses.replace(BERT, position_offset=5, pooler=False, token_types=3),
    "t5_1_1": T5,
    "t5_scaled_silu": dataclasses.replace(
        T5, tie_embeddings=True, logit_scale=24**-0.5, activation="silu", num_layers=1
    ),
    "t5_unscaled_gelu": dataclasses.replace(
        T5, tie_embeddings=True, activation="gelu", gated=False, encoder_layers=0
    ),
}  # fmt: skip


@jax.jit
def gradients(model, batch):
    """The mean loss and its gradients, in the shape of a model."""

    def mean(model):
        total, sums = objectives.loss(model, batch, None, LossConfig())
        return total / sums["tokens"]

    return jax.value_and_grad(mean)(model)


def check_logits(model, there, batch):
    """Both say the same where there is a token."""
    wanted = answers(there, batch)
    logits, pair_logits = forward(model, ours(batch))
    real = batch.get("segment_ids", np.ones_like(batch["ids"])) > 0
    np.testing.assert_allclose(logits[real], wanted["logits"][real], atol=1e-4, rtol=0)
    if pair_logits is not None:
        np.testing.assert_allclose(pair_logits, wanted["pair_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_their_models_say_and_learn_the_same_here(name, tmp_path):
    there = random_model(*VARIANTS[name], untied=name in UNTIED)
    there.save_pretrained(tmp_path / "in")
    config, model = convert.import_hf(tmp_path / "in")
    check_logits(model, there, batch_of(there, padded=False))
    batch = batch_of(there, seed=1)
    check_logits(model, there, batch)

    rng = np.random.default_rng(2)
    targets = rng.integers(0, config.vocab_size, batch["ids"].shape).astype(np.int32)
    real = batch.get("segment_ids", np.ones_like(batch["ids"])) > 0
    weights = (real & (rng.random(real.shape) < 0.5)).astype(np.float32)
    pair = {"pair_label": np.array([1, 0], np.int32)} if config.pooler else {}
    loss, slopes = gradients(model, ours(batch) | {"targets": targets, "weights": weights} | pair)

    labels = {"labels": torch.tensor(np.where(weights > 0, targets, -100)).long()}
    if config.pooler:
        labels["next_sentence_label"] = torch.tensor(pair["pair_label"]).long()
    wanted = theirs(there, batch, **labels).loss
    wanted.backward()
    np.testing.assert_allclose(loss, wanted.item(), rtol=1e-5)
    # Gradients have the shape of a model, and go out under their names.
    convert.export_hf(slopes, config, tmp_path / "out", family=there.config.model_type)
    found = load_file(tmp_path / "out" / "model.safetensors")
    held = {key: x.grad for key, x in there.named_parameters() if x.grad is not None}
    assert found.keys() == held.keys()
    for key, slope in held.items():
        np.testing.assert_allclose(found[key], slope, rtol=1e-3, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", OURS)
def test_our_models_say_the_same_there_and_come_back_bit_by_bit(name, tmp_path):
    config = OURS[name]
    model = random(config)
    convert.export_hf(model, config, tmp_path / "out")
    kind = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"][0]
    there = getattr(transformers, kind).from_pretrained(tmp_path / "out").eval()
    check_logits(model, there, batch_of(there))

    there.save_pretrained(tmp_path / "back")
    _, again = convert.import_hf(tmp_path / "back")
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(
            np.asarray(one).view(np.uint32), np.asarray(other).view(np.uint32)
        )


@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_t5_continues_with_the_same_tokens(name, tmp_path):
    kind, options = VARIANTS[name]
    # Their cache has as many layers as the encoder: a decoder of more breaks it.
    there = random_model(kind, options | {"num_layers": 3}, untied=name in UNTIED)
    there.save_pretrained(tmp_path / "in")
    _, model = convert.import_hf(tmp_path / "in")
    batch = batch_of(there)
    mask = batch["input_segment_ids"]
    wanted = there.generate(
        input_ids=torch.tensor(batch["inputs"]).long(), attention_mask=torch.tensor(mask),
        max_new_tokens=20, do_sample=False, eos_token_id=None,
    )[:, 1:].numpy()  # fmt: skip
    inputs = [row[: kept.sum()] for row, kept in zip(batch["inputs"], mask, strict=True)]
    steps = generation.generate(
        model, [[0], [0]], 20, jax.random.key(0), temperature=0, inputs=inputs
    )
    found = np.stack(list(steps), 1)
    np.testing.assert_array_equal(found, wanted)
    assert len(np.unique(found)) > 4


@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (10, 33), (64, 512)])
def test_every_distance_has_the_bucket_that_t5_gives_it(buckets, furthest):
    attention = transformers.models.t5.modeling_t5.T5Attention
    distance = np.arange(-3 * furthest, 3 * furthest)
    for causal in (True, False):
        wanted = attention._relative_position_bucket(
            torch.tensor(distance), not causal, buckets, furthest
        )
        found = bucket(jnp.asarray(distance), causal, buckets, furthest)
        np.testing.assert_array_equal(found, wanted)


def test_the_start_of_a_decoder_and_the_padding_that_positions_need_arrive(tmp_path):
    tokenizer = type("Tokenizer", (), {"bos_id": 2, "eos_id": 3, "pad_id": 0, "specials": {}})()
    convert.export_hf(random(T5), T5, tmp_path / "t5", tokenizer)
    there = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "t5")
    held = there.generation_config
    assert (held.decoder_start_token_id, held.eos_token_id, held.pad_token_id) == (2, 3, 0)
    assert there.config.decoder_start_token_id == 2
    roberta = random(OURS["roberta"])  # whose positions begin behind another padding
    convert.export_hf(roberta, OURS["roberta"], tmp_path / "r", tokenizer)
    there = transformers.RobertaForMaskedLM.from_pretrained(tmp_path / "r").eval()
    assert there.config.pad_token_id == 0
    check_logits(roberta, there, batch_of(there, padded=False))


def random(config: ModelConfig) -> Transformer:
    """Our model, every parameter random, biases and norms too, by numpy: nothing to compile."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape) + 0.1, jnp.float32)
    return jax.tree.map(draw, jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
