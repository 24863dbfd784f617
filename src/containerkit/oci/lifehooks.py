"""The hooks that later calls than ``create`` run, from the configuration that the record keeps."""

from __future__ import annotations

import os

from containerkit.oci import config, hooks, store
from containerkit.oci.errors import RuntimeFailure
from containerkit.oci.stage import FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Config
    from containerkit.oci.store import Entry

__all__ = ["kinds_of", "poststart", "poststop", "start_container", "stored_config"]


def stored_config(entry: Entry) -> Config:
    """Return the configuration that the container was created from."""
    return config.parse(entry.read(store.CONFIG), f"{entry.path}/{store.CONFIG}")


def kinds_of(wanted: Config) -> int:
    """Return the ``CLONE_NEW*`` of the namespaces in which the container differs from the runtime."""
    return sum(FLAGS[each.type] for each in wanted.linux.namespaces if each.type != "time")


def start_container(entry: Entry) -> None:
    """Run the hooks that come just before the program, inside."""
    wanted = stored_config(entry)
    pidfd = os.pidfd_open(entry.pid)
    try:
        hooks.run("startContainer", wanted.hooks.start_container, entry.state(), (pidfd, kinds_of(wanted)))
    finally:
        os.close(pidfd)


def poststart(entry: Entry) -> None:
    """Run the hooks that come after the start. Source: OCI runtime-spec, runtime.md, "Lifecycle", step 9."""
    hooks.run("poststart", stored_config(entry).hooks.poststart, entry.state())


def poststop(entry: Entry) -> None:
    """Run the hooks that come after the end; a failure of one does not keep the others, or the removal, back."""
    state = {**entry.state(), "status": "stopped", "pid": 0}
    for hook in stored_config(entry).hooks.poststop:
        try:
            hooks.run("poststop", [hook], state)
        except RuntimeFailure as error:
            os.write(2, f"warning: {error}\n".encode(errors="replace"))
