"""The operations of stage 1: it joins and makes namespaces, clones stage 2, and maps its ids."""

from __future__ import annotations

from struct import pack

from containerkit._native import constants as k
from containerkit.compile.facts import JOIN_PREFIX, KERNEL_FS, MAP_BYTES, NETWORK, PID, USERNS
from containerkit.compile.root import clone_staged, clone_trees, tree_attributes
from containerkit.compile.skeleton import write_map
from containerkit.namespace import Kind
from containerkit.plan import calls
from containerkit.plan.operation import Block, Operation, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.compile.facts import Start

_MAKER: Final = "maker of proc"
_NETWORK_MAKER: Final = "maker of the network namespace"
_SIOCSIFFLAGS: Final = 0x8914
_SIOCGSKNS: Final = 0x894C
_JOINED_IN_STAGE_1: Final = (Kind.CGROUP, Kind.IPC, Kind.UTS, Kind.NETWORK, Kind.PID)
_SYS_HINT: Final = "only the owner of a network namespace can mount its /sys"


def outside(start: Start) -> list[Operation]:
    """Return the operations of stage 1 before stage 2 exists, and the clone of stage 2."""
    steps: list[Operation] = []
    if not start.host.privileged:
        steps += [
            calls.setns(Slot("holder"), k.CLONE_NEWUSER, "holder user namespace"),
            calls.setns(Slot("view"), k.CLONE_NEWNS, "view of the host's mounts"),
        ]
    if start.assembles:
        steps += clone_trees(start)
        steps.append(calls.setns(Slot("staging"), k.CLONE_NEWNS, "staging"))
        steps += clone_staged(start)
    for kind in _JOINED_IN_STAGE_1:
        if start.is_joined(kind.value):
            steps.append(join(kind))
    if start.assembles and start.is_joined("pid"):
        steps += proc_of_joined()
    if start.assembles and start.is_joined("network"):
        steps += calls.new_mount("sysfs", {}, Slot("sys"), attributes=KERNEL_FS | k.MOUNT_ATTR_RDONLY, hint=_SYS_HINT)
    if start.is_joined("mount"):
        steps.append(join(Kind.MOUNT))
    if start.is_joined("user"):
        # After this the process has no privileges over the caller's mounts.
        if start.assembles:
            steps += tree_attributes(start, Slot(JOIN_PREFIX + "user") if start.host.privileged else None)
        steps.append(join(Kind.USER))
    return [*steps, clone_inside(start)]


def clone_inside(start: Start) -> Operation:
    """Return the clone of stage 2 into the new namespaces."""
    flags = k.CLONE_PARENT | k.CLONE_FILES
    for kind in Kind:
        if kind is not Kind.TIME and start.is_new(kind.value):
            flags |= kind.flag
    if start.network_beside:
        flags &= ~Kind.NETWORK.flag
    kinds = ", ".join(kind.value for kind in Kind if flags & kind.flag)
    if start.joins_later:
        flags &= ~k.CLONE_NEWCGROUP  # otherwise its root would be the group of the cloning process
    group = start.host.joins.group
    return calls.clone(flags, "inside", pid=PID, group=group, target=f"{kinds} namespaces")


def proc_of_joined() -> list[Operation]:
    """Start a process in the joined pid namespace that mounts its /proc. Stage 1 itself stays in the caller's.

    It still has the caller's privileges: a new user namespace has none over a pid namespace that another one owns.
    """
    maker = Slot("maker of proc")
    flags = k.CLONE_VFORK | k.CLONE_FILES
    return [
        calls.clone(flags, _MAKER, pid=maker, target="maker of proc"),
        calls.call("wait4", maker, 0, k.WALL, 0, target="maker of proc"),
    ]


def proc_maker(start: Start) -> list[Operation]:
    """Return the operations of the process that mounts the /proc of a joined pid namespace."""
    if not (start.assembles and start.is_joined("pid")):
        return []
    hint = "only the owner of a pid namespace can mount its /proc: join its user namespace as well"
    first, *rest = calls.new_mount("proc", {}, Slot("proc"), attributes=KERNEL_FS, hint=hint)
    return [first._replace(label=_MAKER), *rest, calls.leave()]


def join(kind: Kind) -> Operation:
    """Return the operation that joins the given namespace of a kind."""
    return calls.setns(Slot(JOIN_PREFIX + kind.value), kind.flag, f"{kind.value} namespace")


