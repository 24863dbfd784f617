"""Roots made from the packages of a distribution: ``debian``, ``ubuntu``, ``alpine``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from errno import ENOENT, EPERM
from typing import TYPE_CHECKING, Final

from containerkit.errors import ImageError, SpecError, UnsupportedError
from containerkit.image.config import DEFAULT_PATH, Defaults
from containerkit.image.templates import Template
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["ALPINE", "DEBIAN", "UBUNTU"]

_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_ALPINE: Final = "https://dl-cdn.alpinelinux.org/alpine"
_ALPINE_NAMES: Final = {"amd64": "x86_64", "arm64": "aarch64", "386": "x86", "arm": "armv7"}
_VARIANTS: Final = ("minbase", "apt", "essential", "standard", "buildd")


def _checked(what: str, *words: str) -> None:
    for word in words:
        if not isinstance(word, str) or _WORD.fullmatch(word) is None:
            raise SpecError(f"template {what}: {word!r} is not a well-formed name")


def _bootstrap(
    root: Path, what: str, suite: str, mirror: str, variant: str, packages: Sequence[str], components: Sequence[str]
) -> Defaults:
    """Fill a directory with mmdebstrap, or with debootstrap if that is not installed."""
    _checked(what, suite, *packages, *components)
    if variant not in _VARIANTS:
        raise SpecError(f"template {what}: the variant must be one of {', '.join(_VARIANTS)}, not {variant!r}")
    if mirror.startswith("-"):
        raise SpecError(f"template {what}: {mirror!r} is not an address")
    archive = root.parent / "archive" if os.geteuid() != 0 else None
    if shutil.which("mmdebstrap"):
        command = ["mmdebstrap", f"--variant={variant}", f"--components={','.join(components)}"]
        command += [f"--include={','.join(packages)}"] if packages else []
        # For an unprivileged user it runs with ids that can't access the directory.
        command += ["--format=directory"] if archive is None else ["--format=tar", "--skip=output/dev"]
        command += [suite, str(archive or root), *([mirror] if mirror else [])]
    elif shutil.which("debootstrap"):
        if os.geteuid() != 0:
            raise UnsupportedError(f"template {what}", EPERM, "debootstrap", "install mmdebstrap, or run as root")
        chosen = {"minbase": "minbase", "buildd": "buildd"}.get(variant)
        if chosen is None and variant != "standard":
            raise SpecError(f"template {what}: the variant {variant!r} needs mmdebstrap")
        command = ["debootstrap", *([f"--variant={chosen}"] if chosen else []), f"--components={','.join(components)}"]
        command += [f"--include={','.join(packages)}"] if packages else []
        command += [suite, str(root), *([mirror] if mirror else [])]
    else:
        raise UnsupportedError(f"template {what}", ENOENT, "mmdebstrap", "install mmdebstrap or debootstrap")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise _failure(what, command[0], (done.stderr or done.stdout).strip())
    if archive is not None:
        _extract(archive, root)
    root.chmod(0o755)
    return Defaults(command=("/bin/bash",), env={"PATH": DEFAULT_PATH})


def _failure(what: str, program: str, said: str) -> ImageError | UnsupportedError:
    if "unable to pick chroot mode" in said:
        hint = (
            "for an unprivileged user it needs id ranges: add a line such as 'NAME:100000:65536' to /etc/subuid and "
            "/etc/subgid, and install newuidmap; or run as root"
        )
        return UnsupportedError(f"template {what}", EPERM, program, hint)
    return ImageError(f"template {what}: {program} failed: {said[-400:]}")


def _extract(archive: Path, root: Path) -> None:
    """Extract an archive to a directory, with the owners that the user can set, and delete it."""
    try:
        userns_helper.call(_extract_all, archive, root)
    finally:
        archive.unlink()


def _extract_all(archive: Path, root: Path) -> None:
    from containerkit.archive.extract import Extraction
    from containerkit.image.layers.unpack import extract_blob

    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with archive.open("rb", buffering=0) as file:
            extract_blob(file, descriptor, None, Extraction.for_user())
    finally:
        os.close(descriptor)


def _make_debian(
    root: Path,
    *,
    suite: str = "stable",
    mirror: str = "",
    variant: str = "minbase",
    packages: Sequence[str] = (),
    components: Sequence[str] = ("main",),
) -> Defaults:
    """Fill a directory with Debian.

    Args:
        root: the directory.
        suite: such as ``bookworm``.
        mirror: the address of the archive. Default: the tool's own.
        variant: ``minbase``, ``apt``, ``essential``, ``standard`` or ``buildd``.
        packages: more packages.
        components: components of the archive.
    """
    return _bootstrap(root, "debian", suite, mirror, variant, packages, components)


def _make_ubuntu(
    root: Path,
    *,
    suite: str = "noble",
    mirror: str = "http://archive.ubuntu.com/ubuntu",
    variant: str = "minbase",
    packages: Sequence[str] = (),
    components: Sequence[str] = ("main", "universe"),
) -> Defaults:
    """Fill a directory with Ubuntu. The arguments are the same as for Debian."""
    return _bootstrap(root, "ubuntu", suite, mirror, variant, packages, components)


def _make_alpine(
    root: Path, *, branch: str = "latest-stable", mirror: str = _ALPINE, packages: Sequence[str] = (), apk: str = ""
) -> Defaults:
    """Fill a directory with Alpine, with apk if there is one, otherwise from the distribution's small root archive.

    Args:
        root: the directory.
        branch: such as ``v3.20``.
        mirror: the address of the archive.
        packages: more packages; they need apk.
        apk: the program. Default: ``apk`` or ``apk.static`` on the PATH.
    """
    from containerkit.image.platform import Platform

    _checked("alpine", branch, *packages)
    architecture = _ALPINE_NAMES.get(Platform.host().architecture, Platform.host().architecture)
    program = apk or shutil.which("apk") or shutil.which("apk.static")
    defaults = Defaults(command=("/bin/sh",), env={"PATH": DEFAULT_PATH})
    if program:
        command = [program, "--root", str(root), "--arch", architecture, "--initdb", "--allow-untrusted"]
        for section in ("main", "community"):
            command += ["--repository", f"{mirror}/{branch}/{section}"]
        done = subprocess.run([*command, "add", "alpine-base", *packages], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ImageError(f"template alpine: {program} failed: {(done.stderr or done.stdout).strip()[-400:]}")
        return defaults
    if packages:
        raise UnsupportedError("template alpine", ENOENT, "apk", "install apk.static, or leave packages out")
    _fetch_alpine(root, f"{mirror}/{branch}/releases/{architecture}")
    return defaults


def _fetch_alpine(root: Path, address: str) -> None:
    """Fetch the small root archive of a release, and check its published checksum."""
    from containerkit.image.build.copying import fetch

    listing, archive = root.parent / "releases", root.parent / "archive"
    fetch(f"{address}/latest-releases.yaml", listing)
    name, checksum = _minirootfs(listing.read_text("utf-8", "replace"))
    fetch(f"{address}/{name}", archive, f"sha256:{checksum}")
    listing.unlink()
    _extract(archive, root)


def _minirootfs(listing: str) -> tuple[str, str]:
    """Find the archive and its checksum in the list of a release."""
    for block in re.split(r"(?m)^-\s*$", listing):
        fields = dict(re.findall(r"(?m)^\s+([a-z0-9]+):\s*\"?([^\"\n]*)\"?\s*$", block))
        if fields.get("flavor") == "alpine-minirootfs" and "/" not in fields.get("file", "/"):
            return fields["file"], fields.get("sha256", "")
    raise ImageError("template alpine: the release's list of files contains no alpine-minirootfs")


DEBIAN: Final = Template(make=_make_debian)
UBUNTU: Final = Template(make=_make_ubuntu)
ALPINE: Final = Template(make=_make_alpine)
