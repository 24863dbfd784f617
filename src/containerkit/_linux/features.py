"""What this host can do, found out by trying: a version number or a sysctl alone may lie."""

from __future__ import annotations

import os
import sys
from errno import ENOSPC, ENOSYS, EUSERS

import attrs

from containerkit.errors import SetupError

__all__ = ["Feature", "HostReport", "probe", "why_no_namespaces"]


@attrs.frozen(kw_only=True)
class Feature:
    """One thing that a host can or can't do. True in a condition when it can.

    Attributes:
        name: the attribute's name in :class:`HostReport`.
        title: what it is, in a few words.
        available: whether the trial succeeded.
        detail: more about it: a version, a list, or the kernel's refusal.
        hint: when it is missing: what for, and what would provide it.
    """

    name: str
    title: str
    available: bool
    detail: str = ""
    hint: str = ""

    def __bool__(self) -> bool:
        return self.available

    def __str__(self) -> str:
        detail = f": {self.detail}" if self.detail else ""
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{'yes' if self.available else 'no':4}{self.title}{detail}{hint}"


_OUTER = "and no outer seccomp filter against it"
_USERNS_RULES = (  # where it is written, the value that forbids, the remedy
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=65536"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns",
    ),
)

_FEATURES = {  # name: (title, hint when it is missing)
    "clone3": ("clone3", f"starting containers takes Linux 5.3 {_OUTER}"),
    "pidfd": ("pidfds", f"signals that can't hit a stranger take Linux 5.3 {_OUTER}"),
    "close_range": ("close_range", f"closing what a container must not inherit takes Linux 5.9 {_OUTER}"),
    "openat2": ("openat2", f"paths that can't lead out of a root take Linux 5.6 {_OUTER}"),
    "mount_api": ("the new mount API", f"detached mounts take Linux 5.2 {_OUTER}"),
    "mount_setattr": ("mount_setattr", f"recursive read-only mounts take Linux 5.12 {_OUTER}"),
    "namespaces": ("namespaces", "a kernel built with those kinds; 'host' in Namespaces does without one"),
    "user_namespaces": ("user namespaces for this user", "needed unless root asks for user='host'"),
    "user_namespaces_unprivileged": ("user namespaces for ordinary users", "needed to start containers without root"),
    "nested_user_namespaces": ("user namespaces inside user namespaces", "needed for containers inside containers"),
    "proc_in_user_namespace": (
        "a fresh /proc in a user namespace",
        "the kernel wants a /proc in full sight; in an outer container start that one with unmasked paths",
    ),
    "time_namespace_on_exec": (
        "entering a new time namespace by exec",
        "Linux 6.3; before that only children born after the unshare are inside",
    ),
    "idmapped_mounts": ("idmapped mounts", "Linux 5.12 and a filesystem that takes part; without, files are copied"),
    "overlay": ("overlay mounts", "the kernel's overlay module: modprobe overlay"),
    "overlay_in_user_namespace": ("overlay mounts in a user namespace", "Linux 5.11 and the overlay module"),
    "cgroup2": ("cgroup version 2", "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2"),
    "cgroup_kill": ("cgroup.kill", "Linux 5.14, and a cgroup2 folder that this user may write to"),
    "landlock": ("Landlock", "Linux 5.13 with lsm=landlock among the boot arguments"),
    "seccomp": ("seccomp filters", "a kernel built with CONFIG_SECCOMP_FILTER"),
    "seccomp_notify": ("seccomp user notification", "Linux 5.0"),
    "keyrings": ("session keyrings", f"a kernel built with CONFIG_KEYS {_OUTER}"),
    "id_map_helpers": ("newuidmap and newgidmap", "the package uidmap; without, an ordinary user maps one id"),
}


