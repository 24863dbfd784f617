"""The operations of a plan, each named after its system call."""

from __future__ import annotations

import os
from errno import EEXIST
from struct import pack

from containerkit._native import constants as k
from containerkit.plan.operation import ENVP, Argument, Block, Operation, Slot, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final


def call(
    name: str,
    *args: Argument,
    target: str = "",
    result: Slot | None = None,
    tolerate: tuple[int, ...] = (),
    hint: str = "",
    label: str = "",
    skip: int = 0,
) -> Operation:
    """Return the operation of any system call of the table in ``_native/constants.py``, by its name."""
    return Operation(name, target, k.STEP_CALL, k.SYSTEM_CALLS[name], args, result, tolerate, hint, "", label, skip)


def text(path: bytes | str) -> str:
    """Return a path as text."""
    return os.fsdecode(path)


def setns(descriptor: int | Slot, kinds: int, target: str, hint: str = "") -> Operation:
    """Join namespaces. Source: setns(2)."""
    return call("setns", descriptor, kinds, target=target, hint=hint)


def unshare(kinds: int, target: str, hint: str = "") -> Operation:
    """Leave namespaces for new ones. Source: unshare(2)."""
    return call("unshare", kinds, target=target, hint=hint)


def clone(
    flags: int, child: str, *, pid: Slot, group: Slot | None = None, target: str = "", hint: str = ""
) -> Operation:
    """Clone a process, which continues at the label ``child``. This process continues with the next operation.

    Args:
        flags: ``CLONE_*``.
        child: the label.
        pid: the slot for its pid.
        group: the slot of the version 2 control group in which it starts.
        target, hint: for messages.

    Source: clone3(2).
    """
    if group is not None:
        flags |= k.CLONE_INTO_CGROUP
    arguments = (flags, 0 if group is None else group, 0, 0, 0, 0)
    return Operation("clone", target, k.STEP_CLONE, 0, arguments, pid, (), hint, child)


OWNER_GATE: Final = 0
"""The gate at which the first process inside waits until stage 1 has mapped its ids."""


PAYLOAD_GATE: Final = 1
"""The gate at which the command waits until PID 1 has unmounted the host's root."""


NETWORK_GATE: Final = 2
"""The gate at which the first process inside waits until stage 1 has made its network namespace."""


BESIDE_GATE: Final = 3
"""The gate of :func:`await_beside`."""


FIRST, GO_ON, LAST = 0, 1, 2
"""The gates of a plan that is walked beside its caller: see ``_native/beside.h``."""


def await_beside(target: str, hint: str = "") -> Operation:
    """Sleep until the plan that is walked beside this start has ended, if there is one. It fails if that one did."""
    return Operation("await_beside", target, k.STEP_AWAIT, 0, (BESIDE_GATE,), hint=hint)


def await_release(label: str = "", *, gate: int = OWNER_GATE) -> Operation:
    """Sleep until the process that cloned this one calls :func:`release`."""
    return Operation("await_release", step=k.STEP_AWAIT, args=(gate,), label=label)


def release(gate: int = OWNER_GATE) -> Operation:
    """Wake the process that waits in :func:`await_release`."""
    return Operation("release", step=k.STEP_RELEASE, args=(gate,))


def hold() -> Operation:
    """Sleep until a second plan is available, and continue with it."""
    return Operation("hold", step=k.STEP_HOLD)


def leave(label: str = "") -> Operation:
    """End this process. The tape continues in the process that it cloned."""
    return Operation("leave", step=k.STEP_LEAVE, label=label)


def become_init(image: Slot, mode: bytes, first: int) -> Operation:
    """Become the init in ``image``, a sealed memfd. ``init.c`` documents its modes.

    It closes all descriptors from ``first`` on. A process that runs that program already continues as the init.
    """
    return Operation("become_init", mode.decode(), k.STEP_INIT, 0, (image, mode, first))


def enter(image: Slot, kept: Iterable[int] = (), *, board: bool = False) -> Operation:
    """Enter the sealed init, which shares no memory with other processes. It executes the rest of the plan.

    Only the standard descriptors, and those in slots that later operations use, stay open.

    Args:
        image: the init, a sealed memfd.
        kept: numbers of more descriptors that stay open.
        board: whether it has a board, through which a held start gets its second plan.
    """
    return Operation("enter", "the sealed init", k.STEP_ENTER, 0, (image, numbers(kept), 0, int(board)))


