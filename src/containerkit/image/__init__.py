"""Images: references, registries, a store, layers, builds and templates.

::

    image = Image.pull("docker.io/library/alpine:3.20")
    with Container(image.rootfs()) as c: ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.late import lazy

if TYPE_CHECKING:
    from containerkit.archive.limits import UnpackLimits
    from containerkit.image.build import Build
    from containerkit.image.config import Defaults, Healthcheck, History, ImageConfig
    from containerkit.image.digest import Digest
    from containerkit.image.health import Health
    from containerkit.image.image import Image
    from containerkit.image.manifest import Descriptor, Index, Manifest
    from containerkit.image.platform import Platform
    from containerkit.image.progress import ProgressEvent, terminal_progress
    from containerkit.image.reference import Reference
    from containerkit.image.registry import Credentials, Registry, RegistrySettings
    from containerkit.image.snapshot import commit
    from containerkit.image.store import Store

__all__ = [
    "Build",
    "Credentials",
    "Defaults",
    "Descriptor",
    "Digest",
    "Health",
    "Healthcheck",
    "History",
    "Image",
    "ImageConfig",
    "Index",
    "Manifest",
    "Platform",
    "ProgressEvent",
    "Reference",
    "Registry",
    "RegistrySettings",
    "Store",
    "UnpackLimits",
    "commit",
    "terminal_progress",
]

_HOMES: Final = {
    "Build": "build",
    "Credentials": "registry",
    "Defaults": "config",
    "Descriptor": "manifest",
    "Digest": "digest",
    "Health": "health",
    "Healthcheck": "config",
    "History": "config",
    "Image": "image",
    "ImageConfig": "config",
    "Index": "manifest",
    "UnpackLimits": "containerkit.archive.limits",
    "Manifest": "manifest",
    "Platform": "platform",
    "ProgressEvent": "progress",
    "Reference": "reference",
    "Registry": "registry",
    "RegistrySettings": "registry",
    "Store": "store",
    "commit": "snapshot",
    "terminal_progress": "progress",
}

__getattr__, __dir__ = lazy(globals(), _HOMES)
