"""Find out by trials what this host can do, because a version number or a sysctl alone can be misleading."""

from __future__ import annotations

import os
import sys
from errno import EACCES, ENOSPC, ENOSYS, EPERM, EROFS, EUSERS

import attrs

from containerkit._linux import outer
from containerkit._linux.textfile import read_or_empty
from containerkit.errors import SetupError

__all__ = ["Feature", "HostReport", "probe", "why_no_namespaces"]


@attrs.frozen(kw_only=True)
class Feature:
    """One capability of a host. It is true if it is available.

    Attributes:
        name: the name of the attribute in :class:`HostReport`.
        title: a short description.
        available: whether the trial succeeded.
        detail: a version, a list, or the error that the kernel returned.
        hint: if it is missing: what needs it, or what would provide it.
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
_USERNS_RULES = (  # file, the value that forbids user namespaces, the remedy
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=65536"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that allows userns",
    ),
)

_DELEGATED = "as root, or inside a delegated subtree of version 2 (systemd-run --user --scope -p Delegate=yes ...)"
_GROUP_HINTS = {
    EACCES: _DELEGATED,
    EPERM: _DELEGATED,
    EROFS: "the cgroup filesystem is mounted read-only here: remount it writable",
}

_FEATURES = {  # name: (title, hint if it is missing)
    "system_calls": ("system calls without an outer filter against them", "start it without one"),
    "own_root": ("the root of the mount namespace as /", outer.CHROOT),
    "leases": ("locks of id ranges in /run/containerkit/ids", outer.RUN),
    "clone3": ("clone3", f"starting containers needs Linux 5.3 {_OUTER}"),
    "pidfd": ("pidfds", f"signals that can't hit another process need Linux 5.3 {_OUTER}"),
    "close_range": ("close_range", f"closing what a container must not inherit needs Linux 5.9 {_OUTER}"),
    "openat2": ("openat2", f"paths that can't lead out of a root need Linux 5.6 {_OUTER}"),
    "mount_api": ("the new mount API", f"detached mounts need Linux 5.2 {_OUTER}"),
    "mount_setattr": ("mount_setattr", f"recursive read-only mounts need Linux 5.12 {_OUTER}"),
    "namespaces": ("namespaces", "use a kernel built with these kinds, or 'host' for them in Namespaces"),
    "user_namespaces": ("user namespaces for this user", "needed unless root asks for user='host'"),
    "user_namespaces_unprivileged": ("user namespaces for unprivileged users", "needed for containers without root"),
    "nested_user_namespaces": ("user namespaces inside user namespaces", "needed for containers inside containers"),
    "proc_in_user_namespace": (
        "a fresh /proc in a user namespace",
        f"the kernel requires a /proc without covered parts; start an outer container with {outer.UNMASK}",
    ),
    "time_namespace_on_exec": (
        "entering a new time namespace by exec",
        "needs Linux 6.3; before that only children created after the unshare enter it",
    ),
    "idmapped_mounts": ("idmapped mounts", "need Linux 5.12 and a filesystem with support; otherwise files are copied"),
    "idmapped_programs": (
        "idmapped mounts of the machine's programs",
        "an overlay does not support id maps: in RootFS.host() such programs belong to nobody and can't be changed",
    ),
    "overlay": ("overlay mounts", "the kernel's overlay module: modprobe overlay"),
    "overlay_in_user_namespace": ("overlay mounts in a user namespace", "Linux 5.11 and the overlay module"),
    "cgroup1": (
        "control groups of version 1",
        "not needed if version 2 has the controllers; otherwise run mount -t cgroup -o CONTROLLER, as root",
    ),
    "cgroup2": (
        "control groups of version 2",
        "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2; version 1 has limits too",
    ),
    "cgroup_kill": (
        "cgroup.kill",
        "needs Linux 5.14 and version 2; without it groups are frozen and their processes signalled",
    ),
    "landlock": ("Landlock", "Linux 5.13 with lsm=landlock among the boot arguments"),
    "seccomp": ("seccomp filters", "a kernel built with CONFIG_SECCOMP_FILTER"),
    "seccomp_notify": ("seccomp user notification", "Linux 5.0"),
    "keyrings": ("session keyrings", f"a kernel built with CONFIG_KEYS {_OUTER}"),
    "id_map_helpers": ("newuidmap and newgidmap", "in the package uidmap; without them a user can map only one id"),
}


@attrs.frozen(kw_only=True)
class HostReport:
    """The result of :func:`probe`. Printed, it is a table.

    Attributes:
        kernel: the kernel's release, such as ``"6.1.0-18-amd64"``.
        machine: such as ``"x86_64"``.
        privileged: whether the caller can create namespaces without a user namespace (CAP_SYS_ADMIN).
        max_user_namespaces: the limit ``user.max_user_namespaces``, or -1 if the kernel has none.
        landlock_abi: the Landlock ABI, or 0 for none.
        namespace_kinds: the kinds of namespaces that can be created, with the caller's privileges or in a user
            namespace.
        idmapped_filesystems: mounted filesystems whose mounts this user can idmap.
        controllers: the controllers whose limits this user can set, by version 1 or 2. ``blkio`` is ``io`` on version
            1.
        system_calls: whether an outer seccomp filter allows the system calls that containers need.
        own_root: whether ``/`` is the root of the mount namespace, not a chroot.
        leases: whether id ranges can be locked with a file for each range. Only root needs it.
        clone3, pidfd, close_range, openat2, mount_api, mount_setattr, namespaces: the calls that everything needs.
        user_namespaces, user_namespaces_unprivileged, nested_user_namespaces: created, and their capabilities used.
        proc_in_user_namespace: whether the kernel mounts a fresh proc there.
        time_namespace_on_exec: whether an exec enters the pending time namespace.
        idmapped_mounts, overlay, overlay_in_user_namespace: filesystems.
        idmapped_programs: whether ``RootFS.host()`` shows the machine's programs with the ids inside.
        cgroup1, cgroup2, cgroup_kill: whether this user can create groups there, and with which controllers.
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
    controllers: frozenset[str]
    system_calls: Feature
    own_root: Feature
    leases: Feature
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
    idmapped_programs: Feature
    overlay: Feature
    overlay_in_user_namespace: Feature
    cgroup1: Feature
    cgroup2: Feature
    cgroup_kill: Feature
    landlock: Feature
    seccomp: Feature
    seccomp_notify: Feature
    keyrings: Feature
    id_map_helpers: Feature

    @property
    def features(self) -> tuple[Feature, ...]:
        """All features, in the order of the table."""
        return tuple(getattr(self, name) for name in _FEATURES)

    @property
    def missing(self) -> tuple[Feature, ...]:
        """The features that this host does not have, each with its hint."""
        return tuple(feature for feature in self.features if not feature)

    def __str__(self) -> str:
        rights = "with" if self.privileged else "without"
        head = f"Linux {self.kernel} on {self.machine}, {rights} the privilege to make namespaces"
        return "\n".join([head, *(str(feature) for feature in self.features)])


