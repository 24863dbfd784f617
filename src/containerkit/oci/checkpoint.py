"""``checkpoint`` and ``restore``: by CRIU, where it is installed.

Source: criu(8); https://criu.org/External_bind_mounts.
"""

from __future__ import annotations

import os
import shutil

from containerkit.oci import store
from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Config
    from containerkit.oci.flags import Flags
    from containerkit.oci.main import Call

__all__ = ["checkpoint", "restore"]

_SWITCHES = (
    "tcp-established",
    "tcp-skip-in-flight",
    "ext-unix-sk",
    "shell-job",
    "lazy-pages",
    "file-locks",
    "auto-dedup",
)
_VALUES = ("status-fd", "manage-cgroups-mode", "network-lock", "lsm-profile", "lsm-mount-context")
_LOG_TAIL_BYTES = 2048


def checkpoint(call: Call) -> int:
    """Write the state of a container's processes to a folder; they end unless ``--leave-running``."""
    flags = call.flags
    criu = _criu(call)
    with store.open_entry(call.root, call.name, lock=True) as entry:
        status = entry.status()
        if status not in ("running", "paused"):
            raise RuntimeFailure(f"container not running: it is {status}")
        images = _folder(flags.text("image-path", "checkpoint"))
        verb = "pre-dump" if flags.has("pre-dump") else "dump"
        words = [criu, verb, "--tree", str(entry.pid), *_common(flags, images), *_external(flags)]
        if flags.has("leave-running"):
            words.append("--leave-running")
        if flags.given("parent-path"):
            words += ["--prev-images-dir", flags.text("parent-path"), "--track-mem"]
        if flags.given("page-server"):
            address, _, port = flags.text("page-server").rpartition(":")
            words += ["--page-server", "--address", address, "--port", port]
        freezer = entry.record.get("freezer", "")
        if freezer:
            words += ["--freeze-cgroup", os.path.dirname(freezer)]
        _perform(words, flags, images)
    return 0


def restore(call: Call) -> int:
    """Bring processes back from a folder that ``checkpoint`` wrote, as a container of a new record."""
    from containerkit.oci import config as configuration

    flags = call.flags
    criu = _criu(call)
    bundle = os.path.abspath(flags.text("bundle", "."))
    content, config = configuration.load(bundle)
    images = _folder(flags.text("image-path", "checkpoint"))
    entry = store.reserve(call.root, call.name)
    with entry:
        try:
            entry.write(store.CONFIG, content)
            pid = _bring_back(call, criu, bundle, config, images)
            _record(call, entry, bundle, config, pid)
        except BaseException:
            entry.remove()
            raise
    if path := flags.text("pid-file"):
        from containerkit.oci.host import write_pid_file

        write_pid_file(path, pid)
    if flags.has("detach"):
        return 0
    from containerkit.oci import waiting
    from containerkit.oci.delete import destroy

    pidfd = os.pidfd_open(pid)
    status = waiting.follow(pidfd, -1)
    os.close(pidfd)
    with store.open_entry(call.root, call.name, lock=True) as ended:
        destroy(ended)
    return status


def _bring_back(call: Call, criu: str, bundle: str, config: Config, images: str) -> int:
    root = config.root
    assert root is not None
    rootfs = os.path.normpath(os.path.join(bundle, root.path))
    pid_file = os.path.join(images, f".restored.{os.getpid()}")
    words = [criu, "restore", "--root", rootfs, "--restore-detached", "--restore-sibling", "--pidfile", pid_file]
    words += [*_common(call.flags, images), *_external(call.flags)]
    try:
        _perform(words, call.flags, images)
        with open(pid_file, encoding="ascii") as file:
            return int(file.read())
    finally:
        if os.path.exists(pid_file):
            os.unlink(pid_file)


def _record(call: Call, entry: store.Entry, bundle: str, config: Config, pid: int) -> None:
    from containerkit.oci.cgroups import Groups, hierarchies
    from containerkit.oci.log import timestamp

    root = config.root
    assert root is not None
    groups: Groups | None = None
    if call.manager != "disabled":
        groups = Groups("/" + (config.linux.cgroups_path or call.name).strip("/"), hierarchies())
        groups.make(in_use=True)
        groups.add(pid)
    entry.save(
        ociVersion=config.oci_version,
        phase="created",
        bundle=bundle,
        rootfs=os.path.normpath(os.path.join(bundle, root.path)),
        created=timestamp(),
        owner=str(os.geteuid()),
        annotations=config.annotations,
        groups=[] if groups is None else groups.places,
        freezer="" if groups is None else groups.freezer,
        hooks=["poststop"] if config.hooks.poststop else [],
        pid=pid,
        start_time=store.start_time(pid),
    )


def _criu(call: Call) -> str:
    found = call.options.text("criu") or shutil.which("criu")
    if not found:
        raise RuntimeFailure("criu: executable file not found in $PATH: checkpoint and restore need CRIU installed")
    return found


def _folder(path: str) -> str:
    path = os.path.abspath(path)
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as error:
        raise RuntimeFailure(f"make {path}: {strerror(error.errno or 0)}") from None
    return path


def _common(flags: Flags, images: str) -> list[str]:
    work = _folder(flags.text("work-path", images))
    words = ["--images-dir", images, "--work-dir", work, "--log-file", "criu.log", "-v4"]
    words += [f"--{name}" for name in _SWITCHES if flags.has(name)]
    for name in _VALUES:
        if flags.given(name):
            words += [f"--{name}", flags.text(name)]
    for name in flags.every("empty-ns"):
        words += ["--empty-ns", {"network": "net"}.get(name, name)]
    return words


def _external(flags: Flags) -> list[str]:
    """Mounts that come from outside are named by their targets, on both ways."""
    mode = [] if flags.given("manage-cgroups-mode") else ["--manage-cgroups-mode", "soft"]
    return ["--external", "mnt[]", *mode]


def _perform(words: list[str], flags: Flags, images: str) -> None:
    import subprocess

    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode == 0:
        return
    path = os.path.join(flags.text("work-path", images), "criu.log")
    tail = done.stderr.strip()
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file.read()[-_LOG_TAIL_BYTES:].splitlines() if "Error" in line]
            tail = "; ".join(lines[-3:]) or tail
    raise RuntimeFailure(f"criu {words[1]}: exit status {done.returncode}: {tail} (hint: see {path})")