@attrs.frozen(kw_only=True)
class HostReport:
    """What :func:`probe` found out; printed, it is a table for people.

    Attributes:
        kernel: the kernel's release, such as ``"6.1.0-18-amd64"``.
        machine: such as ``"x86_64"``.
        privileged: whether the caller may make namespaces by its own right (CAP_SYS_ADMIN).
        max_user_namespaces: the limit of ``user.max_user_namespaces``; -1 where the kernel has none.
        landlock_abi: the version of Landlock, 0 when there is none.
        namespace_kinds: the kinds of namespaces that can be made, by the own right or in a user namespace.
        idmapped_filesystems: those mounted here whose mounts can be idmapped by this user.
        clone3, pidfd, close_range, openat2, mount_api, mount_setattr, namespaces: the calls that all rests on.
        user_namespaces, user_namespaces_unprivileged, nested_user_namespaces: made, and their capabilities put to use.
        proc_in_user_namespace: whether the kernel mounts a fresh proc there.
        time_namespace_on_exec: whether an exec enters the pending time namespace.
        idmapped_mounts, overlay, overlay_in_user_namespace: filesystems.
        cgroup2, cgroup_kill: groups.
        landlock, seccomp, seccomp_notify, keyrings: security.
        id_map_helpers: newuidmap(1) and newgidmap(1).
    """

    kernel: str
    machine: str
    privileged: bool
    max_user_namespaces: int
    landlock_abi: int
    namespace_kinds: frozenset[str]
    idmapped_filesystems: frozenset[str]
    clone3: Feature
    pidfd: Feature
    close_range: Feature
    openat2: Feature
    mount_api: Feature
    mount_setattr: Feature
    namespaces: Feature
    user_namespaces: Feature
    user_namespaces_unprivileged: Feature
    nested_user_namespaces: Feature
    proc_in_user_namespace: Feature
    time_namespace_on_exec: Feature
    idmapped_mounts: Feature
    overlay: Feature
    overlay_in_user_namespace: Feature
    cgroup2: Feature
    cgroup_kill: Feature
    landlock: Feature
    seccomp: Feature
    seccomp_notify: Feature
    keyrings: Feature
    id_map_helpers: Feature

    @property
    def features(self) -> tuple[Feature, ...]:
        """All of them, in the order of the table."""
        return tuple(getattr(self, name) for name in _FEATURES)

    @property
    def missing(self) -> tuple[Feature, ...]:
        """Those that this host lacks, each with its hint."""
        return tuple(feature for feature in self.features if not feature)

    def __str__(self) -> str:
        rights = "with" if self.privileged else "without"
        head = f"Linux {self.kernel} on {self.machine}, {rights} the right to make namespaces"
        return "\n".join([head, *(str(feature) for feature in self.features)])


def probe(timeout_s: float = 30) -> HostReport:
    """Find out what this host lets the caller do, by trying.

    A fresh interpreter makes the trials, each in a process that ends right afterwards; the caller's own threads,
    namespaces and memory have no part in it. It takes about a tenth of a second. For a moment there may be an empty
    cgroup named ``containerkit-probe-PID``.

    Args:
        timeout_s: seconds after which the trials are killed; default 30.

    Raises:
        SetupError: the trials could not be run at all.

    Source: the man page of each call that is tried.
    """
    outcomes = _tried(timeout_s)
    features = {}
    for name, (title, hint) in _FEATURES.items():
        if name == "id_map_helpers":
            features[name] = _id_map_helpers(title, hint)
            continue
        number, detail = outcomes.get(name, (ENOSYS, "the trial did not end"))
        if number == 0:
            features[name] = Feature(name=name, title=title, available=True, detail=detail)
        else:
            said = _refusal(number, detail)
            features[name] = Feature(
                name=name, title=title, available=False, detail=said, hint=_hint(name, hint, number)
            )
    landlock = features["landlock"]
    return HostReport(
        kernel=os.uname().release,
        machine=os.uname().machine,
        privileged=outcomes.get("privileged", (1, ""))[0] == 0,
        max_user_namespaces=_number("/proc/sys/user/max_user_namespaces"),
        landlock_abi=int(landlock.detail.removeprefix("ABI ")) if landlock else 0,
        namespace_kinds=_kinds(outcomes),
        idmapped_filesystems=frozenset(
            features["idmapped_mounts"].detail.split() if features["idmapped_mounts"] else ()
        ),
        **features,
    )


