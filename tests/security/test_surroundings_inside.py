"""The surroundings of a container, attacked from inside: network, keys, processes, shared memory, names, control groups.

If a namespace is shared by name, the same attempt succeeds.
"""

import os
import signal
import socket
import subprocess

import pytest
from attacker import EVERYTHING, armed, attempt, attempt_in, in_child

from containerkit import Capabilities, Container, Namespaces, run
from containerkit._native import calls

pytestmark = pytest.mark.usefixtures("nothing_left")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user can't share its user namespace")


# --- Network


def test_abstract_socket_of_the_host():
    """CVE-2020-15257: containerd-shim's control socket was such a socket."""
    name = f"containerkit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        assert "ECONNREFUSED" == attempt("abstract-socket", name)
        assert "ECONNREFUSED" == attempt("abstract-socket", name, **EVERYTHING)
        assert "done" == attempt("abstract-socket", name, namespaces=Namespaces(network="host"))


def test_port_of_the_host():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert "ECONNREFUSED" == attempt("connect-tcp", port)
        assert "done" == attempt("connect-tcp", port, namespaces=Namespaces(network="host"))


def test_interfaces_of_the_host():
    outside = {name for _, name in socket.if_nameindex()}
    assert {"lo"} == set(attempt("interfaces").split())
    assert outside == set(attempt("interfaces", namespaces=Namespaces(network="host")).split())


@needs_root
def test_shared_network_cannot_be_changed_with_every_capability():
    """Sharing the network does not give control over it: the capabilities only count in the container's user namespace."""
    shared = Namespaces(network="host")
    assert "EPERM" == attempt("set-link", namespaces=shared, **EVERYTHING)


# --- Keys


@pytest.fixture
def key():
    """The name of a key."""
    return f"containerkit-{os.getpid()}"


def with_key(name, work):
    """Run a function with a key in the session keyring."""

    def hold():
        calls.syscall("keyctl", 1, 0)
        add_key = {"x86_64": 248}.get(os.uname().machine, 217)
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(add_key, b"user", name.encode(), b"treasure", 8, -3) < 0:
            raise OSError(ctypes.get_errno(), "add_key")
        return work()

    return in_child(hold)


def test_key_of_the_caller(key):
    assert "EPERM" == with_key(key, lambda: attempt("read-key", key))
    assert "ENOKEY" == with_key(key, lambda: attempt("read-key", key, seccomp=None))
    assert "treasure" == with_key(key, lambda: attempt("read-key", key, seccomp=None, keyring="host"))


def test_containers_share_no_keyring():
    with Container(mounts=armed(), seccomp=None) as one:
        assert "done" == attempt_in(one, "add-key")
        assert "ENOKEY" == attempt_in(one, "read-key", "attack"), "the next command has a keyring of its own"


# --- Processes


def test_process_of_the_host():
    with subprocess.Popen(["sleep", "30"]) as sleeper:
        try:
            for attack in (("signal", sleeper.pid, 9), ("attach", sleeper.pid)):
                assert attempt(*attack) in ("ESRCH", "EPERM")
                assert "ESRCH" == attempt(*attack, **EVERYTHING)
            assert sleeper.poll() is None
        finally:
            sleeper.kill()


@needs_root
def test_process_of_the_host_in_a_shared_pid_namespace():
    """They are visible then, but belong to another user. Harming them needs a shared user namespace too."""
    with subprocess.Popen(["sleep", "30"]) as sleeper:
        seen = Namespaces(pid="host")
        assert "EPERM" == attempt("signal", sleeper.pid, 9, namespaces=seen)
        assert "EPERM" == attempt("signal", sleeper.pid, 9, namespaces=seen, **EVERYTHING)
        bare = Namespaces(pid="host", user="host")
        assert "done" == attempt("signal", sleeper.pid, 9, namespaces=bare)
        assert -signal.SIGKILL == sleeper.wait(5)


def test_only_its_own_processes_are_listed():
    listed = [int(name) for name in run(["ls", "/proc"], text=True).stdout.split() if name.isdecimal()]
    assert max(listed) < 20
    if os.geteuid() == 0:
        shared = run(["ls", "/proc"], text=True, namespaces=Namespaces(pid="host")).stdout.split()
        assert str(os.getpid()) in shared


# --- Shared memory


def test_shared_memory_of_the_host():
    made = subprocess.run(["ipcmk", "-M", "4096", "-p", "0666"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("ipcmk is not there (package util-linux)")
    number = made.stdout.split()[-1]
    listed = subprocess.run(["ipcs", "-m"], capture_output=True, text=True, check=True).stdout
    key = next(line.split()[0] for line in listed.splitlines() if f" {number} " in line)
    try:
        assert "ENOENT" == attempt("find-shared-memory", key)
        assert "done" == attempt("find-shared-memory", key, namespaces=Namespaces(ipc="host"))
    finally:
        subprocess.run(["ipcrm", "-m", number], check=True)


# --- Names


def test_name_of_the_host():
    before = os.uname().nodename
    assert 0 != run(["hostname", "attacked"]).returncode
    assert 0 == run(["hostname", "attacked"], capabilities=Capabilities.of("SYS_ADMIN")).returncode
    assert before == os.uname().nodename


# --- Control groups


def test_no_control_group_is_in_sight():
    assert [] == run(["ls", "-A", "/sys/fs/cgroup"], text=True).stdout.split()
    for kind, options in (("cgroup", "memory"), ("cgroup2", "")):
        assert "EPERM" == attempt("mount-type", "/mnt", kind, options)
        assert "EPERM" == attempt("mount-type", "/mnt", kind, options, seccomp=None)


def test_own_group_shows_nothing_of_the_hosts():
    """With a cgroup namespace paths begin at the container's own group."""
    paths = {line.split(":", 2)[2] for line in run(["cat", "/proc/self/cgroup"], text=True).stdout.splitlines()}
    assert {"/"} == paths


@needs_root
def test_release_agent_cannot_be_set_with_all_capabilities():
    """CVE-2022-0492: the kernel ran, as root of the machine, the program that a group's root named."""
    script = "mount -t cgroup -o memory none /mnt 2>/dev/null && echo /bin/true > /mnt/release_agent && echo written"
    done = run(["sh", "-c", script], text=True, **EVERYTHING)
    assert "written" not in done.stdout


# --- While a command joins


@needs_root
def test_memory_of_the_caller_is_out_of_reach_while_a_command_joins():
    """Until its exec a command that joins has the caller's memory. A watcher with every capability tries to read it."""
    secret = os.urandom(24)
    with (
        Container(mounts=armed(), **EVERYTHING) as container,
        container.popen(["/attacks", "secret", secret.hex(), "2"], stdout=-1, text=True) as watcher,
    ):
        while watcher.poll() is None:
            container.run(["true"])
        assert "found" != watcher.stdout.read().strip()


def test_watcher_finds_readable_memory():
    """The same watcher with a process that it may read, to prove that the test above can fail."""
    secret = os.urandom(24)
    code = f"import time; held = bytes.fromhex('{secret.hex()}') * 1000; time.sleep(20)"
    with Container(mounts=armed(), **EVERYTHING) as container, container.popen(["python3", "-c", code]) as holder:
        said = attempt_in(container, "secret", secret.hex(), "10")
        holder.kill()
    assert "found" == said
