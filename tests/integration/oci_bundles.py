"""Bundles, and a runtime for them. A test fails if it leaves anything behind."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

import containerkit
import forked_commands
from containerkit.oci import launcher
from containerkit.oci.specification import default

BUSYBOX = shutil.which("busybox") or "/bin/busybox"
HIERARCHIES = "/sys/fs/cgroup"
PYTHON = "containerkit.oci"
RUN = uuid.uuid4().hex[:8]
"""A part of every name that is visible on the whole machine. Other runs and workers have other names."""
ONE = f"one-{RUN}"
TWO = f"two-{RUN}"
"""The names of a test's containers, and so of their control groups."""


def write_front(path, interpreter):
    """Write a front end that executes another program than Python, and carries nothing for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(interpreter))
        patch.setattr(launcher, "_carried", lambda: b"")
        path.write_bytes(launcher.program())
    path.chmod(0o755)
    return str(path)


def needs_busybox():
    """Skip without a static busybox for root filesystems."""
    if not os.path.exists(BUSYBOX):
        pytest.skip("no busybox: apt-get install busybox-static")
    if subprocess.run(["ldd", BUSYBOX], capture_output=True).returncode == 0:
        pytest.skip("busybox is not static: apt-get install busybox-static")


def make_rootfs(path):
    """Fill a directory with busybox and its names."""
    root = Path(path)
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "root", "run", "var/tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        if name != "busybox" and not (root / "bin" / name).exists():
            (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/home/worker:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\nworker:x:1000:\n")
    return root


class Bundle:
    """A directory with a root filesystem and a configuration that can be changed before use."""

    def __init__(self, path, rootfs):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.config = default()
        self.config["process"].update(terminal=False, args=["true"], rlimits=[])
        self.config["root"] = {"path": str(rootfs), "readonly": False}

    @property
    def process(self):
        return self.config["process"]

    @property
    def linux(self):
        return self.config["linux"]

    def runs(self, *args):
        """Set the command. A single argument with spaces is run by the shell."""
        self.process["args"] = ["sh", "-c", args[0]] if len(args) == 1 and " " in args[0] else list(args)
        return self

    def mounts(self, destination, kind, source, *options):
        self.config["mounts"].append(
            {"destination": destination, "type": kind, "source": source, "options": list(options)}
        )
        return self

    def has_user_namespace(self, first=100_000, size=65_536):
        self.linux["namespaces"].append({"type": "user"})
        for which in ("uidMappings", "gidMappings"):
            self.linux[which] = [{"containerID": 0, "hostID": first, "size": size}]
        return self

    def write(self, content=None):
        text = json.dumps(self.config) if content is None else content
        (self.path / "config.json").write_text(text)
        return self.path

    def clone(self, path):
        other = Bundle(path, self.config["root"]["path"])
        other.config = copy.deepcopy(self.config)
        return other


def write_runtime(path):
    """Write the program that engines start, and return its path."""
    path = Path(path)
    path.write_bytes(launcher.program())
    path.chmod(0o755)
    return str(path)


class Runtime:
    """The command line with a separate state directory: the program that engines start, or Python alone.

    Python alone is forked. Only where a test reaches into its process it is started as a program.
    """

    def __init__(self, root, *, front=True):
        self.root = str(root)
        self.front = front
        command = [write_runtime(f"{root}.runtime")] if front else [sys.executable, "-m", PYTHON]
        self.words = [*command, "--root", self.root]
        source = os.path.dirname(os.path.dirname(containerkit.__file__))
        self.environment = {**os.environ, "PYTHONPATH": source}
        self.environment.pop("XDG_RUNTIME_DIR", None)

    def popen(self, *words, **more):
        return subprocess.Popen([*self.words, *map(str, words)], env=self.environment, **more)

    def __call__(self, *words, check=True, timeout=60, **more):
        """Run a verb whose output is small. The container may keep the files open."""
        options = {"env": self.environment, "text": True, "timeout": timeout, **more}
        if self.front or more.keys() - {"input", "cwd", "text"}:
            done = subprocess.run([*self.words, *map(str, words)], capture_output=True, check=False, **options)
        else:
            done = forked_commands.run(PYTHON, [*self.words[3:], *words], **options)
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def quiet(self, *words, check=True, **more):
        """Run a verb whose container outlives it, so that its streams must not be pipes of ours."""
        with open(os.devnull, "r+b") as nothing, open(f"{self.root}.err", "w+b") as told:
            if self.front or more:
                done = subprocess.run(
                    [*self.words, *map(str, words)], env=self.environment, stdin=nothing, stdout=nothing, stderr=told,
                    timeout=60, check=False, **more,
                )  # fmt: skip
            else:
                streams = [nothing.fileno(), nothing.fileno(), told.fileno()]
                done = forked_commands.run(PYTHON, [*self.words[3:], *words], env=self.environment, streams=streams)
            told.seek(0)
            text = told.read().decode()
        if check:
            assert done.returncode == 0, text
        return done.returncode, text

    def state(self, name):
        return json.loads(self("state", name).stdout)

    def status(self, name):
        return self.state(name)["status"]

    def create(self, bundle, name=ONE, *flags):
        bundle.write()
        return self.quiet("create", "--bundle", bundle.path, *flags, name)

    def run(self, bundle, name=ONE, *flags, check=True, **more):
        bundle.write()
        return self("run", "--bundle", bundle.path, *flags, name, check=check, **more)

    def start_one(self, bundle, name=ONE, *flags):
        """Create and start."""
        self.create(bundle, name, *flags)
        self("start", name)
        return self.state(name)["pid"]

    def refused(self, *words):
        """Return the error of a verb that must fail."""
        done = self(*words, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        return done.stderr

    def wait(self, name=ONE, status="stopped", seconds=10):
        end = time.monotonic() + seconds
        while self.status(name) != status:
            assert time.monotonic() < end, f"{name} is {self.status(name)}, not {status}"
            time.sleep(0.02)


def mounts_below(path):
    """Return the mounts of this machine whose source or target is in a directory."""
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if str(path) in line]


def groups_named(*names):
    """Return the control groups of these names in any hierarchy."""
    found = []
    for place, directories, _ in os.walk(HIERARCHIES):
        found += [os.path.join(place, directory) for directory in directories if directory in names]
    return found


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory):
    needs_busybox()
    return make_rootfs(tmp_path_factory.mktemp("oci") / "rootfs")


@pytest.fixture
def bundle(tmp_path, rootfs):
    return Bundle(tmp_path / "bundle", rootfs)


def try_both_runtimes(metafunc):
    """Try the tests of a module with the program that engines start, and with Python alone."""
    if "oci" in metafunc.fixturenames:
        metafunc.parametrize("oci", [True, False], ids=["front", "python"], indirect=True)


def try_python_alone(metafunc):
    """Try the tests of a module with Python alone, which is forked: the program hands what they are about over to it.

    The nightly run tries them with the program, too.
    """
    if "oci" in metafunc.fixturenames:
        runtimes = [pytest.param(False, id="python"), pytest.param(True, id="front", marks=pytest.mark.slow)]
        metafunc.parametrize("oci", runtimes, indirect=True)


@pytest.fixture
def oci(request, tmp_path, forked):
    """A runtime. Afterwards its containers, control groups and mounts must be gone."""
    runtime = Runtime(tmp_path / "state", front=getattr(request, "param", True))
    yield runtime
    names = [name for name in os.listdir(runtime.root) if name[0] != "."] if os.path.isdir(runtime.root) else []
    for name in names:
        runtime("delete", "--force", name)
    left = [name for name in os.listdir(runtime.root) if name[0] != "."] if os.path.isdir(runtime.root) else []
    assert [] == left
    assert [] == mounts_below(tmp_path)
    found = groups_named(*names, ONE, TWO)
    for place in found:  # so that the next test does not fail
        with contextlib.suppress(OSError):
            os.rmdir(place)
    assert found == [], found


as_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="making containers without a user namespace needs root"),
]
