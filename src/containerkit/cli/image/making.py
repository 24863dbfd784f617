"""``containerkit image build`` and ``squash``."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli import values
from containerkit.cli.image.verb import Verb, find, image_argument, one_line, pinned, platform_option, say, tell
from containerkit.cli.image.verb import store as chosen_store
from containerkit.errors import ExitError, SpecError

if TYPE_CHECKING:
    import argparse

    from containerkit.image import ProgressEvent

__all__ = ["VERBS"]

_LISTS: Final[dict[str, Any]] = {"action": "append", "default": []}
_EPILOG: Final = """\
The steps and the output of their commands go to stderr. Commands have no network without --network. A step that
was done before with the same files and arguments is not repeated.

  containerkit image build --tag app:1 --build-arg VERSION=2 --network host .
  containerkit image build --secret id=token,src=$HOME/.token --target test .
"""


def _define_build(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("context", metavar="DIR", nargs="?", default=".", help="the build context (default: .)")
    parser.add_argument("-t", "--tag", metavar="NAME", action="append", default=[], help="the image's name; repeatable")
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        help="the Dockerfile; '-' is stdin (default: Dockerfile or Containerfile in DIR)",
    )
    parser.add_argument("--target", metavar="STAGE", default="", help="the stage to build (default: the last)")
    parser.add_argument("--build-arg", metavar="NAME[=VALUE]", **_LISTS, help="a value for ARG; repeatable")
    parser.add_argument("--secret", metavar="id=NAME,src=FILE|env=NAME", **_LISTS, help="a secret file; repeatable")
    parser.add_argument(
        "--build-context",
        metavar="NAME=DIR|docker-image://NAME",
        **_LISTS,
        help="a further source of COPY --from=NAME and FROM; repeatable",
    )
    parser.add_argument(
        "--ssh", choices=("default",), **_LISTS, help="accepted: RUN --mount=type=ssh gets $SSH_AUTH_SOCK"
    )
    parser.add_argument(
        "--add-host", metavar="NAME:ADDRESS", **_LISTS, help="with --network internet: an address of a name; repeatable"
    )
    parser.add_argument("--label", metavar="NAME=VALUE", **_LISTS, help="a label of the image; repeatable")
    parser.add_argument("--iidfile", metavar="FILE", help="write the id of the image to a file")
    parser.add_argument("--push", action="store_true", help="push the image to the registry of its name")
    parser.add_argument("--shm-size", metavar="SIZE", help="the size of /dev/shm for commands")
    parser.add_argument("--ulimit", metavar="NAME=SOFT[:HARD]", **_LISTS, help="a limit for commands; repeatable")
    parser.add_argument(
        "--network", choices=("none", "internet", "host"), default="none", help="for commands (default: none)"
    )
    parser.add_argument(
        "--egress",
        metavar="NAME|*.NAME|CIDR[:PORT]",
        action="append",
        help="with --network internet: a destination that commands may reach; all others are blocked; repeatable",
    )
    parser.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=("network.host", "security.insecure"),
        help="a privilege that single commands may request; repeatable",
    )
    parser.add_argument(
        "--pull",
        metavar="missing|always|never",
        nargs="?",
        const="always",
        default="missing",
        help="when to pull base images (default: missing; without a value: always)",
    )
    parser.add_argument("--progress", metavar="KIND", help="accepted: steps are lines on stderr; --quiet hides them")
    parser.add_argument("--no-cache", action="store_true", help="repeat all steps")
    parser.add_argument("--epoch", metavar="SECONDS", help="latest timestamp of files (default: $SOURCE_DATE_EPOCH)")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not show steps and output of commands")
    platform_option(parser)


def _build(options: argparse.Namespace) -> int:
    from containerkit.image import Image

    more: dict[str, Any] = {}
    context, pull = options.context, options.pull
    if pull not in ("missing", "always", "never"):  # 'build --pull DIR': Docker's option has no value
        if context != ".":
            raise SpecError(f"--pull {pull!r}: choose from missing, always, never")
        context, pull = pull, "always"
    if context == "-":
        raise SpecError("build -: there is no build without a directory here: use 'build -f - DIR', which may be empty")
    if options.file == "-":
        more["text"] = sys.stdin.read()
    elif options.file is not None:
        more["dockerfile"] = options.file
    if not options.quiet:
        more |= {"progress": _show_step, "log": tell}
    try:
        image = Image.build(
            context,
            tag=options.tag[0] if options.tag else None,
            target=options.target,
            args=_arguments(options.build_arg),
            secrets=dict(_secret(text) for text in options.secret),
            contexts=values.pairs("--build-context", options.build_context),
            labels=values.pairs("--label", options.label),
            **_around(options),
            network=options.network,
            egress=options.egress,
            allow=tuple(options.allow),
            pull=pull,
            cache=not options.no_cache,
            epoch=_epoch(options.epoch),
            platform=options.platform,
            store=chosen_store(options),
            **more,
        )
    except ExitError as error:
        if options.quiet and error.stdout:  # the end of the output shows the cause
            tell(str(error.stdout).rstrip("\n"))
        raise
    for name in options.tag[1:]:
        image.tag(name)
    if options.iidfile is not None:
        with open(options.iidfile, "w", encoding="ascii") as file:
            file.write(str(image.id))
    if options.push:
        image.push()
    say(pinned(image))
    return 0


def _show_step(event: ProgressEvent, /) -> None:
    """Show a step as a line. Downloads of base images too, because output of commands would break progress bars."""
    if event.action == "build":
        suffix = {"running": "", "exists": " (known)"}.get(event.status)
        if suffix is not None:
            tell(f"=> {one_line(event.subject)}{suffix}")
    elif event.status == "done" and sys.stderr.isatty():
        tell(f"   {event.action} {event.subject}")


def _arguments(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise SpecError(f"--build-arg {text!r}: must be NAME=VALUE, or NAME to pass one on")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found


def _around(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of a build for what its commands find around them."""
    from containerkit.cli import network_options, values

    found: dict[str, Any] = {"hosts": dict(network_options.host(text) for text in options.add_host)}
    if options.shm_size is not None:
        found["shm_size"] = options.shm_size
    if options.ulimit:
        found["rlimits"] = values.rlimits(options.ulimit)
    return found


