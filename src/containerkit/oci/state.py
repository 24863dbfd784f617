"""``state``: print the state of a container."""

from __future__ import annotations

import os

from containerkit import jsontext
from containerkit.oci import store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.main import Call

__all__ = ["state"]


def state(call: Call) -> int:
    """Print the state of a container as JSON. Source: OCI runtime-spec, runtime.md, "Query State"."""
    with store.open_entry(call.root, call.name) as entry:
        os.write(1, jsontext.dumps(entry.state(), 2).encode() + b"\n")
    return 0
