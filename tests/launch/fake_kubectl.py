"""A stand-in for kubectl: records its arguments and plays back a scenario, for test_gke.py.

The folder in $FAKE_KUBECTL has `scenario.json`: for each call, named by its first words, what is
said each time, the last for ever: a text, or [exit code, text]. Every call is added to `calls`.
"""

import json
import os
import sys
from pathlib import Path

SAYS = {"get jobset": ["", "Completed"], "get pvc": ['["ReadWriteMany"]'],
        "apply --filename=- --dry-run=server": ["checked"], "apply": ["jobset/q created"],
        "get pods": ["q-workers-0-0-abcde Running"], "logs": ["step 1"],
        "delete": ["deleted"]}  # fmt: skip


def install(folder: Path) -> dict[str, str]:
    """The environment in which this is kubectl, with its folder, and sleep takes no time."""
    (folder / "bin").mkdir()
    for name, line in {
        "kubectl": f'exec {sys.executable} -S -E {__file__} "$@"',
        "sleep": "",
    }.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable,
            "HOME": str(folder), "FAKE_KUBECTL": str(folder)}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Says what comes next for this call."""
    folder = Path(os.environ["FAKE_KUBECTL"])
    scenario = {**SAYS, **json.loads((folder / "scenario.json").read_text())}
    call = " ".join(arguments)
    key = max((key for key in scenario if call.startswith(key)), key=len)
    calls = folder / "calls"
    told = calls.read_text().splitlines() if calls.exists() else []
    with calls.open("a") as file:
        file.write(f"{key}\t{call}\n")
    if "--filename=-" in arguments:
        (folder / "applied.yaml").write_text(sys.stdin.read())
    before = sum(line.startswith(f"{key}\t") for line in told)
    says = scenario[key][min(before, len(scenario[key]) - 1)]
    code, text = (0, says) if isinstance(says, str) else says
    print(text, end="\n" if text else "", file=sys.stderr if code else sys.stdout)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
