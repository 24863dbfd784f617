"""A caller in a separate process that starts programs in several ways.

It is called as ``lookup_child.py ROOT guarded|unguarded``. Each line of its input is a way and programs, as JSON. For each
it prints a line with the results by program.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace

from containerkit import PIPE, Container, Limits, Mount, Namespaces, Network, RootFS, TimeOffsets, run
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


# Each way is a context manager that is called with the root filesystem. It yields a function that starts an argv.


@contextmanager
def by_run(root, **more):
    yield partial(run, rootfs=root, mounts=SHOWN, **more)


@contextmanager
def in_container(root, **more):
    with Container(root, mounts=SHOWN, **more) as c:
        yield c.run


@contextmanager
def by_popen(root):
    def start(argv):
        with c.popen(argv, stdout=PIPE, stderr=PIPE) as process:
            out, err = process.communicate(timeout=20)
            return SimpleNamespace(returncode=process.returncode, stdout=out, stderr=err)

    with Container(root, mounts=SHOWN) as c:
        yield start


@contextmanager
def when_ready(root):
    def start(argv):
        assert template.wait_full(20)
        return template.run(argv)

    with Container.prepare(root, ready=1, mounts=SHOWN) as template:
        yield start


@contextmanager
def in_sandbox(root):
    """Start programs by their paths below the root, because the sandbox has the host's root."""
    place = root.lowers[0]
    sandbox = Sandbox(landlock=Landlock().allow_read("/").allow_execute("/"))
    yield lambda argv: sandbox.run([f"{place}{argv[0]}"], cwd=place)


def with_host(start, kind):
    return lambda root: start(root, namespaces=Namespaces(**{kind: "host"}))


def joined(kind):
    """Run in a namespace of a live container."""

    @contextmanager
    def start(root):
        with (
            Container() as other,
            by_run(root, namespaces=Namespaces(**{kind: other.namespace(kind)})) as started,
        ):
            yield started

    return start


@contextmanager
def on_network(start, root):
    """Start on a network, which for root a process beside the start makes, in the caller's memory."""
    with start(root, network=network()) as started:
        yield started


@cache
def network():
    """Open a network, which executes a shell of the host's. It is closed when this process ends."""
    return Network("lookup", internal=True).open()


WAYS = {
    "run": by_run,
    "run without init": partial(by_run, init=False),
    "container": in_container,
    "popen": by_popen,
    "ready": when_ready,
    "sandbox": in_sandbox,
    "run with a score": partial(by_run, oom_score_adj=500),
    "run with new privileges": partial(by_run, no_new_privs=False),
    "container with new privileges": partial(in_container, no_new_privs=False),
    "run with offsets": partial(by_run, time_offsets=TimeOffsets(boottime_s=60)),
    "run with limits": partial(by_run, limits=Limits(memory="64M")),
    "container with limits": partial(in_container, limits=Limits(memory="64M", pids=8)),
    "run in a full group": partial(by_run, init=False, limits=Limits(pids=1)),
    **{
        f"run, {kind} host": with_host(by_run, kind)
        for kind in ("time", "ipc", "uts", "network", "cgroup", "pid", "user")
    },
    **{f"container, {kind} host": with_host(in_container, kind) for kind in ("time", "pid", "user")},
    **{f"run, {kind} joined": joined(kind) for kind in ("network", "ipc", "pid")},
    "run on a network": partial(on_network, by_run),
    "container on a network": partial(on_network, in_container),
}


@contextmanager
def as_python(start, root):
    yield lambda argv: start(root, argv[0])


INTERPRETERS = {
    "zygote": partial(as_python, lambda root, python: Zygote("", root, python=python, mounts=SHOWN)),
    "interpreter": partial(as_python, lambda root, python: Interpreter(root, python=python, mounts=SHOWN)),
}
"""Ways to start an interpreter that receives a socket. Another program is reported as an error."""


@contextmanager
def in_fleet(root, **more):
    """Run in a container that a worker holds. The worker is a thread, so the caller has all sockets of both sides."""
    with (
        ThreadPoolExecutor(1) as executor,
        Fleet.executor(executor) as fleet,
        fleet.container(root, mounts=SHOWN, **more) as c,
    ):
        yield c.run


@contextmanager
def as_task(root):
    with ThreadPoolExecutor(1) as executor, Fleet.executor(executor) as fleet:
        yield lambda argv: fleet.submit(argv, rootfs=root, mounts=SHOWN).result()


FLEETS = {
    "held by a fleet": in_fleet,
    "held by a fleet, time host": with_host(in_fleet, "time"),
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


@contextmanager
def at_one_path(root, name):
    """Yield the path of a second name of a program, so that a start differs from the one before only in what is there.

    Each other command line would be compiled, which takes longer than the start.
    """
    if not os.path.lexists(f"{root}{name}"):
        yield name
        return
    os.link(f"{root}{name}", f"{root}/attempted", follow_symlinks=False)
    try:
        yield "/attempted"
    finally:
        os.unlink(f"{root}/attempted")


def results(way, root, programs):
    """Start programs. Return what became of them, by name."""
    found = {}
    with (WAYS | INTERPRETERS | FLEETS)[way](RootFS.dir(root)) as start:
        for name in programs:
            try:
                with at_one_path(root, name) as path:
                    done = start([path])
                told = f"status {done.returncode} {shown(done.stdout)} {shown(done.stderr)}"
            except OSError as error:
                told = f"error {error.errno}"
            found[name] = " ".join(told.split())
    return found


def main():
    root, guard = sys.argv[1:]
    if guard == "unguarded":
        unguarded()
    os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a descriptor of the caller's own,
    os.set_inheritable(os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY), True)  # and one that is inherited
    for line in sys.stdin:
        way, programs = json.loads(line)
        print(json.dumps(results(way, root, programs)), flush=True)


if __name__ == "__main__":
    main()
