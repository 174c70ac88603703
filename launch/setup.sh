# The environment of the scripts here. Sourced: finds a Python, makes .venv, installs if anything changed.
# Defines: $root, say, fail, number, quoted, setup EXTRAS [VENV [CONSTRAINTS]] which sets $python. PYTHON=... chooses the interpreter.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s\n' "$*"; }

fail() {  # MESSAGE [EXIT_CODE]
    printf 'error: %s\n' "$1" >&2
    exit "${2:-2}"
}

number() {  # FLAG VALUE LEAST: fails unless the value is one that bash, too, reads as decimal
    [[ $2 =~ ^(0|[1-9][0-9]{0,5})$ ]] && [ "$2" -ge "$3" ] || fail "$1=$2: must be a whole number, at least $3."
}

quoted() {  # WORDS: as one would type them
    local word line='' quote="'" escaped="'\\''"
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//$quote/$escaped}'"
        line+="$word "
    done
    printf '%s' "${line% }"
}

supported() {  # PYTHON: is it 3.11 to 3.13, and can it make environments?
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
        >/dev/null 2>&1
}

find_python() {  # [NAMES]: prints the first interpreter that will do
    local name path
    if [ -n "${PYTHON:-}" ]; then
        supported "$PYTHON" || fail "PYTHON=$PYTHON: is not Python 3.11 to 3.13 with venv; name another."
        printf '%s\n' "$PYTHON"
        return
    fi
    for name in ${1:-python3.11 python3.12 python3.13 python3 python}; do
        while IFS= read -r path; do
            if supported "$path"; then printf '%s\n' "$path"; return; fi
        done < <(type -aP "$name"; compgen -G "$HOME/.pyenv/versions/${name#python}.*/bin/$name")
    done
    fail "no Python 3.11, 3.12 or 3.13 with venv here; install one (Debian, Ubuntu: apt install python3-venv) or set PYTHON=/path/to/python." 4
}

any_python() {  # prints an interpreter that runs scripts without packages
    local name
    for name in "$root/.venv/bin/python" python3.13 python3.12 python3.11 python3 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            printf '%s\n' "$name"
            return
        fi
    done
    fail "no Python 3.10 or newer here; install one (gcloud needs one, too)." 4
}

pip_install() {  # LOG ARGUMENTS: quiet; one line and the log when it fails
    local log=$1
    shift
    if "$python" -m pip --disable-pip-version-check install --quiet --no-compile "$@" >"$log" 2>&1; then return; fi
    local reason
    reason=$(grep -m1 '^ *ERROR' "$log" || tail -n1 "$log")
    fail "pip install failed: ${reason#*ERROR: } (all of it: $log)" 4
}

setup() {  # EXTRAS (comma separated, may be empty), VENV (.venv), CONSTRAINTS (a file), NAMES of interpreters
    local extras=$1 venv=$root/${2:-.venv} constraints=${3:-} base stamp wanted
    python=$venv/bin/python
    if command -v flock >/dev/null; then  # two scripts at once: the second one waits
        exec 9>"$venv.lock" || fail "$root: cannot be written; clone to a folder of yours." 4
        flock -n 9 || { say "waiting for another script that sets up $venv"; flock 9; }
    fi
    if ! supported "$python"; then
        base=$(find_python "${4:-}") || exit $?
        say "making $venv with $("$base" -V)"
        "$base" -m venv --clear "$venv" >/dev/null 2>&1 ||
            fail "$base -m venv $venv: does not work (disk full, or apt install python3-venv)." 4
    fi
    # Installed again only when its content has changed: the package itself is editable.
    stamp=$venv/.installed-${extras:-core}
    wanted=$({ "$python" -VV; echo "$root $constraints"; cat "$root/setup.cfg" "$root/pyproject.toml" \
        ${constraints:+"$constraints"}; } | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        say "installing lm_jax${extras:+[$extras]} into $venv (about 1 GB, one to five minutes) ..."
        pip_install "$venv/install.log" ${constraints:+--constraint "$constraints"} \
            --editable "$root${extras:+[$extras]}"
        printf '%s\n' "$wanted" >"$stamp"
    fi
    if command -v flock >/dev/null; then exec 9>&-; fi
}

accelerator() {  # prints tpu, cuda, cuda12 or nothing: the accelerator of this machine, by its driver alone
    local kind driver
    if [ "${JAX_PLATFORMS:-}" = cpu ]; then return; fi
    kind=$(PYTHONPATH=$root "$python" -c 'from lm_jax.devices import runtime as r
print("tpu" if r.tpu_is_here() else "cuda" if r.gpu_is_here() else "")')
    if [ "$kind" = cuda ]; then  # CUDA 13 wants driver 580 or later
        driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n1) || true
        if [ "${driver%%.*}" -lt 580 ] 2>/dev/null; then kind=cuda12; fi
    fi
    printf '%s\n' "$kind"
}
