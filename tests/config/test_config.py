"""A config is parsed exactly, and refused in one line before anything else is done."""

import dataclasses
import pathlib
import runpy

import pytest

from lm_jax import config as lm_config
from lm_jax.config import Config, ModelConfig
from lm_jax.config.values import differences
from lm_jax.devices.resolve import resolved
from lm_jax.errors import UserError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))


def changed(**fields):
    """The default config as a dict with dotted fields (a__b) set."""
    values = Config().to_dict()
    for name, value in fields.items():
        *groups, leaf = name.split("__")
        group = values
        for part in groups:
            group = group[part]
        group[leaf] = value
    return values


def test_the_default_is_a_config_and_comes_back_from_its_dict():
    assert Config.parse(lm_config.new()) == Config() == Config.parse(Config().to_dict())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_right_in_all_its_variants(path):
    values = runpy.run_path(str(path))
    get_config = values["get_config"]
    config = Config.parse(get_config())
    if "SIZES" in values:
        names = [Config.parse(get_config(size)).name for size in values["SIZES"]]
        assert names == [f"{path.stem}_{size}" for size in values["SIZES"]]
        assert config.name in names
        return
    assert config.name == path.stem
    if get_config.__code__.co_argcount:
        for variant in values["VARIANTS"][1:]:
            assert Config.parse(get_config(variant)) != config
        with pytest.raises(UserError, match=r"no variant 'tpu'. Allowed: .*accelerator"):
            get_config("tpu")


def test_whole_numbers_and_texts_pass_as_what_they_mean():
    config = Config.parse(changed(steps=3e3, optimizer__learning_rate="1e-4", loss__z_loss=1))
    assert (config.steps, config.optimizer.learning_rate, config.loss.z_loss) == (3000, 1e-4, 1.0)
    assert isinstance(config.steps, int)
    assert isinstance(config.loss.z_loss, float)


REFUSED = {
    "steps": [0, -1, 1.5, "many", True, None],
    "batch_size": [0, 33.0001],
    "model__num_layers": [0],
    "model__dim": [130],
    "model__num_kv_heads": [3, 8, -1],
    "model__head_dim": [33],
    "model__dropout": [1.0, -0.1],
    "model__norm": ["rms", ""],
    "model__tie_embeddings": [1, "yes"],
    "data__sequence_length": [0, 2048],
    "data__tokenizer": ["wordpiece"],
    "optimizer__learning_rate": [-1e-3, float("nan"), float("inf"), "1e400", 10**400, "fast"],
    "optimizer__warmup_steps": [-1, 2000],
    "loss__mask_rate": [0, 1],
    "mesh__data": [0, -2],
    "mesh__tensor": [3],
    "mesh__fsdp": [3],
    "microbatches": [3],
    "checkpoint__keep": [0],
    "watchdog__times": [1, 0.5, -1],
    "watchdog__least": [-1],
    "watchdog__pause": [0],
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_cannot_be_is_refused_by_field_and_value(field):
    for value in REFUSED[field]:
        with pytest.raises(UserError) as error:
            Config.parse(changed(**{field: value}))
        line = str(error.value)
        assert "\n" not in line
        assert line.startswith("config.")
        assert field.replace("__", ".") in line
        assert error.value.code == 2


def test_a_decay_that_the_run_has_no_steps_for_is_refused():
    values = {"steps": 100, "optimizer": {"schedule": "wsd", "warmup_steps": 30}}
    Config.parse(values | {"optimizer": values["optimizer"] | {"decay_steps": 70}})
    with pytest.raises(UserError, match=r"decay_steps=71: longer than the 70 steps after .*=30 of"):
        Config.parse(values | {"optimizer": values["optimizer"] | {"decay_steps": 71}})
    Config.parse({"steps": 100, "optimizer": {"decay_steps": 710}})  # a cosine may be cut


def test_experts_divide_over_their_devices_and_without_any_these_share_the_batch():
    with pytest.raises(UserError, match=r"config.mesh.expert=4: .* config.model.num_experts=6"):
        Config.parse(changed(model={"num_experts": 6}, mesh={"expert": 4}))
    assert Config.parse(changed(mesh={"expert": 4})).mesh.expert == 4


@pytest.mark.parametrize(
    "other",
    [
        {"loss": {"objective": "fim"}},
        {"model": {"architecture": "lstm"}, "data": {"carry": True}},
    ],
)
def test_windows_are_shifted_only_where_they_stand_for_themselves(other):
    Config.parse({"data": {"shifted": True}})
    with pytest.raises(
        UserError, match=r"config.data.shifted=True: .* config.loss.objective=causal"
    ):
        Config.parse({**other, "data": {**other.get("data", {}), "shifted": True}})


ENCODER = {"architecture": "encoder", "pooler": True, "token_types": 2}


@pytest.mark.parametrize(
    ("model", "objective", "words"),
    [
        ({}, "mlm", "'decoder' cannot have mlm. Allowed: causal, fim"),
        ({}, "casual", "'casual' is not known. Did you mean 'causal'"),
        ({}, "causal:1,fim:0", "the weight of fim must be a finite number above 0"),
        ({}, "causal:nan", "the weight of causal must be a finite number above 0"),
        ({}, "causal:1,fim:inf", "the weight of fim must be a finite number above 0"),
        ({}, "causal:", "the weight '' is not a number"),
        ({"architecture": "hmm"}, "fim", "'hmm' cannot have fim. Allowed: causal."),
        (ENCODER, "causal", "'encoder' cannot have causal. Allowed: mlm, bert, sop"),
        (ENCODER, "bert:2,mlm:1", "pairs to tell apart, and cannot be mixed"),
        (ENCODER | {"pooler": False}, "sop", "set config.model.pooler=True"),
        (ENCODER | {"token_types": 1}, "bert", "set config.model.token_types=2"),
    ],
)
def test_an_objective_that_the_model_cannot_have_is_refused(model, objective, words):
    Config.parse({"model": ENCODER, "loss": {"objective": "bert"}})
    with pytest.raises(UserError, match=words) as error:
        Config.parse({"model": model, "loss": {"objective": objective}})
    assert str(error.value).startswith(f"config.loss.objective={objective!r}: ")


@pytest.mark.parametrize("field", ["encoder_layers", "pooler"])
def test_a_part_of_another_architecture_is_refused(field):
    with pytest.raises(UserError, match=f"config.model.{field}=.*='decoder' has "):
        Config.parse(changed(**{f"model__{field}": True if field == "pooler" else 2}))


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"stepz": 3}, "config.stepz: no such field. Did you mean 'steps'?"),
        ({"model": {"num_layer": 3}}, "config.model.num_layer: no such field. Did you mean "),
        ({"model": 3}, "config.model=3: expected a group of fields: architecture, "),
        ({"mesh": {"data": -1, "fsdp": -1}}, "config.mesh.fsdp=-1: only one mesh axis may be -1."),
    ],
)  # fmt: skip
def test_a_wrong_name_is_answered_by_the_nearest_right_one(values, hint):
    with pytest.raises(UserError) as error:
        Config.parse(values)
    assert str(error.value).startswith(hint)