def strip(image: Slot, kept: Iterable[int | Slot] = (), *, itself: bool = False) -> Operation:
    """Close all descriptors except the standard ones and ``kept``.

    An exec would close them only after it has looked up the program.

    Another process reports later failures. This one must not share memory with the host's processes: see :func:`enter`.

    Args:
        image: the init, for an interpreter that only enters it here.
        kept: numbers in ascending order, or slots, whose numbers are higher.
        itself: whether the process itself reports later failures, and so keeps the descriptor for it. It does not exec
            next.
    """
    telling = k.TELL_ITSELF if itself else k.TELL_OUTSIDE
    return Operation("strip", "all but the command's own", k.STEP_STRIP, 0, (numbers(kept), 0, telling, image))


def open_of_process(pid: Slot, name: str, flags: int, result: Slot, hint: str = "") -> Operation:
    """Open ``/proc/PID/NAME`` through the caller's own procfs, not through the one where the step runs."""
    return Operation("open", f"/proc/PID/{name}", k.STEP_OPEN_PROC, 0, (pid, name.encode(), flags), result, (), hint)


def helper(argv: tuple[bytes, ...], pid: Slot, hint: str = "") -> Operation:
    """Run a program and wait for it. The argument ``b"PID"`` is replaced by the slot's value.

    The maximum is 32 arguments. It fails with ``ECANCELED`` if the program ends with a status other than 0.
    """
    joined = b"\0".join(argv) + b"\0"
    return Operation(argv[0].decode(), "", k.STEP_HELPER, 0, (Block(joined), len(argv), pid), None, (), hint)


def reset_signals() -> Operation:
    """Give each signal its default disposition and unblock all. Source: rt_sigaction(2), rt_sigprocmask(2)."""
    return Operation("reset_signals", step=k.STEP_SIGNALS)


def die_with_owner(owner: Slot) -> list[Operation]:
    """Make the kernel kill this process when the thread that started it ends. Exit if the thread has already ended.

    A change of user undoes this. Source: PR_SET_PDEATHSIG(2const).
    """
    return [
        prctl("die with the parent", k.PR_SET_PDEATHSIG, 9),
        Operation("lives", owner.name, k.STEP_LIVES, 0, (owner,)),
    ]


def own_pid(variable: str) -> Operation:
    """Write the process's own pid into the first variable of the environment, which has room for it."""
    return Operation("own_pid", variable, k.STEP_OWN_PID, 0, (ENVP, len(variable) + 1))


def close(descriptor: Slot) -> Operation:
    """Close the descriptor in a slot, which then holds -1. Source: close(2)."""
    return Operation("close", descriptor.name, k.STEP_CLOSE, 0, (descriptor,))


def write(descriptor: Slot, content: bytes, target: str, hint: str = "", tolerate: tuple[int, ...] = ()) -> Operation:
    """Write bytes in one call. Source: write(2)."""
    return call("write", descriptor, Block(content), len(content), target=target, hint=hint, tolerate=tolerate)


def open_at(
    directory: int | Slot,
    path: bytes,
    flags: int,
    result: Slot,
    *,
    target: str = "",
    hint: str = "",
    tolerate: tuple[int, ...] = (),
) -> Operation:
    """Open a path below a directory. Source: openat(2)."""
    return call(
        "openat",
        directory,
        path,
        flags | k.O_CLOEXEC,
        0,
        target=target or text(path),
        result=result,
        hint=hint,
        tolerate=tolerate,
    )


def open_inside(
    root: int | Slot,
    path: bytes,
    flags: int,
    result: Slot,
    *,
    mode: int = 0,
    resolve: int = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS,
    target: str = "",
    hint: str = "",
    tolerate: tuple[int, ...] = (),
) -> Operation:
    """Open a path without leaving ``root``, even through symlinks. Source: openat2(2)."""
    how = pack("=QQQ", flags | k.O_CLOEXEC, mode, resolve)
    return call(
        "openat2",
        root,
        path,
        Block(how),
        len(how),
        target=target or text(path),
        result=result,
        hint=hint,
        tolerate=tolerate,
    )


def write_file(path: bytes, content: bytes, hint: str = "", directory: int | Slot = k.AT_FDCWD) -> list[Operation]:
    """Open an existing file, write to it and close it."""
    at = Slot("write_file")
    return [
        open_at(directory, path, k.O_WRONLY, at, hint=hint),
        write(at, content, text(path), hint),
        close(at),
    ]


