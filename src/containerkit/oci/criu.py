"""The common parts of ``checkpoint`` and ``restore``: their flags, and the external resources of a container.

Each external resource has a key, by which ``restore`` finds its replacement. The key of a mount is its target in the
configuration, so that another bundle may name other sources.

Source: criu(8).
"""

from __future__ import annotations

import os

from containerkit import jsontext
from containerkit._linux import criu
from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from containerkit.oci.cgroups import Groups
    from containerkit.oci.config import Config
    from containerkit.oci.flags import Flags
    from containerkit.oci.main import Call

__all__ = [
    "common",
    "directory",
    "external_mounts",
    "perform",
    "program",
    "read_streams",
    "streams_of",
    "write_streams",
]

_STREAMS = "descriptors.json"
"""The file beside the images that names the standard streams, as other runtimes write it."""

_SWITCHES = {
    "tcp-established": "tcp-established",
    "tcp-skip-in-flight": "skip-in-flight",
    "ext-unix-sk": "ext-unix-sk",
    "shell-job": "shell-job",
    "lazy-pages": "lazy-pages",
    "file-locks": "file-locks",
    "auto-dedup": "auto-dedup",
}
_VALUES = ("status-fd", "network-lock", "lsm-profile", "lsm-mount-context")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_MODES = ("none", "props", "soft", "full", "strict", "ignore")


def program(call: Call) -> str:
    """Return the path of CRIU.

    Raises:
        RuntimeFailure: it is not installed.
    """
    found = criu.find(call.options.text("criu"))
    if not found:
        raise RuntimeFailure("criu: executable file not found in $PATH: checkpoint and restore need CRIU installed")
    return found


def directory(path: str) -> str:
    """Return the absolute path of a directory, which is made if it is missing.

    Raises:
        RuntimeFailure: it can't be made.
    """
    path = os.path.abspath(path)
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as error:
        raise RuntimeFailure(f"make {path}: {strerror(error.errno or 0)}") from None
    return path


def common(flags: Flags, images: str, log: str) -> list[str]:
    """Return the arguments that both commands take.

    Args:
        flags: those of the verb.
        images: the directory of the images.
        log: the name of the log, which is written to ``--work-path``.
    """
    work = directory(flags.text("work-path", images))
    words = criu.logged(images, work, log)
    words += [f"--{option}" for name, option in _SWITCHES.items() if flags.has(name)]
    for name in _VALUES:
        if flags.given(name):
            words += [f"--{name}", flags.text(name)]
    for name in flags.every("empty-ns"):
        words += ["--empty-ns", {"network": "net"}.get(name, name)]
    mode = flags.text("manage-cgroups-mode", "soft")
    if mode not in _MODES:
        raise RuntimeFailure(f"--manage-cgroups-mode: {mode!r} is not one of {', '.join(_MODES)}")
    return [*words, f"--manage-cgroups={mode}"]  # the value is optional, so it is never a separate argument


def external_mounts(config: Config, groups: Groups | None, terminal: str = "") -> dict[str, str]:
    """Return the mounts of the host's files: their targets, which are their keys, and their sources.

    Args:
        config: the container's configuration.
        groups: its control groups, if it has any.
        terminal: the path of its terminal on the host, which is a new one after each restore.
    """
    from containerkit.oci import mountoptions

    found = dict.fromkeys(config.linux.masked_paths, "/dev/null")
    if config.namespace("user") is not None:  # no device can be made in it, so the host's are bound
        names = [*_DEVICES, *[device.path for device in config.linux.devices]]
        found.update(zip(names, names, strict=True))
    if config.process is not None and config.process.terminal:
        found["/dev/console"] = terminal
    for number, mount in enumerate(config.mounts):
        if mount.type == "bind" or mountoptions.read(mount.options, f"mounts[{number}].options").bind:
            found[mount.destination] = mount.source
        elif mount.type in ("cgroup", "cgroup2") and config.namespace("cgroup") is None and groups is not None:
            found.update(_group_mounts(mount.destination, groups))
    return found


def _group_mounts(target: str, groups: Groups) -> dict[str, str]:
    """Return where the container sees its control groups, if it has no cgroup namespace."""
    first = [pair for pair in zip(groups.found, groups.places, strict=True) if pair[0].version == 1]
    if not first:
        return {target: groups.unified}
    return {f"{target}/{','.join(each.names).removeprefix('name=')}": place for each, place in first}


def streams_of(pid: int) -> list[str]:
    """Return CRIU's names of the standard streams of a process; see :func:`containerkit._linux.criu.stream`."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        inside = {int(line.split(" ", 1)[0]) for line in file}
    return [criu.stream(pid, number, inside) for number in range(3)]


def perform(
    words: list[str], log: str, *, passed: Sequence[int] = (), prepare: Callable[[], None] | None = None
) -> None:
    """Run CRIU.

    Args:
        words: its command line.
        log: the path of its log.
        passed: descriptors that it inherits.
        prepare: called in its process first.

    Raises:
        RuntimeFailure: it failed. The error has the last lines of its log.
    """
    import subprocess

    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", check=False, pass_fds=passed, preexec_fn=prepare
    )
    if done.returncode != 0:
        raise RuntimeFailure(f"{criu.failure(words[1], done.returncode, done.stderr, log)} (hint: see {log})")


def write_streams(images: str, streams: Sequence[str]) -> None:
    """Store the names of the standard streams beside the images."""
    fd = os.open(f"{images}/{_STREAMS}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(jsontext.dumps(list(streams)))


def read_streams(images: str) -> list[str]:
    """Return the names of the standard streams; nothing if no runtime has stored them."""
    try:
        with open(f"{images}/{_STREAMS}", "rb") as file:
            found = jsontext.loads(file.read())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"{images}/{_STREAMS}: {error}") from None
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []
