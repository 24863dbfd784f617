"""Run several services from a compose file: start, list, inspect, change and stop them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.cli import elsewhere

if TYPE_CHECKING:
    import argparse

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
  containerkit compose config                 the merged content of the files
  containerkit compose plan                   what 'up' would do
  containerkit compose up                     start and show the logs; Ctrl-C stops everything
  containerkit compose up -d --wait           start, and return when everything is healthy
  containerkit compose exec web sh            run a command in a running container
  containerkit compose down -v                stop everything, and remove the named volumes
"""

_AS_ALWAYS: Final = "accepted: this is always so"
_PLACES: Final = {
    "looking": ("config", "convert", "plan", "ps", "logs", "top", "port", "ls", "images", "wait", "volumes", "version"),
    "life": ("up", "create", "down", "restart", "stop", "start", "pause", "unpause", "kill", "scale", "rm"),
    "running": ("exec", "run", "cp"),
    "images": ("build", "pull", "push", "commit"),
    "observing": ("events", "stats", "attach"),
    "watching": ("watch",),
}
"""The verbs of each module."""

_QUIET_WITHOUT: Final = ("down", "kill", "logs", "ps", "rm", "stats", "stop", "top")
"""Verbs that have nothing to do if the project is not up."""

_INDEX: Final = "which container of the service, from 1 on (default: 1)"
_LISTS: Final[dict[str, Any]] = {"action": "append", "default": []}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their options."""
    parser.add_argument(
        "-f", "--file", metavar="FILE", **_LISTS, help="a compose file, - for stdin; later files override earlier ones"
    )
    parser.add_argument(
        "-p", "--project-name", metavar="NAME", help="the project's name (default: that of the directory)"
    )
    parser.add_argument(
        "--project-directory", metavar="DIR", help="the directory of relative paths (default: that of the first file)"
    )
    parser.add_argument("--profile", metavar="NAME", **_LISTS, help="an active profile; repeatable")
    parser.add_argument("--env-file", metavar="FILE", **_LISTS, help="a file of variables (default: .env); repeatable")
    for name in ("--ansi", "--progress", "--parallel"):
        parser.add_argument(name, metavar="WORD", help="accepted, without effect")
    parser.add_argument("--all-resources", action="store_true", help="accepted: unused ones do nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="with up and create: show the steps, without starting anything"
    )
    elsewhere.add("compose", parser)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _define_looking(verbs)
    _define_life(verbs)
    _define_commands(verbs)
    _define_watching(verbs)
    for verb in verbs.choices.values():
        elsewhere.add(verb.prog.removeprefix("containerkit "), verb)


def _services(parser: argparse.ArgumentParser, what: str = "services (default: all)") -> argparse.ArgumentParser:
    parser.add_argument("services", metavar="SERVICE", nargs="*", help=what)
    return parser


def _define_looking(verbs: Any) -> None:
    config = _services(verbs.add_parser("config", aliases=["convert"], help="show the merged content of the files"))
    config.add_argument("--format", choices=("yaml", "json"), default="yaml", help="the format (default: yaml)")
    config.add_argument("-q", "--quiet", action="store_true", help="only check the files")
    config.add_argument("-o", "--output", metavar="FILE", help="write it to a file")
    config.add_argument("--environment", action="store_true", help="show only the variables for the files")
    config.add_argument("--no-interpolate", action="store_true", help="do not replace variables")
    for name in ("services", "volumes", "networks", "images", "models", "profiles", "hash"):
        config.add_argument(f"--{name}", action="store_true", dest=f"only_{name}", help=f"show only the {name}")
    plan = _services(verbs.add_parser("plan", help="show the steps of 'up', without starting anything"))
    plan.add_argument("--json", action="store_true", help="print JSON")
    ps = _services(verbs.add_parser("ps", help="list the containers"))
    ps.add_argument("-q", "--quiet", action="store_true", help="print only their names")
    ps.add_argument("-a", "--all", action="store_true", help="also list containers that have ended")
    ps.add_argument("--services", action="store_true", dest="only_services", help="print only the services")
    ps.add_argument("--status", metavar="STATE", **_LISTS, help="only containers in this state; repeatable")
    ps.add_argument("--filter", metavar="status=STATE", **_LISTS, help="the same; repeatable")
    ps.add_argument("--no-trunc", action="store_true", help="show whole commands")
    ps.add_argument("--orphans", action="store_true", help="accepted: there are no orphans")
    ps.add_argument("--format", default="table", metavar="FORMAT", help="table, json, or '{{.Name}} {{.State}}'")
    logs = _services(verbs.add_parser("logs", help="show the output of the containers"))
    logs.add_argument("-f", "--follow", action="store_true", help="wait for more output")
    logs.add_argument("-n", "--tail", metavar="NUMBER", help="show at most so many lines, the latest (default: all)")
    logs.add_argument("-t", "--timestamps", action="store_true", help="show the time of each line")
    logs.add_argument(
        "--since",
        metavar="TIME",
        help="show only later lines: a duration before now, such as 10m, or a time of RFC 3339",
    )
    logs.add_argument("--until", metavar="TIME", help="show only earlier lines")
    logs.add_argument("--index", type=int, metavar="NUMBER", help="show only this container of a service")
    logs.add_argument("--no-color", action="store_true", help="accepted: there are no colours")
    logs.add_argument("--no-log-prefix", action="store_true", help="omit the containers' names")
    _services(verbs.add_parser("top", help="list the processes"))
    port = verbs.add_parser("port", help="show the address and port of the host for a published port of a service")
    port.add_argument("service", metavar="SERVICE", help="the service")
    port.add_argument("port", metavar="PORT", type=int, help="a port of its containers")
    port.add_argument("--protocol", choices=("tcp", "udp"), default="tcp", help="the protocol (default: tcp)")
    port.add_argument(
        "--index", type=int, default=1, metavar="NUMBER", help="which of its containers, from 1 on (default: 1)"
    )
    volumes = _services(verbs.add_parser("volumes", help="list the named volumes of the services"))
    volumes.add_argument("-q", "--quiet", action="store_true", help="print only their names")
    volumes.add_argument("--format", default="table", metavar="FORMAT", help="table, json, or '{{.Name}}'")
    version = verbs.add_parser("version", help="show the version")
    version.add_argument("--short", action="store_true", help="print only the number")
    version.add_argument(
        "-f", "--format", choices=("pretty", "json"), default="pretty", help="the format (default: pretty)"
    )
    listing = verbs.add_parser("ls", help="list the projects that are up")
    listing.add_argument("-q", "--quiet", action="store_true", help="print only their names")
    listing.add_argument("-a", "--all", action="store_true", help="accepted: projects that are down are not recorded")
    listing.add_argument("--format", choices=("table", "json"), default="table", help="the format (default: table)")
    listing.add_argument("--filter", metavar="name=TEXT", **_LISTS, help="only names that contain it; repeatable")
    images = _services(verbs.add_parser("images", help="list the images of the services"))
    images.add_argument("-q", "--quiet", action="store_true", help="print only their ids")
    images.add_argument("--format", choices=("table", "json"), default="table", help="the format (default: table)")
    wait = _services(verbs.add_parser("wait", help="wait until containers have ended, and exit with the last status"))
    wait.add_argument("--down-project", action="store_true", help="then stop everything")


def _define_creation(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``up`` and ``create`` share."""
    parser.add_argument("--build", action="store_true", help="build images even if they exist")
    parser.add_argument("--no-build", action="store_true", help="do not build images; pull those that are missing")
    parser.add_argument(
        "--pull", choices=("missing", "always", "never"), help="when to pull images (default: as pull_policy says)"
    )
    parser.add_argument(
        "--scale", metavar="SERVICE=NUMBER", **_LISTS, help="set the number of containers of a service; repeatable"
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--force-recreate", action="store_true", help="also replace unchanged containers")
    again.add_argument(
        "--no-recreate", action="store_true", help="replace no container, even if its description has changed"
    )
    for flags in (("--quiet-pull",), ("--quiet-build",), ("-y", "--yes")):
        parser.add_argument(*flags, action="store_true", help=_AS_ALWAYS)
    parser.add_argument(
        "--remove-orphans", action="store_true", help="accepted: services that are not in the files are always stopped"
    )


def _define_up(verbs: Any) -> None:
    up = _services(verbs.add_parser("up", help="start the services, or update running ones to match the files"))
    up.add_argument(
        "-d",
        "--detach",
        action="store_true",
        help="return when everything is up; a background process holds the project",
    )
    up.add_argument("--wait", action="store_true", help="with -d: return when everything is healthy")
    up.add_argument(
        "--wait-timeout",
        metavar="SECONDS",
        type=float,
        default=300.0,
        help="how long --wait waits at most (default: 300)",
    )
    _define_creation(up)
    up.add_argument("--no-deps", action="store_true", help="do not start dependencies of the named services")
    up.add_argument("--no-start", action="store_true", help="the same as 'create'")
    up.add_argument("-w", "--watch", action="store_true", help="also do what 'watch' does")
    up.add_argument(
        "--attach-dependencies", action="store_true", help="also show the logs of dependencies of the named services"
    )
    up.add_argument("--menu", nargs="?", help="accepted: there is no menu")
    up.add_argument(
        "--always-recreate-deps", action="store_true", help="also replace dependencies of the named services"
    )
    up.add_argument(
        "--abort-on-container-exit", action="store_true", help="stop everything as soon as one container has ended"
    )
    up.add_argument(
        "--abort-on-container-failure", action="store_true", help="stop everything as soon as one container has failed"
    )
    up.add_argument("--attach", metavar="SERVICE", **_LISTS, help="show only the logs of this service; repeatable")
    up.add_argument("--no-attach", metavar="SERVICE", **_LISTS, help="do not show the logs of this service; repeatable")
    up.add_argument("--no-log-prefix", action="store_true", help="omit the containers' names")
    up.add_argument("--timestamps", action="store_true", help="show the time of each line")
    up.add_argument("-V", "--renew-anon-volumes", action="store_true", help=_AS_ALWAYS)
    up.add_argument("--no-color", action="store_true", help="accepted: there are no colours")
    up.add_argument(
        "--exit-code-from",
        metavar="SERVICE",
        help="exit with the status of this service; implies --abort-on-container-exit",
    )
    up.add_argument(
        "-t", "--timeout", metavar="SECONDS", type=float, help="the time that each container has to end by itself"
    )


def _define_life(verbs: Any) -> None:
    _define_up(verbs)
    create = _services(verbs.add_parser("create", help="prepare images, networks and volumes; 'start' starts the rest"))
    _define_creation(create)
    down = _services(verbs.add_parser("down", help="stop everything, or services and their dependents"))
    down.add_argument("-v", "--volumes", action="store_true", help="also remove the named volumes")
    down.add_argument("--rmi", choices=("all", "local"), help="also remove the images: all, or those without a name")
    down.add_argument(
        "-t", "--timeout", metavar="SECONDS", type=float, help="the time that each container has to end by itself"
    )
    down.add_argument(
        "--remove-orphans", action="store_true", help="accepted: services that are not in the files are always stopped"
    )
    for name, what in (("restart", "stop services and start them again"), ("stop", "stop services")):
        ending = _services(verbs.add_parser(name, help=what))
        ending.add_argument(
            "-t", "--timeout", metavar="SECONDS", type=float, help="the time that each container has to end by itself"
        )
        if name == "restart":
            ending.add_argument("--no-deps", action="store_true", help="do not restart dependents")
    _services(verbs.add_parser("start", help="start services that were stopped"))
    _services(verbs.add_parser("pause", help="freeze all processes"))
    _services(verbs.add_parser("unpause", help="let frozen processes continue"))
    rm = _services(verbs.add_parser("rm", help="remove containers that have ended"))
    rm.add_argument("-f", "--force", action="store_true", help="accepted: there is no confirmation")
    rm.add_argument("-s", "--stop", action="store_true", help="stop running containers first")
    rm.add_argument("-v", "--volumes", action="store_true", help="accepted: anonymous volumes end with their container")
    kill = _services(verbs.add_parser("kill", help="send a signal"))
    kill.add_argument("-s", "--signal", default="SIGKILL", metavar="NAME", help="the signal (default: SIGKILL)")
    kill.add_argument("--remove-orphans", action="store_true", help="accepted: there are no orphans")
    scale = verbs.add_parser("scale", help="change the number of containers of services")
    scale.add_argument(
        "numbers", metavar="SERVICE=NUMBER", nargs="+", help="a service and the number of its containers"
    )
    scale.add_argument("--no-deps", action="store_true", help="do not start the dependencies of the services")
    _define_images(verbs)


def _define_images(verbs: Any) -> None:
    build = _services(verbs.add_parser("build", help="build images"))
    build.add_argument("--no-cache", action="store_true", help="repeat all steps")
    build.add_argument("--pull", action="store_true", help="always pull base images")
    build.add_argument("--build-arg", metavar="NAME=VALUE", **_LISTS, help="a value for ARG; repeatable")
    build.add_argument("-q", "--quiet", action="store_true", help="do not show the steps and their output")
    build.add_argument(
        "--ssh", choices=("default",), **_LISTS, help="accepted: RUN --mount=type=ssh gets $SSH_AUTH_SOCK"
    )
    build.add_argument("--push", action="store_true", help="push them afterwards")
    build.add_argument("--with-dependencies", action="store_true", help="also those of dependencies")
    pull = _services(verbs.add_parser("pull", help="fetch images"))
    pull.add_argument("-q", "--quiet", action="store_true", help="do not show the progress")
    pull.add_argument("--ignore-buildable", action="store_true", help="omit images that can be built")
    pull.add_argument("--include-deps", action="store_true", help="also those of dependencies")
    pull.add_argument(
        "--policy", choices=("missing", "always"), default="always", help="when to pull (default: always)"
    )
    pull.add_argument("--ignore-pull-failures", action="store_true", help="continue with the next image")
    push = _services(verbs.add_parser("push", help="push the images that are built"))
    push.add_argument("-q", "--quiet", action="store_true", help="do not show the progress")
    push.add_argument("--include-deps", action="store_true", help="also those of dependencies")
    push.add_argument("--ignore-push-failures", action="store_true", help="continue with the next image")
    commit = verbs.add_parser("commit", help="make an image from the changes of a running container")
    commit.add_argument("-a", "--author", metavar="TEXT", help="who made it")
    commit.add_argument("-m", "--message", metavar="TEXT", help="a message for the history")
    commit.add_argument("--index", type=int, default=1, metavar="NUMBER", help=_INDEX)
    commit.add_argument("service", metavar="SERVICE", help="the service")
    commit.add_argument("reference", metavar="NAME", help="the name of the new image, such as tools:1")


def _define_watching(verbs: Any) -> None:
    watch = _services(verbs.add_parser("watch", help="update running containers when files change"))
    watch.add_argument(
        "--interval", type=float, default=0.5, metavar="SECONDS", help="the interval of checks (default: 0.5)"
    )
    watch.add_argument("--no-up", action="store_true", help="do not start the services before")
    watch.add_argument("--quiet", action="store_true", help="accepted: the output of builds is not shown")
    events = _services(verbs.add_parser("events", help="print the events of the containers when they occur"))
    events.add_argument("--json", action="store_true", help="print each as JSON")
    events.add_argument("--since", metavar="TIME", help="start with past events: 10m, or a time of RFC 3339")
    events.add_argument("--until", metavar="TIME", help="end at this time (default: continue)")
    stats = _services(verbs.add_parser("stats", help="print the resource usage of the containers"))
    stats.add_argument("-a", "--all", action="store_true", help="accepted: a stopped container uses nothing")
    stats.add_argument("--no-stream", action="store_true", help="print once (default if stdout is not a terminal)")
    stats.add_argument("--no-trunc", action="store_true", help="accepted: nothing is shortened")
    stats.add_argument("--format", default="table", metavar="FORMAT", help="table, json, or '{{.Name}} {{.CPUPerc}}'")
    attach = verbs.add_parser("attach", help="show the output of a container, and pass on input and signals")
    attach.add_argument("--index", type=int, default=1, metavar="NUMBER", help=_INDEX)
    attach.add_argument("--no-stdin", action="store_true", help="do not pass on standard input")
    attach.add_argument("--sig-proxy", default="true", metavar="true|false", help="pass on signals (default: true)")
    attach.add_argument(
        "--detach-keys", metavar="KEYS", default="ctrl-p,ctrl-q", help="the keys that detach (default: ctrl-p,ctrl-q)"
    )
    attach.add_argument("service", metavar="SERVICE", help="the service")


def _define_commands(verbs: Any) -> None:
    for name, what in (("exec", "run a command in a running container"), ("run", "run a command in a new container")):
        parser = verbs.add_parser(name, help=what)
        parser.add_argument(
            "-e", "--env", metavar="NAME[=VALUE]", **_LISTS, help="set a variable, or pass on the caller's; repeatable"
        )
        parser.add_argument("-u", "--user", metavar="UID[:GID]", help="the user: ids, or names that exist inside")
        parser.add_argument("-w", "--workdir", metavar="DIR", help="the working directory")
        parser.add_argument(
            "-T", "--no-tty", "--no-TTY", action="store_true", help="no terminal, even if the caller's streams are one"
        )
        parser.add_argument("-d", "--detach", action="store_true", help="return at once; it ends with its project")
        parser.add_argument("-i", "--interactive", action="store_true", help="accepted: standard input is passed on")
        parser.add_argument("-t", "--tty", action="store_true", help="accepted: where there is a terminal it is used")
        if name == "exec":
            parser.add_argument("--index", type=int, default=1, metavar="NUMBER", help=_INDEX)
            parser.add_argument(
                "--privileged", action="store_true", help="with all capabilities, within the container's user namespace"
            )
        else:
            _define_run(parser)
            parser.add_argument(
                "--rm", action="store_true", help="with -d: forget it when it ends; otherwise always so"
            )
            parser.add_argument("--no-deps", action="store_true", help="do not start the dependencies of the service")
            parser.add_argument("--entrypoint", metavar="PROGRAM", help="replace the entrypoint of the service")
            parser.add_argument(
                "-v", "--volume", metavar="SOURCE:TARGET", **_LISTS, help="a bind or a named volume; repeatable"
            )
        parser.add_argument("service", metavar="SERVICE", help="the service")
        parser.add_argument("command", metavar="COMMAND", nargs="...", help="the command and its arguments")
    _define_cp(verbs)


def _define_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="the container's name (default: a new one)")
    parser.add_argument("--build", action="store_true", help="build the image even if it exists")
    parser.add_argument(
        "--pull", choices=("missing", "always", "never"), help="when to pull the image (default: as pull_policy says)"
    )
    parser.add_argument("-l", "--label", metavar="NAME=VALUE", **_LISTS, help="a label; repeatable")
    parser.add_argument("--env-from-file", metavar="FILE", **_LISTS, help="a file of variables; repeatable")
    parser.add_argument("--cap-add", metavar="NAME", **_LISTS, help="a capability to add; repeatable")
    parser.add_argument("--cap-drop", metavar="NAME", **_LISTS, help="a capability to drop; repeatable")
    parser.add_argument("-p", "--publish", metavar="HOST:PORT", **_LISTS, help="publish a port; repeatable")
    parser.add_argument("-P", "--service-ports", action="store_true", help="publish the ports of the service")
    parser.add_argument("--use-aliases", action="store_true", help="have the names of the service in its networks")
    for flags in (("-q", "--quiet"), ("--quiet-pull",), ("--quiet-build",), ("--remove-orphans",)):
        parser.add_argument(*flags, action="store_true", help=_AS_ALWAYS)


