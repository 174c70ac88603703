"""A stand-in for gcloud and for the workers of a TPU.

The program `gcloud` on the PATH of a test passes its words to a Cloud, which keeps them, plays back
a scenario, and runs what is sent to a worker in a folder that plays that worker's home.
"""

import os
import shlex
import shutil
import signal
import socketserver
import subprocess
import threading
from contextlib import suppress

# Passes words on; back come lines: 1 (to stdout), 2 (to stderr) or 0 (exit code) and the text.
CLIENT = r"""#!/usr/bin/env bash
exec 3<>/dev/tcp/127.0.0.1/PORT
printf '%s\n' "$#" >&3
printf '%s\0' "$@" >&3
while IFS= read -r line <&3; do
    case "$line" in
        1*) printf '%s\n' "${line:1}" ;;
        2*) printf '%s\n' "${line:1}" >&2 ;;
        0*) exit "${line:1}" ;;
    esac
done
exit 1
"""
# As `gcloud compute tpus` of release 528 has them: it refuses others before it asks the cloud.
FLAGS = {
    "queued-resources create": {"node-id", "node-count", "node-prefix", "accelerator-type",
                                "runtime-version", "spot"},
    "queued-resources describe": {"format"},
    "queued-resources delete": {"force"},
    "tpu-vm ssh": {"worker", "command", "ssh-flag"},
    "tpu-vm scp": {"worker"},
}  # fmt: skip
CUT = "Retrying: SSH command error: [/usr/bin/ssh] exited with return code [255]."


