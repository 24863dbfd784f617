"""The entry point: global flags, the verb, and how a failure is reported."""

from __future__ import annotations

import os
import sys

from containerkit.oci import flags as flag_reader
from containerkit.oci.errors import RuntimeFailure, strerror
from containerkit.oci.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.oci.flags import Flags

__all__ = ["SPEC_VERSION", "Call", "leave", "main", "resume"]

SPEC_VERSION = "1.2.0"

_GLOBAL = {
    "root": "value",
    "log": "value",
    "log-format": "value",
    "debug": "switch",
    "systemd-cgroup": "switch",
    "cgroup-manager": "value",
    "rootless": "value",
    "criu": "value",
    "version": "switch",
    "v": "version",
    "help": "switch",
    "h": "help",
}

# The verb, then the module, the function in it, and its flags.
_CREATE = {
    "bundle": "value",
    "b": "bundle",
    "config": "value",
    "f": "config",
    "console-socket": "value",
    "pid-file": "value",
    "pidfd-socket": "value",
    "no-pivot": "switch",
    "no-new-keyring": "switch",
    "preserve-fds": "value",
    "no-subreaper": "switch",
}
_CHECKPOINT = {
    "image-path": "value",
    "work-path": "value",
    "parent-path": "value",
    "leave-running": "switch",
    "tcp-established": "switch",
    "tcp-skip-in-flight": "switch",
    "ext-unix-sk": "switch",
    "shell-job": "switch",
    "lazy-pages": "switch",
    "status-fd": "value",
    "page-server": "value",
    "file-locks": "switch",
    "pre-dump": "switch",
    "manage-cgroups-mode": "value",
    "empty-ns": "value",
    "auto-dedup": "switch",
    "lsm-profile": "value",
    "lsm-mount-context": "value",
    "criu-opts": "value",
    "network-lock": "value",
}
_VERBS: dict[str, tuple[str, str, dict[str, str]]] = {
    "create": ("create", "create", _CREATE),
    "run": ("run", "run", {**_CREATE, "detach": "switch", "d": "detach", "keep": "switch"}),
    "start": ("start", "start", {}),
    "state": ("state", "state", {}),
    "kill": ("kill", "kill", {"all": "switch", "a": "all", "regex": "switch", "r": "regex"}),
    "delete": ("delete", "delete", {"force": "switch", "f": "force", "regex": "switch", "r": "regex"}),
    "list": ("listing", "list_containers", {"format": "value", "f": "format", "quiet": "switch", "q": "quiet"}),
    "ps": ("listing", "ps", {"format": "value", "f": "format"}),
    "exec": (
        "execute",
        "execute",
        {
            "console-socket": "value",
            "cwd": "value",
            "env": "value",
            "e": "env",
            "tty": "switch",
            "t": "tty",
            "user": "value",
            "u": "user",
            "additional-gids": "value",
            "g": "additional-gids",
            "process": "value",
            "p": "process",
            "detach": "switch",
            "d": "detach",
            "pid-file": "value",
            "pidfd-socket": "value",
            "process-label": "value",
            "apparmor": "value",
            "no-new-privs": "switch",
            "cap": "value",
            "c": "cap",
            "preserve-fds": "value",
            "cgroup": "value",
            "ignore-paused": "switch",
        },
    ),
    "pause": ("pause", "pause", {}),
    "resume": ("pause", "resume", {}),
    "update": (
        "update",
        "update",
        {
            "resources": "value",
            "r": "resources",
            "blkio-weight": "value",
            "cpu-period": "value",
            "cpu-quota": "value",
            "cpu-burst": "value",
            "cpu-share": "value",
            "cpu-shares": "cpu-share",
            "cpu-rt-period": "value",
            "cpu-rt-runtime": "value",
            "cpu-idle": "value",
            "cpuset-cpus": "value",
            "cpuset-mems": "value",
            "memory": "value",
            "memory-reservation": "value",
            "memory-swap": "value",
            "kernel-memory": "value",
            "kernel-memory-tcp": "value",
            "pids-limit": "value",
            "l3-cache-schema": "value",
            "mem-bw-schema": "value",
        },
    ),
    "events": ("events", "events", {"stats": "switch", "interval": "value"}),
    "spec": ("specification", "spec", {"bundle": "value", "b": "bundle", "rootless": "switch"}),
    "features": ("features", "features", {}),
    "launcher": ("launcher", "launcher", {}),
    "checkpoint": ("checkpoint", "checkpoint", _CHECKPOINT),
    "restore": (
        "restore",
        "restore",
        {**_CHECKPOINT, **_CREATE, "detach": "switch", "d": "detach"},
    ),
}


