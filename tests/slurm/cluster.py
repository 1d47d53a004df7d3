"""A real SLURM on one machine: munge, slurmctld and slurmd of several virtual nodes.

Everything runs in a PID, network, mount and UTS namespace of its own, and every node in further
network, mount and UTS namespaces, with its own address and hostname. So nothing of the machine is
changed, and no process outlives the first one of the PID namespace.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

PROGRAMS = "munged slurmctld slurmd sbatch scontrol srun ip nsenter setpriv unshare".split()
FINAL = "COMPLETED FAILED CANCELLED TIMEOUT NODE_FAIL OUT_OF_MEMORY DEADLINE BOOT_FAIL".split()
FREEZER = Path("/sys/fs/cgroup/freezer")
NETWORK = "10.213.7"

INIT = """
set -e
mount --bind "$ROOT/hosts" /etc/hosts
mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns
hostname controller
ip link set lo up
ip link add bridge type bridge
ip addr add "$NETWORK.1/24" dev bridge
ip link set bridge up
touch "$ROOT/ready"
while true; do sleep 1; done  # and reap what the daemons leave
"""
NODE = """
set -e
ip netns add "$1"
ip link add "veth${2##*.}" type veth peer name eth0 netns "$1"
ip link set "veth${2##*.}" master bridge up
ip -n "$1" addr add "$2/24" dev eth0
ip -n "$1" link set eth0 up
ip -n "$1" link set lo up
exec nsenter --net="/run/netns/$1" unshare --uts --mount \
    bash -c 'hostname "$1"; exec slurmd -N "$1"' - "$1"