class Cloud:
    """One queued resource, of `hosts` workers a slice; `calls` are the commands it was asked."""

    def __init__(self, folder, bin_of_workers):
        self.folder, self.bin = folder, bin_of_workers
        self.calls, self.nodes = [], []
        self.made = self.asked = 0  # TPUs created, and looks at the last one
        self.hosts = 2
        self.states = [["ACTIVE"]]  # what describe says of each TPU in turn; the last stays
        self.after = ["SUSPENDED"]  # the same after a preemption
        self.who, self.failed = "SERVICE", ""  # state initiator; why a FAILED one is
        self.no_create, self.no_describe = [], ""  # what the first of them, or all, fail with
        self.events = []  # (TPU from 1, line of the log at which it happens, preempt, lose or cut)
        self.codes = {}  # worker -> the ends of its trainings in turn, as the stub has them
        self.unreachable, self.preempted = set(), False

    def run(self, words, say):
        """Answers a call by say(1 or 2, text); the exit code."""
        command, rest = " ".join(words[2:4]), words[4:]
        flags = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))
        names = [word for word in rest if not word.startswith("--")]
        if strange := flags.keys() - FLAGS[command] - {"zone", "project", "quiet"}:
            say(2, f"ERROR: (gcloud.{command}) unrecognized arguments: --{min(strange)}")
            return 2
        self.calls.append(" ".join(words[2:]))
        try:
            return getattr(self, command.split()[1])(names, flags, say)
        except RuntimeError as error:
            say(2, f"ERROR: (gcloud.compute.tpus.{command.replace(' ', '.')}) {error}")
            return 1

    def create(self, names, flags, say):
        """A new TPU with fresh workers."""
        if self.no_create:
            raise RuntimeError(self.no_create.pop(0))
        assert not self.nodes, "ALREADY_EXISTS"
        several = range(int(flags.get("node-count", 0)))
        self.nodes = [f"{flags['node-prefix']}-{i}" for i in several] or [flags["node-id"]]
        for worker in self.workers():
            (self.folder / worker).mkdir()
        self.made, self.asked, self.preempted = self.made + 1, 0, False
        self.now = self.states[min(self.made, len(self.states)) - 1]
        return 0

    def describe(self, names, flags, say):
        """state|initiator|error, the fields that --format asks for."""
        if self.no_describe:
            raise RuntimeError(self.no_describe)
        if not self.nodes:
            raise RuntimeError(f"NOT_FOUND: Resource '{names[0]}' was not found")
        state = self.now[min(self.asked, len(self.now) - 1)]
        self.asked += 1
        say(1, f"{state}|{self.who}|{self.failed if state == 'FAILED' else ''}")
        return 0

    def delete(self, names, flags, say):
        """Ends the workers, and what runs on them."""
        assert "force" in flags
        self.switch_off()
        self.nodes, self.unreachable = [], set()
        return 0

    def scp(self, names, flags, say):
        """A file to the home of each worker."""
        source, node = names
        for worker in (workers := self.workers(node.removesuffix(":"))) - self.unreachable:
            shutil.copy(source, self.folder / worker)
        return self.cut(say) if workers & self.unreachable else 0

    def ssh(self, names, flags, say):
        """Runs the command on the first worker, or on all; the first exit code that is not 0."""
        if self.preempted:
            raise RuntimeError('This TPU has terminal state "PREEMPTED", so it cannot be used.')
        if flags["worker"] != "all":
            return self.follow(f"{names[0]}-w-0", flags["command"], say)
        workers = sorted(self.workers(names[0]))
        there = [worker for worker in workers if worker not in self.unreachable]
        codes = [self.cut(say) for worker in workers if worker in self.unreachable]
        for process in [self.start(worker, flags["command"]) for worker in there]:
            out, err = process.communicate()
            with suppress(ProcessLookupError):  # the connection ends, and what hangs on it
                os.killpg(process.pid, signal.SIGKILL)
            for line in out.splitlines():
                say(1, line)
            for line in err.splitlines():
                say(2, line)
            codes.append(process.returncode)
        return next((code for code in codes if code), 0)

    def follow(self, worker, command, say):
        """Passes lines on until the command ends, or to what happens at one of them."""
        if worker in self.unreachable:
            return self.cut(say)
        with self.start(worker, command) as process:
            for line in process.stdout:
                say(1, line.rstrip("\n"))
                for event in self.events:
                    if event[:2] == (self.made, line.strip()):
                        self.happens(event[2], worker)
                        os.killpg(process.pid, signal.SIGKILL)
                        return self.cut(say)
        return process.returncode

    def happens(self, what, worker):
        """An event, while the log of `worker` is read."""
        if what == "preempt":
            self.switch_off()
            self.now, self.asked, self.preempted = self.after, 0, True
        elif what == "lose":
            lost = worker[:-1] + "1"
            self.kill(lost)
            self.unreachable.add(lost)
            # jax ends what lost a peer
            os.kill(
                int((self.folder / worker / "training").read_text().split()[-1]), signal.SIGABRT
            )

    def cut(self, say):
        """What gcloud says when ssh fails."""
        say(2, CUT)
        return 255

    def workers(self, *nodes):
        """Names of the workers of these slices, or of all."""
        return {f"{node}-w-{i}" for node in nodes or self.nodes for i in range(self.hosts)}

    def start(self, worker, command):
        """A process on a worker."""
        home = self.folder / worker
        env = {"HOME": str(home), "HOSTNAME": worker, "PATH": str(self.bin),
               "STUB_CODES": self.codes.get(worker, "")}  # fmt: skip
        return subprocess.Popen(["bash", "-c", command], cwd=home, env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                start_new_session=True)  # fmt: skip

    def kill(self, worker):
        """Ends what runs on a worker."""
        with suppress(FileNotFoundError, ProcessLookupError):
            pid = (self.folder / worker / "lm_jax/.tpu_run/pid").read_text()
            os.killpg(int(pid), signal.SIGKILL)

    def switch_off(self):
        """The machines are gone."""
        for worker in self.workers():
            self.kill(worker)
            shutil.rmtree(self.folder / worker, ignore_errors=True)


def serve(cloud, path):
    """Writes the program `gcloud` that asks `cloud`; call .shutdown() of what comes back."""

    class Call(socketserver.StreamRequestHandler):
        def handle(self):
            count = int(self.rfile.readline())
            words = []
            for _ in range(count):
                word = b""
                while (byte := self.rfile.read(1)) != b"\0":
                    word += byte
                words.append(word.decode())

            def say(where, text):
                with suppress(BrokenPipeError):  # the caller was ended
                    self.wfile.write(f"{where}{text}\n".encode())

            say(0, cloud.run(words, say))

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Call)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    path.write_text(CLIENT.replace("PORT", str(server.server_address[1])))
    path.chmod(0o755)
    return server


def typed(line):
    """The words of a line of --dry-run that starts with gcloud, as Cloud.calls has them."""
    return " ".join(shlex.split(line)[3:])
