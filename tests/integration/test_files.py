"""Files of a running container, read and written from outside."""

import errno
import os
import stat
import threading

import pytest

from containerkit import Container, Mount, RootFS, SetupError, SpecError, User

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs a range of ids")
pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")


@pytest.mark.parametrize("content", [b"", b"x", b"\0\xff\n", os.urandom(3_000_000)])
def test_write_and_read_again(box, content):
    box.files.write("/tmp/f", content)
    assert content == box.files.read("/tmp/f")
    assert content == box.run(["cat", "/tmp/f"]).stdout


def test_write_text_and_read_text(box):
    box.files.write("/tmp/f", "grüße\n")
    assert "grüße\n" == box.files.read_text("/tmp/f")


def test_write_replaces_all_that_was_there(box):
    box.files.write("/tmp/f", "long content")
    box.files.write("/tmp/f", "short")
    assert b"short" == box.files.read("/tmp/f")


@pytest.mark.parametrize("content", [bytearray(b"abc"), memoryview(b"abc")])
def test_write_takes_whatever_is_bytes(box, content):
    box.files.write("/tmp/f", content)
    assert b"abc" == box.files.read("/tmp/f")


@pytest.mark.parametrize("content", [3, None, ["x"], object()])
def test_write_refuses_what_is_not(box, content):
    with pytest.raises(SpecError, match="content"):
        box.files.write("/tmp/f", content)
    assert not box.files.exists("/tmp/f")


def test_write_mode_and_owner(box):
    box.files.write("/tmp/f", "x", mode=0o750)
    assert b"750 0:0\n" == box.run(["stat", "-c", "%a %u:%g", "/tmp/f"]).stdout
    if os.geteuid() == 0:
        box.files.write("/tmp/g", "x", user=User(12, 34))
        assert b"644 12:34\n" == box.run(["stat", "-c", "%a %u:%g", "/tmp/g"]).stdout


def test_write_whatever_the_callers_umask(box):
    before = os.umask(0o077)
    try:
        box.files.write("/tmp/f", "x")
    finally:
        os.umask(before)
    assert b"644\n" == box.run(["stat", "-c", "%a", "/tmp/f"]).stdout


def test_read_with_a_limit(box):
    box.files.write("/tmp/f", bytes(1000))
    assert 1000 == len(box.files.read("/tmp/f", limit_bytes=1000))
    with pytest.raises(SetupError) as caught:
        box.files.read("/tmp/f", limit_bytes=999)
    assert errno.EFBIG == caught.value.errno


def test_read_of_a_file_without_an_end(box):
    """/proc and /sys contain files whose size is reported as 0, and endless ones."""
    assert b"init" in box.files.read("/proc/1/comm")
    with pytest.raises(SetupError):
        box.files.read("/dev/zero", limit_bytes=1000)


@pytest.mark.parametrize(
    ("path", "number"), [("/no/such", errno.ENOENT), ("/etc/passwd/x", errno.ENOTDIR), ("/etc", errno.EISDIR)]
)
def test_paths_that_are_not_there(box, path, number):
    with pytest.raises(SetupError) as caught:
        box.files.read(path)
    assert (number, path) == (caught.value.errno, caught.value.target)


@pytest.mark.parametrize("path", ["relative", "", "/a/../b", "/a\0b", 3, None, b"/x", "/" + "x" * 5000])
def test_paths_that_cannot_be(box, path):
    with pytest.raises((SpecError, SetupError)) as caught:
        box.files.read(path)
    assert isinstance(caught.value, SpecError) or caught.value.errno == errno.ENAMETOOLONG


@pytest.mark.parametrize("name", ["a b", "ü", "a\nb", "\udcff", "-x", "*", "a'b\"c"])
def test_strange_names(box, name):
    box.files.write(f"/tmp/{name}", "x")
    assert [name] == box.files.listdir("/tmp")
    assert b"x" == box.files.read(f"/tmp/{name}")
    assert box.files.exists(f"/tmp/{name}")


