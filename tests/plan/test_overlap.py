"""Products hide what the next layer needs, as far as they last."""

import dataclasses

import pytest
from planned import of_file

from lm_jax.devices.chips import parse
from lm_jax.plan import overlap
from lm_jax.plan.communication import sent_by_axes
from lm_jax.plan.estimate import estimate, part_of, phases

V5P = parse("v5p:4x4x4")


def of_llama(topology, mesh, rows):
    """Llama 3 8B with so many windows of 8,192 tokens."""
    return estimate(of_file("llama3_8b", mesh, batch_size=rows), parse(topology))


def test_llama_on_64_chips_waits_for_others_a_twentieth_of_a_step_at_most():
    for rows in (64, 512):
        found = of_llama("v5p:4x4x4", {"fsdp": 64}, rows)
        assert 0 < found.layered.share < 0.01
        assert found.times.overlapped < found.layered.seconds < found.times.serial


@pytest.mark.parametrize(
    ("small", "large"),
    [("v5p:2x2x4", "v5p:4x8x8"), ("v5e:4x4", "v5e:16x16"), ("v6e:4x4", "v6e:16x16")],
)
def test_sixteen_times_the_chips_make_almost_sixteen_times_the_tokens(small, large):
    few, many = (of_llama(slice, {"fsdp": n}, n) for slice, n in ((small, 16), (large, 256)))
    assert few.layered.seconds / many.layered.seconds > 0.97


def test_what_a_branch_waits_for_is_exposed_and_what_takes_longer_than_a_layer():
    config = of_file("llama3_8b", {"fsdp": 16, "tensor": 4}, batch_size=16)
    part, own = part_of(config, V5P), phases(part_of(config, V5P), V5P)
    found = overlap.layered(part, V5P, own)
    tensor = sent_by_axes(part)["tensor"] / (2 * 90e9)
    assert tensor < found.exposed < 1.1 * tensor
    # Where nothing is computed, all is exposed.
    idle = overlap.layered(part, V5P, overlap.Phases(0.0, 0.0, 0.0, 0.0, 0.0))
    every = sum(estimate(config, V5P).times.parts[f"ici:{axis}"] for axis in ("fsdp", "tensor"))
    assert idle.share == 1
    assert every < idle.exposed < 1.05 * every  # the first and the last layer's once more


def test_microbatches_collect_the_weights_again():
    config = of_file("llama3_8b", {"fsdp": 64}, batch_size=512)
    times = [estimate(dataclasses.replace(config, microbatches=n), V5P).layered for n in (1, 2, 4)]
    assert [t.exposed for t in times] == pytest.approx([n * times[0].exposed for n in (1, 2, 4)])