"""
SLURM_CONF = """
ClusterName={name}
SlurmctldHost=controller({network}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# Jobs wait until their credential has expired before they start again: 5 s, not two minutes.
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/%n.log
PlugStackConfig={root}/plugstack.conf
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=10
MinJobAge=3600
MailProg=/bin/true
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=20 State=UP
"""


def obstacle():
    """Why no cluster can be made here, or None."""
    if os.geteuid() != 0:
        return "SLURM's daemons and namespaces need root"
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}; tools/install_slurm.sh does it on Debian"
    trial = ["unshare", "--pid", "--net", "--mount", "--uts", "--fork", "--mount-proc"]
    script = "ip link add bridge type bridge && mount -t tmpfs tmpfs /mnt"
    result = subprocess.run([*trial, "sh", "-c", script], capture_output=True, text=True)
    if result.returncode:
        return f"namespaces cannot be made here: {result.stderr.strip()}"
    return None


class Cluster:
    """Virtual nodes, named in `nodes`; a context manager. `folder` must be empty and the tests'."""

    def __init__(self, folder, nodes=2):
        self.root = Path(folder)
        # SLURM names control groups after nodes: other clusters on this machine have other names.
        self.nodes = [f"node{i + 1}-pid{os.getpid()}" for i in range(nodes)]
        self.env = os.environ | {
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "ROOT": str(self.root),
            "NETWORK": NETWORK,
            "OMP_NUM_THREADS": "1",
        }
        self.name = f"helm{os.getpid()}"

    def __enter__(self):
        self.write_config()
        space = "--pid --net --mount --uts --fork --kill-child --mount-proc".split()
        # Dies with these tests, however they end.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", *space, "bash", "-c", INIT]
        self.unshare = subprocess.Popen(command, env=self.env)
        try:
            self.wait_until((self.root / "ready").exists, 20, "the cluster's namespaces")
            children = Path(f"/proc/{self.unshare.pid}/task/{self.unshare.pid}/children")
            self.init = children.read_text().strip()
            self.start_daemons()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def write_config(self):
        """The files of SLURM and munge."""
        for folder in ("state", "spool", "munge", "dev"):
            (self.root / folder).mkdir()
        self.root.chmod(0o755)
        addresses = {name: f"{NETWORK}.{11 + i}" for i, name in enumerate(self.nodes)}
        hosts = {"localhost": "127.0.0.1", "controller": f"{NETWORK}.1"} | addresses
        (self.root / "hosts").write_text("".join(f"{a} {name}\n" for name, a in hosts.items()))
        (self.root / "plugstack.conf").touch()
        (self.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = self.root / "munge" / "key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        lines = [
            f"NodeName={name} NodeHostname={name} NodeAddr={address} CPUs=4 RealMemory=8000"
            for name, address in addresses.items()
        ]
        conf = SLURM_CONF.format(
            name=self.name,
            network=NETWORK,
            root=self.root,
            # linuxproc loses processes whose parent has died.
            proctrack="cgroup" if os.access(FREEZER / "cgroup.procs", os.W_OK) else "linuxproc",
            nodes="\n".join(lines),
        )
        (self.root / "slurm.conf").write_text(conf)
        self.addresses = addresses

    def start_daemons(self):
        """munged, slurmctld, slurmd; they are there when every node is idle."""
        folder = self.root / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        files["seed-file"] = "seed"
        self.run("munged", *(f"--{flag}={folder / name}" for flag, name in files.items()))
        self.run("slurmctld")
        for name, address in self.addresses.items():
            (self.root / "spool" / name).mkdir()
            self.run("bash", "-c", NODE, "-", name, address)
        self.wait_until(self.all_idle, 60, "idle nodes")

    def all_idle(self):
        """Whether every node waits for a job."""
        out = self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N", check=False)
        return sorted(set(out.split())) == self.nodes

    def stop(self):
        """Kill every process of the PID namespace, and wait for the last."""
        self.unshare.kill()  # its child, the namespace's first process, goes with it
        self.unshare.wait()
        for node in self.nodes:
            for folder in Path("/sys/fs/cgroup").glob(f"*/slurm_{node}"):
                for path in sorted(folder.rglob("*/"), reverse=True) + [folder]:
                    with contextlib.suppress(OSError):
                        path.rmdir()

    def wait_until(self, condition, seconds, what):
        """Poll a condition; fails the test with the daemons' logs if it does not come true."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                logs = [path.read_text()[-1500:] for path in self.root.glob("*.log")]
                raise AssertionError(f"no {what} after {seconds} s:\n" + "\n".join(logs))
            time.sleep(0.2)

    def run(self, *command, check=True, env=None, cwd=None):
        """Run a command on the controller; returns its output."""
        inside = ["nsenter", f"--target={self.init}", "--pid", "--net", "--mount", "--uts", "--"]
        if cwd:
            inside += ["env", f"--chdir={cwd}"]
        result = subprocess.run(
            [*inside, *map(str, command)],
            env=self.env | (env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=120,
        )
        if check and result.returncode:
            raise AssertionError(f"{' '.join(map(str, command))}: {result.stdout}")
        return result.stdout

    def on_node(self, node, *command, check=True):
        """Run a command in a node's namespaces, as the node's administrator."""
        pid = (self.root / f"{node}.pid").read_text().strip()
        inside = ["nsenter", f"--target={pid}", "--net", "--mount", "--uts", "--"]
        return self.run(*inside, *command, check=check)

    def submit(self, *arguments, env=None, cwd=None):
        """Run sbatch; returns the job's id."""
        out = self.run("sbatch", "--parsable", *arguments, env=env, cwd=cwd)
        return re.search(r"^(\d+)$", out, re.MULTILINE).group(1)

    def job(self, job, field="JobState"):
        """A field of a job (of the last of an array), as `scontrol show job` gives it."""
        out = self.run("scontrol", "--oneliner", "show", "job", job)
        return re.findall(rf" {field}=(\S+)", out)[0]

    def wait(self, job, seconds=300):
        """Wait until a job has ended; returns its state."""
        self.wait_until(lambda: self.job(job) in FINAL, seconds, f"end of job {job}")
        return self.job(job)

    def processes(self, text):
        """Command lines on any node that contain a text."""
        commands = self.run("ps", "-eo", "args=").splitlines()
        return [line for line in commands if text in line and "ps -eo" not in line]
