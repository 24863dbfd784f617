"""``create``: make a container that waits for its start."""

from __future__ import annotations

import os

from containerkit.oci import config
from containerkit.oci.creation import Creation
from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.main import Call

__all__ = ["create", "prepare"]


def prepare(call: Call, *, foreground: bool = False) -> Creation:
    """Read the bundle of a call.

    Args:
        call: the call of the command line.
        foreground: whether the caller waits for the container's end.

    Raises:
        RuntimeFailure: it can't be read, or is invalid.
    """
    from containerkit.oci.store import check_id

    check_id(call.name)
    if len(call.flags.arguments) > 1:
        raise RuntimeFailure(f"expected one container id, not {' '.join(call.flags.arguments)}")
    bundle = os.path.abspath(call.flags.text("bundle", "."))
    try:
        os.stat(bundle)
    except OSError as error:
        raise RuntimeFailure(f"bundle {bundle}: {strerror(error.errno or 0)}") from None
    content, found = config.load(bundle, call.flags.text("config", "config.json"))
    return Creation(call, bundle, content, found, foreground=foreground)


def create(call: Call) -> int:
    """Make a container whose process waits for ``start``. Source: OCI runtime-spec, runtime.md, "Create"."""
    creation = prepare(call)
    creation.make()
    creation.entry.close()
    return 0
