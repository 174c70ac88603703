"""A pipeline computes what one device does, in every kind of stack and beside other mesh axes."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from lm_jax.config import Config, DataConfig, LossConfig, MeshConfig, ModelConfig, OptimizerConfig
from lm_jax.devices import sharding
from lm_jax.errors import UserError
from lm_jax.inference.generation import generate
from lm_jax.models import create
from lm_jax.models.pipeline import by_round, number_of_parts
from lm_jax.training.train_step import init_state, make_train_step

B, L, V, N = 8, 8, 32, 4
MODEL = ModelConfig(
    vocab_size=V, num_layers=N, dim=16, num_heads=2, mlp_dim=32, max_length=32, attention="xla",
    dtype="float32",
)  # fmt: skip
MODELS = {
    "decoder": MODEL,
    "encoder": dataclasses.replace(
        MODEL, architecture="encoder", norm="layernorm", positions="learned", bias=True
    ),
    "encoder_decoder": dataclasses.replace(
        MODEL, architecture="encoder_decoder", positions="relative", relative_buckets=8,
        relative_distance=12, encoder_layers=2,
    ),
    "experts": dataclasses.replace(MODEL, num_experts=4),
    "pattern": dataclasses.replace(MODEL, window=3, layer_pattern="lg", remat="full"),
}  # fmt: skip
for name in ("decoder", "encoder_decoder"):
    MODELS[f"{name} in bfloat16"] = dataclasses.replace(MODELS[name], dtype="bfloat16")
MESHES = {
    "one": {},
    "stage 4": {"stage": 4},
    "stage 2 x data 2": {"stage": 2, "data": 2},
    "stage 2 x fsdp 2 x tensor 2": {"stage": 2, "fsdp": 2, "tensor": 2},
    "stage 2 x expert 2 x tensor 2": {"stage": 2, "expert": 2, "tensor": 2},
    "stage 2 x context 2 x slice 2": {"stage": 2, "context": 2, "slice": 2},
}


def mesh_of(name):
    """One of MESHES, over as many devices."""
    sizes = {"data": 1} | MESHES[name]
    return sharding.make_mesh(MeshConfig(**sizes), jax.devices()[: np.prod([*sizes.values()])])


def batch_of(step, inputs):
    """Two documents a row and targets that do not count, more in some rows: [1, B, L]."""
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, V, (B, L + 1)).astype(np.int32)
    segments = (1 + (np.arange(L) >= rng.integers(1, L, (B, 1)))).astype(np.int32)
    segments[0, -3:] = 0  # padding: parts of the batch have unlike numbers of tokens
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": segments}
    batch["weights"] = (segments > 0) * (rng.random((B, L)) < np.linspace(0.1, 1, B)[:, None])
    batch["weights"] = batch["weights"].astype(np.float32)
    if inputs:
        batch |= {"inputs": tokens[:, :0:-1], "input_segment_ids": segments}
    return {name: x[None] for name, x in batch.items()}


@functools.cache
def trained(name, mesh_name, parts=0, steps=3, optimizer="adamw", shard_state=False, rounds=1):
    """Metrics of some steps, and the shape of a device's part of the keys' weights."""
    model = dataclasses.replace(MODELS[name], pipeline_parts=parts, pipeline_rounds=rounds)
    config = Config(
        steps=20, batch_size=B, model=model, data=DataConfig(sequence_length=L),
        loss=LossConfig(z_loss=1e-4),
        optimizer=OptimizerConfig(
            optimizer, learning_rate=3e-3, warmup_steps=2, shard_state=shard_state
        ),
    )  # fmt: skip
    mesh, inputs, rows = mesh_of(mesh_name), model.architecture == "encoder_decoder", []
    with jax.set_mesh(mesh):
        state = jax.jit(lambda: init_state(config))()
        stack = state.model.encoder if name == "encoder" else state.model.decoder
        part = stack.blocks.attn.wk[...].addressable_shards[0].data.shape
        step = jax.jit(make_train_step(config), donate_argnums=0)
        for number in range(steps):
            state, metrics = step(state, sharding.put(batch_of(number, inputs), mesh, leading=1))
            rows.append({key: float(x) for key, x in metrics.items()})
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}, part


def same(*asked, **more):
    """Checks that a mesh gives the metrics of one device; gives what a device holds."""
    (found, part), (one, _) = trained(*asked, **more), trained(asked[0], "one", **more)
    for name in one.keys() - {"gnorm"}:
        np.testing.assert_allclose(found[name], one[name], rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["gnorm"], one["gnorm"], rtol=1e-4)
    return part


@pytest.mark.jax10
@pytest.mark.parametrize("rounds", [1, 2])
def test_steps_are_those_of_one_device(rounds):
    part = same("decoder", "stage 2 x fsdp 2 x tensor 2", rounds=rounds)
    assert part[0] == N // 2  # the layers of a stage, and no others


@pytest.mark.jax10
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("decoder", "stage 2 x data 2"),
        pytest.param("encoder_decoder", "stage 2 x data 2", marks=pytest.mark.slow),
        pytest.param("encoder_decoder", "stage 2 x fsdp 2 x tensor 2", marks=pytest.mark.slow),
    ],
)
def test_stages_in_bfloat16_are_summed_without_an_abort_on_cpu(name, mesh):
    name = f"{name} in bfloat16"
    (found, _), (one, _) = trained(name, mesh, steps=1), trained(name, "one", steps=1)
    np.testing.assert_allclose(found["loss"], one["loss"], rtol=1e-3)
    np.testing.assert_allclose(found["gnorm"], one["gnorm"], rtol=2e-2)


@pytest.mark.parametrize(("stages", "rounds"), [(2, 2), (4, 2), (4, 3), (2, 4), (4, 6), (8, 4)])
def test_in_each_round_the_layers_of_all_stages_follow_each_other(stages, rounds):
    each, S, R = 2, stages, rounds  # layers of a stage and round
    mesh = jax.make_mesh((S,), ("stage",), devices=jax.devices()[:S],
                         axis_types=(jax.sharding.AxisType.Explicit,))  # fmt: skip
    own = jax.sharding.PartitionSpec("stage")

    def there(x):
        x = by_round(x.reshape(R, each), S, R)
        return x.reshape(-1), by_round(x, S, R, back=True).reshape(-1)

    with jax.set_mesh(mesh):
        layers = jax.device_put(np.arange(S * R * each), jax.NamedSharding(mesh, own))
        found, back = jax.jit(jax.shard_map(there, in_specs=own, out_specs=(own, own)))(layers)
    wanted = np.arange(S * R * each).reshape(R, S, each).swapaxes(0, 1)
    np.testing.assert_array_equal(np.asarray(found).reshape(S, R, each), wanted)
    np.testing.assert_array_equal(back, np.arange(S * R * each))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["stage 2 x fsdp 2 x tensor 2", "stage 2 x context 2 x slice 2"])
@pytest.mark.parametrize("name", ["decoder", "encoder", "experts"])
def test_twenty_steps_in_two_rounds_are_those_of_one_device(name, mesh):
    same(name, mesh, steps=20, rounds=2)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_dropout_of_a_pipeline_draws_as_often_as_there_are_layers_and_parts(rounds, remat):
    model = dataclasses.replace(MODEL, dropout=0.5, pipeline_rounds=rounds, remat=remat)
    with jax.set_mesh(mesh_of("stage 2 x data 2")):
        net = jax.jit(lambda: create(model, rngs=nnx.Rngs(0)))()
        batch = {"tokens": np.ones((B, L), np.int32)}
        say = jax.jit(lambda net, batch, key: net.forward(batch, key)[0])
        one, again, other = (np.asarray(say(net, batch, jax.random.key(i))) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert len({row.tobytes() for row in one}) == B  # alike but for what is dropped
    assert not np.array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", list(MESHES)[1:])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "bfloat16"])
def test_twenty_steps_are_those_of_one_device(name, mesh):
    if name not in ("encoder_decoder", "pattern") or "stage 4" not in mesh:
        same(name, mesh, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "muon"])
def test_every_optimizer_can_share_its_state_out_beside_stages(optimizer):
    same("decoder", "stage 2 x data 2", optimizer=optimizer, shard_state=True)


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_number_of_parts_changes_nothing(parts):
    same("experts", "stage 2 x data 2", parts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoder", "encoder_decoder", "experts", "pattern"])
def test_text_is_continued_as_on_one_device(name):
    def texts(mesh_name):
        with jax.set_mesh(mesh_of(mesh_name)):
            model = jax.jit(lambda: create(MODELS[name], rngs=nnx.Rngs(0)))()
            inputs = [[3, 4, 5], [1, 2]] if name == "encoder_decoder" else ()
            rows = generate(model, [[1, 2, 3], [4]], 5, jax.random.key(0), inputs=inputs)
            return [row.tolist() for row in rows]

    assert texts("stage 2 x fsdp 2 x tensor 2") == texts("stage 2 x data 2") == texts("one")


@pytest.mark.parametrize(
    ("rows", "stages", "asked", "found"),
    [(32, 2, 0, 8), (12, 4, 0, 12), (6, 2, 4, 3), (8, 2, 8, 8), (8, 2, 64, 8), (2, 2, 1, 1)],
)
def test_parts_divide_the_rows_of_a_device(rows, stages, asked, found):
    assert number_of_parts(rows, stages, asked) == found


@pytest.mark.parametrize(
    ("rows", "stages", "asked", "rounds", "found"),
    [(32, 4, 0, 2, 8), (32, 4, 0, 8, 4), (24, 4, 0, 2, 8), (20, 4, 16, 2, 4), (32, 4, 2, 2, 4)],
)
def test_in_rounds_there_are_as_many_parts_as_stages_or_a_multiple(
    rows, stages, asked, rounds, found
):
    assert number_of_parts(rows, stages, asked, rounds) == found


@pytest.mark.parametrize(
    ("model", "stage", "message"),
    [
        ({"num_layers": 6}, 4, r"mesh.stage=4: .*num_layers=6 into equal parts; nearest: 3\."),
        ({"num_layers": 6, "window": 8, "layer_pattern": "lg"}, 2,
         r"num_layers=6 into equal parts of whole periods of model.layer_pattern='lg'; nearest: 1"),
        ({"architecture": "encoder_decoder", "encoder_layers": 3}, 2, r"encoder_layers=3 into"),
        ({"num_layers": 8, "pipeline_rounds": 3}, 2,
         r"pipeline_rounds=3: must cut config.model.num_layers=8 into equal parts; nearest: 2\."),
        ({"pipeline_rounds": 0}, 2, r"pipeline_rounds=0: must be at least 1"),
        ({"architecture": "lstm"}, 2, r"'lstm' has no stack of blocks: set it to 1"),
    ],
)  # fmt: skip
def test_stages_that_would_not_be_equal_are_refused(model, stage, message):
    objective = {"objective": "span_corruption" if "encoder_layers" in model else "causal"}
    with pytest.raises(UserError, match=message):
        Config.parse({"model": model, "mesh": {"stage": stage}, "loss": objective})
