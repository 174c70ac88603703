"""gke.yaml is filled in for every TPU, GPU and flag; what cannot work is refused in one line."""

import runpy
import types
from pathlib import Path

import pytest
import yaml
from gke_requests import FLAGS, GPU, POOL, TPU

from lm_jax.errors import UserError

SCRIPT = Path(__file__).parents[2] / "launch" / "gke_manifest.py"
manifest = types.SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def filled(options, *flags):
    """(the JobSet, its Job, its container), without the script."""
    jobset = yaml.safe_load(manifest.filled(options, list(flags or FLAGS)))
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    return jobset, job, job["template"]["spec"]["containers"][0]


def test_one_node_is_told_of_no_other():
    _, job, container = filled({**GPU, "nodes": "1", "chips-per-host": "2"})
    assert (job["completions"], container["args"]) == (1, [*FLAGS])
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 2}}


def test_any_flag_arrives_as_it_was_given():
    hard = ["--a= 'b' \"c\" \\ {d: e} #f, [g]", "--b=yes", "--c=é😀\n\t-", "--d=~", "*", "- x"]
    *_, container = filled(TPU, *FLAGS, *hard)
    assert container["args"] == [*FLAGS, *hard]
    # Kubernetes reads $(HOME) as a variable and $$ as one dollar.
    *_, container = filled(TPU, *FLAGS, "--a=$(HOME) $5 $$")
    assert container["args"][-1] == "--a=$$(HOME) $$5 $$$$"


def test_the_queue_of_kueue_and_the_retries():
    jobset, *_ = filled({**TPU, "queue": "team", "retries": "0"})
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 0


def test_a_word_that_yaml_reads_as_something_else_stays_a_name():
    jobset, *_ = filled({**TPU, "name": "null", "claim": "yes", "queue": "1e3"})
    assert jobset["metadata"]["name"] == jobset["spec"]["network"]["subdomain"] == "null"


@pytest.mark.parametrize(
    ("accelerator", "topology", "per_host", "hosts", "chips"),
    [
        ("tpu-v5-lite-podslice", "1x1", None, 1, 1),
        ("tpu-v5-lite-podslice", "2x4", None, 2, 4),
        ("tpu-v5-lite-podslice", "2x4", "8", 1, 8),
        ("tpu-v6e-slice", "16x16", None, 64, 4),
        ("tpu-v5p-slice", "2x2x1", None, 1, 4),
        ("tpu-v5p-slice", "4x4x244", None, 976, 4),
        ("tpu7x", "1x1x1", None, 1, 1),
        ("tpu7x", "4x8x8", None, 64, 4),
    ],
)
def test_a_topology_has_its_hosts(accelerator, topology, per_host, hosts, chips):
    options = {**TPU, "accelerator": accelerator, "topology": topology}
    if per_host:
        options["chips-per-host"] = per_host
    found = manifest.values(options, FLAGS)
    assert (found["hosts"], found["limits"]) == (hosts, {"google.com/tpu": chips})
    # Pools of single hosts hold many: a slice has one to itself where it is several hosts.
    assert found["annotations"] == (POOL if hosts > 1 else {})


