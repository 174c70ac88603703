"""Are a run's lines what grep expects, do its rows survive, and are its figures right?"""

import dataclasses
import json
import math
import pathlib
import re
import runpy
import time

import pytest

from lm_jax.config import Config, DataConfig, ModelConfig
from lm_jax.config.cost import flops_per_token, matmul_parameters
from lm_jax.devices.chips import peak_flops
from lm_jax.progress import duration, human
from lm_jax.run import metrics
from lm_jax.run.metrics import Metrics, perplexity

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = Config(
    steps=5000, batch_size=32, model=ModelConfig(num_layers=2, dim=64, num_heads=2),
    data=DataConfig(sequence_length=256),
)  # fmt: skip
LINE = re.compile(
    r"step \d+/\d+  loss \d+\.\d{3}  bpb \d+\.\d{3}  lr \d\.\de[-+]\d\d  gnorm \d+\.\d\d  "
    r"\S+ tok/s  (mfu (\d+\.\d%|n/a)  )?data \d+\.\d%  eta (\d+h\d\dm|\d+m|\d+s)"
)
ISSUE = ("step 100/5000  loss 3.214  bpb 1.412  lr 3.0e-04  gnorm 0.81  412k tok/s  mfu 38.1%  "
         "data 0.4%  eta 12m")  # fmt: skip


def read(tmp_path):
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def make(tmp_path):
    made = []

    def make(kind="NVIDIA H100 80GB HBM3", devices=1, resumed_from=0, bytes_per_token=3.28387):
        made.append(Metrics(tmp_path, CONFIG, bytes_per_token, kind, devices, resumed_from))
        return made[-1]

    yield make
    for each in made:
        each.close()


def values(loss, lr, gnorm, tokens):
    return {"loss": loss, "lr": lr, "gnorm": gnorm, "tokens": tokens}


def line_of(reported, capsys, monkeypatch, kind):
    """What is printed for step 100 after 10 steps in which 412 k tokens a second went through."""
    seconds = 10 * CONFIG.tokens_per_step / 412_000
    monkeypatch.setattr(type(reported.clock), "seconds", property(lambda clock: seconds))
    reported.clock.steps, reported.clock.data = 10, 0.004 * seconds
    reported.flops = 0.381 * 989.4e12 / 412_000
    if kind == "unknown":
        assert reported.peak is None
    reported.train(100, values(3.214, 3e-4, 0.81, 8000.0), None)
    return capsys.readouterr().out.rstrip("\n")


def test_the_line_of_a_step_is_exactly_the_promised_one(make, capsys, monkeypatch, tmp_path):
    line = line_of(make(), capsys, monkeypatch, "known")
    assert LINE.fullmatch(ISSUE)
    assert LINE.fullmatch(line)
    eta = duration(4900 * CONFIG.tokens_per_step / 412_000)
    assert line == ISSUE.replace("eta 12m", f"eta {eta}")
    (row,) = read(tmp_path)
    assert (row["step"], row["kind"], row["loss"], row["lr"]) == (100, "train", 3.214, 3e-4)
    assert row["tokens_per_second"] == 412_000.0
    assert row["mfu"] == pytest.approx(0.381)
    assert abs(row["time"] - time.time()) < 100
    assert "batch_crc" not in row


def test_mfu_of_an_unknown_device_is_neither_guessed_nor_on_each_line(
    make, capsys, monkeypatch, tmp_path
):
    line = line_of(make("cpu"), capsys, monkeypatch, "unknown")
    assert LINE.fullmatch(line)
    assert "mfu" not in line
    assert read(tmp_path)[0]["mfu"] is None
    assert [peak_flops(kind) for kind in ("cpu", "TPU v9", "NVIDIA GTX 1080")] == [None] * 3


def test_peaks_are_found_by_the_names_that_devices_give_themselves():
    kinds = {
        "TPU v4": 275e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "TPU v5": 459e12,
        "TPU v6 lite": 918e12,
        "NVIDIA H200": 989.4e12,
        "NVIDIA A100-SXM4-40GB": 312e12,
    }
    assert {kind: peak_flops(kind) for kind in kinds} == kinds


def test_gpt2_124m_takes_854_6_mega_flops_a_token():
    config = Config.parse(runpy.run_path(str(ROOT / "configs/gpt2_124m.py"))["get_config"]())
    assert f"{flops_per_token(config.model, 1024) / 1e6:.0f}" == "855"
    # nanoGPT counts the unpadded vocabulary: 6 x 123,532,032 + 12 x 12 x 768 x 1024.
    unpadded = dataclasses.replace(config.model, vocab_size=50_257)
    assert flops_per_token(unpadded, 1024) == 6 * 123_532_032 + 12 * 12 * 768 * 1024
    assert flops_per_token(config.model, 1024) == pytest.approx(854.6e6, rel=1e-4)


def test_flops_count_grouped_heads_and_gates():
    model = ModelConfig(
        vocab_size=128, num_layers=2, dim=64, num_heads=4, num_kv_heads=2, mlp_dim=96
    )
    block = 64 * 64 * 2 + 2 * 64 * 32 + 3 * 64 * 96
    assert flops_per_token(model, 10) == 6 * (2 * block + 64 * 128) + 12 * 2 * 64 * 10


