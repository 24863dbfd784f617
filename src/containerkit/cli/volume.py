"""Create, list, back up and remove volumes: directories that outlive containers, for 'run -v NAME:TARGET'."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from containerkit import volume as volumes
from containerkit.cli import FAILED, elsewhere, values
from containerkit.cli.commands import complain
from containerkit.cli.image.streams import as_file
from containerkit.cli.listing import Listing, inspect, say
from containerkit.errors import ContainerError, SpecError, StateError

if TYPE_CHECKING:
    import argparse

__all__ = ["EPILOG", "define", "facts", "main"]

EPILOG: Final = """\
An empty volume is filled with the image's files at its mount point, with owners and modes.

  containerkit volume create data
  containerkit run --image postgres:16 -v data:/var/lib/postgresql/data
  containerkit volume export data > data.tar
  containerkit volume import data data.tar
"""

_LISTS: Final[dict[str, Any]] = {"action": "append", "default": []}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="create a volume")
    create.add_argument("name", metavar="NAME", nargs="?", help="its name (default: a random one)")
    create.add_argument(
        "--size", metavar="SIZE", help="limit of the size of its files, such as 64M (default: no limit)"
    )
    create.add_argument("-l", "--label", metavar="NAME[=VALUE]", **_LISTS, help="a label; repeatable")
    create.add_argument("-d", "--driver", metavar="NAME", default="local", help="accepted: only 'local' is supported")
    create.add_argument("-o", "--opt", metavar="size=SIZE", **_LISTS, help="same as --size; there are no other options")
    elsewhere.add("volume create", create)
    listed = verbs.add_parser("ls", aliases=["list"], help="list the volumes of this user")
    LISTING.define(listed)
    listed.add_argument(
        "-f", "--filter", metavar="NAME=VALUE", **_LISTS, help="name, label, dangling=true|false; repeatable"
    )
    inspect = verbs.add_parser("inspect", help="print all facts about volumes")
    inspect.add_argument("names", nargs="+", metavar="VOLUME", help="its name")
    inspect.add_argument("-f", "--format", metavar="TEMPLATE", help="a template of Go, such as {{.Mountpoint}}")
    remove = verbs.add_parser("rm", aliases=["remove"], help="remove volumes with all their files")
    remove.add_argument("names", nargs="+", metavar="VOLUME", help="its name")
    remove.add_argument("-f", "--force", action="store_true", help="ignore volumes that do not exist")
    prune = verbs.add_parser("prune", help="remove volumes that no detached container uses")
    prune.add_argument("-f", "--force", action="store_true", help="accepted: there is no confirmation")
    prune.add_argument("-a", "--all", action="store_true", help="accepted: all unused volumes are removed")
    prune.add_argument(
        "--filter", metavar="label=NAME[=VALUE]", **_LISTS, help="only volumes with this label; repeatable"
    )
    export = verbs.add_parser("export", help="write its files to a tar archive")
    export.add_argument("name", metavar="VOLUME", help="its name")
    export.add_argument("-o", "--output", metavar="FILE", default="-", help="the archive (default: stdout)")
    importing = verbs.add_parser("import", help="replace its files with those of a tar archive")
    importing.add_argument("name", metavar="VOLUME", help="its name; created if it is missing")
    importing.add_argument("file", metavar="FILE", nargs="?", default="-", help="the archive (default: stdin)")
    importing.add_argument("--replace", action="store_true", help="also if it contains files, which are removed")


def main(options: argparse.Namespace) -> int:
    """Run a verb. Return 0, or 125 if a volume could not be removed.

    Raises:
        ContainerError: the verb failed.
    """
    return _VERBS[options.verb](options)


def _create(options: argparse.Namespace) -> int:
    if options.driver != "local":
        raise SpecError(f"--driver {options.driver!r}: only 'local' is supported")
    opts = values.pairs("--opt", options.opt)
    size = opts.pop("size", options.size)
    if opts:
        raise SpecError(
            f"--opt {next(iter(opts))!r}: only size=SIZE is supported; for a directory of the host use run --bind"
        )
    labels = {name: value for name, _, value in (text.partition("=") for text in options.label)}
    say(volumes.create(options.name, labels=labels, size=size).name)
    return 0


def _ls(options: argparse.Namespace) -> int:
    chosen = [volume for volume in volumes.volumes() if all(_fits(volume, *each) for each in _filters(options.filter))]
    LISTING.show(options, [facts(volume) for volume in chosen])
    return 0


def _filters(texts: list[str]) -> list[tuple[str, str]]:
    found = [pair for text in texts for pair in values.pairs("--filter", [text]).items()]
    for name, value in found:
        if name not in ("name", "label", "dangling") or (
            name == "dangling" and value not in ("true", "false", "1", "0")
        ):
            raise SpecError(f"--filter {name}={value}: choose from name, label, dangling=true, dangling=false")
    return found


def _fits(volume: volumes.Volume, name: str, value: str) -> bool:
    if name == "name":
        return value in volume.name
    if name == "dangling":
        return bool(volume.users()) != (value in ("true", "1"))
    key, equals, wanted = value.partition("=")
    return key in volume.labels and (not equals or volume.labels[key] == wanted)


def _inspect(options: argparse.Namespace) -> int:
    inspect(options.format, [facts(volumes.get(name)) for name in options.names])
    return 0


def _rm(options: argparse.Namespace) -> int:
    status = 0
    for name in options.names:
        try:
            volumes.get(name).remove()
        except StateError as error:
            if options.force and not os.path.exists(volumes.Volume(name=name).path):
                continue
            complain(str(error))
            status = FAILED
        except ContainerError as error:
            complain(str(error))
            status = FAILED
        else:
            say(name)
    return status


def _prune(options: argparse.Namespace) -> int:
    wanted: dict[str, str | None] = {}
    for text in options.filter:
        kind, _, rest = text.partition("=")
        key, equals, value = rest.partition("=")
        if kind != "label" or not key:
            raise SpecError(f"--filter {text!r}: choose from label=NAME and label=NAME=VALUE")
        wanted[key] = value if equals else None
    for name in volumes.prune(labels=wanted):
        say(name)
    return 0


def _export(options: argparse.Namespace) -> int:
    volume = volumes.get(options.name)
    if options.output == "-":
        if os.isatty(sys.stdout.fileno()):
            raise SpecError("volume export: the output is a terminal; add --output FILE, or use a pipe")
        sys.stdout.flush()
        volume.export("/dev/stdout")
    else:
        volume.export(options.output)
    return 0


def _import(options: argparse.Namespace) -> int:
    volume = volumes.create(options.name, exist_ok=True)
    if not options.replace and not volume.is_empty:
        raise StateError(f"volume {volume.name}: it contains files; pass --replace to remove them")
    with as_file(options.file) as path:
        volume.replace(path)
    return 0


def facts(volume: volumes.Volume) -> dict[str, Any]:
    """Return all known facts about a volume."""
    from containerkit.detached.inspection import rfc3339

    return {
        "Name": volume.name,
        "Driver": "local",
        "Mountpoint": volume.path,
        "CreatedAt": rfc3339(volume.created_at),
        "Labels": dict(volume.labels),
        "Size": volume.size_bytes,
        "UsedBy": volume.users(),
    }


LISTING: Final = Listing(("Name", "CreatedAt", "Size"), key="Name")

_VERBS: Final = {
    "create": _create, "ls": _ls, "list": _ls, "inspect": _inspect, "rm": _rm, "remove": _rm, "prune": _prune,
    "export": _export, "import": _import,
}  # fmt: skip