@pytest.mark.parametrize(
    ("name", "accelerator", "topology", "hosts", "limit"),
    [
        ("v5e-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("tpu-v5-lite-podslice:4x4", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("ct5lp-hightpu-4t", "tpu-v5-lite-podslice", "2x2", 1, 4),
        ("ct5lp-hightpu-8t", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("ct5lp-hightpu-4t:4x4", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5p-128", "tpu-v5p-slice", "4x4x4", 16, 4),
        ("tpu7x-128", "tpu7x", "4x4x4", 16, 4),
        ("ironwood:4x4x8", "tpu7x", "4x4x8", 32, 4),
        ("trillium:4x8", "tpu-v6e-slice", "4x8", 8, 4),
    ],
)  # fmt: skip
def test_the_names_that_people_have_are_those_of_gke(name, accelerator, topology, hosts, limit):
    options = {key: value for key, value in TPU.items() if key != "topology"}
    found = manifest.values({**options, "accelerator": name}, FLAGS)
    assert found["selector"] == {"cloud.google.com/gke-tpu-accelerator": accelerator,
                                 "cloud.google.com/gke-tpu-topology": topology}  # fmt: skip
    assert (found["hosts"], found["limits"]) == (hosts, {"google.com/tpu": limit})


@pytest.mark.parametrize(
    ("name", "accelerator", "nodes", "limit"),
    [
        ("h100", "nvidia-h100-80gb", 1, 8),
        ("h100:8*4", "nvidia-h100-80gb", 4, 8),
        ("a3-megagpu-8g", "nvidia-h100-mega-80gb", 1, 8),
        ("nvidia-h100-mega-80gb:4", "nvidia-h100-mega-80gb", 1, 4),
        ("a100-40gb-8", "nvidia-tesla-a100", 1, 8),
        ("a4-highgpu-8g", "nvidia-b200", 1, 8),
    ],
)
def test_so_are_those_of_gpus(name, accelerator, nodes, limit):
    options = {key: value for key, value in GPU.items() if key not in ("nodes", "chips-per-host")}
    found = manifest.values({**options, "accelerator": name}, FLAGS)
    assert found["selector"] == {"cloud.google.com/gke-accelerator": accelerator}
    assert (found["hosts"], found["limits"]) == (nodes, {"nvidia.com/gpu": limit})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accelerator": "v5e-7"}, "v5e-7: no slice of v5e has this size; the nearest is v5e-8."),
        ({"accelerator": "v5e-32"}, "--topology=4x4: --accelerator=v5e-32 says 4x8."),
        ({"accelerator": "tpu-v6-slice"}, "no such one; did you mean tpu-v6e-slice?"),
        ({"accelerator": "?"}, "no such one; one of tpu-v4-podslice, "),
        ({"topology": "3x4"}, "not one of tpu-v5-lite-podslice; the nearest is 4x4."),
        ({"topology": "2x2x2"}, "the nearest is 2x4."),
        ({"topology": "16"}, "must be the sizes of a slice, like 4x4."),
        ({"accelerator": "tpu-v5p-slice"}, "4x4: not one of tpu-v5p-slice; the nearest is 2x2x4."),
        ({"accelerator": "tpu-v5p-slice", "topology": "4x4x6"}, "the nearest is 4x4x8."),
        ({"chips-per-host": "8"}, "--chips-per-host=8: 4x4 has 16 chips; 4 to a host."),
        ({"topology": "2x4", "chips-per-host": "2"}, "2x4 has 8 chips; 4 to a host or 8."),
        ({"nodes": "2"}, "--nodes=2: not for tpu-v5-lite-podslice; use --topology and --slices."),
        ({"accelerator": "nvidia-l4"}, "--topology=4x4: not for nvidia-l4; use --nodes."),
        ({"topology": None}, "--topology: missing"),
        ({"slices": "0"}, "--slices=0: must be a whole number, at least 1."),
        ({"claim": None}, "--claim: missing"),
        ({"name": "My_Run.2"}, "small letters, digits and -, and short; like my-run-2."),
        ({"name": "a" * 60}, f"like {'a' * 45}."),
    ],
)  # fmt: skip
def test_a_wrong_option_is_refused_with_the_nearest_right_one(change, says):
    options = {key: value for key, value in {**TPU, **change}.items() if value}
    with pytest.raises(UserError) as found:
        manifest.values(options, FLAGS)
    assert says in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (FLAGS[:1], "--config and --workdir: missing"),
        ((FLAGS[0], "--workdir=gs://b/w"), "not on gs://; use --workdir=/runs/w."),
        ((FLAGS[0], "--workdir=runs/w/"), "--workdir=runs/w/: must be on the claim"),
        ((FLAGS[0], "--workdir=/runs"), "use --workdir=/runs/NAME."),
        ((FLAGS[0], "--workdir=/runs/../w"), "use --workdir=/runs/w."),
        ((*FLAGS, "--retries=3"), "--retries=3: is not of lm_jax.train; options come before"),
        ((*FLAGS, "--delete"), "--delete: is not of lm_jax.train"),
    ],
)
def test_a_run_that_the_pods_would_not_share_is_refused(flags, says):
    with pytest.raises(UserError) as found:
        manifest.values(TPU, list(flags))
    assert says in str(found.value)


@pytest.mark.parametrize("options", [TPU, GPU], ids=["tpu", "gpu"])
def test_the_job_is_valid_by_the_schemas_of_kubernetes(options):
    pytest.importorskip("kubernetes_validate")
    text = manifest.filled(options, [*FLAGS])
    manifest.check(text)
    misplaced = yaml.safe_load(text)  # one level too high, as in an example of JobSet's own
    template = misplaced["spec"]["replicatedJobs"][0]["template"]
    template["podFailurePolicy"] = template["spec"].pop("podFailurePolicy")
    misspelt = text.replace("backoffLimit", "backOffLimit")
    mistyped = text.replace("parallelism: 4", "parallelism: four")
    for broken in (misspelt, mistyped, yaml.safe_dump(misplaced)):
        with pytest.raises(UserError, match=r"^gke\.yaml: "):
            manifest.check(broken)
