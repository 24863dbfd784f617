"""The control groups in a checkpoint of CRIU: those of the container stay, those of the host are removed."""

import struct

import pytest

from containerkit.oci.dumpedgroups import keep_own_groups
from containerkit.oci.errors import RuntimeFailure

HEADER = (0x54564319, 0x59383330)


def part(number, content):
    length = bytearray()
    left = len(content)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    return bytes([number << 3 | 2]) + bytes(length) + bytes([left]) + content


def directory(name, *children):
    return part(1, name) + b"".join(part(2, child) for child in children) + part(3, b"\x0a\x04pids" * 50)


def image(*controllers):
    message = part(1, b"\x08\x02") + b"".join(part(2, controller) for controller in controllers)
    return struct.pack("<III", *HEADER, len(message)) + message


def rewritten(tmp_path, content):
    (tmp_path / "cgroup.img").write_bytes(content)
    keep_own_groups(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["cgroup.img"]
    return (tmp_path / "cgroup.img").read_bytes()


def test_groups_below_the_containers_stay(tmp_path):
    own = part(1, b"pids") + part(2, directory(b"one", directory(b"inner"))) + b"\x18\x01"
    assert rewritten(tmp_path, image(own)) == image(own)


@pytest.mark.parametrize("root", [b"", b"/"])
def test_groups_below_the_root_of_a_hierarchy_go(tmp_path, root):
    own = part(1, b"pids") + part(2, directory(b"one"))
    found = rewritten(
        tmp_path, image(part(1, b"") + part(2, directory(root, directory(b"a" * 300))) + b"\x18\x00", own)
    )
    assert found == image(part(1, b"") + part(2, part(1, root)) + b"\x18\x00", own)


def test_checkpoint_without_groups_is_left_alone(tmp_path):
    keep_own_groups(str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unpack_from"),
        (image(b"")[:-1], "a message of"),
        (struct.pack("<III", *HEADER, 2) + b"\x12\x05", "a field is cut off"),
        (struct.pack("<III", *HEADER, 1) + b"\x15", "wire type 5"),
        (struct.pack("<III", *HEADER, 1) + b"\x92", "index out of range"),
    ],
)
def test_image_that_is_damaged_is_refused(tmp_path, content, reason):
    (tmp_path / "cgroup.img").write_bytes(content)
    with pytest.raises(RuntimeFailure, match=reason):
        keep_own_groups(str(tmp_path))
    assert (tmp_path / "cgroup.img").read_bytes() == content
