"""The command line: ``containerkit COMMAND``.

Each command is a module with ``define(parser)``, which adds its arguments, and ``main(options)``, which returns the
exit status. A command's module and the library are imported only when the command is used, so ``run`` costs little more
than the container.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final, NoReturn

__all__ = ["COMMANDS", "FAILED", "LONG", "PLACES", "main", "program"]

COMMANDS: Final = {
    "run": "run a command in a new container",
    "explain": "print the operations that 'run' would perform",
    "probe": "report what this host supports, and how to enable the rest",
    "seccomp": "record the system calls of a command as a profile",
    "create": "create a container without starting it",
    "image": "pull, push, build, convert and inspect images",
    "images": "list images",
    "pull": "pull an image from its registry",
    "push": "push an image to a registry",
    "build": "build an image from a Dockerfile",
    "tag": "give an image an additional name",
    "rmi": "remove names of images",
    "save": "write images into one file",
    "load": "read images from such a file",
    "import": "make an image from a tar archive of a root",
    "history": "list the steps that built an image",
    "network": "create networks that several commands share",
    "compose": "run several services from a compose file",
    "kube": "run pods from Kubernetes' YAML",
    "template": "make a root from files of the host or of a distribution",
    "login": "store the name and password for a registry",
    "logout": "delete the name and password for a registry",
    "ps": "list containers: detached ones, those of running programs, and those of the OCI command",
    "start": "start detached containers again",
    "stop": "ask detached containers to end, and kill them after a timeout",
    "restart": "stop detached containers and start them again",
    "kill": "send a signal to the command of detached containers",
    "wait": "wait for the end of detached containers, and print their exit statuses",
    "pause": "freeze all processes of detached containers",
    "unpause": "let the processes of paused containers continue",
    "rm": "remove detached containers with all their files",
    "rename": "give a detached container another name",
    "update": "change the limits or the restart policy of detached containers",
    "logs": "print the output of a detached container",
    "exec": "run a command in a detached container",
    "attach": "show the output of a detached container, and pass on input",
    "inspect": "print all facts about containers, images, volumes or networks",
    "top": "list the processes of a detached container",
    "port": "print the published ports of a detached container",
    "events": "print the events of detached containers",
    "stats": "print the resource usage of detached containers",
    "diff": "list the files that a detached container has changed",
    "commit": "make an image from the changes of a detached container",
    "cp": "copy files between a detached container and the host",
    "container": "the commands for containers by their long names, such as 'container ls', and 'container prune'",
    "volume": "create, list, back up and remove volumes",
    "system": "show the disk usage, and remove unused objects",
    "info": "print facts about this host and this user",
    "version": "print the versions",
    "generate": "print unit files for systemd, and write manual pages",
    "completion": "print the completion for a shell",
    "gc": "remove objects that killed owners have left behind",
}
"""The commands and their purposes. Each command is a module of this package, or is listed in :data:`PLACES`."""

PLACES: Final = {
    **dict.fromkeys(
        ("start", "stop", "restart", "kill", "wait", "pause", "unpause", "rm", "rename", "update"), "detached.control"
    ),
    **dict.fromkeys(("inspect", "top", "stats", "diff", "commit", "cp"), "detached.contents"),
    "exec": "detached.execute",
    **dict.fromkeys(("events", "port"), "detached.observing"),
    "attach": "detached.attaching",
    "logs": "detached.output",
    **dict.fromkeys(
        ("images", "pull", "push", "build", "tag", "rmi", "save", "load", "import", "history"), "image.short"
    ),
    **dict.fromkeys(("system", "info", "version"), "system"),
}
"""The modules of commands that share one. It contains a :class:`containerkit.cli.detached.Verb` for each name."""

LONG: Final = {
    **{
        name: name
        for name in (
            "attach",
            "commit",
            "cp",
            "create",
            "diff",
            "events",
            "exec",
            "inspect",
            "kill",
            "logs",
            "pause",
            "port",
            "ps",
            "rename",
            "restart",
            "rm",
            "run",
            "start",
            "stats",
            "stop",
            "top",
            "unpause",
            "update",
            "wait",
        )
    },
    "ls": "ps",
    "list": "ps",
    "remove": "rm",
}
"""The commands that follow ``container``, and what they are without it."""

_GROUPS: Final = ("compose", "container", "network", "system", "volume")

FAILED: Final = 125
"""The exit status of containerkit's own failures. The status of a command is passed on."""

_INTERRUPTED: Final = 130  # 128 + SIGINT
_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE
_COLLECTED_AFTER: Final = 100_000
"""After how many new objects garbage is collected: more than a short command makes, imports included."""