def test_directories(box):
    box.files.make_directory("/tmp/a/b/c")
    box.files.make_directory("/tmp/a/b/c")
    assert ["b"] == box.files.listdir("/tmp/a")
    assert [] == box.files.listdir("/tmp/a/b/c")
    assert box.files.exists("/tmp/a/b")
    assert not box.files.exists("/tmp/x")


def test_special_files_do_not_hang(box):
    box.run(["sh", "-c", "mkfifo /tmp/fifo; ln -s /tmp/fifo /tmp/link"], check=True)
    for path in ("/tmp/fifo", "/tmp/link", "/dev/tty", "/dev/ptmx"):
        with pytest.raises(SetupError):
            box.files.read(path)
        with pytest.raises(SetupError):
            box.files.write(path, "x")


# --- Copies ----------------------------------------------------------------------------------------------------------------


def test_put_and_get_a_file(box, tmp_path):
    (tmp_path / "f").write_bytes(bytes(range(256)) * 10_000)
    (tmp_path / "f").chmod(0o750)
    box.files.put(tmp_path / "f", "/tmp/g")
    assert b"750 0:0\n" == box.run(["stat", "-c", "%a %u:%g", "/tmp/g"]).stdout
    assert () == box.files.get("/tmp/g", tmp_path / "back")
    assert (tmp_path / "f").read_bytes() == (tmp_path / "back").read_bytes()
    assert 0o750 == stat.S_IMODE((tmp_path / "back").stat().st_mode)


def test_put_and_get_a_directory(box, tmp_path):
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "a").write_text("1")
    (tmp_path / "tree" / "sub" / "b").write_text("2")
    os.symlink("/etc/shadow", tmp_path / "tree" / "link")
    os.mkfifo(tmp_path / "tree" / "fifo")
    box.files.put(tmp_path / "tree", "/tmp/tree")
    assert ["a", "link", "sub"] == box.files.listdir("/tmp/tree")
    assert b"/etc/shadow\n" == box.run(["readlink", "/tmp/tree/link"]).stdout
    assert ("/tmp/tree/link",) == box.files.get("/tmp/tree", tmp_path / "back")
    assert ["a", "sub"] == sorted(os.listdir(tmp_path / "back"))
    assert "2" == (tmp_path / "back" / "sub" / "b").read_text()


@pytest.mark.parametrize("name", ["/tmp/sparse", "/tmp/all-hole"])
def test_holes_are_not_written_to_the_disk(box, tmp_path, name):
    script = "truncate -s 8G /tmp/sparse /tmp/all-hole; printf x | dd of=/tmp/sparse bs=1 seek=5G conv=notrunc"
    box.run(["sh", "-c", script], check=True)
    box.files.get(name, tmp_path / "back")
    status = os.stat(tmp_path / "back")
    assert (status.st_size, status.st_blocks < 1000) == (8 << 30, True)
    with open(tmp_path / "back", "rb") as file:
        file.seek(5 << 30)
        assert file.read(2) == (b"x\0" if name == "/tmp/sparse" else b"\0\0")
    box.files.put(tmp_path / "back", "/tmp/again")
    assert int(box.run(["stat", "-c", "%b", "/tmp/again"], text=True, check=True).stdout) < 1000


def test_get_replaces_nothing(box, tmp_path):
    box.files.write("/tmp/f", "new")
    (tmp_path / "f").write_text("old")
    os.symlink(tmp_path / "elsewhere", tmp_path / "link")
    for name in ("f", "link"):
        with pytest.raises(FileExistsError):
            box.files.get("/tmp/f", tmp_path / name)
    assert "old" == (tmp_path / "f").read_text()
    assert not (tmp_path / "elsewhere").exists()


def test_put_of_what_is_no_file(box, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SpecError, match="neither"):
        box.files.put(tmp_path / "fifo", "/tmp/x")
    with pytest.raises(FileNotFoundError):
        box.files.put(tmp_path / "no", "/tmp/x")