def test_flops_count_the_experts_that_a_token_asks():
    config = Config.parse(runpy.run_path(str(ROOT / "configs/mixtral_8x7b.py"))["get_config"]())
    active = matmul_parameters(config.model)
    attention, expert = 4096 * 128 * (2 * 32 + 2 * 8), 3 * 4096 * 14_336
    assert active == 32 * (attention + 2 * expert + 8 * 4096) + 4096 * 32_000
    # With the embeddings and norms, the 12.9 B active parameters of the paper, section 1: "13B".
    assert active + 4096 * (32_000 + 2 * 32 + 1) == pytest.approx(12.88e9, rel=1e-3)
    shared = dataclasses.replace(config.model, shared_experts=1)
    assert matmul_parameters(shared) == active + 32 * expert


def test_flops_count_both_sides_of_an_encoder_decoder_and_values_of_another_size():
    model = ModelConfig(
        architecture="encoder_decoder", vocab_size=128, num_layers=2, encoder_layers=3, dim=64,
        num_heads=4, value_dim=32, mlp_dim=96,
    )  # fmt: skip
    attention, mlp = 64 * 4 * (16 + 16 + 32 + 32), 3 * 64 * 96
    looks = 3 + 2 * 2
    weights = looks * attention + (3 + 2) * mlp + 64 * 128
    assert flops_per_token(model, 10) == 6 * weights + 6 * looks * 4 * (16 + 32) * 10
    alone = dataclasses.replace(model, architecture="encoder", num_layers=3)
    assert (
        flops_per_token(alone, 10) == 6 * (3 * (attention + mlp) + 64 * 128) + 6 * 3 * 4 * 48 * 10
    )


def test_a_resumed_run_goes_on_with_the_rows_up_to_its_checkpoint(make, tmp_path):
    first = make()
    for step in (1, 2, 3):
        first.train(step, values(3.0, 1e-3, 1.0, 10.0), step)
    first.write(3, "sample", prompt="", text="naïve\u2028\u0085 \x1c")
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "kind": "tr')  # killed here
    make(resumed_from=3).train(4, values(2.0, 1e-3, 1.0, 10.0), 4)
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 3, 4]
    assert rows[3]["text"] == "naïve\u2028\u0085 \x1c"
    assert [row.get("batch_crc") for row in rows] == [1, 2, 3, None, 4]
    make(resumed_from=2)
    assert [row["step"] for row in metrics.read(tmp_path / "metrics.jsonl")] == [1, 2]
    make()
    assert metrics.read(tmp_path / "metrics.jsonl") == []


def test_a_damaged_line_costs_no_other_row(make, tmp_path):
    rows = [
        '{"step": 1}',
        "\0" * 40,
        "null",
        "[2]",
        "[" * 100_000,  # too deep for Python's JSON
        '{"kind": "train"}',
        '{"step": true}',
        '{"step": ' + "9" * 400 + "}",
        '{"step": 2}',
        '{"step": 3',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(rows))
    make(resumed_from=2)
    assert read(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_disk_that_is_full_at_a_resume_costs_no_row(make, tmp_path, monkeypatch):
    make().train(1, values(3.0, 1e-3, 1.0, 10.0), None)
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def full(self, *args, **kwargs):
        self.open("w").close()  # what opening a file to write it does
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    make(resumed_from=1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / ".metrics.jsonl.new").exists()


def test_what_is_not_a_number_is_null_in_json_and_no_event(make, tmp_path):
    reported = make()
    reported.evaluation(10, 800.0, math.nan, 1000, 2.0)
    (row,) = read(tmp_path)
    assert row["perplexity"] is None
    assert row["bpb"] is None
    assert row["loss"] == 800.0
    assert perplexity(800.0) == math.inf


def test_events_for_tensorboard_are_written(make, tmp_path):
    make().evaluation(10, 2.0, 1.0, 1000, 2.0)
    assert list((tmp_path / "tb").glob("events.out.tfevents.*"))


def test_a_sample_keeps_its_lines_where_text_is_shown_as_markdown(make, monkeypatch):
    shown, reported = [], make()
    monkeypatch.setattr(reported.board, "text", lambda name, text, step: shown.append(text))
    reported.write(5, "sample", prompt="a", text="one\n  two\n\nthree")
    assert shown == ["    a", "    one\n      two\n    \n    three"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [(7, "7"), (4123, "4.12k"), (412_345, "412k"), (1.5e9, "1.5G"), (3e12, "3T"), (0, "0"),
     (0.25, "0.25"), (-4123, "-4.12k"), (2.43e17, "243P"), (7.2e20, "720E"), (999.4, "999"),
     (999.6, "1k"), (999_499, "999k"), (999_500, "1M"), (999.9e12, "1P")],
)  # fmt: skip
def test_numbers_are_short_and_never_have_an_exponent(number, shown):
    assert human(number) == shown


def test_pauses_and_waits_are_not_training():
    clock = metrics.Clock()
    clock.start -= 10
    clock.left_out(time.perf_counter() - 4)
    clock.waited(time.perf_counter() - 1)
    assert clock.seconds == pytest.approx(6, abs=0.5)
    assert clock.data == pytest.approx(1, abs=0.5)
    clock.restart()
    assert clock.seconds < 0.5


def test_flops_of_a_recurrent_model_are_those_of_its_gates_and_head():
    lstm = ModelConfig(architecture="lstm", vocab_size=100, num_layers=2, dim=8)
    assert flops_per_token(lstm, 64) == 6 * (2 * 4 * (8 * 8 + 8 * 8) + 8 * 100)
    hmm = ModelConfig(architecture="hmm", vocab_size=100, dim=8)
    assert flops_per_token(hmm, 64) == 6 * (8 * 8 + 8 * 100)
