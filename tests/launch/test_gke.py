"""launch/gke.sh fills in the requested JobSet and follows it to its end."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from fake_kubectl import install
from gke_requests import FLAGS, GPU, POOL, TPU

ROOT = Path(__file__).parents[2]
UNCHECKED = "warning: kubernetes-validate is not installed: the cluster alone checks the fields\n"


@pytest.fixture
def gke(tmp_path):
    """gke(options, *flags, **scenario): (code, out, err); .calls(); .environment."""
    environment = install(tmp_path)

    def call(options, *flags, **scenario):
        (tmp_path / "scenario.json").write_text(json.dumps(scenario))
        (tmp_path / "calls").unlink(missing_ok=True)
        given = [f"--{key}{value and '='}{value}" for key, value in options.items()]
        done = subprocess.run(["bash", ROOT / "launch" / "gke.sh", *given, *flags], env=environment,
                              capture_output=True, text=True, timeout=60)  # fmt: skip
        return done.returncode, done.stdout, done.stderr.replace(UNCHECKED, "")

    calls = tmp_path / "calls"
    call.calls = lambda: [line.split("\t")[1] for line in calls.read_text().splitlines()]
    call.environment, call.folder = environment, tmp_path
    return call


# As Kubernetes and JobSet v1alpha2 name their fields.
EXPECTED = """
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {name: q, labels: {}, annotations: ANNOTATIONS}
spec:
  network: {enableDNSHostnames: true, subdomain: q}
  failurePolicy:
    maxRestarts: 10
    rules: [{name: mistake, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}]
  replicatedJobs:
  - name: workers
    replicas: SLICES
    template:
      spec:
        parallelism: 4
        completions: 4
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [2, 3, 4, 5]}
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 180
            nodeSelector: SELECTOR
            containers:
            - name: train
              image: gcr.io/p/lm_jax:1
              command: [python, -m, lm_jax.train]
              args: [--config=configs/gpt2_124m.py, --workdir=/runs/qMORE]
              resources: {limits: LIMITS}
              volumeMounts:
              - {name: runs, mountPath: /runs}
              - {name: memory, mountPath: /dev/shm}
            volumes:
            - {name: runs, persistentVolumeClaim: {claimName: runs}}
            - {name: memory, emptyDir: {medium: Memory}}
