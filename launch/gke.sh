#!/usr/bin/env bash
# Starts a run on a GKE cluster as a JobSet: filled in, checked, applied, followed to its end.
set -euo pipefail

usage="usage: bash launch/gke.sh --name=NAME --image=IMAGE --claim=CLAIM --accelerator=TPU --topology=4x4 [OPTIONS] TRAIN_FLAGS
       bash launch/gke.sh --name=NAME --image=IMAGE --claim=CLAIM --accelerator=GPU [--nodes=N] [OPTIONS] TRAIN_FLAGS

Trains on TPU slices or GPU nodes; TRAIN_FLAGS are those of python -m lm_jax.train, with --workdir=/runs/...
kubectl must know the cluster (gcloud container clusters get-credentials), and the cluster JobSet.
--image=IMAGE           has lm_jax and its configs (README.md says how it is made)
--claim=CLAIM           a PersistentVolumeClaim that all pods can write, mounted at /runs
--accelerator=NAME      as GKE calls it: tpu-v5-lite-podslice, tpu-v6e-slice, tpu-v5p-slice, tpu-v4-podslice, tpu7x;
                        nvidia-h100-80gb, nvidia-h100-mega-80gb, nvidia-h200-141gb, nvidia-b200, ...;
                        or v5e-16, v5litepod-16, ct5lp-hightpu-4t:4x4, a3-highgpu-8g, which say more
--topology=4x4          of a TPU slice; the number of its hosts follows
--slices=N              TPU slices (1)
--nodes=N               GPU nodes (1)
--chips-per-host=N      chips or GPUs of a host, where a machine type has not the usual 4 or 8
--queue=QUEUE           a LocalQueue of Kueue
--retries=R             how often the run is started again after a pod was lost or a node drained (10)
--delete                delete the JobSet when it has ended
--dry-run               print what would be done, as a file for kubectl; do nothing
Ends with the exit code of the run. Ctrl-C stops the log, not the run."

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
options=() dry= delete= name= claim=
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) say "$usage"; exit ;;
        --dry-run) dry=1 ;;
        --delete) delete=1 ;;
        --name=*) name=${1#*=}; options+=("$1") ;;
        --claim=*) claim=${1#*=}; options+=("$1") ;;
        --image=* | --accelerator=* | --topology=* | --slices=* | --nodes=* | --chips-per-host=* | --queue=* | --retries=*)
            options+=("$1") ;;
        *) break ;;
    esac
    shift
done

python=$root/.venv/bin/python
if [ -n "${PYTHON:-}" ] || ! supported "$python"; then python=$(find_python) || exit $?; fi
manifest=$("$python" "$root/launch/gke_manifest.py" ${options[@]+"${options[@]}"} -- "$@") || exit $?

first="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
if [ -n "$dry" ]; then
    say "# kubectl get jobset $name    # must not be there"
    say "# kubectl get pvc $claim    # must be there, for several pods with ReadWriteMany"
    say "# kubectl apply --filename=- --dry-run=server"
    say "# kubectl apply --filename=-"
    say "# kubectl logs --follow POD    # of --selector=$first"
    if [ -n "$delete" ]; then say "# kubectl delete jobset $name"; fi
    say "$manifest"
    exit
fi

type kubectl >/dev/null 2>&1 ||
    fail "kubectl: not found; install it (gcloud components install kubectl), or --dry-run." 4
ask() {  # CODE ARGUMENTS: sets $answer to what kubectl says, or fails with it, in one line
    local code=$1
    shift
    answer=$(kubectl "$@" 2>&1) || fail "kubectl $1 $2: $(tr -s '\n' ' ' <<<"$answer" | cut -c1-500)" "$code"
}
get() { kubectl get "$@" 2>/dev/null || true; }  # what is asked again soon may fail

ask 4 get jobset "$name" --ignore-not-found --output=name
[ -z "$answer" ] || fail "--name=$name: is there already; use another, or kubectl delete jobset $name (what is in /runs stays)."
ask 4 get pvc "$claim" --ignore-not-found --output='jsonpath={.spec.accessModes}'
[ -n "$answer" ] || fail "--claim=$claim: no such PersistentVolumeClaim; kubectl get pvc says what is there."
[[ $manifest = "# pods: 1"$'\n'* || $answer = *ReadWriteMany* ]] ||
    fail "--claim=$claim: is $answer; several pods need ReadWriteMany, as Filestore has it."
ask 2 apply --filename=- --dry-run=server <<<"$manifest"
ask 4 apply --filename=- <<<"$manifest"
say "$answer"

trap 'say; say "the run goes on; kubectl delete jobset $name ends it"; exit 130' INT
last= said= since= ended=
while true; do
    # Asked before the log is read, so that all of it is read.
    ended=$(get jobset "$name" --output='jsonpath={.status.terminalState}')
    # The first pod of the newest start.
    read -r pod phase why < <(get pods --selector="$first" --sort-by=.metadata.creationTimestamp --output='jsonpath={range .items[*]}{.metadata.name} {.status.phase} {.status.containerStatuses[*].state.waiting.reason} {.status.conditions[?(@.type=="PodScheduled")].message}{"\n"}{end}' | tail -n1) || true
    case "$phase" in
        "" | Pending)
            why="${phase:-not there yet}${why:+, $why}"
            if [ "$said" != "$why" ]; then say "waiting for the first pod: $why"; fi
            said=$why ;;
        *)  # again where the connection was lost, and the pod was not
            if [ "$pod" != "$last" ]; then since=; fi
            if [ "$pod" != "$last" ] || [ "$phase" = Running ]; then
                kubectl logs --follow ${since:+--since-time="$since"} "$pod" || true
            fi
            last=$pod since=$(date -u +%Y-%m-%dT%H:%M:%SZ) ;;
    esac
    [ -z "$ended" ] || break
    if answer=$(kubectl get jobset "$name" --ignore-not-found --output=name 2>/dev/null) && [ -z "$answer" ]; then
        fail "$name: somebody deleted the JobSet." 1
    fi
    sleep 5
done

code=0
if [ "$ended" = Failed ]; then
    code=1
    why=$(get jobset "$name" --output='jsonpath={.status.conditions[?(@.type=="Failed")].message}')
    for one in $(get pods --selector="jobset.sigs.k8s.io/jobset-name=$name" \
        --output='jsonpath={.items[*].status.containerStatuses[*].state.terminated.exitCode}'); do
        case "$one" in
            0) ;;
            2 | 3 | 4 | 5) code=$one; break ;;  # a mistake, and not what it did to the other pods
            *) if [ "$code" = 1 ]; then code=$one; fi ;;
        esac
    done
    printf 'error: %s: exit code %s; %s\n' "$name" "$code" "${why:-kubectl describe jobset $name says more}" >&2
else
    say "$name: $ended"
fi
if [ -n "$delete" ]; then kubectl delete jobset "$name"; fi
exit "$code"