# --- Traps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link", ["/etc/shadow", "../../../../../../etc/shadow", "/proc/1/root/etc/shadow", "/proc/self/root/etc/shadow"]
)
def test_links_lead_where_they_lead_inside(box, link):
    """A container's symlink to a secret of the host must never be followed from outside, neither to read nor to write."""
    box.run(["ln", "-s", link, "/tmp/trap"], check=True)
    with pytest.raises(SetupError):
        box.files.read("/tmp/trap")


def test_writes_through_links_stay_inside(box, tmp_path):
    box.run(
        ["sh", "-c", f"mkdir -p $(dirname {tmp_path}) && ln -s {tmp_path} /tmp/trap; ln -s {tmp_path}/new /tmp/file"],
        check=True,
    )
    for path in ("/tmp/trap/x", "/tmp/file"):
        try:
            box.files.write(path, "x")
        except SetupError as error:
            assert errno.ENOENT == error.errno  # noqa: PT017 - the error is one of two outcomes
    box.files.make_directory(f"{tmp_path}")
    box.files.write("/tmp/trap/x", "x")
    assert [] == os.listdir(tmp_path)


def test_magic_links_are_not_followed(box):
    for path in ("/proc/self/root/etc/passwd", "/proc/1/root/etc/passwd", "/proc/1/cwd/etc/passwd"):
        with pytest.raises(SetupError) as caught:
            box.files.read(path)
        assert caught.value.errno in (errno.ELOOP, errno.EACCES, errno.ENOENT)


def test_copies_out_while_everything_is_swapped_for_links(box, tmp_path):
    """The copy walks a directory in which names change between files and symlinks to the host's secrets."""
    script = "mkdir -p /tmp/t/d; echo ok >/tmp/t/f; while :; do ln -sfn /etc/shadow /tmp/t/f; rm -f /tmp/t/f; echo ok >/tmp/t/f; rm -rf /tmp/t/d; ln -s / /tmp/t/d; rm /tmp/t/d; mkdir /tmp/t/d; done"
    process = box.popen(["sh", "-c", script])
    try:
        for number in range(40):
            try:
                box.files.get("/tmp/t", tmp_path / str(number))
            except (SetupError, FileNotFoundError):
                continue
    finally:
        process.close()
    for at, _, names in os.walk(tmp_path):
        for name in names:
            with open(os.path.join(at, name)) as file:
                assert file.read() in ("ok\n", "")


def test_changes_are_read_while_everything_is_swapped_for_links(box):
    script = "mkdir -p /opt/d; while :; do rm -rf /opt/d; ln -s / /opt/d; rm /opt/d; mkdir /opt/d; echo >/opt/d/f; done"
    process = box.popen(["sh", "-c", script])
    try:
        for _ in range(40):
            try:
                found = {change.path for change in box.changes()}
            except OSError:
                continue
            assert found <= {"/opt/d", "/opt/d/f"}
    finally:
        process.close()


def test_from_many_threads(box):
    errors = []

    def work(number):
        try:
            for _ in range(10):
                box.files.write(f"/tmp/{number}", str(number) * 1000)
                assert str(number) * 1000 == box.files.read_text(f"/tmp/{number}")
        except BaseException as error:  # noqa: BLE001 - reported below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == errors


def test_files_of_other_kinds_of_root(tmp_path):
    for rootfs in (RootFS.dir(tmp_path), RootFS.tmpfs(), RootFS.overlay(tmp_path)):
        with Container(rootfs) as box:
            box.files.write("/f", "x")
            assert b"x" == box.files.read("/f")
    assert ["f"] == [name for name in os.listdir(tmp_path) if name == "f"]


def test_files_below_a_readonly_mount(tmp_path):
    with Container(mounts=[Mount.bind(tmp_path, "/x", readonly=True)]) as box, pytest.raises(SetupError) as caught:
        box.files.write("/x/f", "x")
    assert errno.EROFS == caught.value.errno
