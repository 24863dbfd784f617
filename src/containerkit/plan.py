"""The operations of a start, as data.

A *plan* is a flat, ordered tuple of :class:`Operation`; almost each is one system call whose arguments are resolved to
integers, bytes and *slots*. A slot is a named register of the child: it holds a file descriptor or a pid that is only
known once the start runs, because an earlier operation made it (``result=``) or because the caller hands it in.

Building a plan touches nothing: no system call, no file. :meth:`Plan.encode` compiles it once to the flat tape which
the interpreters of :mod:`containerkit._native` walk; the layout of the tape is drawn in ``_native/native.h``.
"""

from __future__ import annotations

import os
from errno import EEXIST
from struct import Struct as _Layout
from struct import pack
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit._native import constants as k
from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ARGV", "ENVP", "Block", "Operation", "Plan", "Shape", "Slot", "Tape"]

SLOTS: Final = 1024
"""How many registers a tape has."""


class Slot(NamedTuple):
    """A register of the child, by name: equal names are the same register."""

    name: str


class Vector(NamedTuple):
    """The argument or environment vector that the caller hands in at each start."""

    name: str


ARGV: Final = Vector("argv")
ENVP: Final = Vector("envp")


class Block(NamedTuple):
    """A structure in memory whose address is handed to the kernel.

    Attributes:
        content: the bytes.
        patches: what is written over them just before the call: at an offset in bytes, the 32-bit value of a slot
            or the 64-bit address of other bytes.
        name: if given, the caller may hand in other bytes of the same length at each start.
    """

    content: bytes
    patches: tuple[tuple[int, Slot | bytes | Block], ...] = ()
    name: str = ""


Argument = int | bytes | Slot | Vector | Block


class Operation(NamedTuple):
    """One step of a plan.

    Attributes:
        name: what is done: the system call's name, or the step's.
        target: what it is done to, for people.
        step: the kind of step (``constants.STEP_*``).
        call: the system call's number, for ``STEP_CALL``.
        args: at most six. Bytes are passed as the address of a NUL-terminated copy.
        result: the slot that takes the value returned.
        tolerate: error numbers that count as success, at most four.
        hint: the remedy to show when it fails.
        skip: how many of the next operations are left out when it fails with a tolerated error.
        leap: how many of the next operations are left out when it succeeds.
        jump: for ``STEP_CLONE``: the label where the new process goes on.
        label: a name that a jump can aim at.
    """

    name: str
    target: str = ""
    step: int = k.STEP_CALL
    call: int = 0
    args: tuple[Argument, ...] = ()
    result: Slot | None = None
    tolerate: tuple[int, ...] = ()
    hint: str = ""
    jump: str = ""
    label: str = ""
    skip: int = 0
    leap: int = 0

    def describe(self) -> str:
        """Return one line for people, such as ``mount proc on /proc``."""
        return f"{self.name} {self.target}".rstrip()


class Shape:
    """All of a description that its plan depends on: a key that is hashed once."""

    __slots__ = ("_hash", "parts")

    def __init__(self, *parts: object) -> None:
        self.parts = parts
        self._hash = hash(parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Shape) and self.parts == other.parts)


class Tape(NamedTuple):
    """A plan, compiled.

    Attributes:
        steps: the packed steps.
        data: the strings and structures that the steps point into.
        slots: the register number of each slot's name.
        descriptors: the numbers of the slots that take a descriptor.
        blocks: offset and length in ``data`` of each named block.
        origin: for each step the index of the operation that it came from.
    """

    steps: bytes
    data: bytes
    slots: dict[str, int]
    descriptors: frozenset[int]
    blocks: dict[str, tuple[int, int]]
    origin: tuple[int, ...]


