"""Run the attacks of attacks.c in containers, and as other users, without changing the host."""

import atexit
import functools
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import tempfile
from importlib import import_module
from pathlib import Path

import pytest

from containerkit import Capabilities, Container, Mount, SpecError, UnsupportedError, run
from containerkit._native import calls
from containerkit._native import constants as k
from containerkit.container.arguments import COMMAND_FIELDS, STREAM_ARGUMENTS
from containerkit.spec.container import CONFINEMENT
from containerkit.start import staging

EVERYTHING = {"capabilities": Capabilities.all(), "seccomp": None}
"""The means of an attacker who has bypassed the capabilities and the filter."""

USER = 60_000 + os.getpid() % 4000  # other runs of the tests end what their own user has
"""An unprivileged user that exists on no machine."""

SUBIDS = 600_000_000 + os.getpid() % 1000 * 1_000_000  # others may run the same tests
"""The beginning of the ranges that tests grant to it."""


@functools.cache
def program(name="attacks"):
    """Compile attacks.c, or another program of this directory. Return the path of the program."""
    if shutil.which("gcc") is None:
        pytest.skip("the attacks are compiled with gcc")
    directory = tempfile.mkdtemp(prefix="containerkit-attacks-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    os.chmod(directory, 0o755)
    source = Path(__file__).with_name(f"{name}.c")
    path = f"{directory}/{name}"
    command = ["gcc", "-O1", "-static", "-pthread", "-o", path, str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: {done.stderr}")
    return path


def armed(mounts=()):
    """Return mounts with the attacks at /attacks."""
    return (Mount.bind(program(), "/attacks", readonly=True), *mounts)


def outcome(done):
    """Describe how an attack ended: its output, or what killed it."""
    assert done.returncode != 99, done.stderr
    if done.cause in ("seccomp", "oom", "timeout"):
        return f"killed by {done.cause}"
    return done.stdout.strip() if done.returncode == 0 else f"status {done.returncode}: {done.stderr.strip()}"


def attempt(name, *words, mounts=(), **options):
    """Try an attack in a new container. Return its outcome: "done" for success, otherwise the name of the error.

    It is also tried in a container that was kept ready, if possible. The outcome must be the same.
    """
    words = ["/attacks", name, *map(str, words)]
    options["mounts"] = armed(mounts)
    found = outcome(run(words, text=True, timeout=30, **options))
    if all(
        mount.readonly or mount.type != "bind" for mount in mounts
    ):  # otherwise the first attack leaves files behind
        assert attempt_in_ready(words, options) in (None, found)
    return found


def attempt_in_ready(words, options):
    """Try it in a container that was kept ready. Return None if that is impossible for such a command."""
    if (COMMAND_FIELDS - CONFINEMENT | STREAM_ARGUMENTS | {"init"}).intersection(options):
        return None
    try:
        template = Container.prepare(ready=1, **options)
    except SpecError as error:
        if "can't wait for its command" not in str(error):
            raise
        return None
    with template:
        assert template.wait_full(20)
        return outcome(template.run(words, text=True, timeout=30))


def attempt_in(container, name, *words, **options):
    """Try an attack in a running container that contains the attacks."""
    return outcome(container.run(["/attacks", name, *map(str, words)], text=True, timeout=30, **options))


# --- Other users -------------------------------------------------------------------------------------------------------


def load_everything():
    """Import everything in advance, because an unprivileged user may not be able to read the interpreter's library."""
    import containerkit

    for module in pkgutil.walk_packages(containerkit.__path__, "containerkit."):
        # A start uses none of the others, some of which import large packages.
        if not re.search(r"__main__|\.(cli|oci|adapters|pytest_plugin)|_native\.build", module.name):
            try:
                import_module(module.name)
            except ImportError:
                continue
    program()
    run(["true"], text=True, encoding="utf-8", mounts=armed())


def in_child(work, prepare=lambda: None, timeout_s=60):
    """Run a function in a forked child. Return its result, passed as JSON.

    An exception is raised here too: an UnsupportedError unchanged, others as an AssertionError.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        answer = b"{}"
        try:
            os.close(read_end)
            signal.alarm(timeout_s)
            prepare()
            answer = json.dumps({"value": work()}).encode()
        except UnsupportedError as error:
            answer = json.dumps({"unsupported": error.__reduce__()[1]}).encode()
        except BaseException as error:  # noqa: BLE001 - the parent reports it
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        finally:
            os.write(write_end, answer)
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        content = json.loads(pipe.read() or b'{"error": "it died"}')
    os.waitpid(pid, 0)
    if "unsupported" in content:
        raise UnsupportedError(*content["unsupported"])
    assert "error" not in content, content["error"]
    return content["value"]


def cover(files):
    """In a private mount namespace, mount files with other contents over some paths."""
    calls.unshare(k.CLONE_NEWNS)
    calls.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
    calls.mount("covers", "/mnt", "tmpfs")
    for path, content in files.items():
        cover = f"/mnt/{path.strip('/').replace('/', '-')}"
        if not os.path.exists(path):  # this kernel does not have the rule, so the rest of the directory is not needed
            calls.mount("covers", os.path.dirname(path), "tmpfs")
            cover = path
        with open(cover, "w") as file:
            file.write(content)
        os.chmod(cover, 0o644)
        if cover != path:
            calls.mount(cover, path, None, k.MS_BIND)


def become(uid, gid=None):
    """Become an unprivileged user, as a login does."""
    gid = uid if gid is None else gid
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    calls.prctl(k.PR_SET_DUMPABLE, 1)  # the change of ids cleared it


def as_user(work, *, ranges):
    """Run a function in a child of an unprivileged user, with or without ranges in /etc/subuid; see :func:`in_child`."""
    if os.geteuid() != 0:
        pytest.skip("becoming other users takes root")
    if ranges and not (shutil.which("newuidmap") and shutil.which("newgidmap")):
        pytest.skip("newuidmap and newgidmap are not there (package uidmap)")
    load_everything()

    def prepare():
        if ranges:
            with open("/etc/passwd") as file:
                passwd = file.read()
            line = f"attacker:{SUBIDS}:65536\n"
            for path in ("/etc/subuid", "/etc/subgid"):
                if not os.path.exists(path):
                    pytest.skip(f"there is no {path} to put another over")
            cover(
                {
                    "/etc/passwd": f"{passwd}attacker:x:{USER}:{USER}::/:/bin/sh\n",
                    "/etc/subuid": line,
                    "/etc/subgid": line,
                }
            )
        become(USER)

    return in_child(work, prepare)


def in_user_namespace(work):
    """Run a function in a child that is root of a user namespace that maps all ids; see :func:`in_child`."""
    if os.geteuid() != 0:
        pytest.skip("mapping all ids takes root")
    load_everything()
    ready, go = os.pipe(), os.pipe()

    def prepare():
        calls.unshare(k.CLONE_NEWUSER)
        os.write(ready[1], f"{os.getpid()}\n".encode())
        os.read(go[0], 1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        calls.prctl(k.PR_SET_DUMPABLE, 1)
        staging._keeper.kept.clear()  # it was made as root of the machine, which this process no longer is

    mapper = os.fork()
    if mapper == 0:
        try:
            pid = int(os.read(ready[0], 32))
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write("0 0 4294967295")
            os.write(go[1], b"x")
        finally:
            os._exit(0)
    try:
        return in_child(work, prepare)
    finally:
        os.waitpid(mapper, 0)
        for fd in (*ready, *go):
            os.close(fd)
