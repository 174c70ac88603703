#!/usr/bin/env bash
# Starts a run on Cloud TPU: on all workers of a queued resource, again after preemption or a loss.
set -euo pipefail

usage="usage: bash launch/tpu_vm.sh --name=NAME --zone=ZONE --type=TYPE [OPTIONS] TRAIN_FLAGS

Creates the TPU or takes the one of that name, installs lm_jax on all its workers, trains and shows the log of
the first. TRAIN_FLAGS are those of python -m lm_jax.train. The run does not need this terminal: the same command
finds it again. A preempted TPU is created anew, and the run goes on from its newest checkpoint.
--name=NAME       of the queued resource, and of the TPU
--zone=ZONE       as in us-west4-a
--type=TYPE       TPU and size, by any of its names: v5litepod-16, v5e-16, tpu-v5-lite-podslice:4x4
--project=P       the one that gcloud is set to
--slices=N        so many of that type make one run (1)
--spot            cheaper, and may be preempted at any time
--version=IMAGE   the one that fits the type
--mount=COMMAND   run on each worker before a start, to mount the folder that --workdir is in
--retries=R       how often a run that lost a process is started again (5); preemptions are not counted
--delete          delete the TPU when the run has ended, well or not
--dry-run         print the commands, start nothing"

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
name='' zone='' type='' project='' slices=1 spot='' version='' mount='' retries=5 delete='' dry=''
config='' workdir='' train=()
# Seconds: between two polls, between polls while the log is shown, that one worker may outlive the others.
poll=${POLL:-30} shown_for=${LOOK:-300} grace=${GRACE:-60}
for word in "$@"; do
    case "$word" in
        -h | --help) say "$usage"; exit ;;
        --name=*) name=${word#*=} ;;
        --zone=*) zone=${word#*=} ;;
        --type=*) type=${word#*=} ;;
        --project=*) project=${word#*=} ;;
        --slices=*) slices=${word#*=}; number --slices "$slices" 1 ;;
        --spot) spot=1 ;;
        --version=*) version=${word#*=} ;;
        --mount=*) mount=${word#*=} ;;
        --retries=*) retries=${word#*=}; number --retries "$retries" 0 ;;
        --delete) delete=1 ;;
        --dry-run) dry=1 ;;
        *)
            train+=("$word")
            case "$word" in --config=*) config=${word#*=} ;; --workdir=*) workdir=${word#*=} ;; esac ;;
    esac
done

# Errors are found before anything is created, which costs money.
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    fail "--name=$name: must be lower case letters, digits and dashes, as in --name=gpt2."
[[ $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z0-9]+$ ]] || fail "--zone=$zone: must be a zone with TPUs, as in --zone=us-west4-a."
if [ -z "$version" ] || ! [[ $type =~ ^v[0-9]+[a-z]*-[0-9]+$ ]]; then
    machine=$("$(any_python)" "$root/launch/machine.py" "$type") || exit $?
    type=${machine% *}
    if [ "${machine#* }" != 1 ]; then
        [ "$slices" = 1 ] || [ "$slices" = "${machine#* }" ] || fail "--slices=$slices: --type says ${machine#* }."
        slices=${machine#* }
    fi
fi
[[ $type =~ ^[a-z0-9]+-([0-9]+)$ ]] || fail "--type=$type: must be a type and its size, as in --type=v5litepod-16."
size=${BASH_REMATCH[1]} image=$version
case "$type" in  # https://cloud.google.com/tpu/docs/runtimes
    v[234]-*) image=${image:-tpu-ubuntu2204-base} ;;
    v5litepod-*) image=${image:-v2-alpha-tpuv5-lite} ;;
    v5p-*) image=${image:-v2-alpha-tpuv5} ;;
    v6e-*) image=${image:-v2-alpha-tpuv6e} ;;
    *) [ -n "$image" ] || fail "--type=$type: must be of v2, v3, v4, v5litepod, v5p or v6e, or come with --version." ;;
esac
[ -n "$config" ] && [ -n "$workdir" ] ||
    fail "--config and --workdir: missing; they are flags of python -m lm_jax.train."