class Call:
    """One call of the command line.

    Attributes:
        root: the directory of the records.
        journal: the log.
        manager: ``"cgroupfs"``, ``"systemd"`` or ``"disabled"``.
        flags: the verb's own.
        options: the global ones.
        resumed: for the end of ``start``, the descriptors that the front end passes: the container's directory, and
            the connection to its gate.
        handed_over: whether the front end has handed it over, which may have waited already.
    """

    __slots__ = ("flags", "handed_over", "journal", "manager", "options", "resumed", "root")

    def __init__(
        self,
        options: Flags,
        flags: Flags,
        journal: Log,
        resumed: tuple[int, int] | None = None,
        *,
        handed_over: bool = False,
    ) -> None:
        from containerkit.oci.store import default_root

        self.options = options
        self.flags = flags
        self.journal = journal
        self.resumed = resumed
        self.handed_over = handed_over
        self.root = os.path.abspath(options.text("root") or default_root())
        self.manager = "systemd" if options.has("systemd-cgroup") else options.text("cgroup-manager", "cgroupfs")
        if self.manager not in ("cgroupfs", "systemd", "disabled"):
            raise RuntimeFailure(f"--cgroup-manager: {self.manager!r} is none of cgroupfs, systemd, disabled")

    @property
    def name(self) -> str:
        """The container's id, the verb's first argument."""
        if not self.flags.arguments:
            raise RuntimeFailure("the container's id is missing")
        return self.flags.arguments[0]


def main(words: Sequence[str] | None = None, *, resumed: str | None = None) -> int:
    """Run one call of the command line.

    Args:
        words: the command line without the program (default: this process's own).
        resumed: what the front end passes: two descriptors, separated by a comma, if it has begun to start a container,
            otherwise nothing (default: there is no front end).

    Returns:
        The exit status.
    """
    words = sys.argv[1:] if words is None else words
    journal = Log()
    verb = ""
    try:
        options = flag_reader.read(words, _GLOBAL)
        journal = Log(options.text("log"), options.text("log-format", "text"), debug=options.has("debug"))
        if options.has("version"):
            return _version()
        verb, *rest = options.arguments or [""]
        if verb in ("", "help") or options.has("help"):
            return _usage()
        return _perform(verb, rest, options, journal, resumed)
    except RuntimeFailure as error:
        journal.error(str(error))
    except OSError as error:
        what = f"{error.filename}: " if error.filename is not None else ""
        journal.error(f"{verb or 'write'}: {what}{strerror(error.errno or 0)}")
    except ImportError as error:
        journal.error(f"{error} (hint: the runtime needs containerkit's compiled module: install it from a wheel)")
    except KeyboardInterrupt:
        return 130
    return 255 if verb == "exec" else 1


def leave(status: int) -> None:
    """End the process immediately. The kernel frees its resources faster than the interpreter would.

    Args:
        status: its exit status.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def resume() -> None:
    """Do what the front end that pip installs leaves to Python. Its first argument is a word for us.

    The process does not collect garbage or clean up, because it lives only for milliseconds.
    """
    import gc

    gc.disable()
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if len(sys.argv) > 1 and not word.strip("0123456789,"):
        del sys.argv[1]
        leave(main(resumed=word))
    leave(main())  # started by hand


def _perform(verb: str, rest: Sequence[str], options: Flags, journal: Log, resumed: str | None) -> int:
    if verb not in _VERBS:
        raise RuntimeFailure(f"unknown command {verb!r}: one of {', '.join(_VERBS)}")
    module, function, known = _VERBS[verb]
    if any(word in ("--help", "-h") for word in rest[:1]):
        return _verb_usage(verb, known)
    flags = flag_reader.read(rest, known, anywhere=verb not in ("exec", "ps"))
    directory, _, gate = (resumed or "").partition(",")
    begun = (int(directory), int(gate)) if resumed else None
    call = Call(options, flags, journal, begun, handed_over=resumed is not None)
    place = __import__(f"containerkit.oci.{module}", fromlist=[function])
    status: int = getattr(place, function)(call)
    journal.write_warnings()
    return status


def _version() -> int:
    from containerkit import __version__

    return _tell(
        f"containerkit-oci version {__version__}\ncommit: {__version__}\nspec: {SPEC_VERSION}\n"
        "+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +CRIU\n"
    )


def _tell(text: str) -> int:
    """Write a text for people. It is no error if the reader has read enough, as ``head`` has."""
    try:
        os.write(1, text.encode())
    except BrokenPipeError:
        return 0
    return 0


def _usage() -> int:
    return _tell(
        "usage: containerkit-oci [--root DIR] [--log FILE] [--log-format text|json] [--debug]\n"
        "                        [--systemd-cgroup] [--cgroup-manager cgroupfs|systemd|disabled] VERB [FLAGS] [ID]\n\n"
        f"verbs: {' '.join(_VERBS)}\n"
    )


def _verb_usage(verb: str, known: dict[str, str]) -> int:
    names = [f"--{name}" + (" VALUE" if kind == "value" else "") for name, kind in known.items() if len(name) > 1]
    return _tell(f"usage: containerkit-oci {verb} {' '.join(f'[{name}]' for name in names)}\n")
