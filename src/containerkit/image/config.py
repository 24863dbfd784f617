"""The config of an image: the defaults of containers made from it, and its history."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.image.digest import Digest
from containerkit.image.document import Document, encode
from containerkit.image.platform import Platform
from containerkit.meanings import explained

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self, Unpack

    from containerkit.image.options import ConfigOptions, ImageCommand
    from containerkit.options import ListOf

__all__ = ["DEFAULT_PATH", "Defaults", "Healthcheck", "History", "ImageConfig", "chain_ids", "timestamp"]


DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The search path for programs if an image sets none."""

_ROOT: Final = ("0", "root", "0:0", "root:root")  # root, recognised without looking inside the image


@attrs.frozen(kw_only=True)
class Healthcheck:
    """How to check whether a container works (an extension by Docker).

    Args:
        test: ``("NONE",)``, ``("CMD", ...)`` or ``("CMD-SHELL", line)``; empty to inherit.
        interval_ns, timeout_ns, start_period_ns, start_interval_ns: nanoseconds; 0 to inherit.
        retries: how many consecutive failures make it unhealthy; 0 to inherit.

    Source: Docker image specification 1.2, "Healthcheck".
    """

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """Parse the object ``Healthcheck``."""
        return cls(
            test=document.texts("Test"),
            interval_ns=document.integer("Interval", 0),
            timeout_ns=document.integer("Timeout", 0),
            start_period_ns=document.integer("StartPeriod", 0),
            start_interval_ns=document.integer("StartInterval", 0),
            retries=document.integer("Retries", 0),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object ``Healthcheck``, without default values."""
        content = {
            "Test": list(self.test),
            "Interval": self.interval_ns,
            "Timeout": self.timeout_ns,
            "StartPeriod": self.start_period_ns,
            "StartInterval": self.start_interval_ns,
            "Retries": self.retries,
        }
        return {key: value for key, value in content.items() if value}


@attrs.frozen(kw_only=True)
class Defaults:
    """The defaults of containers made from the image.

    Args:
        env: environment variables, in order.
        entrypoint: the program. ``command`` is appended to it.
        command: the arguments, or the complete command if there is no entrypoint.
        user: ``user[:group]`` by name or number; empty is root.
        working_dir: the working directory; empty is ``/``.
        volumes: directories that contain data.
        labels: free strings.
        stop_signal: the name of the signal that ends a container; empty is SIGTERM.
        exposed_ports: such as ``80/tcp``.
        healthcheck: how to check whether a container works.
        shell: the shell for shell-form instructions of a build; empty is ``/bin/sh -c``.
        on_build: instructions for a build that starts from this image.

    Source: OCI image specification, config.md, "config".
    """

    env: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    healthcheck: Healthcheck | None = None
    shell: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """Parse the object ``config``."""
        health = document.child("Healthcheck")
        return cls(
            env=dict(entry.partition("=")[::2] for entry in document.texts("Env")),
            entrypoint=document.texts("Entrypoint"),
            command=document.texts("Cmd"),
            user=document.text("User", ""),
            working_dir=document.text("WorkingDir", ""),
            volumes=document.keys("Volumes"),
            labels=document.table("Labels"),
            stop_signal=document.text("StopSignal", ""),
            exposed_ports=document.keys("ExposedPorts"),
            healthcheck=None if health is None else Healthcheck.from_document(health),
            shell=document.texts("Shell"),
            on_build=document.texts("OnBuild"),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object ``config``, without empty fields."""
        content: dict[str, Any] = {
            "User": self.user,
            "ExposedPorts": {port: {} for port in self.exposed_ports},
            "Env": [f"{key}={value}" for key, value in self.env.items()],
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "Volumes": {volume: {} for volume in self.volumes},
            "WorkingDir": self.working_dir,
            "Labels": dict(self.labels),
            "StopSignal": self.stop_signal,
            "Healthcheck": None if self.healthcheck is None else self.healthcheck.to_json(),
            "Shell": list(self.shell),
            "OnBuild": list(self.on_build),
        }
        return {key: value for key, value in content.items() if value}

    def options(self) -> ImageCommand:
        """Return the arguments for ``run`` and ``popen`` of a container of this image, in addition to :meth:`argv`.

        ``env`` always has a ``PATH`` and a ``HOME``. ``cwd`` and ``user`` are present only if the image sets them.

        Source: OCI image specification, config.md.
        """
        found: ImageCommand = {"env": {"PATH": DEFAULT_PATH, "HOME": "/root" if self.is_root else "/", **self.env}}
        if self.working_dir:
            found["cwd"] = os.path.normpath(f"/{self.working_dir.lstrip('/')}")
        if self.user:
            found["user"] = self.user
        return found

    @property
    def pairs(self) -> tuple[tuple[str, object], ...]:
        """The same as for :attr:`containerkit.RootFS.defaults`. ``HOME`` is present only if the image sets it."""
        found = {**self.options(), "env": tuple({"PATH": DEFAULT_PATH, **self.env}.items())}
        return tuple((name, value) for name, value in found.items() if name != "user" or value not in _ROOT)

    @property
    def stop_number(self) -> int:
        """The number of the signal that asks the commands of a container to end. Default SIGTERM.

        Raises:
            SpecError: the image names an unknown signal.

        Source: OCI image specification, config.md, "StopSignal".
        """
        from signal import Signals

        text = self.stop_signal or "SIGTERM"
        try:
            return int(Signals(int(text)) if text.isdecimal() else Signals[f"SIG{text.upper().removeprefix('SIG')}"])
        except (KeyError, ValueError):
            pass
        first, plus, number = text.upper().removeprefix("SIG").partition("+")
        if first == "RTMIN" and plus and number.isdecimal() and Signals.SIGRTMIN + int(number) <= Signals.SIGRTMAX:
            return Signals.SIGRTMIN + int(number)
        raise SpecError(f"the image's stop signal {text!r} is unknown")

    @property
    def is_root(self) -> bool:
        """Whether commands run as root."""
        return self.user.partition(":")[0] in ("", "0", "root")

    def argv(self, command: ListOf[str] | None = None) -> tuple[str, ...]:
        """Return the argv: the entrypoint followed by ``command``, or by the image's own command.

        Source: OCI image specification, config.md.
        """
        return (*self.entrypoint, *(self.command if command is None else command))


@attrs.frozen(kw_only=True)
class History:
    """The origin of one layer, or an instruction that made no layer.

    Args:
        created: RFC 3339 time, or empty.
        created_by: the command.
        author: the author, or empty.
        comment: free text.
        empty_layer: whether it made no layer.

    Source: OCI image specification, config.md, "history".
    """

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """Parse one object of ``history``."""
        return cls(
            created=document.text("created", ""),
            created_by=document.text("created_by", ""),
            author=document.text("author", ""),
            comment=document.text("comment", ""),
            empty_layer=document.content.get("empty_layer") is True,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object, without empty fields."""
        return {
            key: value
            for key, value in attrs.asdict(self).items()
            if value  # each field has the name from the specification
        }


@attrs.frozen(kw_only=True)
class ImageConfig:
    """The config of an image.

    Args:
        platform: the platform on which it runs.
        defaults: the defaults of containers made from it.
        diff_ids: digests of the uncompressed layers, lowest first.
        history: its history, oldest first.
        created: RFC 3339 time, or empty.
        author: the author, or empty.
        raw: the original bytes, of which the image's id is the digest. They are made if not given.

    Source: OCI image specification, config.md.
    """

    platform: Platform
    defaults: Defaults = attrs.field(factory=Defaults)
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[History, ...] = ()
    created: str = ""
    author: str = ""
    raw: bytes = attrs.field(default=b"", repr=False)

    def __attrs_post_init__(self) -> None:
        if not self.raw:
            object.__setattr__(self, "raw", encode(self.to_json()))

    @classmethod
    def parse(cls, raw: bytes, place: str = "config") -> Self:
        """Parse a config.

        Raises:
            ImageError: it is malformed.

        Source: OCI image specification, config.md.
        """
        document = Document.read(raw, place)
        inner = document.child("config")
        rootfs = document.child("rootfs")
        return cls(
            platform=Platform(
                os=document.text("os", "linux"),
                architecture=document.text("architecture", "unknown"),
                variant=document.text("variant", ""),
                os_version=document.text("os.version", ""),
                os_features=document.texts("os.features"),
            ),
            defaults=Defaults() if inner is None else Defaults.from_document(inner),
            diff_ids=() if rootfs is None else rootfs.digests("diff_ids"),
            history=tuple(History.from_document(child) for child in document.children("history")),
            created=document.text("created", ""),
            author=document.text("author", ""),
            raw=raw,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        content: dict[str, Any] = {"created": self.created, "author": self.author}
        content = {key: value for key, value in content.items() if value}
        content |= {"architecture": self.platform.architecture, "os": self.platform.os}
        if self.platform.variant:
            content["variant"] = self.platform.variant
        content["config"] = self.defaults.to_json()
        content["rootfs"] = {"type": "layers", "diff_ids": [str(digest) for digest in self.diff_ids]}
        content["history"] = [entry.to_json() for entry in self.history]
        return content

    @explained
    def evolve(self, **changes: Unpack[ConfigOptions]) -> Self:
        """Return a changed copy with new bytes.

        Args:
            options: see :class:`containerkit.image.options.ConfigOptions`.

        Raises:
            SpecError: ``raw`` is among the changes.
        """
        if "raw" in changes:
            raise SpecError("the bytes of a config follow from its fields; raw can't be given")
        return attrs.evolve(self, raw=b"", **changes)

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """For each layer, the digest that identifies it together with all layers below it.

        Source: OCI image specification, config.md, "Layer ChainID".
        """
        return chain_ids(self.diff_ids)


def chain_ids(diff_ids: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """Return for each layer of a stack, lowest first, the digest that identifies it with all layers below it.

    Source: OCI image specification, config.md, "Layer ChainID".
    """
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)


def timestamp(epoch: int | None) -> str:
    """Return the time for a field ``created``: now, or the time of a reproducible build.

    Source: RFC 3339.
    """
    from datetime import UTC, datetime

    when = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(epoch, UTC)
    return when.replace(microsecond=0).isoformat().replace("+00:00", "Z")