class Plan:
    """An ordered tuple of operations that can be printed, compared, encoded and run many times."""

    __slots__ = ("operations",)

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.operations = tuple(operations)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.operations == other.operations

    def __hash__(self) -> int:
        return hash(self.operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    def __str__(self) -> str:
        return "\n".join(f"{number:3} {step.describe()}" for number, step in enumerate(self))

    def encode(self) -> Tape:
        """Compile to a tape.

        Raises:
            SpecError: too many slots, arguments or tolerated errors, a NUL inside a string, a jump to nowhere.
        """
        return _Encoder().encode(self.operations)


_STEP: Final = _Layout("=HHi8B4h6q")  # see struct ck_step in native.h
_NO_SLOT: Final = 0xFFFF
_OPENING: Final = frozenset(
    {"open", "openat", "openat2", "open_tree", "fsopen", "fspick", "fsmount", "socket", "seccomp"}
)


class _Encoder:
    """Collects the tape of one plan."""

    def __init__(self) -> None:
        self.steps: list[bytes] = []
        self.origin: list[int] = []
        self.data = bytearray()
        self.places: dict[bytes, int] = {}
        self.slots: dict[str, int] = {}
        self.blocks: dict[str, tuple[int, int]] = {}
        self.descriptors: set[int] = set()

    def encode(self, operations: Iterable[Operation]) -> Tape:
        operations = tuple(operations)
        starts: dict[str, int] = {}
        jumps: list[tuple[int, Operation]] = []
        for index, operation in enumerate(operations):
            if operation.label:
                starts[operation.label] = len(self.steps)
            kinds, values = self._arguments(operation, index)
            if operation.jump:
                jumps.append((len(self.steps), operation))
            self._step(operation, kinds, values, index)
        self._skips(operations)
        for at, operation in jumps:
            if operation.jump not in starts:
                raise SpecError(f"{operation.describe()}: no operation is labelled {operation.jump!r}")
            self._aim(at, starts[operation.jump])
        return Tape(
            b"".join(self.steps),
            bytes(self.data),
            self.slots,
            frozenset(self.descriptors),
            self.blocks,
            tuple(self.origin),
        )

    def _skips(self, operations: tuple[Operation, ...]) -> None:
        """Turn what is skipped from operations into steps."""
        for at, index in enumerate(self.origin):
            operation = operations[index]
            if not (operation.skip or operation.leap) or self.origin[at + 1 : at + 2] == [index]:
                continue  # nothing to skip, or not yet the step itself
            counts = [
                sum(index < other <= index + reach for other in self.origin)
                for reach in (operation.skip, operation.leap)
            ]
            if max(counts) > 255:
                raise SpecError(f"{operation.describe()}: it can skip at most 255 steps")
            fields = list(_STEP.unpack(self.steps[at]))
            fields[9:11] = counts
            self.steps[at] = _STEP.pack(*fields)

    def _aim(self, at: int, target: int) -> None:
        fields = list(_STEP.unpack(self.steps[at]))
        fields[-1] = target  # the sixth argument of a clone
        self.steps[at] = _STEP.pack(*fields)

    def _step(self, operation: Operation, kinds: list[int], values: list[int], index: int) -> None:
        if len(values) > 6 or len(operation.tolerate) > 4:
            raise SpecError(f"{operation.describe()}: at most six arguments and four tolerated errors")
        padding = 6 - len(values)
        tolerate = (*operation.tolerate, 0, 0, 0, 0)[:4]
        result = _NO_SLOT if operation.result is None else self._slot(operation.result)
        if operation.name in _OPENING:
            self.descriptors.add(result)
        self.steps.append(
            _STEP.pack(
                operation.step, result, operation.call, *kinds, *[0] * padding, 0, 0, *tolerate, *values, *[0] * padding
            )
        )
        self.origin.append(index)

    def _arguments(self, operation: Operation, index: int) -> tuple[list[int], list[int]]:
        kinds: list[int] = []
        values: list[int] = []
        for argument in operation.args:
            if isinstance(argument, int):
                kind, value = k.ARG_INTEGER, argument
            elif isinstance(argument, bytes):
                kind, value = k.ARG_DATA, self._string(argument, operation)
            elif isinstance(argument, Slot):
                kind, value = k.ARG_SLOT, self._slot(argument)
            elif isinstance(argument, Vector):
                kind, value = (k.ARG_ARGV if argument is ARGV else k.ARG_ENVP), 0
            else:
                kind, value = k.ARG_DATA, self._block(argument, index)
            kinds.append(kind)
            values.append(value)
        return kinds, values

    def _slot(self, slot: Slot) -> int:
        number = self.slots.setdefault(slot.name, len(self.slots))
        if number >= SLOTS:
            raise SpecError(f"a plan has at most {SLOTS} slots")
        return number

    def _string(self, text: bytes, operation: Operation) -> int:
        if b"\0" in text:
            raise SpecError(f"{operation.describe()}: a NUL byte inside {text!r}")
        return self._place(text + b"\0")

    def _place(self, content: bytes, *, shared: bool = True) -> int:
        if shared and content in self.places:
            return self.places[content]
        self.data += bytes(-len(self.data) % 8)  # structures want their alignment
        offset = len(self.data)
        self.data += content
        if shared:
            self.places[content] = offset
        return offset

    def _block(self, block: Block, index: int) -> int:
        # A NUL after each, so that the data always ends in one and no string runs past it.
        offset = self._place(block.content + b"\0", shared=not (block.patches or block.name))
        if block.name:
            self.blocks[block.name] = offset, len(block.content)
        for at, source in block.patches:
            store = (
                Operation("store", step=k.STEP_STORE_SLOT, args=(offset + at, source))
                if isinstance(source, Slot)
                else Operation(
                    "store",
                    step=k.STEP_STORE_ADDRESS,
                    args=(offset + at, source if isinstance(source, Block) else Block(source)),
                )
            )
            kinds, values = self._arguments(store, index)
            self._step(store, kinds, values, index)
        return offset


# --- The operations, each named after its system call ----------------------------------------------------------------


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
    """Return a path as people read it."""
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
    """Make a process that goes on at the label ``child``; the cloning one goes on with the next operation.

    Args:
        flags: ``CLONE_*``.
        child: the label.
        pid: the slot that takes its pid.
        group: the slot of a version 2 control group that it is born into.
        target, hint: for people.

    Source: clone3(2).
    """
    if group is not None:
        flags |= k.CLONE_INTO_CGROUP
    arguments = (flags, 0 if group is None else group, 0, 0, 0, 0)
    return Operation("clone", target, k.STEP_CLONE, 0, arguments, pid, (), hint, child)


OWNER_GATE: Final = 0
"""Where the first process inside waits until stage 1 has mapped its ids."""
PAYLOAD_GATE: Final = 1
"""Where the command waits until PID 1 has left nothing of the outside in sight."""


def await_release(label: str = "", *, gate: int = OWNER_GATE) -> Operation:
    """Sleep until the process that cloned this one says :func:`release`."""
    return Operation("await_release", step=k.STEP_AWAIT, args=(gate,), label=label)


def release(gate: int = OWNER_GATE) -> Operation:
    """Wake the process that waits in :func:`await_release`."""
    return Operation("release", step=k.STEP_RELEASE, args=(gate,))


def hold() -> Operation:
    """Close all but the standard streams and sleep, until a second plan is there to go on with."""
    return Operation("hold", step=k.STEP_HOLD)


def leave(label: str = "") -> Operation:
    """End this process; the tape goes on in the one that it cloned."""
    return Operation("leave", step=k.STEP_LEAVE, label=label)


def become_init(image: Slot, mode: bytes) -> Operation:
    """Replace this process by the init that ``image``, a sealed memfd, holds; its modes are told in ``init.c``."""
    return Operation("become_init", mode.decode(), k.STEP_INIT, 0, (image, mode))


def enter(image: Slot) -> Operation:
    """Go on with the next operation in an address space of one's own, with the descriptors that stay open on exec."""
    return Operation("enter", "", k.STEP_ENTER, 0, (image,))


def open_of_process(pid: Slot, name: str, flags: int, result: Slot, hint: str = "") -> Operation:
    """Open ``/proc/PID/NAME`` through the caller's own procfs, whatever is mounted where the step runs."""
    return Operation("open", f"/proc/PID/{name}", k.STEP_OPEN_PROC, 0, (pid, name.encode(), flags), result, (), hint)


def helper(argv: tuple[bytes, ...], pid: Slot, hint: str = "") -> Operation:
    """Run a program and wait for it; the argument ``b"PID"`` stands for the slot's value.

    At most 32 arguments in all. It fails with ``ECANCELED`` when the program ends with a status other than 0.
    """
    joined = b"\0".join(argv) + b"\0"
    return Operation(argv[0].decode(), "", k.STEP_HELPER, 0, (Block(joined), len(argv), pid), None, (), hint)


def reset_signals() -> Operation:
    """Give each signal its default disposition and unblock all. Source: rt_sigaction(2), rt_sigprocmask(2)."""
    return Operation("reset_signals", step=k.STEP_SIGNALS)


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
    """Open a path that can't lead out of ``root``, whatever links lie on its way. Source: openat2(2)."""
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
    """Open a file that is there, write to it and close it."""
    at = Slot("write_file")
    return [
        open_at(directory, path, k.O_WRONLY, at, hint=hint),
        write(at, content, text(path), hint),
        close(at),
    ]


def make_directory(
    directory: int | Slot, path: bytes, mode: int = 0o755, *, target: str = "", hint: str = ""
) -> Operation:
    """Make a folder unless something of that name is there. Source: mkdirat(2)."""
    return call("mkdirat", directory, path, mode, target=target or text(path), tolerate=(EEXIST,), hint=hint)


def make_node(
    directory: int | Slot, path: bytes, mode: int, device: int = 0, *, target: str = "", hint: str = ""
) -> Operation:
    """Make a file or device node unless something of that name is there. Source: mknodat(2)."""
    return call("mknodat", directory, path, mode, device, target=target or text(path), tolerate=(EEXIST,), hint=hint)


def make_symlink(directory: int | Slot, path: bytes, content: bytes) -> Operation:
    """Make a symbolic link unless something of that name is there. Source: symlinkat(2)."""
    return call("symlinkat", content, directory, path, target=text(path), tolerate=(EEXIST,))


def mount(
    source: bytes, path: bytes, kind: bytes, flags: int = 0, data: bytes = b"", *, hint: str = "", target: str = ""
) -> Operation:
    """Mount by the classic call. Source: mount(2)."""
    what = text(kind) or text(source)
    return call("mount", source, path, kind, flags, data, target=target or f"{what} on {text(path)}", hint=hint)


def propagation(path: bytes, flags: int) -> Operation:
    """Set the propagation of a mount. Source: mount(2), mount_namespaces(7)."""
    return call("mount", b"none", path, 0, flags, 0, target=f"propagation of {text(path)}")


def unmount(path: bytes, flags: int = k.MNT_DETACH) -> Operation:
    """Take a mount away. Source: umount2(2)."""
    return call("umount2", path, flags, target=text(path))


def open_tree(
    directory: int | Slot, path: bytes, result: Slot, *, recursive: bool = False, target: str = "", hint: str = ""
) -> Operation:
    """Clone a mount (recursive: and those below it) into a detached tree. Source: open_tree(2)."""
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | (k.AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= k.AT_EMPTY_PATH
    return call("open_tree", directory, path, flags, target=target or text(path), result=result, hint=hint)


def move_mount(tree: Slot | int, directory: int | Slot, path: bytes, *, target: str = "", hint: str = "") -> Operation:
    """Attach a detached tree; an empty ``path`` attaches onto the descriptor itself. Source: move_mount(2)."""
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
) -> list[Operation]:
    """Make a filesystem by the new mount API, as a detached mount. Source: fsopen(2), fsconfig(2), fsmount(2).

    Args:
        kind: the filesystem's type.
        options: its options; None marks a flag.
        result: the slot of the detached mount.
        attributes: ``MOUNT_ATTR_*``.
        hint: shown when any of it fails.
    """
    context = Slot("fsopen")
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


def make_filesystem_readonly(tree: Slot) -> list[Operation]:
    """Make a mounted filesystem read-only in itself, beyond what anybody can do to one of its mounts.

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
