"""Helpers for the tests of container engines: their command lines, and the cleanup."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import pytest
from oci_bundles import make_rootfs, needs_busybox, write_runtime

IDS = 65_536
BOX = "docker.io/library/box:latest"
"""The image of :func:`oci_archive`."""


def needs(*programs):
    """Skip if a program is missing.

    Args:
        programs: pairs of a program and its Debian package.
    """
    for program, package in programs:
        if not os.path.exists(program) and not shutil.which(program):
            pytest.skip(f"no {program}: apt-get install {package}")


class Engine:
    """A command line whose calls return the output.

    Args:
        words: the program with its global flags.
        environment: variables in addition to those of this process.
        more: arguments of subprocess.run().
    """

    def __init__(self, words, environment=None, **more):
        self.words = list(map(str, words))
        self.environment = {**os.environ, **(environment or {})}
        self.more = more

    def __call__(self, *words, status=0, both=False, **more):
        done = subprocess.run(
            [*self.words, *map(str, words)], env=self.environment,
            capture_output=True, text=True, timeout=120, check=False, **self.more, **more,
        )  # fmt: skip
        assert status == done.returncode, f"{' '.join(map(str, words))}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr if both else done.stdout

    def on_terminal(self, *words):
        """Run with a terminal, by script(1)."""
        line = " ".join([*self.words, *map(str, words)])
        done = subprocess.run(
            ["script", "-qec", line, "/dev/null"], env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=True, **self.more,
        )  # fmt: skip
        return done.stdout


def _remove_user(name, seconds=20):
    """Remove a user after its last process, which was just killed, has ended."""
    end = time.monotonic() + seconds
    while (done := subprocess.run(["userdel", name], capture_output=True, text=True, check=False)).returncode:
        assert "currently used by process" in done.stderr, done.stderr
        assert time.monotonic() < end, done.stderr
        time.sleep(0.1)


@contextlib.contextmanager
def user_with_ids(kind, first):
    """Create a user with 65,536 subordinate uids and gids. Its home is removed at the end.

    Args:
        kind: a part of its name.
        first: the first of its ids. The following thousand ranges are unused.

    Yields:
        Its name and its home.
    """
    needs(("useradd", "passwd"), ("newuidmap", "uidmap"))
    name = f"ck-{kind}-{os.getpid()}"
    first += os.getpid() % 1000 * IDS
    ranges = f"{first}-{first + IDS - 1}"
    with tempfile.TemporaryDirectory(prefix=f"ck-{kind}-", dir="/var/tmp") as home:
        subprocess.run(["useradd", "--system", "--no-create-home", "--home-dir", home, name], check=True)
        try:
            subprocess.run(["usermod", "--add-subuids", ranges, "--add-subgids", ranges, name], check=True)
            Path(home).chmod(0o755)
            yield name, Path(home)
        finally:
            _remove_user(name)


def unmount_below(path):
    """Unmount the mounts that an engine has left below a directory."""
    with open("/proc/self/mountinfo") as file:
        found = [line.split()[4] for line in file if line.split()[4].startswith(str(path))]
    for mount in reversed(found):
        subprocess.run(["umount", "-l", mount], check=False)


def remove_plain_groups():
    """Remove the directories that podman creates for controllers of version 1 that are not mounted.

    They are in the tmpfs of the mount points and contain plain files, so podman can't remove the group of a pod below
    them.
    """
    for controller in ("hugetlb", "net_cls", "net_prio", "perf_event"):
        path = f"/sys/fs/cgroup/{controller}"
        if os.path.isdir(path) and not os.path.ismount(path) and not os.path.islink(path):
            shutil.rmtree(path)


# --- The parts of each engine


@pytest.fixture(scope="module", name="place")
def place_of_engines():
    """A short path, because the length of socket paths is limited."""
    with tempfile.TemporaryDirectory(prefix="ck-oci-", dir="/var/tmp") as path:
        yield Path(path)


@pytest.fixture(scope="module", name="runtime")
def runtime_of_engines(place):
    return Path(write_runtime(place / "containerkit-oci"))


@pytest.fixture(scope="module", name="archive")
def archive_of_engines(place):
    needs_busybox()
    root = make_rootfs(place / "rootfs")
    subprocess.run(["tar", "-C", root, "-cf", place / "image.tar", "."], check=True)
    return place / "image.tar"


def eventually(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.1)


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def oci_archive(place, layer):
    """Write an OCI image archive of one layer. Source: OCI image-spec, image-layout.md."""
    folder = place / "layout"
    (folder / "blobs/sha256").mkdir(parents=True)

    def blob(content, kind):
        digest = sha256(content).hexdigest()
        (folder / "blobs/sha256" / digest).write_bytes(content)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(content)}

    tar = blob(layer.read_bytes(), "layer.v1.tar")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = {
        "architecture": machine,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sleep", "2147483"]},
        "rootfs": {"type": "layers", "diff_ids": [tar["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": [tar],
    }
    entry = blob(json.dumps(manifest).encode(), "manifest.v1+json") | {
        "annotations": {"io.containerd.image.name": "docker.io/library/box:latest"}
    }
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    subprocess.run(["tar", "-C", folder, "-cf", place / "layout.tar", "."], check=True)
    return place / "layout.tar"


# --- Daemons


@contextlib.contextmanager
def containerd_of(home):
    """Run a containerd with all its files below a new directory. Yield its socket."""
    needs(("containerd", "containerd"), ("ctr", "containerd"), ("containerd-shim-runc-v2", "containerd"))
    home.mkdir()
    (home / "config.toml").write_text(
        f'version = 2\nroot = "{home}/root"\nstate = "{home}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\n  address = "{home}/c.sock"\n[ttrpc]\n  address = "{home}/t.sock"\n'
    )
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(["containerd", "-c", home / "config.toml"], stdout=log, stderr=log)
    try:
        eventually((home / "c.sock").exists, 60)
        yield home / "c.sock"
    finally:
        stop(process)
        unmount_below(home)


@contextlib.contextmanager
def dockerd_of(home, runtime, containerd, *, group, net):
    """Run a Docker daemon with this runtime as its default. Yield its command line, and remove all containers afterwards.

    Args:
        home: a new directory for all of its files.
        runtime: the program.
        containerd: the socket of its containerd.
        group: the parent of its control groups, and the prefix of its namespace in containerd.
        net: the command that runs it in a separate network namespace.
    """
    needs(("dockerd", "docker.io"), ("/usr/bin/docker", "docker.io"), ("ip", "iproute2"))
    home.mkdir()
    (home / "daemon.json").write_text("{}")
    words = [
        *net,
        *("dockerd", "--config-file", home / "daemon.json", "--data-root", home / "data", "--exec-root", home / "exec"),
        *("-H", f"unix://{home}/d.sock", "-p", home / "d.pid", "--containerd", containerd, "--storage-driver", "vfs"),
        *("--iptables=false", "--ip6tables=false", "--bridge=none", "--exec-opt", "native.cgroupdriver=cgroupfs"),
        *("--cgroup-parent", f"/{group}", "--containerd-namespace", f"{group}-{home.name}"),
        *("--add-runtime", f"ck={runtime}", "--default-runtime", "ck"),
    ]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log)
    engine = Engine(["/usr/bin/docker", "-H", f"unix://{home}/d.sock"])
    try:
        eventually(lambda: subprocess.run([*engine.words, "version"], capture_output=True).returncode == 0, 60)
        yield engine
        names = engine("ps", "-aq").split()
        if names:
            engine("rm", "-f", *names)
    finally:
        stop(process)
        unmount_below(home)
