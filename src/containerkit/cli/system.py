"""``containerkit system``, ``info`` and ``version``: disk usage, unused objects, and facts about the host."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.detached import Verb
from containerkit.cli.image.verb import size_text
from containerkit.cli.listing import Listing, formatted, say
from containerkit.errors import SpecError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

__all__ = ["confirmed", "info", "system", "version"]

_USAGE: Final = Listing(("Type", "TotalCount", "Active", "Size", "Reclaimable"), key="Type")


def confirmed(what: str, *, force: bool) -> bool:
    """Ask on the terminal whether to do something that can't be undone.

    Args:
        what: the action, as an imperative.
        force: do not ask.

    Raises:
        SpecError: there is no terminal for the question.
    """
    if force:
        return True
    if not sys.stdin.isatty():
        raise SpecError(f"this would {what}; there is no terminal for the confirmation: pass --force")
    sys.stderr.write(f"This will {what}. Continue? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# --- system


def _define_system(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    usage = verbs.add_parser("df", help="show the disk usage")
    _USAGE.define(usage)
    usage.add_argument("-v", "--verbose", action="store_true", help="one line for each container, image and volume")
    pruning = verbs.add_parser("prune", help="remove stopped containers, images without a name, and the build cache")
    pruning.add_argument("-f", "--force", action="store_true", help="do not ask")
    pruning.add_argument(
        "-a", "--all", action="store_true", help="accepted: images with a name stay, 'rmi' removes them"
    )
    pruning.add_argument("--volumes", action="store_true", help="also remove volumes that no container uses")
    _define_facts(verbs.add_parser("info", help="print facts about this host and this user"))


def _system(options: argparse.Namespace) -> int:
    if options.verb == "info":
        return _info(options)
    if options.verb == "prune":
        return _prune(options)
    _USAGE.show(options, list(_used_each() if options.verbose else _used()))
    return 0


def _size_of(path: str | os.PathLike[str]) -> int:
    """Return the size of the files in a directory in bytes. Hard links count once. Unreadable files are not counted."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            try:
                status = os.lstat(os.path.join(directory, name))
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_blocks * 512
    return total


def _used() -> Iterator[dict[str, Any]]:
    from containerkit import volume
    from containerkit.detached.container import containers
    from containerkit.image import Image, Store

    every = containers(all=True)
    idle = [one for one in every if one.status not in ("running", "paused", "restarting")]
    store = Store()
    images = Image.list(store)
    active = {one.image for one in every if one.image}
    named = {image.digest for image in images if image.reference is not None}
    unnamed = [image for image in images if image.digest not in named]
    busy = [image for image in images if image.reference and image.reference.familiar_with_tag in active]
    yield _row("Images", len(images), len(busy), _size_of(store.root), sum(image.size_bytes for image in unnamed))
    sizes = {one.id: _size_of(one.entry.state_path) for one in every}
    yield _row(
        "Containers", len(every), len(every) - len(idle), sum(sizes.values()), sum(sizes[one.id] for one in idle)
    )
    volumes = volume.volumes()
    free = [each for each in volumes if not each.users()]
    takes = {each.name: _size_of(each.path) for each in volumes}
    yield _row(
        "Local Volumes", len(volumes), len(volumes) - len(free), sum(takes.values()),
        sum(takes[each.name] for each in free),
    )  # fmt: skip
    yield _row("Build Cache", 0, 0, _size_of(store.root / "build"), _size_of(store.root / "build"))


def _row(kind: str, count: int, active: int, size: int, free: int) -> dict[str, Any]:
    return {
        "Type": kind, "TotalCount": count, "Active": active, "Size": size_text(size), "Reclaimable": size_text(free),
        "SizeBytes": size, "ReclaimableBytes": free,
    }  # fmt: skip


def _used_each() -> Iterator[dict[str, Any]]:
    from containerkit import volume
    from containerkit.detached.container import containers
    from containerkit.image import Image

    for image in Image.list():
        name = image.reference.familiar_with_tag if image.reference else image.id.short
        yield _row(f"Image {name}", 1, 0, image.size_bytes, 0)
    for one in containers(all=True):
        active = int(one.status in ("running", "paused", "restarting"))
        size = _size_of(one.entry.state_path)
        yield _row(f"Container {one.name or one.id}", 1, active, size, 0 if active else size)
    for each in volume.volumes():
        users, size = len(each.users()), _size_of(each.path)
        yield _row(f"Volume {each.name}", 1, users, size, 0 if users else size)


def _prune(options: argparse.Namespace) -> int:
    from containerkit import volume
    from containerkit.cli.container import prune
    from containerkit.image import Store

    more = ", and volumes that no container uses" if options.volumes else ""
    what = f"remove stopped containers, images without a name, and the build cache{more}"
    if not confirmed(what, force=options.force):
        return 0
    for name in prune():
        say(f"removed container {name}")
    if options.volumes:
        for name in volume.prune():
            say(f"removed volume {name}")
    done = Store().collect(unnamed=True, cache=True)
    say(f"{size_text(done.freed_bytes)} of images freed")
    return 0


# --- info, version


def _define_facts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-f", "--format", metavar="TEMPLATE", help="a template of Go, such as {{.KernelVersion}}; or json"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _show(options: argparse.Namespace, facts: dict[str, Any]) -> int:
    if options.json or options.format == "json":
        import json

        say(json.dumps(facts, indent=2))
    elif options.format is not None:
        say(formatted(options.format, facts))
    else:
        for name, value in facts.items():
            say(f"{name}: {', '.join(f'{k} {v}' for k, v in value.items()) if isinstance(value, dict) else value}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from containerkit import __version__
    from containerkit.detached import store
    from containerkit.detached.container import containers
    from containerkit.image import Image, Store
    from containerkit.volume import volumes

    host = os.uname()
    states = [one.status for one in containers(all=True)]
    images = Store()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    facts = {
        "ServerVersion": __version__,
        "KernelVersion": host.release,
        "OperatingSystem": _system_name(),
        "Architecture": host.machine,
        "NCPU": os.cpu_count(),
        "MemTotal": memory,
        "Name": host.nodename,
        "Rootless": os.geteuid() != 0,
        "CgroupVersion": "2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1",
        "Containers": len(states),
        "ContainersRunning": states.count("running"),
        "ContainersPaused": states.count("paused"),
        "ContainersStopped": len(states) - states.count("running") - states.count("paused"),
        "Images": len(Image.list(images)),
        "Volumes": len(volumes()),
        "ImagesDir": str(images.root),
        "ContainersDir": store.state_root(),
    }
    return _show(options, facts)


def _system_name() -> str:
    import platform

    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


def _version(options: argparse.Namespace) -> int:
    import platform

    from containerkit import __version__

    mine = {
        "Version": __version__,
        "PythonVersion": platform.python_version(),
        "Os": "linux",
        "Arch": os.uname().machine,
    }
    return _show(options, {"Client": mine, "Server": {**mine, "KernelVersion": os.uname().release}})


system = Verb(_define_system, _system)
info = Verb(_define_facts, _info)
version = Verb(_define_facts, _version)
