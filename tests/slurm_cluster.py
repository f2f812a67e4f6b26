"""A real SLURM cluster of several nodes on one machine, as ordinary processes: munged, slurmctld, and a slurmd for each node.

It needs root, since slurmd starts jobs in sessions and with limits of their own, and Debian's packages slurmctld,
slurmd, slurm-client and munge. Neither systemd nor cgroups nor accounting are needed. Everything listens on the
loopback interface, on ports and in a folder of its own, and is stopped by its process id.

One thing must be shared: a job's inner ``srun`` reads /etc/slurm/slurm.conf, whatever the environment says. A link is
put there while the cluster runs, under a lock, and what was there before is put back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "squeue", "sbatch", "scancel", "scontrol", "srun")
SYSTEM_CONF = Path("/etc/slurm/slurm.conf")
#: Whose cluster the link leads to; held as long as it runs.
SYSTEM_LOCK = Path("/tmp/skymill-slurm-tests.lock")
SEARCH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

CONF = """\
ClusterName=skymill
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
# A scratch disk of its own for each node: tasks find it as LOCAL_SCRATCH.
TaskProlog={folder}/prolog
# Without cgroups: processes are found by their parents, and memory is looked at once a second.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
# Quick, so that tests are: jobs start at once, and a dead node is noticed soon.
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
SlurmdTimeout=20
KillWait=3
InactiveLimit=0
ReturnToService=2
MinJobAge=3600
# The nodes have what is said here, not what the machine has.
SlurmdParameters=config_overrides
NodeName=n[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{last_port}] CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Job(NamedTuple):
    """A job as squeue shows it."""

    id: str
    name: str
    state: str
    node: str
    folder: str
    comment: str


def why_not() -> str | None:
    """What is missing on this machine for a cluster, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
    if missing:
        return f"{missing[0]} is not installed (Debian: apt install slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "the tests are not run as root, which slurmd needs"
    daemons = [name for name in map(_command_of, _process_ids()) if name in ("slurmctld", "slurmd")]
    if daemons and not _is_locked():
        return f"a {daemons[0]} runs on this machine, and it needs {SYSTEM_CONF}"
    return None


def _is_locked() -> bool:
    """Whether a cluster of ours runs on this machine."""
    with open(SYSTEM_LOCK, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _process_ids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _open_files(pid: int) -> set[str]:
    found = set()
    for name in _names_in(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def _environment_of(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def descendants(pid: int) -> list[int]:
    """The process ids of all children of a process, and of theirs."""
    parents = {}
    for other in _process_ids():
        try:
            parents[other] = int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def wait_until(ready: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait until a condition holds.

    Raises
    ------
    TimeoutError
        If it does not within ``timeout_s`` seconds; the text says what was waited for.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Neighbouring ports of the loopback interface that nobody listens on."""
    for first in range(20000 + os.getpid() % 5000, 32000, count):
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
            return list(range(first, first + count))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise RuntimeError("no free ports")


