#!/usr/bin/env bash
# Checks everything: style, types and the test suite, in an environment of its own.
set -euo pipefail

usage="usage: bash launch/test.sh [--parity | --slow] [pytest arguments]

Without arguments: ruff, mypy and the whole suite, except what the option runs.
--parity   the tests against transformers and torch, in .venv-parity (PyTorch is large: where pip would
           bring the CUDA one, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids that)
           -m 'parity and slow' runs what takes minutes: certificates of every config, a downloaded model
--slow     what takes minutes: more families killed and resumed, compiled for TPU, on more meshes
tests/commands/test_cli.py -k name ...   those tests alone"

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
part=all
case "${1:-}" in
    -h | --help) say "$usage"; exit ;;
    --parity) part=parity; shift ;;
    --slow) part=slow; shift ;;
esac
cd "$root"
# libtpu is installed for its compiler and must not be taken for a device.
export JAX_PLATFORMS=cpu

if [ "$part" = parity ]; then
    setup parity .venv-parity
    # No wheel everywhere: without a compiler its tests are skipped, the others are not.
    "$python" -c 'import kenlm' 2>/dev/null || "$python" -m pip --disable-pip-version-check install -q kenlm ||
        say "kenlm could not be installed: the tests against it are SKIPPED"
    exec "$python" -m pytest tests/parity -m "parity and not slow" "$@"
fi
setup test,quantization
if [ $# = 0 ] && [ "$part" = all ]; then
    "$python" -m ruff format --check . || fail "formatting: $python -m ruff format ." 1
    "$python" -m ruff check . || fail "style: see above." 1
    "$python" -m mypy || fail "types: see above." 1
fi
if [ "$part" = slow ]; then
    exec "$python" -m pytest -m slow -n 2 --dist loadfile "$@"
fi
# Two processes halve the time; a file stays in one, where its tests share what they compiled.
if [ $# = 0 ]; then set -- -n 2 --dist loadfile --no-loadscope-reorder; fi
exec "$python" -m pytest -m "not parity and not slow" "$@"
