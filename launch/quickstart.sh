#!/usr/bin/env bash
# Trains a language model from text with one command: sets up, trains, evaluates, samples.
set -euo pipefail

usage="usage: bash launch/quickstart.sh [PATH_TO_TEXT]

Trains a small GPT in minutes on two CPU cores, a larger one where jax sees a GPU or TPU.
PATH_TO_TEXT   a file (.txt, .jsonl, each also .gz or .zst), a folder, a quoted glob, or tfds:NAME;
               without it, the Python standard library of this machine.
Run again: continues where it stopped, or prints that it is done.
PYTHON=/path/to/python chooses the interpreter; QUICKSTART_FLAGS='--config.steps=50' adds flags."

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
case "${1:-}" in
    -h | --help) say "$usage"; exit ;;
    -*) fail "$1: no such option; --help shows how it is used." ;;
esac
[ $# -le 1 ] || fail "one path at most, got $#; quote a glob or a path with spaces."

name=quickstart
input=()
if [ $# = 1 ]; then
    text=$1
    [ -n "$text" ] || fail "the path is empty; leave it out for the default text."
    case "$text" in
        stdlib | tfds:* | *://*) ;;
        *)
            [[ $text = /* ]] || text=$PWD/$text
            [ -e "$text" ] || compgen -G "$text" >/dev/null || fail "$1: no such file or folder." 3
            if [ -d "$text" ]; then
                text=$(cd "$text" && pwd -P)
            elif [ -e "$text" ]; then
                text=$(cd "$(dirname "$text")" && pwd -P)/$(basename "$text")
            fi
            ;;
    esac
    # Two texts of one name in different folders are two runs.
    short=$(basename "$text")
    short=$(printf %s "${short%%.*}" | tr -c A-Za-z0-9 _ | cut -c1-40)
    name+=-${short:-text}-$(printf %s "$text" | cksum | awk '{printf "%06x", $1 % 16777216}')
    [ "$text" = stdlib ] && name=quickstart
    input=(--config.eval.prompt= --config.data.input="$text")  # the config's prompt is Python
fi

cd "$root"
setup ""
config=configs/quickstart.py
kind=$(accelerator)
if [ -n "$kind" ]; then
    setup "$kind"
    backend=$("$python" -c 'import jax; print(jax.default_backend())' 2>/dev/null) || backend=cpu
    if [ "$backend" = cpu ]; then
        say "warning: a ${kind%%[0-9]*} device is here but jax cannot use it (python -m lm_jax.doctor says why); on the CPU"
        export JAX_PLATFORMS=cpu
    else
        config+=:accelerator
    fi
fi

workdir=runs/$name
read -ra more <<<"${QUICKSTART_FLAGS:-}"
"$python" -m lm_jax.train --config="$config" --workdir="$workdir" ${input[@]+"${input[@]}"} ${more[@]+"${more[@]}"}

again() {  # FILE COMMAND...: its output, kept in the run's folder and made anew only after more training
    local kept=$workdir/$1
    shift
    if [ "$kept" -nt "$workdir/summary.json" ]; then cat "$kept"; return; fi
    "$@" | tee "$kept.$$"
    mv "$kept.$$" "$kept"
}

say ""
say "== samples"
again samples.txt "$python" -m lm_jax.generate --checkpoint="$workdir" --num_samples=3 --max_new_tokens=96
say ""
say "== where things are"
say "checkpoint  $root/$workdir/checkpoints"
say "metrics     $root/$workdir/metrics.jsonl"
say "report      $root/$workdir/report.html"
