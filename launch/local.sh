#!/usr/bin/env bash
# Starts a run on one machine: in one process on all its devices, or in several that simulate hosts.
set -euo pipefail

usage="usage: bash launch/local.sh [--hosts=N] [--devices=M] [--retries=R] [--dry-run] TRAIN_FLAGS

Trains in one process on all devices of this machine; TRAIN_FLAGS are those of python -m lm_jax.train.
--hosts=N     N processes on the CPU that simulate N hosts, to test what a cluster will do
--devices=M   simulated devices on the CPU, of each of them (1)
--retries=R   how often it is started again after a process was killed, lost or stuck (0)
--dry-run     print the commands, start nothing"

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
hosts=1 devices=1 simulated= retries=0 dry= train=(-m lm_jax.train)
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) say "$usage"; exit ;;
        --hosts=*) hosts=${1#*=}; number --hosts "$hosts" 1 ;;
        --devices=*) devices=${1#*=} simulated=1; number --devices "$devices" 1 ;;
        --retries=*) retries=${1#*=}; number --retries "$retries" 0 ;;
        --dry-run) dry=1 ;;
        *) train+=("$1") ;;
    esac
    shift
done
[[ " ${train[*]}" = *" --config="* && " ${train[*]}" = *" --workdir="* ]] ||
    fail "--config and --workdir: missing; they are flags of python -m lm_jax.train."

arguments() {  # INDEX PORT: sets words to the arguments of Python for one process
    words=("${train[@]}")
    if [ "$hosts" -gt 1 ]; then
        words+=("--coordinator_address=127.0.0.1:$2" "--num_processes=$hosts" "--process_id=$1")
    fi
}
if [ -n "$simulated" ] || [ "$hosts" -gt 1 ]; then
    export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$devices"
    simulated="JAX_PLATFORMS=cpu XLA_FLAGS=$(quoted "$XLA_FLAGS") "
fi
if [ -n "$dry" ]; then
    for ((i = 0; i < hosts; i++)); do
        arguments "$i" PORT
        say "$simulated$(quoted .venv/bin/python "${words[@]}")"
    done
    exit
fi
setup ""
kind=$(accelerator)
if [ -n "$kind" ]; then setup "$kind"; fi

pids=() stopped=
signal() { kill -"$1" ${pids[@]+"${pids[@]}"} 2>/dev/null || true; }
trap 'stopped=1; signal TERM' TERM INT

start() {
    pids=()
    local i port=
    if [ "$hosts" -gt 1 ]; then
        port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    fi
    for ((i = 0; i < hosts; i++)); do
        arguments "$i" "$port"
        "$python" "${words[@]}" &
        pids+=($!)
    done
}

ended() {  # the exit code of the first process that failed, once all have ended; 0
    local code=0 one deadline= pid
    while true; do
        local left=()
        for pid in "${pids[@]}"; do
            if kill -0 "$pid" 2>/dev/null; then left+=("$pid"); continue; fi
            one=0; wait "$pid" || one=$?
            # 127: already waited for. Errors of the others after the first are its consequence.
            if [ "$one" != 0 ] && [ "$one" != 127 ] && [ "$code" = 0 ]; then
                code=$one
                deadline=$((SECONDS + 60))
            fi
        done
        pids=(${left[@]+"${left[@]}"})
        [ ${#pids[@]} -gt 0 ] || return "$code"
        if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then signal KILL; fi
        sleep 0.2
    done
}

while true; do
    start
    code=0
    ended || code=$?
    case "$code" in
        0 | 2 | 3 | 4 | 5 | 75) exit "$code" ;;  # done, an error that a restart cannot help, or stopped
    esac
    [ "$retries" -gt 0 ] && [ -z "$stopped" ] || exit "$code"
    retries=$((retries - 1))
    say "a process ended with code $code; starting again from the newest checkpoint"
done
