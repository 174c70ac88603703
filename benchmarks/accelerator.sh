#!/usr/bin/env bash
# Measures one accelerator in minutes, each part in a process of its own, and writes a table.
set -euo pipefail

usage="usage: bash benchmarks/accelerator.sh [--minutes=8] [--out=DIR] [--platform=cpu] [--parts=NAME,NAME]
       bash benchmarks/accelerator.sh --report [--out=DIR]

Needs a Python with jax, flax and optax; installs nothing and reads no data. Results are in DIR
(runs/accelerator) after each part: results.jsonl, table.md, a log for each part.
--minutes    the whole run ends by then
--platform   cpu: the same in miniature, to try the script
--parts      only these, in this order: see benchmarks/accelerator/__main__.py, or the path of a
             Python file with a function run(measure)
--report     keeps the results of DIR in docs/accelerators/ and writes docs/accelerators.md
PYTHON=... chooses the interpreter."

case "${1:-}" in
    -h | --help) printf '%s\n' "$usage"; exit ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
for python in "${PYTHON:-}" "$root/.venv/bin/python" python3 python; do
    if [ -n "$python" ] && "$python" -c 'import jax, flax, optax' 2>/dev/null; then
        export PYTHONPATH=$root:$root/benchmarks${PYTHONPATH:+:$PYTHONPATH}
        exec "$python" -m accelerator "$@"
    fi
done
printf 'error: no Python with jax, flax and optax here; set PYTHON=/path/to/python, or: %s\n' \
    "bash launch/test.sh tests/test_progress.py makes $root/.venv." >&2
exit 4