def program() -> NoReturn:
    """Run the command line as a program, and end the process with its exit status.

    The process ends once everything is released and written, without the end of the interpreter: freeing each object by
    itself takes as long as starting a container. If other threads have to be waited for, the interpreter does it.
    """
    import gc

    from containerkit import meanings

    meanings.omit()
    gc.set_threshold(_COLLECTED_AFTER, 20, 100)
    status = main()
    if _has_other_threads() or sys.flags.interactive:
        sys.exit(status)
    import atexit

    atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing does before it ends a process in this way
    os._exit(_flushed(status))


def _has_other_threads() -> bool:
    """Return whether threads run that the interpreter would wait for."""
    threading = sys.modules.get("threading")
    if threading is None:
        return False
    main_thread = threading.main_thread()
    return any(each is not main_thread and not each.daemon for each in threading.enumerate())


def _flushed(status: int) -> int:
    """Write what is left of both outputs, and return the exit status: another one if that fails."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        status = _BROKEN_PIPE
    except OSError as error:
        status = _unwritten(error)
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.flush()
    return status


def _unwritten(error: OSError) -> int:
    """Say that our own output could not be written, and return the exit status."""
    with suppress(OSError):
        print(f"containerkit: write to the standard output: {os.strerror(error.errno or 0)}", file=sys.stderr)  # noqa: T201 - it prints errors
    return FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the arguments after ``containerkit``. Default: ``sys.argv[1:]``.

    Returns:
        The exit status: for ``run`` that of the command, as a shell reports it; 125 if containerkit itself failed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _fill_streams()
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has closed it. Otherwise the interpreter would report that when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE
    except OSError as error:  # from our own output, since commands convert theirs
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the same reason
        return _unwritten(error)


def _fill_streams() -> None:
    """Open the null device for closed standard streams, because the next opened file would take their number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        return _help(words[1:])
    if name in ("-v", "-V", "--version") or words == ["version"]:
        from containerkit import __version__

        return _say(f"containerkit {__version__}")
    if short := _short(words):
        return _dispatch(short)
    if name in _GROUPS and _is_missing(words):
        return FAILED
    if name not in COMMANDS:
        return _unknown(name)
    from containerkit.cli import commands

    return commands.run(name, words[1:])


def _short(words: list[str]) -> list[str]:
    """Return the command that has a longer name in Docker, such as ``container ls``; empty for others."""
    if words[0] == "container" and words[1:] and words[1] in LONG:
        return [LONG[words[1]], *words[2:]]
    return words[1:] if words[:2] in (["buildx", "build"], ["system", "events"]) else []


def _is_missing(words: list[str]) -> bool:
    """Return whether a group of commands lacks a verb of Docker's, and say what to use instead."""
    group, verb = words[0], words[1] if words[1:] else ""
    from containerkit.cli import elsewhere

    if remedy := elsewhere.VERBS[group].get(verb):
        print(f"containerkit: '{group} {verb}' is no command here: {remedy}", file=sys.stderr)  # noqa: T201 - it prints errors
    elif group == "container" and verb not in ("prune", "-h", "--help"):
        _unknown(verb, (*LONG, "prune"), "container ")
    else:
        return False
    return True


def _help(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return _dispatch([words[0], "--help"])
    lines = [f"  {name:10} {purpose}" for name, purpose in COMMANDS.items()]
    return _say(
        "usage: containerkit COMMAND ...\n\n"
        "Linux containers, without a daemon.\n\n" + "\n".join(lines) + "\n\n"
        "'containerkit COMMAND --help' describes the options of a command."
    )


def _say(text: str) -> int:
    print(text, flush=True)  # noqa: T201 - the command line prints its output
    return 0


def _unknown(name: str, known: Iterable[str] = COMMANDS, before: str = "") -> int:
    from difflib import get_close_matches

    from containerkit.cli import elsewhere

    if name.startswith("-"):
        print(f"containerkit: {name} is no option here: {elsewhere.GLOBAL}", file=sys.stderr)  # noqa: T201 - it prints errors
        return FAILED
    if not before and name in elsewhere.COMMANDS:
        print(f"containerkit: {name!r} is no command here: {elsewhere.COMMANDS[name]}", file=sys.stderr)  # noqa: T201 - it prints errors
        return FAILED
    near = get_close_matches(name, known, 1)
    advice = f"did you mean {(before + near[0])!r}?" if near else f"there are {', '.join(known)}"
    print(f"containerkit: no command {(before + name)!r}; {advice}", file=sys.stderr)  # noqa: T201 - it prints errors
    return FAILED
