"""Slurm as packaged by Debian, with this runtime in oci.conf, and separate daemons munged, slurmctld and slurmd."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from oci_bundles import RUN, Bundle, as_root, make_rootfs, needs_busybox, write_runtime
from oci_engines import eventually, needs, stop, unmount_below

pytestmark = [*as_root, pytest.mark.slow]

_SLURM = """
ClusterName=containerkit
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge.sock
CredType=cred/munge
SlurmctldPort={controller}
SlurmctldPidFile={home}/slurmctld.pid
SlurmctldLogFile={home}/slurmctld.log
StateSaveLocation={home}/state
SlurmdPidFile={home}/slurmd.pid
SlurmdLogFile={home}/slurmd.log
SlurmdSpoolDir={home}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
KillWait=2
NodeName={name} NodeAddr=127.0.0.1 NodeHostname=localhost Port={node} CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""
NODE = f"n{RUN}"
"""The node's name, the prefix of the names of containers and of their control groups."""
_OCI = """
RunTimeQuery="{runtime} --root {home}/oci state %n.%u.%j.%s.%t"
RunTimeKill="{runtime} --root {home}/oci kill --all %n.%u.%j.%s.%t KILL"
RunTimeDelete="{runtime} --root {home}/oci delete --force %n.%u.%j.%s.%t"
RunTimeRun="exec {runtime} --root {home}/oci run --bundle %b %n.%u.%j.%s.%t"
"""


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class Slurm:
    """A controller and a node; ``slurm("srun", ...)`` runs a command of Slurm's."""

    def __init__(self, home):
        self.home = home
        self.environment = {**os.environ, "SLURM_CONF": str(home / "slurm.conf")}

    def __call__(self, *argv, status=0, **more):
        done = self.run(*argv, **more)
        assert status == done.returncode, f"{argv}: {done.returncode}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def run(self, *argv, **more):
        return subprocess.run(
            list(map(str, argv)), env=self.environment, capture_output=True, text=True, timeout=100, check=False, **more
        )

    def logs(self):
        return "".join(f"\n{each.name}:\n{each.read_text()[-3000:]}" for each in self.home.glob("*.log"))


@pytest.fixture(scope="module")
def slurm():
    needs(("slurmctld", "slurm-wlm"), ("slurmd", "slurm-wlm"), ("srun", "slurm-wlm"), ("munged", "munge"))
    needs_busybox()
    with tempfile.TemporaryDirectory(prefix="ck-slurm-", dir="/var/tmp") as path, contextlib.ExitStack() as stack:
        home = Path(path)
        home.chmod(0o755)
        for name in ("state", "spool"):
            (home / name).mkdir()
        controller, node = _free_ports(2)
        (home / "slurm.conf").write_text(_SLURM.format(home=home, name=NODE, controller=controller, node=node))
        (home / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n")
        program = write_runtime(home / "containerkit-oci")
        (home / "oci.conf").write_text(_OCI.format(runtime=program, home=home))
        (home / "key").write_bytes(secrets.token_bytes(128))
        (home / "key").chmod(0o400)
        slurm = Slurm(home)
        stack.callback(unmount_below, home)

        def daemon(*argv):
            with open(home / f"{argv[0]}.out.log", "wb") as log:
                process = subprocess.Popen(list(map(str, argv)), env=slurm.environment, stdout=log, stderr=log)
            stack.callback(stop, process)

        files = (f"--key-file={home}/key", f"--pid-file={home}/munged.pid", f"--seed-file={home}/munged.seed")
        daemon("munged", "--foreground", "--force", f"--socket={home}/munge.sock", *files)
        eventually((home / "munge.sock").exists)
        daemon("slurmctld", "-D", "-f", home / "slurm.conf")
        daemon("slurmd", "-D", "-f", home / "slurm.conf", "-N", NODE)
        try:
            eventually(lambda: slurm.run("sinfo", "-h", "-o", "%t").stdout.strip() == "idle", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}{slurm.logs()}") from None
        yield slurm
        slurm("scancel", "--state=RUNNING", "--user=root")
        eventually(lambda: slurm("squeue", "-h") == "", 60)


@pytest.fixture(scope="module")
def bundle(slurm):
    made = Bundle(slurm.home / "bundle", make_rootfs(slurm.home / "bundle/rootfs"))
    made.write()
    return made


def test_step_runs_in_a_container(slurm, bundle):
    look = "hostname; id -u; ls /; echo $SLURM_JOB_ID; readlink /proc/self/ns/pid"
    told = slurm("srun", "--container", bundle.path, "sh", "-c", look).split()
    assert bundle.config["hostname"] == told[0]
    assert "0" == told[1]
    assert "sbin" not in told  # as on the host
    assert os.readlink("/proc/self/ns/pid") != told[-1]
    assert int(told[-2]) > 0
    assert [] == [each for each in os.listdir(slurm.home / "oci") if each[0] != "."]


def test_step_has_the_status_of_its_command(slurm, bundle):
    slurm("srun", "--container", bundle.path, "sh", "-c", "exit 3", status=3)


def test_cancelled_step_leaves_no_container(slurm, bundle):
    with subprocess.Popen(
        ["srun", "-J", "long", "--container", str(bundle.path), "sleep", "1000"], env=slurm.environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            eventually(lambda: running(slurm), 60)
            slurm("scancel", "-n", "long")
            process.wait(60)
        finally:
            process.kill()
    eventually(lambda: slurm("squeue", "-h") == "", 60)
    eventually(lambda: not records(slurm), 60)
    assert [] == groups_of_node()


def records(slurm):
    directory = slurm.home / "oci"
    return [each for each in os.listdir(directory) if each[0] != "."] if directory.exists() else []


def running(slurm):
    """Return whether the runtime reports a running container of the node."""
    words = [slurm.home / "containerkit-oci", "--root", slurm.home / "oci", "state"]
    told = [slurm.run(*words, name).stdout for name in records(slurm)]
    return any('"running"' in each for each in told)


def groups_of_node():
    return [each for _, names, _ in os.walk("/sys/fs/cgroup") for each in names if each.startswith(f"{NODE}.")]