def _define_cp(verbs: Any) -> None:
    cp = verbs.add_parser("cp", help="copy files into or out of a running container")
    cp.add_argument("--index", type=int, default=1, metavar="NUMBER", help=_INDEX)
    cp.add_argument("--all", action="store_true", help="accepted: only containers of services have an index")
    cp.add_argument("source", metavar="[SERVICE:]PATH", help="what is copied")
    cp.add_argument("target", metavar="[SERVICE:]PATH", help="where it is copied to")


def main(options: argparse.Namespace) -> int:
    """Run a verb and return the exit status.

    Raises:
        ContainerError: the verb failed.
    """
    from importlib import import_module

    from containerkit.errors import SpecError
    from containerkit.project.remote import NotUpError

    if options.dry_run and options.verb not in ("up", "create"):
        raise SpecError(f"--dry-run: {options.verb!r} has no list of steps; 'compose plan' shows those of 'up'")
    place = next(name for name, verbs in _PLACES.items() if options.verb in verbs)
    try:
        found: int = import_module(f"containerkit.cli.compose.{place}").VERBS[options.verb](options)
    except NotUpError as error:
        if options.verb not in _QUIET_WITHOUT:
            raise
        from containerkit.cli.commands import complain

        complain(str(error))
        return 0
    return found
