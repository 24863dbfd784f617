"""The tapes of the OCI command and of the planner: the same steps give the same bytes."""

from __future__ import annotations

from errno import EEXIST, ENOENT

import pytest

from containerkit._native import constants as k
from containerkit.oci.tape import ARGV, ENVP, SLOTS, Tape
from containerkit.plan import calls, operation
from containerkit.plan.operation import Block, Slot
from containerkit.plan.tape import Plan


def test_steps_are_packed_as_the_planner_packs_them():
    tape = Tape()
    at, tree = tape.slot("at"), tape.slot("tree")
    how = tape.block(b"\1" * 24)
    tape.call("openat2", k.AT_FDCWD, b"/x", how, 24, target="/x", result=at, ok=(ENOENT, EEXIST))
    tape.call("open_tree", at, b"", 5, result=tree)
    attributes = tape.block(bytes(32), (24, at))
    tape.call("mount_setattr", tree, b"", 0x1000, attributes, 32)
    tape.step(k.STEP_CLOSE, "close", tree)
    tape.call("execve", b"/bin/x", ARGV, ENVP)

    slot, other = Slot("at"), Slot("tree")
    planned = Plan(
        (
            calls.call("openat2", k.AT_FDCWD, b"/x", Block(b"\1" * 24), 24, result=slot, tolerate=(ENOENT, EEXIST)),
            calls.call("open_tree", slot, b"", 5, result=other),
            calls.call("mount_setattr", other, b"", 0x1000, Block(bytes(32), ((24, slot),)), 32),
            calls.close(other),
            calls.call("execve", b"/bin/x", operation.ARGV, operation.ENVP),
        )
    ).encode()
    steps, data = tape.encode()
    assert len(planned.steps) == len(steps)
    assert without_places(planned.steps, planned.data) == without_places(steps, data)


def without_places(steps, data):
    """Replace offsets in the data by the content there, because the layout may differ."""
    from struct import Struct

    layout = Struct("=HHi8B4h6q")
    found = []
    for at in range(0, len(steps), layout.size):
        kind, result, call, *rest = layout.unpack_from(steps, at)
        kinds, jumps, tolerated, values = rest[:6], rest[6:8], rest[8:12], rest[12:]
        shown = [
            data[value : value + 16].split(b"\0")[0] if what == k.ARG_DATA else value
            for what, value in zip(kinds, values, strict=True)
        ]
        if kind in (k.STEP_STORE_SLOT, k.STEP_STORE_ADDRESS):
            shown[0] = 0
        found.append((kind, result, call, kinds, jumps, tolerated, shown))
    return found


def test_jumps_lead_to_the_place_where_they_are_asked_for():
    tape = Tape()
    first = tape.call("umask", 0, ok=(ENOENT,))
    tape.call("umask", 1)
    tape.call("umask", 2)
    tape.skip_here(first)
    tape.leap_here(first)
    cloned = tape.step(k.STEP_CLONE, "clone", 0, 0, 0, 0, 0, 0)
    tape.step(k.STEP_LEAVE, "leave")
    tape.aim_here(cloned)
    tape.step(k.STEP_LEAVE, "leave")
    steps, _ = tape.encode()
    assert (2, 2) == (steps[14], steps[15])
    assert 5 == int.from_bytes(steps[72 * 3 + 64 : 72 * 3 + 72], "little")


def test_wrong_steps_are_refused():
    tape = Tape()
    with pytest.raises(ValueError, match="NUL"):
        tape.call("chdir", b"a\0b")
    with pytest.raises(ValueError, match="no system call"):
        tape.call("nosuch")
    for number in range(SLOTS):
        tape.slot(str(number))
    with pytest.raises(ValueError, match="slots"):
        tape.slot("one more")
    first = tape.call("umask", 0)
    for _ in range(300):
        tape.call("umask", 0)
    with pytest.raises(ValueError, match="255"):
        tape.skip_here(first)


def test_tape_prints_itself():
    tape = Tape()
    tape.call("chdir", b"/x", target="/x")
    assert "  0 chdir /x" == str(tape)


def test_image_has_its_counts_first():
    tape = Tape()
    tape.call("chdir", b"/x")
    image = tape.image([b"a", b"bc"], [b"X=y"])
    numbers = [int.from_bytes(image[at : at + 4], "little", signed=True) for at in range(0, 28, 4)]
    assert [0, 1, 3, 2, 1, 0, -1] == numbers  # the first step, how many, the data, argv, envp, slots; no board
    assert image.endswith(b"a\0bc\0X=y\0")


def test_numbers_of_further_calls_are_the_compilers(tmp_path):
    import shutil
    import subprocess

    from containerkit.oci.tape import _MORE_CALLS

    if not shutil.which("cc"):
        pytest.skip("no C compiler: apt-get install gcc")
    names = sorted(_MORE_CALLS)
    lines = "".join(f'printf("{name} %d\\n", SYS_{name});' for name in names)
    (tmp_path / "x.c").write_text(
        f"#include <stdio.h>\n#include <sys/syscall.h>\nint main(void) {{ {lines} return 0; }}"
    )
    subprocess.run(["cc", "-o", tmp_path / "x", tmp_path / "x.c"], check=True)
    told = subprocess.run([tmp_path / "x"], capture_output=True, text=True, check=True).stdout.split()
    assert _MORE_CALLS == {name: int(number) for name, number in zip(told[::2], told[1::2], strict=True)}
