"""The hooks that verbs after ``create`` run. They are read from the recorded configuration."""

from __future__ import annotations

import os

from containerkit.oci import config, hooks, store
from containerkit.oci.errors import RuntimeFailure
from containerkit.oci.namespaces import FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Config
    from containerkit.oci.store import Entry

_FAILS_SINCE = (1, 3)

__all__ = ["kinds_of", "poststart", "poststop", "start_container", "stored_config"]


def stored_config(entry: Entry) -> Config:
    """Return the configuration that the container was created from."""
    return config.parse(entry.read(store.CONFIG), f"{entry.path}/{store.CONFIG}")


def kinds_of(wanted: Config) -> int:
    """Return the ``CLONE_NEW*`` of the namespaces in which the container differs from the runtime."""
    return sum(FLAGS[each.type] for each in wanted.linux.namespaces if each.type != "time")


def start_container(entry: Entry) -> None:
    """Run the ``startContainer`` hooks, inside and confined like the program.

    Raises:
        RuntimeFailure: one of them failed; the container has been stopped.

    Source: OCI runtime-spec, runtime.md, "Lifecycle", step 7.
    """
    from containerkit.oci import innerhooks

    wanted = stored_config(entry)
    try:
        hooks.run("startContainer", wanted.hooks.start_container, entry.state(), innerhooks.confined(entry, wanted))
    except RuntimeFailure as error:
        _stop(entry, error)
        raise


def _stop(entry: Entry, cause: RuntimeFailure) -> None:
    """End the container because of an error. Whoever is told of the error finds it stopped."""
    from containerkit.oci import delete

    try:
        delete.kill(entry)
    except RuntimeFailure as error:
        raise RuntimeFailure(f"{cause}; {error}") from None


def poststart(entry: Entry) -> None:
    """Run the ``poststart`` hooks.

    Raises:
        RuntimeFailure: one of them failed, and the configuration is of version 1.3 or later; the container has been
            stopped. Before that version a failure is a warning, and the other hooks are run.

    Source: OCI runtime-spec, runtime.md, "Lifecycle", step 9; ChangeLog of 1.3.0, "fail when a poststart hook fails".
    """
    wanted = stored_config(entry)
    for number, hook in enumerate(wanted.hooks.poststart):
        try:
            hooks.run("poststart", [hook], entry.state(), _starter(entry), first=number)
        except RuntimeFailure as error:
            if wanted.version >= _FAILS_SINCE:
                _stop(entry, error)
                raise
            _warn(error)


def _starter(entry: Entry) -> hooks.Starter:
    return hooks.in_runtime_namespaces(entry.record.get("bundle", "/"))


def poststop(entry: Entry) -> None:
    """Run the ``poststop`` hooks. If one fails, the others are still run, and the container is removed."""
    state = {**entry.state(), "status": "stopped", "pid": 0}
    for number, hook in enumerate(stored_config(entry).hooks.poststop):
        try:
            hooks.run("poststop", [hook], state, _starter(entry), first=number)
        except RuntimeFailure as error:
            _warn(error)


def _warn(error: RuntimeFailure) -> None:
    os.write(2, f"warning: {error}\n".encode(errors="replace"))
