"""A SLURM cluster of two nodes on this machine: real daemons on free ports of loopback."""

import os
import shutil
import socket
import subprocess
import time

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=600
FirstJobId={first}
SchedulerParameters=requeue_delay=1
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={one} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={two} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What is not installed, or why it cannot run; nothing where it can."""
    if os.geteuid():
        return "SLURM's daemons need root"
    lacks = [name for name in PROGRAMS if not shutil.which(name)]
    return f"not installed: {' '.join(lacks)} (apt install slurm-wlm munge)" if lacks else ""


def free_ports(count):
    """Ports of loopback that nothing listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def last_lines(path, count=30):
    """The end of a text file, or that there is none."""
    if not path.exists():
        return "no such file"
    return "\n".join(path.read_text(errors="replace").splitlines()[-count:])


class Cluster:
    """`with Cluster(folder) as cluster: cluster("sbatch", ...)`; its daemons end with the block."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons = []

    def __enter__(self):
        folder = self.folder
        for name in ("state", "spool.n1", "spool.n2"):
            (folder / name).mkdir(mode=0o700)
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        control, one, two = free_ports(3)
        (folder / "slurm.conf").write_text(
            CONF.format(
                folder=folder,
                host=socket.gethostname().split(".")[0],
                control=control,
                one=one,
                two=two,
                cpus=os.cpu_count(),
                # Jobs of two clusters on this machine have ports of their own.
                first=os.getpid() % 50_000 + 1,
            )
        )
        at = lambda name: f"{folder}/munge.{name}"
        self.daemon("munged", "--foreground", "--force", f"--key-file={key}",
                    f"--socket={at('socket')}", f"--pid-file={at('pid')}",
                    f"--log-file={at('log')}", f"--seed-file={at('seed')}")  # fmt: skip
        self.until(lambda: (folder / "munge.socket").exists(), "munged")
        self.daemon("slurmctld", "-D")
        for node in ("n1", "n2"):
            self.daemon("slurmd", "-D", "-N", node)
        states = ("sinfo", "--noheader", "--format=%T %D")
        self.until(lambda: self(*states).split() == ["idle", "2"], "two nodes")
        return self

    def daemon(self, *command):
        with open(self.folder / f"{command[0]}.out", "a") as out:
            self.daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)
            )

    def until(self, true, what, seconds=60, log=None):
        """Waits until `true()`; a failure shows the queue and the ends of the logs."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                logs = [*([log] if log else []), *sorted(self.folder.glob("*.log"))]
                ends = [f"{each}:\n{last_lines(each)}" for each in logs]
                raise AssertionError(
                    "\n".join([f"{what}: not within {seconds} s", self("squeue"), *ends])
                )
            time.sleep(0.2)

    def __call__(self, *command, **more):
        """What a command of SLURM prints."""
        done = subprocess.run(
            command, env={**self.environment, **more}, capture_output=True, text=True, timeout=60
        )
        return done.stdout

    def __exit__(self, *exception):
        self("scancel", "--user=root")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