shared=no  # must the workdir be on a disk that all hosts see, and that outlives them? Size 8 is the most of one host.
if [ "$slices" -gt 1 ] || [ "$size" -gt 8 ] || [ -n "$spot$delete" ]; then shared=shared; fi
[[ $workdir != *://* ]] ||
    fail "--workdir=$workdir: must be a folder; mount the bucket with --mount='gcsfuse ...' and name the folder."
[ "$shared" = no ] || [[ $workdir = /* ]] ||
    fail "--workdir=$workdir: must be a folder that all hosts see and that outlives them, as in --workdir=/shared/$workdir; mount it with --mount."
git -C "$root" rev-parse HEAD >/dev/null 2>&1 || fail "$root: is not a git clone, and what git tracks is what travels." 4
git -C "$root" ls-files --error-unmatch -- "${config%%:*}" >/dev/null 2>&1 ||
    fail "--config=$config: git does not track it in $root, so it would not travel; name it from there, and git add it."
[ -n "$dry" ] || command -v gcloud >/dev/null ||
    fail "gcloud: not found; install it (https://cloud.google.com/sdk/docs/install) and run gcloud auth login." 4

cloud() {  # WORDS of gcloud compute tpus
    local words=(gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"} --quiet)
    if [ -n "$dry" ]; then say "$(quoted "${words[@]}")"; else "${words[@]}"; fi
}
on_workers() {  # COMMAND, or nothing to send the code: all workers at once; what they say is in $temp/*.said
    local node words pids=() pid code=0
    for node in "${nodes[@]}"; do
        if [ $# = 0 ]; then words=(scp "$temp/lm_jax.tar.gz" "$node:"); else words=(ssh "$node" "--command=$1"); fi
        if [ -n "$dry" ]; then cloud tpu-vm "${words[@]}" --worker=all; continue; fi
        cloud tpu-vm "${words[@]}" --worker=all >"$temp/$node.said" 2>&1 &
        pids+=($!)
    done
    for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || code=$?; done
    return "$code"
}
reason() {  # FILES: what a worker or gcloud says went wrong, in one line
    local said
    said=$(grep -hv '^lm_jax ' "$@") || true
    { grep -m1 -E '^(error|ERROR): ' <<<"$said" || tail -n1 <<<"$said"; } |
        sed -E 's/^(error|ERROR): (\(gcloud[a-z.-]*\) )?//; s/[. ]*$//'
}
remove() {
    say "deleting $name"
    present=
    cloud queued-resources delete "$name" --force >"$temp/cloud" 2>&1 || say "not deleted: $(reason "$temp/cloud")"
}
how_to_delete() { (dry=1; cloud queued-resources delete "$name" --force); }
ended() {  # CODE LINE
    if [ "$1" = 0 ]; then say "$2"; else say "error: $2" >&2; fi
    if [ -n "$delete" ]; then remove; else say "$name is still there and costs money: $(how_to_delete)"; fi
    exit "$1"
}
again() {  # WHY CODE
    [ "$left" -gt 0 ] || ended "$2" "$1; --retries=$retries are used up, the log may say more."
    left=$((left - 1))
    say "$1; starting again ($left more after this)"
}
preempted() {
    say "$name was preempted"
    left=$retries
    remove  # what is suspended keeps its share of the quota
}
no_quota() {  # REASON
    fail "--type=$type: $1; ask for more (https://console.cloud.google.com/iam-admin/quotas), delete what holds it, or take another --type or --zone." 4
}

nodes=("$name") request=("--node-id=$name")
if [ "$slices" -gt 1 ]; then
    # jax and libtpu find the other slices (MEGASCALE_*) in the metadata of nodes that were asked for together.
    nodes=() request=("--node-count=$slices" "--node-prefix=$name")
    for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
request+=("--accelerator-type=$type" "--runtime-version=$image" ${spot:+--spot})
extras=tpu
if [[ ${train[*]} = *gs://* ]]; then extras=tpu,gcs; fi
worker="bash lm_jax/launch/tpu_worker.sh"
install="mkdir -p lm_jax && tar -xzf lm_jax.tar.gz -C lm_jax && $worker install $extras $shared $(quoted "$workdir" "$mount")"
start="$worker start $(quoted "${train[@]}")"
status="$worker status $(quoted "${train[@]}") 2>/dev/null || echo lm_jax worker new"
# Within a minute ssh notices that the other side is gone: a preempted VM does not say good-bye.
log=(tpu-vm ssh "${nodes[0]}" --worker=0 --ssh-flag=-oServerAliveInterval=15)

create() {
    began='' since='' shown=0 missed=0
    if cloud queued-resources create "$name" "${request[@]}" >"$temp/cloud" 2>&1; then say "asked for $name"; return; fi
    if grep -qi quota "$temp/cloud"; then no_quota "$(reason "$temp/cloud")"; fi
    # One that is being deleted still has the name, and capacity comes and goes.
    grep -qiE 'ALREADY_EXISTS|capacity' "$temp/cloud" || fail "$name: $(reason "$temp/cloud")." 4
    say "$(reason "$temp/cloud"); asking again"
}
acquire() {  # until the queued resource is ACTIVE
    local state who='' trouble='' before='' format='state.state,state.stateInitiator,state.failedData.error.message'
    while true; do
        if cloud queued-resources describe "$name" "--format=value[separator='|']($format)" >"$temp/state" 2>"$temp/cloud"; then
            IFS='|' read -r state who trouble <"$temp/state" || true
        elif grep -q NOT_FOUND "$temp/cloud"; then state=NONE
        elif [ -z "${asked:-}" ]; then fail "$name: $(reason "$temp/cloud")." 4
        else state="not to be seen: $(reason "$temp/cloud")"
        fi
        asked=1
        case "$state-$who-$present" in
            ACTIVE-*) present=1; return ;;
            NONE-*-1 | SUSPENDED-USER-1) fail "$name: was deleted while it ran; the same command asks for it anew." 4 ;;
            NONE-*) create ;;
            SUSPENDED-*) preempted ;;
            FAILED-*)
                remove
                if [[ $trouble = *[Qq]uota* ]]; then no_quota "${trouble%.}"; fi
                again "$name could not be had: ${trouble%.}" 4 ;;
            "$before"-*) ;;
            WAITING_FOR_RESOURCES-*) say "$name waits: no $type is free in $zone now" ;;
            *) say "$name is $state" ;;
        esac
        before=$state
        sleep "$poll"
    done
}
look() {  # sets doing: what the workers say they do, each once; missing: when one does not answer
    missing=
    on_workers "$status" || missing=1
    doing=$(sed -n 's/^lm_jax [^ ]* //p' "$temp"/*.said | sort -u | tr '\n' ' ')
}
follow() {  # shows the log of the first worker from where it was, until the training there or the connection ends
    local line='' part code
    rm -f "$temp/cut"
    while true; do
        # A signal that comes just before a read is seen after it; hence its time limit.
        code=0
        IFS= read -r -t "$poll" part || code=$?
        line+=$part
        if [ "$code" -gt 128 ]; then continue; elif [ "$code" != 0 ]; then break; fi
        say "$line"
        line='' shown=$((shown + 1))
    done < <(cloud "${log[@]}" "--command=$worker log $((shown + 1)) $shown_for" 2>"$temp/cloud" || : >"$temp/cut")
}
launch() {  # code, environment and training on all workers
    local step code
    began=1 since=''
    say "installing on the workers of $name"
    for step in '' "$install" "$start"; do
        code=0
        on_workers ${step:+"$step"} || code=$?
        if [ "$code" = 2 ]; then ended 2 "$(reason "$temp"/*.said)."; fi
        if [ "$code" != 0 ]; then say "not ready: $(reason "$temp"/*.said)"; return; fi
    done
    follow
}
is_over() {  # when all are done, or one made a mistake that stays one
    local code
    if [ "$doing" = "0 " ]; then ended 0 "the run is finished"; fi
    for code in 2 3 5; do
        [[ " $doing" != *" $code "* ]] || ended "$code" "the training ended with code $code; its last lines say why."
    done
}
why_not() {  # sets why, code: the loss of one is what the others say it is, 4 or 75, only where nothing else was
    local word
    why="a worker hangs" code=4
    for word in $doing; do
        case "$word" in
            0 | 4 | 75 | running) ;;
            lost | new) why="a worker does not run it" ;;
            *) why="a process ended with code $word" code=$word ;;
        esac
    done
    if [ "$why" != "a worker hangs" ]; then return; fi
    if [[ " $doing" = *" 4 "* ]]; then ended 4 "the training ended with code 4; its last lines say why."; fi
    if [[ " $doing" = *" 75 "* ]]; then why="the run was told to stop, and has saved" code=75; fi
}

tree=HEAD  # or that with the changes which are not committed
git -C "$root" diff --quiet HEAD || tree=$(git -C "$root" stash create)
if [ -n "$dry" ]; then
    temp=TEMP
    cloud queued-resources create "$name" "${request[@]}"
    say "git archive --format=tar.gz --output=$temp/lm_jax.tar.gz $tree"
    on_workers; on_workers "$install"; on_workers "$start"
    cloud "${log[@]}" "--command=$worker log 1 $shown_for"
    if [ -n "$delete" ]; then how_to_delete; fi
    exit
fi

temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
trap 'say "the run on $name goes on: the same command finds it again, and this ends it: $(how_to_delete)"; exit 130' INT TERM
git -C "$root" archive --format=tar.gz --output="$temp/lm_jax.tar.gz" "$tree"
present='' began='' since='' shown=0 missed=0 left=$retries
while true; do
    acquire
    look
    [[ $doing != *other* ]] || fail "--name=$name: a run with other flags is on this TPU; give its flags, or another --name."
    if [ "$doing" = "running " ]; then
        began=1 since='' missed=0
        follow
        continue
    fi
    if grep -q 'terminal state "PREEMPTED"' "$temp"/*.said; then preempted; continue; fi
    if [ -n "$began" ]; then
        if [ -e "$temp/cut" ] && [[ $doing != *running* ]]; then follow; fi  # what was written since
        is_over
        since=${since:-$SECONDS}  # the others are about to end, or it is a preemption that will show
        if [ $((SECONDS - since)) -lt "$grace" ]; then sleep "$poll"; continue; fi
    fi
    if [ -n "$missing" ]; then
        missed=$((missed + 1))
        say "a worker of $name cannot be reached: $(reason "$temp"/*.said)"
        if [ "$missed" -lt 3 ]; then sleep "$poll"; continue; fi
        # Where none answers, the network here may be the reason, and the run may be well.
        [ -n "$doing" ] || fail "$name: no worker answers ssh; mend that, and the same command finds the run again." 4
        again "a worker of $name is lost" 4
        remove
        continue
    fi
    if [ -n "$began" ]; then why_not; again "$why" "$code"; fi
    launch
done