"""


def expected(**differs):
    """The whole JobSet, with what differs between TPUs and GPUs."""
    return yaml.safe_load(re.sub("|".join(differs), lambda word: differs[word[0]], EXPECTED))


STEPS = """\
# kubectl get jobset q    # must not be there
# kubectl get pvc runs    # must be there, for several pods with ReadWriteMany
# kubectl apply --filename=- --dry-run=server
# kubectl apply --filename=-
# kubectl logs --follow POD    # of --selector=jobset.sigs.k8s.io/jobset-name=q,\
jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
"""


def test_a_dry_run_on_tpu_slices_prints_the_steps_and_the_jobset_and_does_nothing(gke):
    code, out, err = gke({**TPU, "slices": "2", "delete": "", "dry-run": ""}, *FLAGS)
    assert (code, err) == (0, "")
    assert out.startswith(f"{STEPS}# kubectl delete jobset q\n# pods: 8\n#")
    assert not (gke.folder / "calls").exists()
    assert yaml.safe_load(out) == expected(
        SLICES="2", LIMITS="{google.com/tpu: 4}", MORE="", ANNOTATIONS=str(POOL),
        SELECTOR="{cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice, "
        "cloud.google.com/gke-tpu-topology: 4x4}",
    )  # fmt: skip


def test_a_dry_run_on_gpu_nodes_tells_the_processes_of_each_other(gke):
    code, out, err = gke({**GPU, "dry-run": ""}, *FLAGS)
    assert (code, err) == (0, "")
    assert out.startswith(f"{STEPS}# pods: 4\n#")
    assert yaml.safe_load(out) == expected(
        SLICES="1", LIMITS="{nvidia.com/gpu: 8}", ANNOTATIONS="{}",
        SELECTOR="{cloud.google.com/gke-accelerator: nvidia-h100-80gb}",
        MORE=", '--coordinator_address=q-workers-0-0.q:8476', --num_processes=4, "
        "--process_id=$(JOB_COMPLETION_INDEX)",
    )  # fmt: skip


def test_a_run_is_checked_by_the_cluster_applied_and_followed_to_its_end(gke):
    code, out, err = gke({**TPU, "delete": ""}, *FLAGS)
    assert (code, err) == (0, "")
    assert out.splitlines() == ["jobset/q created", "step 1", "q: Completed", "deleted"]
    asked = [" ".join(call.split()[:3]) for call in gke.calls()]
    assert [*asked[:5], *asked[6:]] == [
        "get jobset q", "get pvc runs", "apply --filename=- --dry-run=server", "apply --filename=-",
        "get jobset q", "logs --follow q-workers-0-0-abcde", "delete jobset q",
    ]  # fmt: skip
    assert asked[5] in STEPS.replace("of --selector", "get pods --selector")
    applied = yaml.safe_load((gke.folder / "applied.yaml").read_text())
    assert applied["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] == 4


@pytest.mark.parametrize(
    ("scenario", "found", "says"),
    [
        ({"get jobset": [[1, 'error: the server doesn\'t have a resource type "jobset"']]}, 4,
         "error: kubectl get jobset: error: the server doesn't have"),
        ({"get jobset": ["jobset/q"]}, 2, "error: --name=q: is there already; use another"),
        ({"get pvc": [""]}, 2, "error: --claim=runs: no such PersistentVolumeClaim"),
        ({"get pvc": ['["ReadWriteOnce"]']}, 2, "several pods need ReadWriteMany"),
        ({"apply --filename=- --dry-run=server": [[1, "Error from server\n* spec: Invalid"]]}, 2,
         "error: kubectl apply --filename=-: Error from server * spec: Invalid"),
    ],
)  # fmt: skip
def test_what_the_cluster_refuses_is_one_line_and_nothing_is_applied(gke, scenario, found, says):
    code, out, err = gke(TPU, *FLAGS, **scenario)
    assert (code, out, err.count("\n")) == (found, "", 1)
    assert says in err
    assert "apply --filename=-" not in gke.calls()


def test_one_pod_needs_no_shared_claim(gke):
    code, *_ = gke({**TPU, "topology": "2x2"}, *FLAGS, **{"get pvc": ['["ReadWriteOnce"]']})
    assert code == 0


def test_without_kubectl_or_with_a_wrong_option_nothing_is_asked(gke):
    (gke.folder / "bin" / "kubectl").unlink()
    for tool in ("bash", "dirname"):
        (gke.folder / "bin" / tool).symlink_to(shutil.which(tool))
    gke.environment["PATH"] = str(gke.folder / "bin")
    code, out, err = gke(TPU, *FLAGS)
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert err.startswith("error: kubectl: not found; install it")
    code, out, err = gke({**TPU, "topology": "3x3"}, *FLAGS)
    assert (code, out) == (2, "")
    assert err == "error: --topology=3x3: not one of tpu-v5-lite-podslice; the nearest is 2x4.\n"


def test_the_log_goes_on_with_the_pod_of_the_next_start(gke):
    a, b = "q-workers-0-0-a", "q-workers-0-0-b"
    pods = ["", f"{a} Pending ContainerCreating", *[f"{a} Running"] * 2, f"{a} Failed\n{b} Running"]
    # Each turn asks twice: how it ended, and whether it is still there.
    turns = [said for _ in range(4) for said in ("", "jobset/q")]
    code, out, err = gke(TPU, *FLAGS, **{
        "get pods": pods, "logs": ["step 1", "step 2", "step 3"],
        "get jobset": ["", *turns, "Completed"],
    })  # fmt: skip
    assert (code, err) == (0, "")
    assert out.splitlines()[1:] == [
        "waiting for the first pod: not there yet",
        "waiting for the first pod: Pending, ContainerCreating",
        *("step 1", "step 2", "step 3", "q: Completed"),
    ]
    logs = [call.split() for call in gke.calls() if call.startswith("logs")]
    assert [call[-1][-1] for call in logs] == ["a", "a", "b"]
    # The same pod again: the connection was lost, and what was shown is not shown twice.
    assert ["--since-time" in " ".join(call) for call in logs] == [False, True, False]


@pytest.mark.parametrize(("codes", "found"), [("143 2 134", 2), ("0 137", 137), ("", 1)])
def test_a_failed_run_ends_with_its_exit_code_and_why(gke, codes, found):
    code, out, err = gke({**TPU, "delete": ""}, *FLAGS, **{
        "get jobset": ["", "Failed", "first failed job: q-workers-0"],
        "get pods --selector=jobset.sigs.k8s.io/jobset-name=q --output": [codes],
    })  # fmt: skip
    assert code == found
    assert err == f"error: q: exit code {found}; first failed job: q-workers-0\n"
    assert out.endswith("deleted\n")


def test_a_jobset_that_somebody_deleted_is_not_waited_for(gke):
    code, _, err = gke(TPU, *FLAGS, **{"get jobset": [""]})
    assert (code, err) == (1, "error: q: somebody deleted the JobSet.\n")
