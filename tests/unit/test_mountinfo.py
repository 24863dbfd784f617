"""The parser of mountinfo, with generated lines and with the mounts of this machine."""

import os
import pickle
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from containerkit._linux import mountinfo
from containerkit._linux.mountinfo import MountInfo

LINE = "36 35 98:0 /mnt1 /mnt2 rw,noatime shared:3 master:1 propagate_from:2 unbindable - ext3 /dev/root rw,errors=continue"


def escape(text):
    """Escape text as mangle() in fs/seq_file.c does."""
    return "".join(f"\\{ord(each):03o}" if each in " \t\n\\#" else each for each in text)


def written(mount):
    tags = [f"{name}:{getattr(mount, name)}" for name in ("shared", "master", "propagate_from") if getattr(mount, name)]
    tags += ["unbindable"] * mount.unbindable
    major, minor = mount.device
    fields = [str(mount.mount_id), str(mount.parent_id), f"{major}:{minor}", escape(mount.root)]
    fields += [escape(mount.mount_point), ",".join(mount.options), *tags, "-"]
    return " ".join([*fields, escape(mount.filesystem), escape(mount.source), escape(mount.super_options)])


numbers = st.integers(0, 2**31)
# Anything but NUL; lone surrogates stand for bytes that are not UTF-8.
names = st.text(
    st.one_of(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), st.sampled_from("\udc80\udcff \t\n\\#-")
    )
)
paths = names.map(lambda name: "/" + name)
mounts = st.builds(
    MountInfo,
    mount_id=numbers,
    parent_id=numbers,
    device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    root=paths,
    mount_point=paths,
    options=st.lists(st.sampled_from(["ro", "rw", "nosuid", "relatime"]), min_size=1).map(tuple),
    filesystem=st.sampled_from(["ext4", "fuse.ssh fs", "tmpfs"]),
    source=names,
    super_options=names,
    shared=numbers,
    master=numbers,
    propagate_from=numbers,
    unbindable=st.booleans(),
)


@given(mounts)
def test_mountinfo_parse_reads_what_the_kernel_writes(mount):
    assert mount == mountinfo.parse(written(mount))


@given(st.text())
@example("a\\")
@example("\\777")
@example("\\09 \\12")
def test_mountinfo_unescape_undoes_escape(text):
    assert text == mountinfo.unescape(escape(text))


@given(st.text(st.sampled_from("\\01379 a/é\udcff")))
def test_mountinfo_unescape_never_fails(text):
    assert mountinfo.unescape(text.replace("\\", "\\134")) == text


@given(st.text())
def test_mountinfo_parse_refuses_other_text_with_a_valueerror(text):
    try:
        mountinfo.parse(text)
    except ValueError:
        return
    assert " - " in text


def test_mountinfo_parse_reads_the_manual_pages_example():
    expected = MountInfo(
        mount_id=36,
        parent_id=35,
        device=(98, 0),
        root="/mnt1",
        mount_point="/mnt2",
        options=("rw", "noatime"),
        shared=3,
        master=1,
        propagate_from=2,
        unbindable=True,
        filesystem="ext3",
        source="/dev/root",
        super_options="rw,errors=continue",
    )
    assert expected == mountinfo.parse(LINE)


def test_mountinfo_parse_skips_tags_of_kernels_to_come():
    assert 3 == mountinfo.parse(LINE.replace("shared:3", "novelty:9 shared:3")).shared


def test_mountinfo_parse_takes_an_empty_source():
    assert "" == mountinfo.parse("1 2 0:3 / /mnt rw - tmpfs  rw").source


@pytest.mark.parametrize("line", ["", "1 2 0:3 / /mnt rw", "1 2 0:3 / /mnt - tmpfs none rw", "a b c:d / / rw - t s o"])
def test_mountinfo_parse_refuses_an_invalid_line(line):
    with pytest.raises(ValueError, match=r"mountinfo|int\(\)"):
        mountinfo.parse(line)


def test_mountinfo_values_are_equal_by_content_and_hashable():
    one, other = mountinfo.parse(LINE), mountinfo.parse(LINE)
    assert (True, 1, False) == (one == other, len({one, other}), one == mountinfo.parse(LINE.replace("rw,no", "ro,no")))
    assert one != LINE


def test_mountinfo_values_show_what_they_are_and_survive_pickling():
    one = mountinfo.parse(LINE)
    assert "<MountInfo 36 ext3 on /mnt2>" == repr(one)
    assert one == pickle.loads(pickle.dumps(one))


def test_mountinfo_read_only_is_of_the_mount_not_the_filesystem():
    assert not mountinfo.parse("1 2 0:3 / /mnt rw - ext4 x ro").read_only
    assert mountinfo.parse("1 2 0:3 / /mnt ro - ext4 x rw").read_only


def tree(*points):
    return [mountinfo.parse(f"{number} 1 0:{number} / {point} rw - t s o") for number, point in enumerate(points)]


def test_mountinfo_at_gives_the_topmost():
    assert 2 == mountinfo.at("/a", tree("/", "/a", "/a", "/ab")).mount_id
    assert mountinfo.at("/a/b", tree("/", "/a")) is None


def test_mountinfo_below_excludes_neighbours_with_a_common_prefix():
    points = ["/", "/a", "/a/b", "/ab", "/a/b/c"]
    assert ["/a", "/a/b", "/a/b/c"] == [mount.mount_point for mount in mountinfo.below("/a", tree(*points))]
    assert points == [mount.mount_point for mount in mountinfo.below("/", tree(*points))]


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", 0), ("/x", 0), ("/a", 4), ("/a/x", 4), ("/ab", 3), ("/a/b", 2), ("/a/b/c", 2), ("/abc", 0)],
)
def test_mountinfo_covering_is_the_nearest_and_topmost(path, expected):
    assert expected == mountinfo.covering(path, tree("/", "/a", "/a/b", "/ab", "/a")).mount_id


def test_mountinfo_read_agrees_with_stat_on_this_machine():
    mounts = mountinfo.read()
    root = mountinfo.at("/", mounts)
    device = os.stat("/").st_dev
    assert (os.major(device), os.minor(device)) == root.device
    assert "proc" == mountinfo.covering("/proc/self", mounts).filesystem


def test_mountinfo_read_of_a_missing_process_is_an_oserror():
    with pytest.raises(FileNotFoundError):
        mountinfo.read(2**22 + 1)


def test_mountinfo_and_procfs_import_nothing_heavy():
    code = (
        "import sys; before = set(sys.modules)\n"
        "import containerkit._linux.mountinfo, containerkit._linux.procfs\n"
        "print(sorted({'re', 'typing', 'attrs', 'json', 'pathlib', 'enum'} & (set(sys.modules) - before)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