def test_a_config_cannot_be_changed_by_accident():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().steps = 3  # type: ignore[misc]


def test_what_is_left_at_zero_is_derived():
    model = ModelConfig(dim=384, num_heads=6)
    assert (model.kv_heads, model.head_size, model.mlp_size) == (6, 64, 1024)
    plain = dataclasses.replace(model, gated=False, num_kv_heads=2, head_dim=32)
    assert (plain.kv_heads, plain.head_size, plain.mlp_size) == (2, 32, 1536)
    assert Config(batch_size=4).tokens_per_step == 4 * 256


def test_auto_is_decided_by_the_platform_and_never_falls_back():
    found = {p: resolved(ModelConfig(), p) for p in ("cpu", "gpu", "cuda", "tpu")}
    assert [m.attention for m in found.values()] == ["xla", "cudnn", "cudnn", "splash"]
    assert [m.dtype for m in found.values()] == ["float32", "bfloat16", "bfloat16", "bfloat16"]
    with pytest.raises(UserError, match="cannot run on cpu; set it to auto or xla"):
        resolved(ModelConfig(attention="cudnn"), "cpu")


def test_differences_are_listed_by_dotted_name():
    other = Config.parse(changed(steps=300, model__dim=512, mesh__fsdp=2))
    assert differences(other, Config()) == [
        ("steps", 300, 1000), ("model.dim", 512, 256), ("mesh.fsdp", 2, 1)]  # fmt: skip
    assert differences(Config(), Config()) == []


def test_muon_shards_its_state_by_whole_layers_or_not_at_all():
    fields = {"optimizer__shard_state": True, "model__num_layers": 6, "mesh__data": 4}
    Config.parse(changed(**fields, optimizer__name="adamw"))
    Config.parse(changed(**fields | {"mesh__data": 3}, optimizer__name="muon"))
    with pytest.raises(UserError, match=r"shard_state=True: muon .*data=4 .*num_layers=6; or "):
        Config.parse(changed(**fields, optimizer__name="muon"))


def test_an_optimizer_that_is_not_there_is_answered_by_the_nearest():
    with pytest.raises(UserError, match=r"optimizer.name='adafacto': .* Did you mean 'adafactor'"):
        Config.parse(changed(optimizer__name="adafacto"))


RING = {"model__context_attention": "ring", "mesh__context": 2}


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"model__window": 8}, "config.model.window=8"),
        ({"model__positions": "alibi"}, "config.model.positions='alibi'"),
        ({"model__positions": "relative"}, "config.model.positions='relative'"),
        ({"loss__objective": "causal,prefix_lm"}, "config.loss.objective='causal,prefix_lm', whose "
         "rows have a prefix"),
    ],
)  # fmt: skip
def test_a_ring_refuses_what_it_cannot_do_before_anything_is_written(fields, what):
    with pytest.raises(UserError) as error:
        Config.parse(changed(**RING, **fields))
    expected = f"config.model.context_attention='ring': cannot have {what}; set it to gather."
    assert str(error.value) == expected
    Config.parse(changed(**RING | {"model__context_attention": "gather"}, **fields))
    Config.parse(changed(**RING | {"mesh__context": 1}, **fields))  # there is no ring


def test_the_kernel_that_auto_means_is_one_that_can_do_a_ring():
    ring = ModelConfig(context_attention="ring")
    assert resolved(ring, "gpu").attention == "cudnn"
    assert resolved(ring, "gpu", shared=True).attention == "xla"
    assert resolved(ring, "tpu", shared=True).attention == "splash"
    with pytest.raises(UserError, match=r"'cudnn': cannot have config\.model\.context_attention"):
        resolved(dataclasses.replace(ring, attention="cudnn"), "gpu", shared=True)


def test_devices_divide_what_an_architecture_has_and_nothing_else():
    eight = {"mesh__tensor": 8, "mesh__data": 1}
    Config.parse(changed(model__architecture="hmm", model__num_heads=3, **eight))
    Config.parse(changed(model__architecture="lstm", model__num_heads=3, **eight))
    with pytest.raises(UserError, match=r"mesh\.tensor=8: must divide config\.model\.dim=36"):
        Config.parse(changed(model__architecture="lstm", model__dim=36, **eight))