class SlurmCluster:
    """The cluster; a context manager.

    Parameters
    ----------
    folder : `pathlib.Path`
        Its state, logs and sockets.
    nodes : `int`
        How many nodes; each has one CPU and 4000 MB, and they are called n1, n2, ...
    """

    def __init__(self, folder: Path, nodes: int = 4):
        self.folder = folder
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.conf = folder / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = None
        self._before: Path | None = None

    def __enter__(self) -> SlurmCluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- start and stop --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start everything, and wait until a job runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir(exist_ok=True)
        ports = _free_ports(1 + len(self.nodes))
        self.conf.write_text(
            CONF.format(folder=self.folder, nodes=len(self.nodes), ports=ports, last_port=ports[len(self.nodes)])
        )
        prolog = self.folder / "prolog"
        prolog.write_text(f'#!/bin/sh\necho "export LOCAL_SCRATCH={self.folder}/scratch.$SLURMD_NODENAME"\n')
        prolog.chmod(0o755)
        self._take_system_conf()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._start(
            "munged",
            *("--foreground", f"--socket={self.folder}/munge.socket", f"--key-file={key}"),
            *(f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log"),
            f"--seed-file={self.folder}/munged.seed",
        )
        wait_until((self.folder / "munge.socket").exists, 20, "munged")
        self.start_controller("-i")
        for node in self.nodes:
            self.start_node(node)
        self.wait_for_nodes()
        done = self.command("srun", "-n1", "--mem=100", "true", timeout_s=60)
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        """End all jobs and daemons, and put the system's configuration back."""
        if "slurmctld" in self._daemons:
            self.command("scancel", "--user=root", timeout_s=20)
            self._wait_for_no_jobs()
        for name in reversed(list(self._daemons)):
            self._end(name)
        for node in self.nodes:
            self._kill_steps(node)
        self._kill_orphans()
        self._give_system_conf()

    def start_controller(self, *options: str) -> None:
        """Start slurmctld, which goes on with the state it finds."""
        self._start("slurmctld", "-D", "-f", str(self.conf), *options)
        wait_until(lambda: self.command("scontrol", "ping").stdout.count(" UP"), 60, "slurmctld")

    def stop_controller(self) -> None:
        """Stop slurmctld; the jobs run on."""
        self._end("slurmctld")

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        for name in ("spool", "scratch"):
            (self.folder / f"{name}.{node}").mkdir(exist_ok=True)
        self._start("slurmd", "-D", "-f", str(self.conf), "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """What a power cut does to a node: its slurmd, the daemons of its jobs, and the jobs are gone at once."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        self._kill_steps(node)
        daemon.wait()

    def wait_for_nodes(self) -> None:
        """Wait until every node is idle or at work."""
        states = ("sinfo", "--noheader", "--states=idle,alloc,mix,comp", "--format=%D")

        def ready() -> bool:
            return sum(map(int, self.command(*states).stdout.split())) == len(self.nodes)

        wait_until(ready, 90, "the nodes")

    # -- what tests ask ---------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a client of the cluster needs."""
        return {"SLURM_CONF": str(self.conf)}

    def command(self, *command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command of SLURM; a failure is the caller's to judge."""
        environment = os.environ | self.environment
        try:
            return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            return subprocess.CompletedProcess(command, 124, "", str(error))

    def jobs(self, *states: str) -> list[Job]:
        """The jobs in some states (``RUNNING``, ...), or all that the controller remembers."""
        chosen = f"--states={','.join(states) or 'all'}"
        done = self.command("squeue", "--noheader", chosen, "--format=%i|%j|%T|%N|%Z|%k")
        assert done.returncode == 0, done.stderr
        return [Job(*line.split("|")) for line in done.stdout.splitlines()]

    def log(self) -> str:
        """The end of the controller's log, for messages."""
        path = self.folder / "slurmctld.log"
        return path.read_text(errors="replace")[-3000:] if path.exists() else ""

    # -- processes ---------------------------------------------------------------------------------------------------------

    def _start(self, program: str, *options: str, name: str = "") -> None:
        command = [str(shutil.which(program, path=SEARCH)), *options]
        quiet = subprocess.DEVNULL
        with open(self.folder / f"{name or program}.out", "ab") as out:
            # A session of its own: a Ctrl-C in the terminal must not reach it.
            self._daemons[name or program] = subprocess.Popen(
                command, stdin=quiet, stdout=out, stderr=out, start_new_session=True, env=os.environ | self.environment
            )

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _wait_for_no_jobs(self) -> None:
        with contextlib.suppress(TimeoutError):  # what is left is killed
            wait_until(lambda: not self.command("squeue", "--noheader").stdout.strip(), 30, "the end of all jobs")

    def _kill_steps(self, node: str) -> None:
        """Kill the slurmstepds of a node, which outlive their slurmd, and the jobs that they look after."""
        log = str(self.folder / f"slurmd.{node}.log")
        steps = [pid for pid in _process_ids() if _command_of(pid) == "slurmstepd" and log in _open_files(pid)]
        for pid in [*steps, *(child for step in steps for child in descendants(step))]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _kill_orphans(self) -> None:
        """Kill what has escaped: a Snakemake that is told to end while it ends a job waits for its own lock for ever."""
        for pid in _process_ids():
            variables = _environment_of(pid)
            if variables.get("SLURM_CONF") == str(self.conf) and "SLURM_JOB_ID" in variables:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # -- /etc/slurm/slurm.conf ----------------------------------------------------------------------------------------------

    def _take_system_conf(self) -> None:
        self._lock = open(SYSTEM_LOCK, "w")  # noqa: SIM115 - held until the cluster stops
        wait_until(self._try_lock, 1200, f"another test's cluster ({SYSTEM_LOCK})")
        SYSTEM_CONF.parent.mkdir(exist_ok=True)
        if SYSTEM_CONF.is_symlink() and not SYSTEM_CONF.exists():
            SYSTEM_CONF.unlink()  # left by a cluster that was killed
        if os.path.lexists(SYSTEM_CONF):
            self._before = SYSTEM_CONF.with_name(f"slurm.conf.before-{os.getpid()}")
            SYSTEM_CONF.rename(self._before)
        SYSTEM_CONF.symlink_to(self.conf)

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _give_system_conf(self) -> None:
        if self._lock is None:
            return
        if SYSTEM_CONF.is_symlink() and Path(os.readlink(SYSTEM_CONF)) == self.conf:
            SYSTEM_CONF.unlink()
        if self._before is not None:
            self._before.rename(SYSTEM_CONF)
            self._before = None
        self._lock.close()
        self._lock = None