def owner(start: Start) -> list[Operation]:
    """Write the id maps, and set the attributes and the id map of each tree."""
    steps: list[Operation] = []
    userns = None
    if start.is_new("user"):
        if not start.host.sets_groups:
            at = Slot("map")
            steps += [
                calls.open_of_process(PID, "setgroups", k.O_WRONLY, at),
                calls.write(at, b"deny", "setgroups"),
                calls.close(at),
            ]
        placeholder = bytes(MAP_BYTES)
        steps += write_map(PID, "uid_map", placeholder) + write_map(PID, "gid_map", placeholder)
        if start.host.privileged:
            userns = USERNS
            steps.append(calls.open_of_process(PID, "ns/user", k.O_RDONLY, userns))
    if start.assembles and not start.is_joined("user"):
        steps += tree_attributes(start, userns)
    return [*steps, calls.release(), *network_outside(start), calls.leave()]


def network_outside(start: Start) -> list[Operation]:
    """Make the network namespace and its /sys while stage 2 mounts.

    A process that stage 1 starts for this enters the container's user namespace, which then owns the network namespace.
    Stage 1 keeps its privileges: a container can only mount a sysfs while it sees another one, that of the staging.
    """
    if not start.network_beside:
        return []
    maker = Slot(_NETWORK_MAKER)
    clone = calls.clone(k.CLONE_VFORK | k.CLONE_FILES, _NETWORK_MAKER, pid=maker, target=_NETWORK_MAKER)
    made = [
        clone,
        calls.call("wait4", maker, 0, k.WALL, 0, target=_NETWORK_MAKER),
        calls.setns(NETWORK, k.CLONE_NEWNET, "network namespace"),
    ]
    attributes = KERNEL_FS | k.MOUNT_ATTR_RDONLY
    # Stage 2 also makes filesystems now, in other slots.
    sys = calls.new_mount("sysfs", {}, Slot("sys"), attributes=attributes, context=Slot("fsopen of sysfs"))
    own = all(mount.target != "/sys" for mount in start.spec.mounts)
    return [
        *(made if start.is_new("user") else _network()),
        *(sys if own else ()),
        calls.release(calls.NETWORK_GATE),
    ]


def _network() -> list[Operation]:
    hint = "a limit on network namespaces may be reached: see user.max_net_namespaces"
    return [calls.unshare(k.CLONE_NEWNET, "network namespace", hint), *_loopback(NETWORK)]


def network_maker(start: Start) -> list[Operation]:
    """Return the operations of the process that makes the network namespace in the container's user namespace."""
    if not (start.network_beside and start.is_new("user")):
        return []
    entered = calls.setns(USERNS, k.CLONE_NEWUSER, "the new user namespace")
    return [entered._replace(label=_NETWORK_MAKER), *_network(), calls.leave()]


def made_network(start: Start) -> list[Operation]:
    """Wait until a network namespace that was joined while it was being made is complete.

    Until then the process shares memory with the one that makes it.
    """
    return [calls.await_beside("network namespace, complete")] if start.is_joined("network") else []


def network_inside(start: Start) -> list[Operation]:
    """Join the network namespace in stage 2."""
    if not start.network_beside:
        return []
    return [
        calls.await_release(gate=calls.NETWORK_GATE),
        calls.setns(NETWORK, k.CLONE_NEWNET, "network namespace"),
        calls.close(NETWORK),
    ]


def identity(start: Start) -> list[Operation]:
    """Return the operations that set the names of the host, and bring up its loopback interface."""
    steps: list[Operation] = []
    for call, name in (("sethostname", start.spec.hostname), ("setdomainname", start.spec.domainname)):
        if start.is_new("uts") and name is not None:
            steps.append(calls.call(call, Block(name.encode()), len(name.encode()), target=name))
    if start.is_new("network") and not start.network_beside:
        steps += _loopback()
    return steps


def _loopback(result: Slot | None = None) -> list[Operation]:
    """Bring up ``lo``, which gets its addresses automatically.

    The ioctls work with any socket. Source: netdevice(7), SIOCGSKNS in sock_ioctl() of net/socket.c.

    Args:
        result: the slot for a descriptor of the network namespace.
    """
    at = Slot("socket")
    request = pack("=16sH22x", b"lo", 0x41)  # IFF_UP | IFF_RUNNING
    return [
        calls.call("socket", 1, 2 | k.O_CLOEXEC, 0, target="for lo", result=at),  # AF_UNIX, SOCK_DGRAM
        calls.call("ioctl", at, _SIOCSIFFLAGS, Block(request), target="lo up"),
        *(() if result is None else (calls.call("ioctl", at, _SIOCGSKNS, target="network namespace", result=result),)),
        calls.close(at),
    ]
