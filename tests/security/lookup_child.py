"""A caller in a separate process that starts programs in several ways.

It is called as ``lookup_child.py WAY ROOT guarded|unguarded PROGRAM ...`` and prints a line with each result.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

from containerkit import PIPE, Container, Limits, Mount, Namespaces, RootFS, TimeOffsets, run
from containerkit.executor import Zygote
from containerkit.fleet import Fleet
from containerkit.interpreter import Interpreter
from containerkit.sandbox import Sandbox
from containerkit.security.landlock import Landlock

SHOWN = [
    Mount.bind(path, path, readonly=True, idmap=False)
    for path in {"/usr", "/lib", "/lib64", sys.base_prefix}
    if os.path.isdir(path)
]
"""The files that the caller's Python would need to run inside."""


def by_run(root, argv, **more):
    return run(argv, rootfs=root, mounts=SHOWN, **more)


def without_init(root, argv):
    return by_run(root, argv, init=False)


def in_container(root, argv, **more):
    with Container(root, mounts=SHOWN, **more) as c:
        return c.run(argv)


def by_popen(root, argv):
    with Container(root, mounts=SHOWN) as c, c.popen(argv, stdout=PIPE, stderr=PIPE) as process:
        out, err = process.communicate(timeout=20)
        return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)


def when_ready(root, argv):
    with Container.prepare(root, ready=1, mounts=SHOWN) as template:
        assert template.wait_full(20)
        return template.run(argv)


def in_sandbox(root, argv):
    """Start the program by its path below the root, because the sandbox has the host's root."""
    path = f"{root.lowers[0]}{argv[0]}"
    return Sandbox(landlock=Landlock().allow_read("/").allow_execute("/")).run([path], cwd=root.lowers[0])


def with_host(kind):
    return lambda root, argv: by_run(root, argv, namespaces=Namespaces(**{kind: "host"}))


def in_container_with_host(kind):
    return lambda root, argv: in_container(root, argv, namespaces=Namespaces(**{kind: "host"}))


def joined(kind):
    """Run in a namespace of a live container."""

    def start(root, argv):
        with Container() as other:
            return by_run(root, argv, namespaces=Namespaces(**{kind: other.namespace(kind)}))

    return start


WAYS = {
    "run": by_run,
    "run without init": without_init,
    "container": in_container,
    "popen": by_popen,
    "ready": when_ready,
    "sandbox": in_sandbox,
    "run with a score": lambda root, argv: by_run(root, argv, oom_score_adj=500),
    "run with new privileges": lambda root, argv: by_run(root, argv, no_new_privs=False),
    "container with new privileges": lambda root, argv: in_container(root, argv, no_new_privs=False),
    "run with offsets": lambda root, argv: by_run(root, argv, time_offsets=TimeOffsets(boottime_s=60)),
    "run with limits": lambda root, argv: by_run(root, argv, limits=Limits(memory="64M")),
    "container with limits": lambda root, argv: in_container(root, argv, limits=Limits(memory="64M", pids=8)),
    "run in a full group": lambda root, argv: by_run(root, argv, init=False, limits=Limits(pids=1)),
    **{f"run, {kind} host": with_host(kind) for kind in ("time", "ipc", "uts", "network", "cgroup", "pid", "user")},
    **{f"container, {kind} host": in_container_with_host(kind) for kind in ("time", "pid", "user")},
    **{f"run, {kind} joined": joined(kind) for kind in ("network", "ipc", "pid")},
}

INTERPRETERS = {
    "zygote": lambda root, argv: Zygote("", root, python=argv[0], mounts=SHOWN),
    "interpreter": lambda root, argv: Interpreter(root, python=argv[0], mounts=SHOWN),
}
"""Ways to start an interpreter that receives a socket. Another program is reported as an error."""


def in_fleet(root, argv, **more):
    """Run in a container that a worker holds. The worker is a thread, so the caller has all sockets of both sides."""
    with (
        ThreadPoolExecutor(1) as executor,
        Fleet.executor(executor) as fleet,
        fleet.container(root, mounts=SHOWN, **more) as c,
    ):
        return c.run(argv)


def as_task(root, argv):
    with ThreadPoolExecutor(1) as executor, Fleet.executor(executor) as fleet:
        return fleet.submit(argv, rootfs=root, mounts=SHOWN).result()


FLEETS = {
    "held by a fleet": in_fleet,
    "held by a fleet, time host": lambda root, argv: in_fleet(root, argv, namespaces=Namespaces(time="host")),
    "task of a fleet": as_task,
}
"""The worker starts these programs as a caller of ``WAYS`` does: only what it has open differs."""


def unguarded():
    """Remove the remedy: a command then shares the caller's memory and only marks its descriptors close-on-exec."""
    from containerkit.plan import calls

    calls.enter = lambda image, kept=(), *, board=False: calls.call("getuid")
    calls.strip = lambda image, kept=(), *, itself=False: calls.call("close_range", 3, 2**32 - 1, 4)


def shown(text):
    return text if isinstance(text, str) else text.decode(errors="replace") if isinstance(text, bytes) else ""


def main():
    way, root, guard, *programs = sys.argv[1:]
    if guard == "unguarded":
        unguarded()
    os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a descriptor of the caller's own,
    os.set_inheritable(os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY), True)  # and one that is inherited
    for name in programs:
        try:
            done = (WAYS | INTERPRETERS | FLEETS)[way](RootFS.dir(root), [name])
            told = f"status {done.returncode} {shown(done.stdout)} {shown(done.stderr)}"
        except OSError as error:
            told = f"error {error.errno}"
        print(name, " ".join(told.split()))


if __name__ == "__main__":
    main()
