"""Creates and starts a detached container, for :meth:`containerkit.Container.detach`."""

from __future__ import annotations

import os
import time

from containerkit.detached import store
from containerkit.detached.begin import begin
from containerkit.detached.container import Detached
from containerkit.detached.description import Description
from containerkit.detached.events import emit, identify
from containerkit.detached.health import default_command
from containerkit.detached.settings import Keeping
from containerkit.detached.wiring import drop_network, kept_network
from containerkit.security.checks import check_bool
from containerkit.values import asdict, evolve, fields_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from containerkit.detached.store import Entry
    from containerkit.options import ListOf, Word
    from containerkit.spec.container import Spec

__all__ = ["detach"]


def detach(spec: Spec, name: str, command: ListOf[Word] | None, options: Mapping[str, Any]) -> Detached:
    """Create a record and start the container; see :meth:`containerkit.Container.detach`."""
    options = dict(options)
    start = options.pop("start", True)
    check_bool(start, "start")
    keeping_names = {field.name for field in fields_of(Keeping)} - {"name"}
    given = {key: value for key, value in options.items() if key in keeping_names}
    fields = {key: value for key, value in options.items() if key not in keeping_names}
    if spec.rootfs.kind == "image":
        given.setdefault("image", spec.rootfs.name)
    keeping = Keeping(name=name, **given)
    argv = tuple(map(os.fsdecode, command)) if command is not None else default_command(spec)
    description = Description(spec=spec, argv=argv, fields=fields)
    spec, network = kept_network(spec) if spec.wishes_for_network else (spec, None)
    description = evolve(description, spec=spec)
    config = {**asdict(keeping), "created": time.time(), "argv": argv}
    entry: Entry | None = None
    try:
        entry = store.create(config, description.dump())
        identify(entry, config)
        emit(entry, "create", config)
        if start:
            begin(entry, description)
    except BaseException:
        if entry is not None:
            Detached(entry).abandon()
        if network is not None:
            drop_network(network)
        raise
    return Detached(entry)
