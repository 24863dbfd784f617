"""The commands that start, stop, pause and change detached containers."""

from __future__ import annotations

from containerkit.cli import docker
from containerkit.cli.commands import complain
from containerkit.cli.detached import Verb, for_each, say
from containerkit.detached.container import containers, find
from containerkit.detached.known import shell_status
from containerkit.errors import ContainerError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from containerkit.detached.container import Detached

__all__ = ["kill", "pause", "rename", "restart", "rm", "start", "stop", "unpause", "update", "wait"]


def _names(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    parser.add_argument("names", nargs="*" if optional else "+", metavar="CONTAINER", help="its name or id")


def _define_stop(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument(
        "-t",
        "--time",
        "--timeout",
        metavar="SECONDS",
        help="the time until it is killed (default: the container's, or 10)",
    )
    parser.add_argument(
        "-s", "--signal", metavar="SIGNAL", help="the signal that asks it to end (default: the container's)"
    )


def _grace(options: argparse.Namespace) -> float | None:
    if options.time is None:
        return None
    try:
        seconds = float(options.time)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 2**31:
        raise SpecError(f"--time: {options.time!r} is not a number of seconds")
    return seconds


def _stop(options: argparse.Namespace) -> int:
    grace_s = _grace(options)
    return for_each(options.names, lambda one: one.stop(grace_s, stop_signal=options.signal))


def _restart(options: argparse.Namespace) -> int:
    grace_s = _grace(options)

    def do(one: Detached) -> None:
        one.stop(grace_s, stop_signal=options.signal)
        one.start()

    return for_each(options.names, do)


def _define_start(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("-a", "--attach", action="store_true", help="show its output, and exit with its status")
    parser.add_argument("-i", "--interactive", action="store_true", help="with --attach: pass on standard input")


def _start(options: argparse.Namespace) -> int:
    if options.attach or options.interactive:
        return _start_attached(options)
    return for_each(options.names, lambda one: None if one.status in ("running", "paused") else one.start())


def _start_attached(options: argparse.Namespace) -> int:
    from containerkit.cli.detached.attaching import watch

    if len(options.names) != 1:
        raise SpecError("start --attach: name one container")
    one = find(options.names[0])
    if one.status not in ("running", "paused"):
        one.start()
    return watch(one, typing=options.interactive, before=True)


def _define_kill(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("-s", "--signal", metavar="SIGNAL", default="KILL", help="the signal (default: KILL)")


def _kill(options: argparse.Namespace) -> int:
    return for_each(options.names, lambda one: one.kill(options.signal))


def _wait(options: argparse.Namespace) -> int:
    status = 0
    for name in options.names:
        try:
            say(str(shell_status(find(name).wait())))
        except ContainerError as error:
            complain(str(error))
            status = 1
    return status


def _pause(options: argparse.Namespace) -> int:
    return for_each(options.names, lambda one: one.pause())


def _unpause(options: argparse.Namespace) -> int:
    return for_each(options.names, lambda one: one.resume())


def _define_rm(parser: argparse.ArgumentParser) -> None:
    _names(parser, optional=True)
    parser.add_argument("-f", "--force", action="store_true", help="kill it first, if it is running")
    parser.add_argument("-a", "--all", action="store_true", help="all that are not running; with --force all")


def _rm(options: argparse.Namespace) -> int:
    names = list(options.names)
    if options.all:
        running = {one.id for one in containers()}
        names += [one.id for one in containers(all=True) if options.force or one.id not in running]
    elif not names:
        raise SpecError("name a container, or pass --all")
    return for_each(names, lambda one: one.remove(force=options.force))


def _define_rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="CONTAINER", help="its name or id")
    parser.add_argument("new", metavar="NAME", help="its new name")


def _rename(options: argparse.Namespace) -> int:
    find(options.name).rename(options.new)
    return 0


def _define_update(parser: argparse.ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("-m", "--memory", metavar="SIZE", help="limit of memory, such as 256M")
    parser.add_argument("--cpus", metavar="NUMBER", help="limit of processor time in processors, such as 1.5")
    parser.add_argument("--pids", "--pids-limit", metavar="NUMBER", help="limit of the number of processes")
    docker.define_limits(parser)
    parser.add_argument("--restart", metavar="POLICY", help="no, on-failure[:N], always, unless-stopped")


def _update(options: argparse.Namespace) -> int:
    from containerkit.cli import arguments  # late: the other commands describe no container

    limits = arguments.limits(options).get("limits")
    if limits is None and options.restart is None:
        complain("update: nothing to change; pass --memory, --cpus, --pids or --restart")
        return 125
    return for_each(options.names, lambda one: one.update(limits, restart=options.restart))


start = Verb(_define_start, _start)
stop = Verb(_define_stop, _stop)
restart = Verb(_define_stop, _restart)
kill = Verb(_define_kill, _kill)
wait = Verb(_names, _wait)
pause = Verb(_names, _pause)
unpause = Verb(_names, _unpause)
rm = Verb(_define_rm, _rm)
rename = Verb(_define_rename, _rename)
update = Verb(_define_update, _update)
