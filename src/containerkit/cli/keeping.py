"""The options of ``run`` for detached containers, and Docker's options that have other names here."""

from __future__ import annotations

import os
import sys

from containerkit.cli import arguments, values
from containerkit.cli.plain import SUPPRESS
from containerkit.errors import SpecError
from containerkit.values import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any, Final

    from containerkit.detached.container import Detached
    from containerkit.image import Image
    from containerkit.spec.rootfs import RootFS

__all__ = ["attended", "check", "define", "detach", "is_recorded", "lines"]

_LISTS: Final[dict[str, Any]] = {"action": "append", "default": []}
_HEALTH_TIMES: Final = ("interval", "timeout", "start_period", "start_interval")
_RECORDED: Final = (
    *("name", "restart", "label", "stop_signal", "stop_timeout", "log_opt", "cidfile", "pidfile", "no_healthcheck"),
    *("health_cmd", "health_retries", "health_on_failure", *(f"health_{name}" for name in _HEALTH_TIMES)),
)

DETACH_KEYS: Final = b"\x10\x11"
"""Ctrl-P, Ctrl-Q."""

_ELSEWHERE: Final = {
    ("--privileged",): "pass what it needs: --cap all, --seccomp none, --namespace user=host, --bind /dev/...",
    ("--link",): "containers on one network find each other by name: --network NAME:alias=...",
    ("--log-driver",): "logs are files in the format of Kubernetes: --log-opt max-size=... and max-file=...",
    ("--attach", "-a"): "the command has the caller's own streams; with -d use 'containerkit attach'",
    ("--detach-keys",): "use this option with 'containerkit attach'",
    (
        "--cgroup-parent",
    ): "control groups are created below the caller's own; start containerkit in another one, with 'systemd-run'",
    ("--storage-opt",): "use --root-size to limit written data",
    ("--dns-option", "--dns-opt"): "the resolver has no options; set servers with --dns",
    ("--link-local-ip",): "set addresses with --network NAME:ip=...",
    ("--device-cgroup-rule",): "use the library's Limits(devices=...)",
    ("--device-read-bps", "--device-write-bps", "--device-read-iops", "--device-write-iops", "--blkio-weight-device"): (
        "use the library's Limits(io=[IOLimit(...)])"
    ),
    ("--oom-kill-disable", "--cpu-rt-period", "--cpu-rt-runtime", "--kernel-memory"): "use the library's Limits(...)",
    ("--runtime",): "there is only one; other engines can use 'containerkit-oci'",
    ("--isolation", "--volume-driver", "--disable-content-trust", "--use-api-socket"): "there is no replacement",
    ("--annotation",): "use --label",
    ("--quiet", "-q"): "progress is only shown on a terminal",
}
"""Options of ``docker run`` that are missing here, with their replacements."""


def define(group: Any) -> None:
    """Add the options."""
    group.add_argument("-d", "--detach", action="store_true", help="run it in the background, and print its id")
    group.add_argument("--name", metavar="NAME", help="the name of the container")
    group.add_argument(
        "--restart",
        metavar="POLICY",
        help="when to restart it: no, on-failure[:N], always, unless-stopped (default: no)",
    )
    group.add_argument("--rm", action="store_true", help="remove it when it ends")
    group.add_argument(
        "-i", "--interactive", action="store_true", help="with a record: keep its standard input open, and pass it on"
    )
    group.add_argument("-l", "--label", metavar="NAME[=VALUE]", **_LISTS, help="a label; repeatable")
    group.add_argument("--label-file", metavar="FILE", **_LISTS, help="a file of labels, one per line; repeatable")
    group.add_argument("--env-file", metavar="FILE", **_LISTS, help="a file of variables, one per line; repeatable")
    group.add_argument(
        "--stop-signal", metavar="SIGNAL", help="the signal that asks it to end (default: the image's, or TERM)"
    )
    group.add_argument("--stop-timeout", metavar="SECONDS", help="the time that it has to end by itself (default: 10)")
    group.add_argument("--log-opt", metavar="NAME=VALUE", **_LISTS, help="max-size=SIZE or max-file=NUMBER")
    group.add_argument("--cidfile", metavar="FILE", help="write the id to a new file")
    group.add_argument("--pidfile", metavar="FILE", help="write the pid of its keeper to a file")
    group.add_argument("--health-cmd", metavar="LINE", help="a shell command that checks it; status 0 is healthy")
    for name, meaning in (
        ("interval", "the time between two checks (default: 30s)"),
        ("timeout", "the time after which a check has failed (default: 30s)"),
        ("start-period", "the initial time in which failures do not count (default: 0s)"),
        ("start-interval", "the time between two checks in that period (default: 5s)"),
    ):
        group.add_argument(f"--health-{name}", metavar="DURATION", help=meaning)
    group.add_argument(
        "--health-retries", metavar="NUMBER", help="failures in a row that make it unhealthy (default: 3)"
    )
    group.add_argument("--health-on-failure", metavar="ACTION", help="what to do then: none (default), kill, stop")
    group.add_argument("--no-healthcheck", action="store_true", help="disable the health check of the image")
    group.add_argument("--init", action="store_true", help="accepted: there always is an init")
    for names, remedy in _ELSEWHERE.items():
        # The replacement is stored as the name of the value, which is not shown.
        group.add_argument(*names, action="elsewhere", nargs="?", metavar=remedy, help=SUPPRESS)


