"""A caller in a separate process, whose programs are started by keepers and supervisors, which go on without it.

It is called as ``lookup_kept_child.py WAY ROOT PROGRAM``. It has descriptors that the program must not get.
"""

import os
import sys
import time
from contextlib import contextmanager

from lookup_child import SHOWN

from containerkit import Container, Namespaces, Project, RootFS, Service
from containerkit.image import Image
from containerkit.project import realize
from containerkit.project.remote import detach

_LONGEST_S = 60
LASTING = ["/usr/bin/sleep", "1000"]
# A time namespace can't be joined without the remedy, which the control removes.
NAMESPACES = Namespaces(time="host") if hasattr(sys, "unguarded") else Namespaces()


def until(look):
    end = time.monotonic() + _LONGEST_S
    while not look():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


@contextmanager
def kept(root, *command, **options):
    one = Container(RootFS.dir(root), mounts=SHOWN, namespaces=NAMESPACES).detach(command=[*command], **options)
    try:
        yield one
    finally:
        one.remove(force=True)


def restarted(root, program):
    """Started by a fork of this process that becomes the keeper, and again by an interpreter that the keeper executes."""
    with kept(root, program, restart="always") as one:
        until(lambda: one.restarts > 0)
        one.stop()


def inside(root, program):
    """As a health check, by an interpreter that the keeper starts, and in a detached container, by this process."""
    with kept(root, *LASTING, health_command=[program], health_interval_s=0.1) as one:
        until(lambda: one.health == "healthy")
        with one.attach() as view:
            view.run([program], check=True)


def service(root, program):
    """The service's own command, its health check, a command in it, and its restart, by a supervisor."""
    realize.namespaces = lambda *_: {"namespaces": NAMESPACES}
    Image.from_directory(root, "box:1")
    volumes = [f"{mount.source}:{mount.target}:ro" for mount in SHOWN]
    keys = {"image": "box:1", "network_mode": "none", "volumes": volumes, "stop_signal": "SIGKILL"}
    check = {"test": ["CMD", program], "interval": "100ms", "start_period": "60s"}
    once = Service(**keys, command=[program], restart="on-failure:1")
    project = Project(name=f"k{os.getpid()}", services={
        "a": once, "b": Service(**keys, command=LASTING, healthcheck=check),
    })  # fmt: skip
    remote = detach(project, lambda _: None, by_fork=True, wait=_LONGEST_S)
    try:
        assert remote.ask("exec", service="b", argv=[program], fds=(0, 1, 2)) == 0
    finally:
        remote.ask("down", grace_s=0)


WAYS = {"restarted": restarted, "inside": inside, "service": service}


def main():
    way, root, program = sys.argv[1:]
    os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # a descriptor of the caller's own,
    os.set_inheritable(os.open("/tmp", os.O_RDONLY | os.O_DIRECTORY), True)  # and one that is inherited
    WAYS[way](root, program)


if __name__ == "__main__":
    main()
