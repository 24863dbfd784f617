"""``checkpoint``: write the state of a container's processes to a directory with CRIU.

Source: criu(8).
"""

from __future__ import annotations

import os
from stat import S_ISDIR

from containerkit._linux.criu import NAMESPACE_KEYS, external
from containerkit._native import constants as k
from containerkit.oci import criu, kernel, store
from containerkit.oci.cgroups import Groups, hierarchies
from containerkit.oci.dumpedgroups import keep_own_groups
from containerkit.oci.errors import RuntimeFailure
from containerkit.oci.lifehooks import stored_config
from containerkit.oci.tape import Tape
from containerkit.oci.targets import Targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Config
    from containerkit.oci.flags import Flags
    from containerkit.oci.main import Call
    from containerkit.oci.store import Entry

__all__ = ["checkpoint"]

_LOG = "dump.log"


def checkpoint(call: Call) -> int:
    """Write the state of a container's processes to a directory. They end unless ``--leave-running`` is given."""
    flags = call.flags
    program = criu.program(call)
    with store.open_entry(call.root, call.name, lock=True) as entry:
        status = entry.status()
        if status not in ("running", "paused"):
            raise RuntimeFailure(f"container not running: it is {status}")
        images = criu.directory(flags.text("image-path", "checkpoint"))
        pre = flags.has("pre-dump")
        words = [program, "pre-dump" if pre else "dump", "--tree", str(entry.pid), *criu.common(flags, images, _LOG)]
        words += _memory(flags)
        freezer = entry.record.get("freezer", "")
        if freezer:
            words += ["--freeze-cgroup", os.path.dirname(freezer)]
        if not pre:
            config = stored_config(entry)
            streams = criu.streams_of(entry.pid)
            words += _external(entry, config, streams)
            criu.write_streams(images, streams)
        criu.perform(words, os.path.join(flags.text("work-path", images), _LOG))
        keep_own_groups(images)
    return 0


def _memory(flags: Flags) -> list[str]:
    words = []
    if flags.has("leave-running"):
        words.append("--leave-running")
    if flags.has("pre-dump") or flags.given("parent-path"):
        words.append("--track-mem")
    if flags.given("parent-path"):
        words += ["--prev-images-dir", flags.text("parent-path")]
    if flags.given("page-server"):
        address, _, port = flags.text("page-server").rpartition(":")
        words += ["--page-server", "--address", address, "--port", port]
    return words


def _external(entry: Entry, config: Config, streams: list[str]) -> list[str]:
    """Return CRIU's names of the resources that the images do not contain."""
    root = os.open(f"/proc/{entry.pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = _mounts(root, config, Groups.of(entry.record.get("groups", []), hierarchies()))
    finally:
        os.close(root)
    for kind, (name, key) in NAMESPACE_KEYS.items():
        namespace = config.namespace(kind)
        if namespace is None or namespace.path:  # it belongs to the host or to another container
            found.append(f"{name}[{os.stat(f'/proc/{entry.pid}/ns/{name}').st_ino}]:{key}")
    found += dict.fromkeys(stream for stream in streams if stream.startswith(("file[", "tty[")))
    return external(found)


def _mounts(root: int, config: Config, groups: Groups) -> list[str]:
    """Return the mounts of the host's files for CRIU: their targets and their keys."""
    targets = Targets(Tape())
    targets.view = root
    masked = set(config.linux.masked_paths)
    found = []
    for key in criu.external_mounts(config, groups):
        path = targets.resolve(os.path.normpath("/" + key.lstrip("/")))
        try:
            fd = kernel.open_inside(root, path, k.O_PATH)
        except OSError:
            continue
        is_directory = S_ISDIR(os.fstat(fd).st_mode)
        os.close(fd)
        if not (key in masked and is_directory):  # a masked directory is an empty filesystem of the container's own
            found.append(f"mnt[{path}]:{key}")
    return found