def probe(timeout: float = 30) -> HostReport:
    """Find out by trials what this host lets the caller do.

    A fresh interpreter makes the trials, each in a short-lived process. They do not affect the caller's
    threads, namespaces and memory. It takes about a tenth of a second. For a moment an empty cgroup named
    ``containerkit-probe-PID`` may exist.

    Args:
        timeout: seconds after which the trials are killed. Default 30.

    Raises:
        SetupError: the trials could not be run at all.

    Source: the man page of each call that is tried.
    """
    outcomes = _tried(timeout)
    features = {
        name: _id_map_helpers(title, hint)
        if name == "id_map_helpers"
        else _feature(name, title, hint, *outcomes.get(name, (ENOSYS, "the trial did not end")))
        for name, (title, hint) in _FEATURES.items()
    }
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
        controllers=_controllers(features["cgroup1"], features["cgroup2"]),
        **features,
    )


def _tried(timeout: float) -> dict[str, tuple[int, str]]:
    """Run the trials. Return the error number and the detail of each."""
    import subprocess

    code = "import sys; sys.path[:] = sys.argv[1:]; from containerkit._linux import trials; trials.main()"
    command = [sys.executable, "-S", "-E", "-B", "-c", code, *sys.path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout, check=False, cwd="/")
        output, said = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:  # the trials that have ended count
        output, said = error.stdout or b"", b""
    except OSError as error:
        raise SetupError("probe", error.errno or 0, sys.executable, "the trials need the Python interpreter") from None
    outcomes = {}
    for line in output.decode(errors="replace").splitlines():
        name, number, detail = line.split("\t", 2)
        outcomes[name] = int(number), detail
    if not outcomes:
        reason = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise SetupError("probe", ENOSYS, sys.executable, reason or "the trials printed nothing")
    return outcomes


