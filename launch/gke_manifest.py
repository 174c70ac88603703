"""The JobSet of a run on GKE: gke.yaml filled in; a mistake is one line, exit code 2.

Called by launch/gke.sh, with the standard library alone: the cluster has jax, this machine may not.
"""

import difflib
import json
import math
import re
import string
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from lm_jax.devices import chips
from lm_jax.errors import UserError

OPTIONS = {"name", "image", "accelerator", "topology", "slices", "nodes", "chips-per-host", "claim",
           "queue", "retries", "delete", "dry-run"}  # fmt: skip
PORT = 8476  # of the coordinator, which is the first process
MAX_NAME = 63  # characters of a pod's name, its random end of six included

# GPUs that lm_jax has no figures of, by GKE's names: how many a host has, and other names.
OTHER_GPUS = {"nvidia-tesla-a100": (8, ("a100-40gb", "a2-highgpu")),
              "nvidia-l4": (1, ("l4", "g2-standard"))}  # fmt: skip
# GKE's names, the first of each chip's in lm_jax/devices/chips.py; H100 has two.
TPUS = {chip.names[0]: chip for chip in chips.CHIPS.values() if chip.is_tpu}
GPUS = {name: chip.host for name, chip in chips.NAMES.items()
        if not chip.is_tpu and name.startswith("nvidia-")}  # fmt: skip
GPUS |= {name: host for name, (host, _) in OTHER_GPUS.items()}
MEGA = ("h100-mega-80gb", "a3-megagpu")  # of nvidia-h100-mega-80gb


def number(options: dict[str, str], name: str, default: int, least: int = 1) -> int:
    """The value of a whole number."""
    value = options.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,6}", value) or int(value) < least:
        raise UserError(f"--{name}={value}: must be a whole number, at least {least}.")
    return int(value)


def size(topology: str) -> int:
    """Number of chips: 2x4 -> 8."""
    return math.prod(map(int, topology.split("x")))


def topologies(accelerator: str) -> list[str]:
    """Topologies of the slices of a TPU."""
    return [chips.joined(shape) for shape in chips.slices(TPUS[accelerator])]


def check_topology(accelerator: str, topology: str) -> None:
    """Raises UserError where there is no slice of this TPU in this topology."""
    there = topologies(accelerator)
    if not re.fullmatch(r"[1-9][0-9]{0,3}(x[1-9][0-9]{0,3})+", topology):
        raise UserError(f"--topology={topology}: must be the sizes of a slice, like {there[3]}.")
    if topology not in there:
        near = min(there, key=lambda one: abs(math.log(size(one) / size(topology))))
        raise UserError(f"--topology={topology}: not one of {accelerator}; the nearest is {near}.")


def resolve_accelerator(options: dict[str, str]) -> dict[str, str]:
    """`options` with GKE's name of the accelerator, and the topology, slices, nodes and chips of a
    host that another name implies; raises UserError where these contradict an option.
    """
    name = options["accelerator"]
    other = [gke for gke, (_, names) in OTHER_GPUS.items()
             if any(re.match(rf"{one}(-\d+g?)?$", name) for one in names)]  # fmt: skip
    if name in TPUS or name in GPUS or other:
        return options | {"accelerator": other[0] if other else name}
    try:
        machine = chips.named(name, "--accelerator")
    except UserError as error:
        near = difflib.get_close_matches(name, [*TPUS, *GPUS], 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join([*TPUS, *GPUS])}."
        known = "is not known" in str(error)
        raise UserError(
            f"--accelerator={name}: no such one; {hint}" if known else str(error)
        ) from None
    chip, implied = machine.chip, {}
    gke = "nvidia-h100-mega-80gb" if name.startswith(MEGA) else chip.names[0]
    if name.split(":")[0] in GPUS:
        gke = name.split(":")[0]
    if chip.is_tpu:
        shape = machine.shape
        if shape is None and machine.chips_per_host and "topology" not in options:
            shape = chips.slice_of(chip, machine.chips_per_host)
        implied = {"topology": chips.joined(shape) if shape else None, "slices": machine.slices,
                "chips-per-host": machine.chips_per_host}  # fmt: skip
    else:
        implied = {"chips-per-host": machine.shape[0] if machine.shape else None,
                "nodes": machine.slices}  # fmt: skip
    for option, value in implied.items():
        if value and options.get(option, str(value)) != str(value):
            raise UserError(f"--{option}={options[option]}: --accelerator={name} says {value}.")
    return options | {"accelerator": gke} | {k: str(v) for k, v in implied.items() if v}


def tpu_hosts(accelerator: str, topology: str, per_host: int) -> tuple[int, int]:
    """(hosts of a slice, chips of a host). A host of 1 or 8 chips is a slice of its own."""
    check_topology(accelerator, topology)
    total = size(topology)
    per_host = per_host or min(total, 4)
    alone = per_host == total and (total in (1, 4) or topology == "2x4")
    if not alone and (per_host != 4 or total % 4):
        raise UserError(
            f"--chips-per-host={per_host}: {topology} has {total} chips; {min(total, 4)} to a host"
            f"{' or 8' if topology == '2x4' else ''}."
        )
    return total // per_host, per_host