def _tried(timeout_s: float) -> dict[str, tuple[int, str]]:
    """Run the trials; returns the error number and the detail of each."""
    import subprocess

    code = "import sys; sys.path[:] = sys.argv[1:]; from containerkit._linux import trials; trials.main()"
    command = [sys.executable, "-S", "-E", "-B", "-c", code, *sys.path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, cwd="/")
        output, said = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:  # what was tried by then counts
        output, said = error.stdout or b"", b""
    except OSError as error:
        raise SetupError("probe", error.errno or 0, sys.executable, "the trials need the Python interpreter") from None
    outcomes = {}
    for line in output.decode(errors="replace").splitlines():
        name, number, detail = line.split("\t", 2)
        outcomes[name] = int(number), detail
    if not outcomes:
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise SetupError("probe", ENOSYS, sys.executable, reason or "the trials said nothing")
    return outcomes


def _refusal(number: int, detail: str) -> str:
    text = f"killed by signal {-number}" if number < 0 else os.strerror(number).lower()
    return f"{detail}: {text}" if detail else text


def _hint(name: str, hint: str, number: int) -> str:
    """Sharpen the hint about user namespaces by the rule that forbids them."""
    if not name.startswith(("user_namespaces", "nested_")):
        return hint
    for path, forbids, remedy in _USERNS_RULES:
        if _content(path) == forbids:
            return f"{hint}; {remedy}"
    if number in (ENOSPC, EUSERS):  # the sysctl here shows another number than that which counts
        return f"{hint}; sysctl user.max_user_namespaces is used up in an outer user namespace, or they nest 32 deep"
    return f"{hint}; it takes a kernel with CONFIG_USER_NS {_OUTER}"


def why_no_namespaces(number: int) -> str:
    """Say what keeps the caller from making namespaces, after a refusal. It tries again, in other processes.

    Args:
        number: the error number of the refusal.

    Returns:
        A hint for people; empty when the trials find nothing that is forbidden.
    """
    if number in (ENOSPC, EUSERS):
        for name in _LIMITS:
            if _content(f"/proc/sys/user/{name}") == "0":
                return (
                    f"sysctl user.{name} is 0 here, which forbids them: raise it where it was lowered, such as to 65536"
                )
    try:
        report = probe(10)
    except SetupError:  # it can't even be tried: the rule that stands written will be the reason
        remedies = [remedy for path, forbids, remedy in _USERNS_RULES if _content(path) == forbids]
        return f"user namespaces are forbidden here: {remedies[0]}" if remedies else ""
    if not report.user_namespaces:
        detail = report.user_namespaces.detail
        return f"user namespaces can't be used here ({detail}): {report.user_namespaces.hint.partition('; ')[2]}"
    if number in (ENOSPC, EUSERS):
        return "a limit on namespaces is reached: see user.max_*_namespaces here and in outer user namespaces"
    if not report.namespaces:
        return f"a kind of namespace can't be made here ({report.namespaces.detail}): {report.namespaces.hint}"
    return ""


_LIMITS = tuple(f"max_{kind}_namespaces" for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"))


def _id_map_helpers(title: str, hint: str) -> Feature:
    from shutil import which

    found = [which(name) for name in ("newuidmap", "newgidmap")]
    if all(found):
        return Feature(name="id_map_helpers", title=title, available=True)
    return Feature(name="id_map_helpers", title=title, available=False, hint=hint)


def _kinds(outcomes: dict[str, tuple[int, str]]) -> frozenset[str]:
    kinds = frozenset(("mount", "pid", "network", "ipc", "uts", "user", "cgroup", "time"))
    number, detail = outcomes.get("namespaces", (ENOSYS, ""))
    if number == 0:
        return kinds
    return kinds - frozenset(detail.split()) if detail else frozenset()


def _content(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _number(path: str) -> int:
    content = _content(path)
    return int(content) if content.isdecimal() else -1