def _feature(name: str, title: str, hint: str, number: int, detail: str) -> Feature:
    """Return the feature for the result of a trial: 0 or an error number, and a detail."""
    if name == "own_root" and number == EPERM and (outer.is_filtered() or _forbidding()):
        return Feature(name=name, title=title, available=True, detail="not tested: a trial is not possible here")
    if number == 0:
        return Feature(name=name, title=title, available=True, detail=detail)
    if name == "proc_in_user_namespace" and number == EPERM and not detail and (masks := outer.mounted_below("/proc")):
        detail = f"{masks} cover parts of it"
    if name == "system_calls":
        hint = outer.remedy(*detail.split())
    elif number in (EPERM, ENOSYS) and name in _CALLS_OF and outer.is_filtered():
        hint = f"a seccomp filter of this process probably refuses it: {outer.remedy(_CALLS_OF[name])}"
    said = "a chroot" if name == "own_root" else _refusal(number, detail)
    return Feature(name=name, title=title, available=False, detail=said, hint=_hint(name, hint, number))


_CALLS_OF = {
    **{name: name for name in ("clone3", "close_range", "openat2", "mount_setattr", "seccomp")},
    "pidfd": "pidfd_open",
    "mount_api": "open_tree",
    "landlock": "landlock_create_ruleset",
    "keyrings": "keyctl",
    "namespaces": "unshare",
    "seccomp_notify": "seccomp",
}
"""The system call that a feature needs."""


def _refusal(number: int, detail: str) -> str:
    text = f"killed by signal {-number}" if number < 0 else os.strerror(number).lower()
    return f"{detail}: {text}" if detail else text


def _hint(name: str, hint: str, number: int) -> str:
    """Refine the hint: for user namespaces by the rule that forbids them, for groups by the refusal."""
    if name.startswith("cgroup") and number in _GROUP_HINTS:
        return _GROUP_HINTS[number]
    if not name.startswith(("user_namespaces", "nested_")):
        return hint
    if remedy := _forbidding():
        return f"{hint}; {remedy}"
    if number in (ENOSPC, EUSERS):  # the limit of an outer namespace, not the sysctl of this one
        return f"{hint}; sysctl user.max_user_namespaces of an outer user namespace is reached, or they nest 32 deep"
    return f"{hint}; it needs a kernel with CONFIG_USER_NS {_OUTER}"


def _forbidding() -> str:
    """Return the remedy for the rule that forbids user namespaces, or an empty string."""
    return next((remedy for path, forbids, remedy in _USERNS_RULES if read_or_empty(path) == forbids), "")


def why_no_namespaces(number: int) -> str:
    """Explain, after a refusal, why the caller can't create namespaces. Other processes repeat the attempt.

    Args:
        number: the error number of the refusal.

    Returns:
        A hint, or an empty string if all trials succeed.
    """
    if number in (ENOSPC, EUSERS):
        for name in _LIMITS:
            if read_or_empty(f"/proc/sys/user/{name}") == "0":
                return (
                    f"sysctl user.{name} is 0 here, which forbids them: raise it where it was lowered, such as to 65536"
                )
    try:
        report = probe(10)
    except SetupError:  # the trials can't run: assume that the configured rule is the reason
        remedy = _forbidding()
        return f"user namespaces are forbidden here: {remedy}" if remedy else ""
    return _reason(report, number)


def _reason(report: HostReport, number: int) -> str:
    if not report.own_root:
        return report.own_root.hint
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


def _controllers(first: Feature, second: Feature) -> frozenset[str]:
    names = first.detail.split() if first else []
    if second and not second.detail.endswith(": no controllers"):
        names += second.detail.rpartition(": ")[2].split()
    return frozenset(names)


def _number(path: str) -> int:
    content = read_or_empty(path)
    return int(content) if content.isdecimal() else -1