def make_directory(
    directory: int | Slot, path: bytes, mode: int = 0o755, *, target: str = "", hint: str = ""
) -> Operation:
    """Make a directory unless the name exists. Source: mkdirat(2)."""
    return call("mkdirat", directory, path, mode, target=target or text(path), tolerate=(EEXIST,), hint=hint)


def make_node(
    directory: int | Slot, path: bytes, mode: int, device: int = 0, *, target: str = "", hint: str = ""
) -> Operation:
    """Make a file or device node unless the name exists. Source: mknodat(2)."""
    return call("mknodat", directory, path, mode, device, target=target or text(path), tolerate=(EEXIST,), hint=hint)


def make_symlink(directory: int | Slot, path: bytes, content: bytes) -> Operation:
    """Make a symlink unless the name exists. Source: symlinkat(2)."""
    return call("symlinkat", content, directory, path, target=text(path), tolerate=(EEXIST,))


def mount(
    source: bytes, path: bytes, kind: bytes, flags: int = 0, data: bytes = b"", *, hint: str = "", target: str = ""
) -> Operation:
    """Mount with the classic system call. Source: mount(2)."""
    what = text(kind) or text(source)
    return call("mount", source, path, kind, flags, data, target=target or f"{what} on {text(path)}", hint=hint)


def propagation(path: bytes, flags: int) -> Operation:
    """Set the propagation of a mount. Source: mount(2), mount_namespaces(7)."""
    return call("mount", b"none", path, 0, flags, 0, target=f"propagation of {text(path)}")


def unmount(path: bytes, flags: int = k.MNT_DETACH) -> Operation:
    """Unmount a filesystem. Source: umount2(2)."""
    return call("umount2", path, flags, target=text(path))