def check(options: argparse.Namespace) -> None:
    """Translate Docker's spellings, and refuse options that contradict each other.

    Raises:
        SpecError: options contradict each other.
    """
    for path in reversed(options.label_file):
        options.label = [*lines("--label-file", path), *options.label]
    if options.timeout is not None or options.commit is not None or options.time:
        if options.detach:
            raise SpecError("--timeout, --commit and --time wait for the command: they can't be used with --detach")
        if is_recorded(options):
            given = next(name for name in _RECORDED if getattr(options, name)).replace("_", "-")
            raise SpecError(f"--{given} makes a recorded container, which has no --timeout, --commit and --time")
    for path in reversed(options.env_file):
        options.env = [*lines("--env-file", path), *options.env]


def is_recorded(options: argparse.Namespace) -> bool:
    """Return whether an option asks for a container with a record, such as a name."""
    return any(getattr(options, name) for name in _RECORDED)


def lines(option: str, path: str) -> list[str]:
    """Return the lines of a file, without comments and empty ones.

    Raises:
        SpecError: it can't be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, ValueError) as error:
        raise SpecError(f"{option} {path}: {error}") from None
    return [line for line in lines if line and not line.startswith("#")]


def detach(
    options: argparse.Namespace,
    image: Image | None,
    words: Sequence[str],
    fields: dict[str, Any],
    *,
    start: bool = True,
) -> int:
    """Start a detached container, or only create it, and print its id. Return 0.

    Raises:
        ContainerError: it can't be started.
    """
    one = _made(options, image, words, fields, start=start)
    sys.stdout.write(f"{one.id}\n")
    sys.stdout.flush()
    return 0


def attended(options: argparse.Namespace, image: Image | None, words: Sequence[str], fields: dict[str, Any]) -> int:
    """Start a container with a record, show its output and pass on signals until it ends, and return its exit status.

    It is like a detached one: if this process is killed, the container goes on, and ``--rm`` no longer removes it.

    Raises:
        ContainerError: it can't be started.
    """
    import signal
    from contextlib import ExitStack, suppress

    from containerkit.cli import terminal
    from containerkit.cli.detached.attaching import watch
    from containerkit.cli.signals import FORWARDED
    from containerkit.errors import StateError

    if options.pty is None:
        options.pty = options.interactive and terminal.is_wanted()
    one = _made(options, image, words, fields, start=True)

    def hand_on(number: int, _: object) -> None:
        with suppress(StateError):  # it has ended in the meantime
            one.kill(signal.Signals(number).name)

    keys = b"" if options.rm else DETACH_KEYS
    with ExitStack() as stack:
        if options.rm:
            stack.callback(one.remove, force=True)
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                stack.callback(signal.signal, number, signal.signal(number, hand_on))
        return watch(one, typing=options.interactive, before=True, keys=keys, ends=not options.pty)


def _made(
    options: argparse.Namespace, image: Image | None, words: Sequence[str], fields: dict[str, Any], *, start: bool
) -> Detached:
    from containerkit.container.lifecycle import Container

    if image is not None:
        fields["rootfs"] = _by_name(options, fields["rootfs"])
    given = {
        "restart": options.restart or "no",
        "labels": {name: value for name, _, value in (text.partition("=") for text in options.label)},
        "stop_signal": options.stop_signal,
        "remove": options.rm and options.detach,
        "tty": bool(options.pty),
        "stdin_open": options.interactive,
        "command_line": tuple(options.words),
        "directory": os.getcwd(),
        "start": start,
        **_logs(options.log_opt),
        **_health(options),
    }
    if options.stop_timeout is not None:
        given["stop_timeout_s"] = arguments.number("--stop-timeout", options.stop_timeout, float)
    command = arguments.command(options, image, terminal="xterm" if options.pty else None)
    cidfile = _new_file(options.cidfile)
    try:
        one = Container(**fields).detach(options.name or "", command=list(words), **given, **command)
    except BaseException:
        if options.cidfile is not None:
            os.unlink(options.cidfile)
        raise
    if cidfile is not None:
        with open(cidfile, "w", encoding="ascii") as file:
            file.write(one.id)
    if options.pidfile is not None and start:
        from containerkit.cli.generate import write_pidfile

        write_pidfile(options.pidfile, one.keeper)
    return one


def _health(options: argparse.Namespace) -> dict[str, Any]:
    from containerkit.detached.logs import duration_s

    found: dict[str, Any] = {}
    if options.no_healthcheck:
        found["healthcheck"] = False
    if options.health_cmd is not None:
        found["health_command"] = options.health_cmd
    for name in _HEALTH_TIMES:
        if (value := getattr(options, f"health_{name}")) is not None:
            found[f"health_{name}_s"] = duration_s(value, f"--health-{name.replace('_', '-')}")
    if options.health_retries is not None:
        found["health_retries"] = arguments.number("--health-retries", options.health_retries, int)
    if options.health_on_failure is not None:
        found["health_on_failure"] = options.health_on_failure
    return found


def _new_file(path: str | None) -> int | None:
    if path is None:
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SpecError(f"--cidfile {path}: {error.strerror}: it must be a new file") from None


def _by_name(options: argparse.Namespace, found: RootFS) -> RootFS:
    """Return the root by the image's name, so that each start claims the image's layers again."""
    from containerkit.spec.rootfs import RootFS

    chosen = {
        "platform": options.platform,
        "upper": options.upper,
        "size": options.root_size,
        "volumes": not options.no_volumes,
    }
    root = RootFS.image(options.image, **{name: value for name, value in chosen.items() if value is not None})
    return evolve(root, readonly=found.readonly, idmap=found.idmap)


def _logs(texts: Sequence[str]) -> dict[str, int]:
    from containerkit.cgroup import parse_size

    found: dict[str, int] = {}
    for name, value in values.pairs("--log-opt", texts).items():
        if name == "max-size":
            found["log_max_bytes"] = parse_size(value)
        elif name == "max-file":
            found["log_files"] = arguments.number("--log-opt max-file", value, int)
        else:
            raise SpecError(f"--log-opt {name!r}: choose from max-size and max-file")
    return found
