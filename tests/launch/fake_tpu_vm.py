"""A run of launch/tpu_vm.sh in a clone, with the cloud of fake_gcloud.py and with
workers that are folders and have a stub for Python.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from fake_gcloud import Cloud, serve

ROOT = Path(__file__).parents[2]
TOOLS = ["bash", "cat", "cksum", "cp", "cut", "dirname", "flock", "git", "grep", "gzip", "head",
         "mkdir", "mktemp", "mv", "nohup", "rm", "sed", "setsid", "sleep", "sort", "tail", "tar",
         "timeout", "tr"]  # fmt: skip

# The n-th training of a worker ends with the n-th of STUB_CODES, or hangs; then with 0. The first
# worker writes the steps, one a training, and ends after the others, but with "!" at once.
STUB = r"""#!/usr/bin/env bash
case "$*" in
    *version_info*) [ ! -e "$0.old" ] ;;
    "-m uv python find"*) echo "$HOME/uv/python3.12" ;;
    "-m uv"*) mkdir -p "$HOME/uv" && cp "$0" "$HOME/uv/python3.12" ;;
    -V*) echo Python 3.11.9 ;;
    "-m venv"*) mkdir -p "${@: -1}/bin" && cp "$0" "${@: -1}/bin/python" ;;
    "-m pip"*) echo "$*" >>"$HOME/../pip-$HOSTNAME" ;;
    *lm_jax.train*)
        echo $$ >>"$HOME/training"
        printf '<%s>' "$@" >>"$HOME/../trained-$HOSTNAME"
        echo >>"$HOME/../trained-$HOSTNAME"
        read -ra codes <<<"$STUB_CODES"
        code=${codes[$(grep -c . "$HOME/../trained-$HOSTNAME") - 1]:-0}
        if [[ $HOSTNAME = *-w-0 && $HOSTNAME != *-1-w-0 ]]; then
            [[ $* =~ --workdir=([^ ]*) ]] && echo step >>"${BASH_REMATCH[1]}/steps"
            echo "step $(grep -c . "${BASH_REMATCH[1]}/steps")"
            for peer in "$HOME"/../run*-w-*; do
                until [[ $code = !* || $peer -ef $HOME || -s $peer/lm_jax/.tpu_run/code ]]; do
                    sleep 0.02
                done
            done
            echo "last line"
        fi
        case "${code#!}" in
            hang) while [ ! -e "$HOME/../go" ]; do sleep 0.02; done ;;
            137) kill -9 $$ ;;
            *) exit "${code#!}" ;;
        esac ;;
esac
"""
STAT = '#!/usr/bin/env bash\ncase "$3" in *shared*) echo 2 ;; *) echo 1 ;; esac\n'  # devices
# What every run says, and what bash says of a process that was killed.
USUAL = "^asked for run$|^installing on|^last line$|^run is still there| Aborted "


def make_clone(clone):
    """A clone with what the script needs."""
    shutil.copytree(ROOT / "launch", clone / "launch")
    for name in ("__init__.py", "errors.py", "devices/__init__.py", "devices/chips.py"):
        (clone / "lm_jax" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "lm_jax" / name, clone / "lm_jax" / name)
    (clone / "configs").mkdir()
    (clone / "configs" / "c.py").write_text("committed")
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, clone)
    name = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=clone, check=True)


class Vm:
    """The script in a clone, a cloud, and workers."""

    def __init__(self, folder, repository):
        self.clone, self.here, self.shared = folder / "a clone", folder / "bin", folder / "shared"
        self.homes, there = folder / "workers", folder / "bin-of-workers"
        shutil.copytree(repository, self.clone)
        for path in (self.here, there, self.homes, self.shared):
            path.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.here / tool).symlink_to(found)
                (there / tool).symlink_to(found)
        for name, text in (("python3.11", STUB), ("stat", STAT)):
            (there / name).write_text(text)
            (there / name).chmod(0o755)
        (self.here / "python3").write_text(
            f'#!{shutil.which("bash")}\nexec "{sys.executable}" -B "$@"\n'
        )
        (self.here / "python3").chmod(0o755)
        self.cloud = Cloud(self.homes, there)
        self.server = serve(self.cloud, self.here / "gcloud")
        self.env = {"PATH": str(self.here), "HOME": str(folder), "POLL": "0.02", "GRACE": "0",
                    "TMPDIR": str(folder)}  # fmt: skip

    def begin(self, *words):
        """The script as a process; /shared is a folder of the test."""
        words = [word.replace("/shared", str(self.shared)) for word in words]
        script = [self.here / "bash", self.clone / "launch" / "tpu_vm.sh"]
        return subprocess.Popen([*script, *words], env=self.env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def __call__(self, *words, **scenario):
        """(exit code, lines without the usual ones, errors)."""
        vars(self.cloud).update(scenario)
        with self.begin(*words) as process:
            try:
                out, err = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        self.said = self.plain(out).splitlines()
        out = [line for line in self.said if not re.search(USUAL, line)]
        return process.returncode, out, err

    def plain(self, text):
        """With the names that the tests use."""
        text = text.replace(str(self.shared), "/shared").replace(str(self.clone), "CLONE")
        return re.sub(r"\S+/lm_jax.tar.gz (?=run)", "TEMP/lm_jax.tar.gz ", text)

    @property
    def calls(self):
        return [self.plain(call) for call in self.cloud.calls]

    def trained(self, worker):
        """The flags of each training of a worker."""
        path = self.homes / f"trained-{worker}"
        return self.plain(path.read_text()).splitlines() if path.exists() else []

    def close(self):
        """Nothing is left running."""
        self.cloud.switch_off()
        self.server.shutdown()
        self.server.server_close()
