"""Figures of chips equal the published ones; names of topologies are parsed or refused."""

import pytest

from lm_jax.devices.chips import CHIPS, NAMES, GiB, chip_of, parse, peak_flops
from lm_jax.errors import UserError
from lm_jax.training import ahead_of_time


@pytest.mark.parametrize("name", CHIPS)
def test_peaks_are_those_by_which_a_run_measures_itself(name):
    chip = CHIPS[name]
    assert peak_flops(f"TPU {name}" if chip.is_tpu else name) == pytest.approx(
        chip.device_flops, rel=1e-3
    )


def test_jax_has_the_same_figures_of_a_tensor_core():
    tpu_info = pytest.importorskip("jax._src.pallas.mosaic.tpu_info", reason="jax 0.10 has it")
    versions = tpu_info.ChipVersion
    for name, version in {"v5e": versions.TPU_V5E, "v6e": versions.TPU_V6E,
                          "tpu7x": versions.TPU_7X}.items():  # fmt: skip
        info, chip = tpu_info.get_tpu_info_for_chip(version, 1), CHIPS[name]
        assert chip.device_flops == pytest.approx(info.bf16_ops_per_second, rel=0.01)
        assert chip.device_hbm_rate == pytest.approx(info.mem_bw_bytes_per_second, rel=0.01)
        assert 0.95 < chip.device_hbm / info.hbm_capacity_bytes <= 1.08  # theirs is in 10^9


def test_a_topology_counts_its_chips_devices_and_hosts():
    cube, two, seven, cluster = map(parse, ("v5p:4x4x4", "v6e:16x16*2", "TPU7x:4x4x4", "h100:8*4"))
    assert (cube.chips, cube.devices, cube.hosts, str(cube)) == (64, 64, 16, "v5p:4x4x4")
    assert (two.chips, two.hosts, two.slice_name) == (512, 128, "v6e:16x16")
    assert (seven.chips, seven.devices, str(two)) == (64, 128, "v6e:16x16*2")
    assert (cluster.chips, cluster.hosts, cluster.chip.is_tpu) == (32, 4, False)
    assert seven.chip.device_hbm == 94.75 * GiB


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("v5e-16", "v5e:4x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("V5LitePod-256*2", "v5e:16x16*2"),
        ("tpu-v5-lite-podslice:4x4", "v5e:4x4"),
        ("ct5lp-hightpu-4t", "v5e:2x2"),
        ("ct5lp-hightpu-4t:4x8", "v5e:4x8"),
        ("v6e:16", "v6e:4x4"),
        ("trillium-64", "v6e:8x8"),
        ("v4-8", "v4:2x2x1"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-128", "v5p:4x4x4"),
        ("v5p-4x4x12", "v5p:4x4x12"),
        ("v5p:64", "v5p:4x4x4"),
        ("tpu7x-128", "tpu7x:4x4x4"),
        ("v7x:4x4x4", "tpu7x:4x4x4"),
        ("ironwood:4x4x4", "tpu7x:4x4x4"),
        ("a100:8", "a100:8"),
        ("nvidia-h100-80gb:8*4", "h100:8*4"),
        ("a3-megagpu-8g*16", "h100:8*16"),
        ("a3-ultragpu-8g", "h200:8"),
    ],
)
def test_the_names_that_people_have_are_understood(text, same):
    assert str(parse(text)) == same


def test_one_table_has_the_names_the_peaks_and_the_eight_bits():
    kinds = {
        "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
        "TPU v6 lite": "v6e", "TPU7x": "tpu7x", "NVIDIA A100-SXM4-80GB": "a100",
        "NVIDIA H100 80GB HBM3": "h100", "NVIDIA H200": "h200", "NVIDIA B200": "b200",
    }  # fmt: skip
    assert {kind: chip_of(kind).name for kind in kinds} == kinds
    assert chip_of("cpu") is None
    # Two devices of a tpu7x share its 2307 TFLOP/s.
    assert peak_flops("TPU7x") == 1153.5e12
    # Cards that share the name and not the rates: no peak rather than a wrong one.
    assert [peak_flops(f"NVIDIA {x}") for x in ("H100 PCIe", "H100 NVL", "GB200")] == [None] * 3
    faster = {
        kind: {chip.name for chip in CHIPS.values() if chip.faster(kind)}
        for kind in ("int8", "fp8")
    }
    assert faster == {"int8": {"v5e", "v5p", "v6e", "a100", "h100", "h200", "b200"},
                      "fp8": {"tpu7x", "h100", "h200", "b200"}}  # fmt: skip
    assert len(NAMES) == sum(len(chip.names) for chip in CHIPS.values()), "no name of two chips"


@pytest.mark.jax10
@pytest.mark.parametrize("text", ["v4:2x2x2", "v5e:4x4", "v5p:4x4x4", "v6e:4x8*2", "tpu7x:2x2x2"])
def test_the_compiler_has_as_many_devices_and_hosts(text):
    pytest.importorskip("libtpu", reason="pip install 'lm_jax[test]' brings libtpu")
    topology = parse(text)
    devices = ahead_of_time.devices(topology.slice_name, topology.slices)
    assert len(devices) == topology.devices
    assert len({device.process_index for device in devices}) == topology.hosts


@pytest.mark.parametrize(
    ("text", "rings"),
    [
        ("v5e:16x16", (True, True)),
        ("v5e:8x16", (False, True)),
        ("v6e:4x4", (False, False)),
        ("v5p:4x4x8", (True, True, True)),
        ("v5p:2x4x4", (False, False, False)),
    ],
)
def test_short_dimensions_are_lines_and_long_ones_rings(text, rings):
    assert parse(text).wrapped == rings


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("v5x:4x4", "chip 'v5x' is not known. Did you mean"),
        ("l4:8", "chip 'l4' is not known. Allowed: v4, "),
        ("v6e-12", "no slice of v6e has this size; the nearest is v6e-16."),
        ("v5p-3", "no slice of v5p has this size; the nearest is v5p-8."),
        ("v5p:4x4", "the shape of v5p is written v5p:4x4x4"),
        (f"v6e-{'9' * 400}", "the shape of v6e is written v6e:16x16"),
        (f"h100:8*{'9' * 5000}", "the shape of h100 is written h100:8"),
        ("v5e:4x0", "the shape of v5e is written v5e:16x16"),
        ("v6e", "the shape of v6e is written v6e:16x16"),
        ("v6e:16x32", "at most 256 chips; several are written v6e:16x16*2"),
        ("h100:32", "a host of h100 has at most 8 chips; several are written h100:8*2"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_with_the_form_of_one_that_can(text, why):
    with pytest.raises(UserError, match="--topology=") as error:
        parse(text)
    assert why in str(error.value)