def open_tree(
    directory: int | Slot, path: bytes, result: Slot, *, recursive: bool = False, target: str = "", hint: str = ""
) -> Operation:
    """Clone a mount into a detached tree; with ``recursive`` the mounts below it too. Source: open_tree(2)."""
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | (k.AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= k.AT_EMPTY_PATH
    return call("open_tree", directory, path, flags, target=target or text(path), result=result, hint=hint)


def move_mount(tree: Slot | int, directory: int | Slot, path: bytes, *, target: str = "", hint: str = "") -> Operation:
    """Attach a detached tree. An empty ``path`` attaches it to the descriptor itself. Source: move_mount(2)."""
    flags = k.MOVE_MOUNT_F_EMPTY_PATH | (0 if path else k.MOVE_MOUNT_T_EMPTY_PATH)
    return call("move_mount", tree, b"", directory, path, flags, target=target or text(path), hint=hint)


def mount_setattr(
    tree: int | Slot,
    *,
    path: bytes = b"",
    set_flags: int = 0,
    clear_flags: int = 0,
    propagation_flags: int = 0,
    userns: Slot | None = None,
    recursive: bool = False,
    target: str = "",
    hint: str = "",
) -> Operation:
    """Change the attributes of a mount or of a whole tree. Source: mount_setattr(2)."""
    if userns is not None:
        set_flags |= k.MOUNT_ATTR_IDMAP
    content = pack("=QQQQ", set_flags, clear_flags, propagation_flags, 0)
    block = Block(content, () if userns is None else ((24, userns),))
    flags = (0 if path else k.AT_EMPTY_PATH) | (k.AT_RECURSIVE if recursive else 0)
    return call("mount_setattr", tree, path, flags, block, len(content), target=target or text(path), hint=hint)


def new_mount(
    kind: str,
    options: dict[str, str | None],
    result: Slot,
    *,
    attributes: int = 0,
    hint: str = "",
    context: Slot = Slot("fsopen"),  # noqa: B008 - a value
) -> list[Operation]:
    """Make a filesystem with the new mount API, as a detached mount. Source: fsopen(2), fsconfig(2), fsmount(2).

    Args:
        kind: the filesystem's type.
        options: its options; None marks a flag.
        result: the slot of the detached mount.
        attributes: ``MOUNT_ATTR_*``.
        hint: the hint if a step fails.
        context: the slot of the filesystem while it is made. Stage 1 and stage 2 need one each if both make one.
    """
    steps = [call("fsopen", kind.encode(), k.FSOPEN_CLOEXEC, target=kind, result=context, hint=hint)]
    for key, value in options.items():
        command = k.FSCONFIG_SET_FLAG if value is None else k.FSCONFIG_SET_STRING
        content: Argument = 0 if value is None else value.encode()
        label = key if value is None else f"{key}={value}"
        steps.append(call("fsconfig", context, command, key.encode(), content, 0, target=f"{kind} {label}", hint=hint))
    steps += [
        call("fsconfig", context, k.FSCONFIG_CMD_CREATE, 0, 0, 0, target=f"{kind} create", hint=hint),
        call("fsmount", context, k.FSMOUNT_CLOEXEC, attributes, target=kind, result=result, hint=hint),
        close(context),
    ]
    return steps


def send_descriptor(socket: Slot, descriptor: Slot) -> Operation:
    """Send a descriptor and one byte through a connected socket. Source: sendmsg(2), SCM_RIGHTS in unix(7)."""
    control = Block(pack("=QiiiI", 20, 1, 1, 0, 0), ((16, descriptor),))  # SOL_SOCKET, SCM_RIGHTS
    vector = Block(pack("=QQ", 0, 1), ((0, b"!"),))
    message = Block(pack("=QQQQQQQ", 0, 0, 0, 1, 0, 24, 0), ((16, vector), (32, control)))
    return call("sendmsg", socket, message, 0, target=descriptor.name)


def netlink(
    socket: Slot, message: bytes, target: str, *, at: int = 0, slot: Slot | None = None, tolerate: tuple[int, ...] = ()
) -> Operation:
    """Send a netlink message that requests an ack, and fail with the error in the ack.

    Args:
        socket: the netlink socket.
        message: the whole message, its header included.
        target: the meaning of the message, for errors.
        at, slot: the offset at which the 32-bit value of a slot is written into the message, such as a descriptor.
        tolerate: errors that count as success.

    Source: netlink(7), rtnetlink(7).
    """
    block = Block(message, () if slot is None else ((at, slot),))
    return Operation("netlink", target, k.STEP_NETLINK, 0, (socket, block, len(message)), None, tolerate)


def netlink_socket(family: int, result: Slot) -> list[Operation]:
    """Open a netlink socket in the current network namespace. Its errors include the kernel's text.

    Source: netlink(7), NETLINK_EXT_ACK, NETLINK_CAP_ACK.
    """
    af_netlink, sock_raw, sol_netlink, cap_ack, ext_ack = 16, 3, 270, 10, 11
    kind = sock_raw | k.O_CLOEXEC
    on = Block(pack("=i", 1))
    return [
        call("socket", af_netlink, kind, family, target="netlink", result=result),
        call("setsockopt", result, sol_netlink, cap_ack, on, 4, target="NETLINK_CAP_ACK"),
        call("setsockopt", result, sol_netlink, ext_ack, on, 4, target="NETLINK_EXT_ACK"),
    ]


def make_filesystem_readonly(tree: Slot) -> list[Operation]:
    """Make a filesystem itself read-only, so that no mount of it can be writable.

    Source: fspick(2), fsconfig(2).
    """
    context = Slot("fspick")
    pick = 1 | 8  # FSPICK_CLOEXEC, FSPICK_EMPTY_PATH
    return [
        call("fspick", tree, b"", pick, target=tree.name, result=context),
        call("fsconfig", context, k.FSCONFIG_SET_FLAG, b"ro", 0, 0, target=f"{tree.name} ro"),
        call("fsconfig", context, k.FSCONFIG_CMD_RECONFIGURE, 0, 0, 0, target=f"{tree.name} reconfigure"),
        close(context),
    ]


def pivot_root(new: bytes = b".", old: bytes = b".") -> Operation:
    """Make ``new`` the root of this mount namespace. Source: pivot_root(2)."""
    return call("pivot_root", new, old, target=text(new))


def chdir(path: bytes) -> Operation:
    """Change the working directory. Source: chdir(2)."""
    return call("chdir", path, target=text(path))


def prctl(name: str, option: int, *args: Argument, hint: str = "", tolerate: tuple[int, ...] = ()) -> Operation:
    """Set an attribute of the process. Source: prctl(2)."""
    padded = (*args, 0, 0, 0, 0)[:4]
    return call("prctl", option, *padded, target=name, hint=hint, tolerate=tolerate)
