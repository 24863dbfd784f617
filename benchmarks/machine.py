"""The machine of a measurement. Every result contains it, because a figure without its machine means nothing."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from shutil import which
from subprocess import DEVNULL, PIPE, STDOUT, run

VERSIONS = {
    "bwrap": ("bwrap", "--version"),
    "containerexec": ("containerexec", "--version"),
    "crun": ("crun", "--version"),
    "gcc": ("gcc", "-dumpfullversion"),
    "lxc-execute": ("lxc-execute", "--version"),
    "podman": ("podman", "--version"),
    "runc": ("runc", "--version"),
    "systemd-nspawn": ("systemd-nspawn", "--version"),
    "unshare": ("unshare", "--version"),
}


def describe() -> dict[str, object]:
    """Return the properties of this machine that affect a figure."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "load_average": os.getloadavg()[0],
        "user": "root" if os.geteuid() == 0 else "ordinary",
        "distribution": _distribution(),
        "python": sys.version.split()[0],
        "packages": {name: metadata.version(name) for name in ("attrs", "cffi", "containerkit") if _installed(name)},
        "programs": {name: version for name, words in VERSIONS.items() if (version := _version(words))},
    }


def one_line(facts: dict[str, object]) -> str:
    """Return the properties for the head of a table."""
    return (
        f"{facts['cpu']}, {facts['cpus']} cpus, Linux {facts['kernel']}, Python {facts['python']},"
        f" {facts['user']} user, load {facts['load_average']:.2f}"
    )


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(("model name", "CPU part")):
                return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _version(words: tuple[str, ...]) -> str:
    if not which(words[0]):
        return ""
    done = run(words, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.stdout else "unknown"
