#!/usr/bin/env bash
# Runs the suite on other versions: Python 3.13 with the newest jax, and with the packages of Colab.
set -euo pipefail

usage="usage: bash launch/matrix.sh [newest | colab] [pytest arguments]

newest   Python 3.13 and the newest release of everything, in .venv-newest
colab    Python 3.13 and launch/constraints/colab.txt, in .venv-colab
Without either: both, one after the other. Python 3.11 is what launch/test.sh runs."

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
which=(newest colab)
case "${1:-}" in
    -h | --help) say "$usage"; exit ;;
    newest | colab) which=("$1"); shift ;;
esac
cd "$root"
if [ $# = 0 ]; then set -- -n 2 --dist loadfile --no-loadscope-reorder; fi
export JAX_PLATFORMS=cpu
failed=()
for stack in "${which[@]}"; do
    extras=test,quantization constraints=""
    if [ "$stack" = colab ]; then extras=test constraints=launch/constraints/colab.txt; fi  # Qwix needs flax 0.12
    setup "$extras" ".venv-$stack" "$constraints" python3.13
    say "== $stack: $("$python" -c 'import importlib.metadata as m, sys
print("Python", sys.version.split()[0], *(f"{n} {m.version(n)}" for n in ("jax", "flax", "numpy")), sep=", ")')"
    "$python" -m pytest -m "not parity and not slow" "$@" || failed+=("$stack")
done
if [ ${#failed[@]} -gt 0 ]; then fail "the suite fails on: ${failed[*]}" 1; fi
