#!/usr/bin/env bash
# Commands of one worker of a TPU, which launch/tpu_vm.sh runs over ssh: install, start, status, log.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$root"
run=$root/.tpu_run  # pid, flags and exit code of the training, and its log

pid() { cat "$run/pid" 2>/dev/null || true; }

running() {  # after a reboot the pid may be another process's
    [ -n "$(pid)" ] && grep -aqs tpu_worker.sh "/proc/$(pid)/cmdline"
}

same() {  # TRAIN_FLAGS: are they those of the last run here?
    [ "$(cat "$run/flags" 2>/dev/null)" = "$(printf '%s\n' "$@")" ]
}

install() {  # EXTRAS SHARED WORKDIR MOUNT: ends what runs, mounts, makes the environment
    local extras=$1 shared=$2 workdir=$3 mount=$4 i
    if running; then
        # A process that hangs on a lost peer does not listen, and would keep the TPU from the next one.
        kill -KILL -- "-$(pid)" || true
        for ((i = 0; i < 100; i++)); do kill -0 -- "-$(pid)" 2>/dev/null || break; sleep 0.1; done
    fi
    rm -f "$run/pid" "$run/code"
    if [ -n "$mount" ]; then
        bash -c "$mount" || fail "--mount='$mount': failed on $HOSTNAME with code $?." 4
    fi
    mkdir -p "$workdir" && [ -w "$workdir" ] ||
        fail "--workdir=$workdir: cannot be written on $HOSTNAME; name another folder, or mount it with --mount." 4
    if [ "$shared" = shared ] && [ "$(stat -c %d "$workdir")" = "$(stat -c %d /)" ]; then
        fail "--workdir=$workdir: is on the disk of $HOSTNAME, which others do not see and which goes with the TPU; mount a shared one with --mount=COMMAND."
    fi
    if [ ! -x .venv/bin/python ] && ! (find_python) >/dev/null 2>&1; then
        # TPU VMs come with Ubuntu 22.04 and its Python 3.10, and it has no later one that is finished.
        say "installing Python 3.12"
        { python3 -m pip install --quiet --user uv && python3 -m uv python install --quiet 3.12 &&
            PYTHON=$(python3 -m uv python find 3.12) && export PYTHON; } ||
            fail "Python 3.12 could not be installed on $HOSTNAME; choose an image that has it with --version." 4
    fi
    setup "$extras"
}

start() {  # TRAIN_FLAGS: in a session of its own, so that the end of the connection is not its end
    local i
    running && return
    mkdir -p "$run"
    rm -f "$run/code"
    if ! same "$@"; then : >"$run/log"; fi
    printf '%s\n' "$@" >"$run/flags"
    setsid nohup bash launch/tpu_worker.sh train "$@" </dev/null >>"$run/log" 2>&1 &
    printf '%s\n' "$!" >"$run/pid"
    for ((i = 0; i < 100; i++)); do  # until it has that session
        if kill -0 -- "-$!" 2>/dev/null || [ -e "$run/code" ]; then break; fi
        sleep 0.05
    done
}

train() {  # TRAIN_FLAGS
    local code=0
    PYTHONUNBUFFERED=1 .venv/bin/python -m lm_jax.train "$@" || code=$?
    printf '%s\n' "$code" >"$run/code"
}

status() {  # TRAIN_FLAGS: new, running, other (runs with other flags), lost, or the exit code
    local word=new
    if [ -s "$run/code" ]; then word=$(cat "$run/code")
    elif running; then
        word=running
        same "$@" || word=other
    elif [ -e "$run/pid" ]; then word=lost
    fi
    say "lm_jax $HOSTNAME $word"
}

log() {  # LINE SECONDS: from there on, until the training ends, or so long
    timeout "$2" tail --lines="+$1" --follow --sleep-interval=0.2 --pid="$(pid)" "$run/log"
}

"$@"
