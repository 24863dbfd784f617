"""Registries: the client of the OCI distribution specification, pulls and pushes."""

from __future__ import annotations

from containerkit.image.registry.client import Registry
from containerkit.image.registry.credentials import Credentials, find_credentials, forget_credentials, save_credentials
from containerkit.image.registry.pull import pull
from containerkit.image.registry.push import push
from containerkit.image.registry.settings import RegistrySettings

__all__ = [
    "Credentials",
    "Registry",
    "RegistrySettings",
    "find_credentials",
    "forget_credentials",
    "pull",
    "push",
    "save_credentials",
]
