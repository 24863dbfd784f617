"""Layers that attack: each is refused, or does no more than GNU tar would do inside a chroot."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
import tarfile
from contextlib import suppress

import pytest
from examples import examples
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from image_archives import archive, directory, hardlink, member, snapshot, symlink, unpack, watched

from containerkit.archive.extract import Extraction
from containerkit.archive.limits import UnpackLimits
from containerkit.errors import ImageError
from containerkit.image.layers.unpack import extract_blob

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and device nodes need root")

NODE = 0o600
OUT = "/../../outside/secret"


@pytest.mark.parametrize(
    "members",
    [
        [member("../secret", data=b"x")],
        [member("a/../../secret", data=b"x")],
        [member("a/..", data=b"x")],
        [directory("..")],
        [symlink("../secret", "/etc/passwd")],
        [member(".", data=b"x")],
        [symlink("abs", "/tmp"), member("abs/evil-of-containerkit", data=b"x")],
        [symlink("a", "b"), symlink("b", "a"), member("a/evil", data=b"x")],
        [symlink("a", "a/b"), member("a/evil", data=b"x")],
        [symlink("a", "f"), member("f", data=b"x"), member("a/evil", data=b"x")],
        [symlink("a", "gone"), directory("a/b")],
        [symlink("a", "/proc/self/cwd"), member("a/evil", data=b"x")],
        [symlink("a", ".wh.b"), directory("b"), member("a/evil", data=b"x")],
        [symlink("up", "../.."), hardlink("mine", "up/secret")],
        [hardlink("mine", "../../secret")],
        [hardlink("mine", "../secret")],
        [member("../.wh.secret")],
        [member(".wh...")],
        [member(".wh..")],
        [member(".wh.")],
        [member("a/.wh.../b")],
        [member(".wh.x/y", data=b"x")],
        [hardlink("a", "a")],
        [hardlink("a", "missing")],
        [member(".wh.gone"), hardlink("a", "gone")],
        [hardlink("a", ".wh.b")],
        [directory("d"), hardlink("a", "d")],
        [directory("d"), member("d/f", data=b"1"), member("d", data=b"2")],
        [member("f", data=b"1"), member("f/g", data=b"2")],
        [member("x" * 300, data=b"x")],
        [member("/".join(["d" * 200] * 200), data=b"x")],
    ],
)
@pytest.mark.parametrize("whiteouts", ["overlay", "apply"])
def test_archive_with_a_path_out_of_the_root_is_refused(tmp_path, members, whiteouts):
    with watched(tmp_path) as (root, _), pytest.raises(ImageError):
        unpack(archive(*members), root, Extraction(whiteouts=whiteouts))


@pytest.mark.parametrize(
    ("members", "made"),
    [
        ([symlink("up", ".."), member("up/evil", data=b"x")], ["evil", "up"]),
        ([symlink("up", "../../.."), member("up/outside/secret", data=b"x")], ["outside", "outside/secret", "up"]),
        ([directory("d"), symlink("l", "/d"), member("l/evil", data=b"x")], ["d", "d/evil", "l"]),
        ([symlink("a", "b"), symlink("b", ".."), member("a/evil", data=b"x")], ["a", "b", "evil"]),
        ([directory("d"), symlink("d/l", "../.."), directory("d/l/evil")], ["d", "d/l", "evil"]),
        ([symlink("up", "../.."), symlink("up/evil", "x")], ["evil", "up"]),
        ([symlink("up", "../.."), hardlink("up/evil", "up")], ["evil", "up"]),
        ([symlink("up", "../.."), member("f", data=b"x"), hardlink("mine", "up/f")], ["f", "mine", "up"]),
        ([symlink("up", "../.."), member("up/fifo", tarfile.FIFOTYPE)], ["fifo", "up"]),
        ([symlink("up", "../.."), member("up/null", tarfile.CHRTYPE, devmajor=1, devminor=3)], ["null", "up"]),
        ([symlink("up", "../.."), symlink("up/up2", "up/up"), member("up2/evil", data=b"x")], ["evil", "up", "up2"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whiteouts", ["overlay", "apply"])
def test_archive_written_through_its_links_stays_inside_as_in_a_chroot(tmp_path, members, made, whiteouts):
    with watched(tmp_path) as (root, _):
        unpack(archive(*members), root, Extraction(whiteouts=whiteouts))
        found = sorted(os.path.relpath(path, root) for path in root.rglob("*"))
    assert made == found


@pytest.mark.parametrize("marker", [".wh.secret", ".wh..wh..opq"])
def test_archive_deletes_through_its_links_only_inside(tmp_path, marker):
    with watched(tmp_path) as (root, _):
        (root / "secret").write_text("of a layer below")
        unpack(archive(symlink("up", "../.."), member(f"up/{marker}")), root, Extraction(whiteouts="apply"))
        assert ["up"] == os.listdir(root)


def test_control_detects_an_archive_that_writes_through_a_link(tmp_path):
    """A plain extraction of the same attack does escape, so the test above can fail."""
    root, outside = tmp_path / "outside/in/root", tmp_path / "outside"
    root.mkdir(parents=True)
    subprocess.run(
        ["tar", "-xPf", "-", "-C", root],
        input=archive(symlink("up", "../.."), member("up/evil", data=b"x")),
        check=True,
    )
    assert (outside / "evil").read_bytes() == b"x"


def test_archive_with_absolute_names_stays_inside(tmp_path):
    with watched(tmp_path) as (root, _):
        unpack(archive(directory("/etc"), member("//etc///passwd", data=b"x"), hardlink("/l", "/etc/passwd")), root)
        assert b"x" == (root / "etc/passwd").read_bytes() == (root / "l").read_bytes()


def test_archive_may_contain_links_that_point_out_but_they_are_not_followed(tmp_path):
    with watched(tmp_path) as (root, outside):
        unpack(archive(symlink("a", "../../secret"), symlink("b", str(outside / "secret")), hardlink("c", "a")), root)
        assert "../../secret" == os.readlink(root / "a") == os.readlink(root / "c")
        (outside / "secret").lstat()


def test_archive_replaces_a_link_and_not_what_it_points_to(tmp_path):
    with watched(tmp_path) as (root, outside):
        unpack(archive(symlink("a", str(outside / "secret")), member("a", data=b"new", mode=0o777)), root)
        assert (root / "a").read_bytes() == b"new"
        assert not (root / "a").is_symlink()


def test_archive_directory_over_a_link_replaces_it(tmp_path):
    with watched(tmp_path) as (root, _):
        unpack(archive(symlink("a", "../.."), directory("a", mode=0o700), member("a/f", data=b"x")), root)
        assert stat.S_ISDIR((root / "a").lstat().st_mode)


@pytest.mark.parametrize(
    ("kind", "numbers"), [(tarfile.BLKTYPE, (8, 0)), (tarfile.CHRTYPE, (1, 1)), (tarfile.CHRTYPE, (0, 0))]
)
def test_archive_device_nodes_of_the_host_are_not_made(tmp_path, kind, numbers):
    content = archive(member("node", kind, devmajor=numbers[0], devminor=numbers[1]))
    found = unpack(content, tmp_path)
    assert (len(found.skipped), os.listdir(tmp_path)) == (1, [])


def test_archive_device_nodes_are_made_by_the_rule(tmp_path):
    content = archive(
        member("null", tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        member("disk", tarfile.BLKTYPE, mode=0o600, devmajor=8, devminor=0),
    )
    made = {}
    for rule in ("standard", "all", "none"):
        (tmp_path / rule).mkdir()
        unpack(content, tmp_path / rule, Extraction(devices=rule))
        made[rule] = sorted(os.listdir(tmp_path / rule))
    assert made == {"standard": ["null"], "all": ["disk", "null"], "none": []}
    assert (os.makedev(1, 3), 0o666) == (
        (tmp_path / "standard/null").stat().st_rdev,
        stat.S_IMODE((tmp_path / "standard/null").stat().st_mode),
    )


def test_archive_cannot_control_overlayfs_or_the_hosts_security_modules(tmp_path):
    attributes = {
        f"SCHILY.xattr.{name}": "y"
        for name in (
            "trusted.overlay.redirect",
            "trusted.overlay.opaque",
            "user.overlay.redirect",
            "trusted.x",
            "security.selinux",
        )
    }
    found = unpack(
        archive(directory("d", pax_headers=attributes), member("f", data=b"x", pax_headers=attributes)), tmp_path
    )
    assert (os.listxattr(tmp_path / "d"), os.listxattr(tmp_path / "f")) == ([], [])
    assert 2 * len(attributes) == len(found.skipped)


@pytest.mark.parametrize(
    "headers",
    [
        {"SCHILY.xattr.security.capability": "nonsense"},
        {"SCHILY.acl.access": "user:99999999999:rwx"},
        {"SCHILY.acl.access": "nonsense"},
        {"SCHILY.xattr.user.x": "y" * 70_000},
        {"LIBARCHIVE.xattr.user.x": "\N{SNOWMAN}"},
        {"mtime": "soon"},
        {"uid": "-1"},
        {"gid": "99999999999"},
        {"GNU.sparse.map": "0,5,3,5", "GNU.sparse.size": "20", "GNU.sparse.numblocks": "2", "GNU.sparse.name": "f"},
        {"GNU.sparse.map": "x", "GNU.sparse.size": "20", "GNU.sparse.name": "f"},
    ],
)
def test_archive_with_malformed_extended_headers_is_refused(tmp_path, headers):
    with pytest.raises(ImageError):
        unpack(archive(member("f", data=b"0123456789", pax_headers=headers)), tmp_path)


def bomb(tmp_path, size=300 << 20):
    path = tmp_path / "bomb.gz"
    info, _ = member("zeros")
    info.size = size
    with gzip.open(path, "wb", compresslevel=6) as file:
        file.write(info.tobuf())
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    return path


def test_archive_that_is_a_decompression_bomb_is_refused(tmp_path):
    path = bomb(tmp_path)
    (tmp_path / "root").mkdir()
    descriptor = os.open(tmp_path / "root", os.O_RDONLY)
    try:
        with path.open("rb") as file, pytest.raises(ImageError, match="decompression bomb"):
            extract_blob(file, descriptor, None, Extraction())
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("limits", "word"),
    [
        (UnpackLimits(entries=9), "more than 9 entries"),
        (UnpackLimits(bytes=4096), "more than 4096 bytes"),
        (UnpackLimits(ratio=2, ratio_from=1), "more than 2 times"),
    ],
)
def test_archive_over_a_bound_is_refused(tmp_path, limits, word):
    content = archive(*[member(f"f{number}", data=b"x") for number in range(10)])
    with pytest.raises(ImageError, match=word):
        unpack(content, tmp_path, Extraction(limits=limits), compressed=1000)


def test_archive_with_unbounded_headers_is_refused(tmp_path):
    huge = tarfile.TarInfo("././@PaxHeader")
    huge.type, huge.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(ImageError, match="headers of an entry have more than"):
        unpack(huge.tobuf(tarfile.GNU_FORMAT) + bytes(4096), tmp_path)
    small = tarfile.TarInfo("././@LongLink")
    small.type, small.size = tarfile.GNUTYPE_LONGNAME, 512
    with pytest.raises(ImageError, match=r"malformed|headers"):
        unpack((small.tobuf() + b"a" * 512) * 20_000, tmp_path)


@pytest.mark.parametrize("at", [0, 100, 148, 257, 512 + 10, 1024 + 148])
def test_damaged_archive_is_refused_and_not_read_as_its_end(tmp_path, at):
    content = bytearray(archive(member("a", data=b"x" * 512), member("b", data=b"y")))
    content[at] ^= 0x55
    try:
        unpack(bytes(content), tmp_path)
    except ImageError:
        return
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]  # only the content of "a" has no checksum of its own
    assert at == 512 + 10


def test_archive_cut_short_is_refused(tmp_path):
    content = archive(member("a", data=b"x" * 5000), member("b", data=b"y"))
    for size in (100, 512, 1024, 3000, 5632, 6144 - 20):
        (tmp_path / str(size)).mkdir()
        if size == 512:
            with pytest.raises(ImageError, match="middle of a file"):
                unpack(content[:size], tmp_path / str(size))
        elif size == 5632:
            unpack(content[:size], tmp_path / str(size))  # ends in the padding of "a": fine
        else:
            with pytest.raises(ImageError):
                unpack(content[:size], tmp_path / str(size))


def test_archive_of_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ImageError, match="unknown member type"):
        unpack(archive(member("m", b"M")), tmp_path)


# --- random archives, compared with GNU tar in a chroot ---------------------------------------------------------------

_plain = st.lists(st.sampled_from(["a", "b", "c", "a", "b", "d e", "é", ".", ""]), min_size=1, max_size=3).map("/".join)
_leading_out = st.lists(st.sampled_from(["a", "b", ".."]), min_size=1, max_size=4).map("/".join)
_name = st.integers(0, 30).flatmap(lambda chance: _plain if chance else _leading_out)
_odd = st.sampled_from(["/", "//", "./", ""])
_kind = st.sampled_from(
    [
        tarfile.REGTYPE,
        tarfile.REGTYPE,
        tarfile.DIRTYPE,
        tarfile.DIRTYPE,
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.FIFOTYPE,
    ]
)
_target = st.one_of(_name, _name.map(lambda name: "/" + name), st.sampled_from(["..", "../..", "/", "/.tool/tar"]))
_member = st.tuples(
    _odd, _name, _kind, st.binary(max_size=20), _target, st.sampled_from([0o644, 0o755, 0o4755, 0o600, 0o1777]),
    st.sampled_from([0, 7, 65534]),
)  # fmt: skip


def made(parts):
    prefix, name, kind, data, target, mode, owner = parts
    if not (prefix + name).strip():
        name = "a"
    info, data = member(prefix + name, kind, data if kind == tarfile.REGTYPE else b"", mode=mode, uid=owner, gid=owner)
    info.linkname = target if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    info.mtime = 1_000_000_000
    return info, data


def spelled_once(members):
    """Leave out a directory that is named twice in different ways (``a``, ``a/.``): GNU tar mixes such entries."""
    names, seen = {}, set()
    for info, data in members:
        plain = os.path.normpath("/" + info.name)
        same = names.setdefault(plain, info.name) == info.name and not info.name.endswith(("/.", "//"))
        if same or info.type != tarfile.DIRTYPE or plain not in seen:
            yield info, data
        seen.add(plain)


@pytest.fixture(scope="module")
def chroot_tar(tmp_path_factory):
    """GNU tar and its libraries in a directory for a chroot."""
    tool = tmp_path_factory.mktemp("tool") / ".tool"
    tool.mkdir()
    listed = subprocess.run(["ldd", shutil.which("tar")], capture_output=True, text=True, check=True).stdout
    for word in listed.split():
        if word.startswith("/"):
            shutil.copy(word, tool)
    shutil.copy(shutil.which("tar"), tool / "tar")
    loader = next(path.name for path in tool.iterdir() if path.name.startswith("ld-"))
    return tool, loader


def gnu_tar(content, root, tool, loader):
    if not (root / ".tool").exists():
        shutil.copytree(tool, root / ".tool", copy_function=os.link)
    command = ["chroot", root, f"/.tool/{loader}", "--library-path", "/.tool", "/.tool/tar"]
    done = subprocess.run(
        [*command, "-xPpf", "-", "-C", "/", "--numeric-owner"],
        input=content, capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode == 0


@settings(
    max_examples=examples(ci=100, nightly=1000),
    deadline=None,
    derandomize=True,  # where GNU tar contradicts itself (``a``, then ``a/.``) a comparison is not useful
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(_member, min_size=1, max_size=8), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
@pytest.mark.timeout(600)
def test_random_archive_is_extracted_like_gnu_tar_in_a_chroot_or_refused(tmp_path, chroot_tar, parts, dialect):
    content = archive(*spelled_once(map(made, parts)), dialect=dialect)
    base = tmp_path / "run"
    base.mkdir()
    try:
        with watched(base) as (root, _):
            try:
                unpack(content, root)
            except ImageError:
                event("refused")
                return
            ours = snapshot(root)
        theirs = base / "gnu"
        theirs.mkdir(mode=0o755)
        accepted = gnu_tar(content, theirs, *chroot_tar)
        event(f"accepted, as by GNU tar: {accepted}")
        if accepted:
            assert snapshot(theirs, skip=(".tool",)) == ours
    finally:
        shutil.rmtree(base)


@settings(
    max_examples=examples(ci=50, nightly=300),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(_member, min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 6000), st.integers(0, 255)), max_size=8),
)
def test_archive_with_random_damage_never_escapes_or_raises_another_error(tmp_path, parts, changes):
    content = bytearray(archive(*map(made, parts)))
    for at, value in changes:
        content[at % len(content)] = value
    base = tmp_path / "run"
    base.mkdir()
    try:
        with watched(base) as (root, _), suppress(ImageError):
            unpack(bytes(content), root, Extraction(devices="none"))
    finally:
        shutil.rmtree(base)