def placement(options: dict[str, str]) -> dict[str, Any]:
    """Placement of the pods: slices, hosts of each, annotations, nodeSelector, limits; `options` as
    `resolve_accelerator` returns them.
    """
    name = options["accelerator"]
    per_host = number(options, "chips-per-host", 0, 1 if "chips-per-host" in options else 0)
    for other in ("nodes",) if name in TPUS else ("topology", "slices"):
        if other in options:
            right = "--topology and --slices" if name in TPUS else "--nodes"
            raise UserError(f"--{other}={options[other]}: not for {name}; use {right}.")
    if name in GPUS:
        return {
            "slices": 1,
            "hosts": number(options, "nodes", 1),
            "annotations": {},
            "selector": {"cloud.google.com/gke-accelerator": name},
            "limits": {"nvidia.com/gpu": per_host or GPUS[name]},
        }
    if "topology" not in options:
        raise UserError(f"--topology: missing; the sizes of a slice, like {topologies(name)[3]}.")
    hosts, per_host = tpu_hosts(name, options["topology"], per_host)
    pool = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    return {
        "slices": number(options, "slices", 1),
        "hosts": hosts,
        "annotations": pool if hosts > 1 else {},
        "selector": {
            "cloud.google.com/gke-tpu-accelerator": name,
            "cloud.google.com/gke-tpu-topology": options["topology"],
        },
        "limits": {"google.com/tpu": per_host},
    }


def checked_flags(flags: list[str]) -> list[str]:
    """The flags of lm_jax.train, escaped; raises UserError unless all pods see the work folder."""
    for flag in flags:
        if flag[2:].split("=")[0] in OPTIONS:
            raise UserError(f"{flag}: is not of lm_jax.train; options come before its flags.")
    given = dict(flag[2:].split("=", 1) for flag in flags if re.match(r"--\w[\w.]*=", flag))
    if "config" not in given or "workdir" not in given:
        raise UserError(
            "--config and --workdir: missing; after the options come the flags of lm_jax.train."
        )
    parts = given["workdir"].rstrip("/").split("/")
    if len(parts) < 3 or parts[:2] != ["", "runs"] or ".." in parts:
        run = parts[-1] if parts[-1] not in ("", ".", "..", "runs") else "NAME"
        raise UserError(
            f"--workdir={given['workdir']}: must be on the claim, which all pods see at /runs, and "
            f"not on gs://; use --workdir=/runs/{run}."
        )
    # Kubernetes reads $(A) as a variable, and $$ as a dollar.
    return [flag.replace("$", "$$") for flag in flags]


def values(options: dict[str, str], flags: list[str]) -> dict[str, Any]:
    """Values of the variables of gke.yaml."""
    for name in ("name", "image", "accelerator", "claim"):
        if not options.get(name):
            raise UserError(f"--{name}: missing; --help shows how it is used.")
    name = options["name"]
    options = resolve_accelerator(options)
    place = placement(options)
    longest = f"{name}-workers-{place['slices'] - 1}-{place['hosts'] - 1}-abcde"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) or len(longest) > MAX_NAME:
        right = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789")
        right = right[: MAX_NAME - len(longest) + len(name)].rstrip("-") or "run"
        raise UserError(
            f"--name={name}: must be small letters, digits and -, and short; like {right}."
        )
    args = checked_flags(flags)
    # TPUs find their coordinator themselves.
    if place["hosts"] > 1 and options["accelerator"] in GPUS:
        args += [f"--coordinator_address={name}-workers-0-0.{name}:{PORT}",
                 f"--num_processes={place['hosts']}",
                 "--process_id=$(JOB_COMPLETION_INDEX)"]  # fmt: skip
    queue = options.get("queue")
    return {
        **place,
        **{key: options[key] for key in ("name", "image", "claim")},
        "labels": {"kueue.x-k8s.io/queue-name": queue} if queue else {},
        "retries": number(options, "retries", 10, 0),
        "args": args,
    }


def check(manifest: str) -> None:
    """Validates the Job by the schemas of Kubernetes, where kubernetes-validate is installed."""
    try:
        import kubernetes_validate
        import yaml
    except ImportError:
        print("warning: kubernetes-validate is not installed: the cluster alone checks the fields",
              file=sys.stderr)  # fmt: skip
        return
    for job in yaml.safe_load(manifest)["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", **job["template"]}
        try:
            kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            raise UserError(
                f"gke.yaml: {'.'.join(map(str, error.path))}: {error.message}"
            ) from None


def filled(options: dict[str, str], flags: list[str]) -> str:
    """The manifest; a first line says how many pods it makes."""
    found = values(options, flags)
    template = string.Template(Path(__file__).with_name("gke.yaml").read_text("utf-8"))
    # JSON is YAML, so no value is read as YAML syntax.
    text = {key: json.dumps(value, ensure_ascii=False) for key, value in found.items()}
    return f"# pods: {found['slices'] * found['hosts']}\n{template.substitute(text)}"


def main(arguments: list[str]) -> None:
    """Prints the manifest of `--NAME=VALUE ... -- FLAGS`, once it is checked."""
    split = arguments.index("--")
    options = dict(argument[2:].split("=", 1) for argument in arguments[:split])
    manifest = filled(options, arguments[split + 1 :])
    check(manifest)
    print(manifest, end="")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