def _secret(text: str) -> tuple[str, Any]:
    """Return the id and the source of a secret. Source: docker build --secret."""
    from pathlib import Path

    fields = dict(part.partition("=")[::2] for part in text.split(","))
    kind = fields.pop("type", "")
    name, source = fields.pop("id", ""), fields.pop("src", "") or fields.pop("source", "")
    variable = fields.pop("env", "")
    if not name or fields or kind not in ("", "file", "env") or (source and variable):
        raise SpecError(f"--secret {text!r}: must be id=NAME,src=FILE or id=NAME,env=VARIABLE")
    if source:
        return name, Path(source)
    variable = variable or name
    if variable not in os.environ:
        raise SpecError(f"--secret {text!r}: the variable {variable} is not set; use src=FILE for a file")
    return name, os.environb[os.fsencode(variable)]


def _epoch(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal():
        raise SpecError(f"--epoch: {text!r} is not a number of seconds")
    return int(text)


def _define_squash(parser: argparse.ArgumentParser) -> None:
    image_argument(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the new image's name (default: none)")


def _squash(options: argparse.Namespace) -> int:
    say(pinned(find(options, options.image).squash(options.name)))
    return 0


VERBS: Final = (
    Verb(
        "build",
        "build an image from a Dockerfile and print its name with its digest",
        _define_build,
        _build,
        epilog=_EPILOG,
    ),
    Verb("squash", "make an image with the same root in one layer and print its name", _define_squash, _squash),
)
