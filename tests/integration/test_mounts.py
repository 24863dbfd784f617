"""Mounts inside: binds of files and directories, memory, unions, proc; their contents, owners and targets."""

import errno
import os
import subprocess

import pytest

from containerkit import Container, Mount, Namespaces, RootFS, SetupError, SpecError, run
from containerkit.security.capabilities import Capabilities

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN: id-mapped mounts")
pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_text("content")
    return directory


def inside(script, *mounts, **more):
    return run(["sh", "-c", script], mounts=mounts, text=True, **more)


def options_of(target, *mounts):
    lines = [line.split() for line in inside("cat /proc/self/mountinfo", *mounts).stdout.splitlines()]
    return next(set(line[5].split(",")) for line in lines if line[4] == target)


def test_bind_of_a_directory_is_the_same_directory(source):
    done = inside("cat /mnt/x/file; echo new >/mnt/x/made; ls -A /mnt/x", Mount.bind(source, "/mnt/x"))
    assert "contentfile\nmade\nsub\n" == done.stdout
    assert "new\n" == (source / "made").read_text()


def test_bind_of_a_file(source):
    done = inside("cat /etc/mine; echo more >>/etc/mine", Mount.bind(source / "file", "/etc/mine"))
    assert "content" == done.stdout
    assert "contentmore\n" == (source / "file").read_text()


def test_bind_over_a_file_that_is_there(source):
    assert "content" == inside("cat /etc/passwd", Mount.bind(source / "file", "/etc/passwd")).stdout


def test_bind_readonly(source):
    done = inside("cat /x/file; touch /x/y /x/sub/y; rm /x/file", Mount.bind(source, "/x", readonly=True))
    assert "content" == done.stdout
    assert 3 == done.stderr.count("Read-only file system")


@needs_root
def test_bind_readonly_is_so_below_other_mounts(source):
    """A read-only bind must also be read-only on mounts below it: AT_RECURSIVE."""
    subprocess.run(["mount", "-t", "tmpfs", "below", source / "sub"], check=True)
    try:
        assert "Read-only" in inside("touch /x/sub/y", Mount.bind(source, "/x", readonly=True)).stderr
        assert "" == inside("touch /x/sub/y", Mount.bind(source, "/x")).stderr
        assert ["y"] == os.listdir(source / "sub")
        alone = inside("ls -A /x/sub", Mount.bind(source, "/x", recursive=False))
        assert ("", "") == (alone.stdout, alone.stderr)
    finally:
        subprocess.run(["umount", source / "sub"], check=True)


@needs_root
def test_bind_shows_ids_as_they_are_and_writes_them(source):
    os.chown(source / "file", 1234, 2345)
    done = inside(
        "stat -c %u:%g /x /x/file; touch /x/new; chown 77:88 /x/new",
        Mount.bind(source, "/x"),
        capabilities=Capabilities.of("CHOWN"),
    )
    assert "0:0\n1234:2345\n" == done.stdout
    status = (source / "new").stat()
    assert (77, 88) == (status.st_uid, status.st_gid)


@needs_root
def test_bind_without_idmap_is_nobodys(source):
    done = inside("stat -c %u:%g /x/file; touch /x/new", Mount.bind(source, "/x", idmap=False))
    assert "65534:65534\n" == done.stdout
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize("name", ["nosuid", "nodev", "noexec", "noatime"])
@pytest.mark.several_ids
def test_bind_attributes(source, name):
    assert name in options_of("/x", Mount.bind(source, "/x", **{name: True}))
    assert name not in options_of("/x", Mount.bind(source, "/x", **{name: False}))


def test_bind_noexec_refuses_programs(source):
    (source / "script").write_text("#!/bin/sh\necho ran\n")
    (source / "script").chmod(0o755)
    assert "ran\n" == inside("/x/script", Mount.bind(source, "/x")).stdout
    assert "Permission denied" in inside("/x/script", Mount.bind(source, "/x", noexec=True)).stderr


def test_targets_are_made_at_any_depth(source):
    done = inside("cat /a/b/c/d/file /e/f/g", Mount.bind(source, "/a/b/c/d"), Mount.bind(source / "file", "/e/f/g"))
    assert "contentcontent" == done.stdout


def test_targets_that_must_be_there(source):
    with pytest.raises(SetupError) as caught:
        inside("true", Mount.bind(source, "/not/there", create=False))
    assert (errno.ENOENT, "/not/there") == (caught.value.errno, caught.value.target)


def test_targets_of_the_wrong_kind(source):
    for mount in (Mount.bind(source, "/etc/passwd"), Mount.bind(source / "file", "/etc")):
        with pytest.raises(SetupError) as caught:
            inside("true", mount)
        assert caught.value.errno in (errno.ENOTDIR, errno.EINVAL)
        assert mount.target in str(caught.value)


def test_targets_below_an_earlier_mount(source):
    done = inside("cat /x/y/file; ls -A /x", Mount.tmpfs("/x"), Mount.bind(source, "/x/y"))
    assert "contenty\n" == done.stdout


def test_targets_of_strange_names(source):
    target = "/a b,c:d\\e\n\udcff/ü"
    done = run(["cat", f"{target}/file"], mounts=[Mount.bind(source, target)])
    assert b"content" == done.stdout


def test_sources_of_strange_names(tmp_path):
    strange = tmp_path / "a b,c:d\\e\n\udcff"
    strange.mkdir()
    (strange / "file").write_text("content")
    assert "content" == inside("cat /x/file", Mount.bind(strange, "/x")).stdout


def test_source_behind_a_link_is_followed_outside(source, tmp_path):
    os.symlink(source, tmp_path / "link")
    assert "content" == inside("cat /x/file", Mount.bind(tmp_path / "link", "/x")).stdout


def test_source_that_is_relative(source, monkeypatch):
    monkeypatch.chdir(source)
    assert "content" == inside("cat /x/file", Mount.bind("../source", "/x")).stdout


def test_many_binds(source):
    mounts = [Mount.bind(source, f"/many/{number}") for number in range(100)]
    assert "100\n" == inside("cat /many/*/file | grep -o content | wc -l", *mounts).stdout


@pytest.mark.parametrize("target", ["x", "", "/", "/a/../b", "/a\0", 3, None, "/.."])
def test_targets_that_cannot_be_are_refused(target):
    with pytest.raises(SpecError):
        Mount.tmpfs(target)


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": "x"},
        {"size": -1},
        {"size": True},
        {"inodes": "x"},
        {"inodes": -1},
        {"mode": "x"},
        {"mode": -1},
        {"mode": 0o100000},
    ],
)
def test_memory_that_cannot_be_is_refused(arguments):
    with pytest.raises(SpecError):
        Mount.tmpfs("/x", **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"propagation": "rshared"}, {"type": ""}, {"type": 3}, {"type": "bind"}, {"source": "a\0b"}, {"readonly": "yes"}],
)
def test_mounts_that_cannot_be_are_refused(arguments):
    with pytest.raises(SpecError):
        Mount(**{"target": "/x", "type": "tmpfs", **arguments})


def test_tmpfs_size_mode_and_inodes():
    script = (
        "stat -c %a /x; head -c 2M /dev/zero >/x/big; rm -f /x/big; for i in 1 2 3 4 5 6 7 8 9 10; do touch /x/$i; done"
    )
    done = inside(script, Mount.tmpfs("/x", size="1M", mode=0o751, inodes=8))
    assert "751\n" == done.stdout
    assert 1 + 3 == done.stderr.count("No space left")


def test_tmpfs_is_each_containers_own(box):
    with Container(mounts=[Mount.tmpfs("/x")]) as one, Container(mounts=[Mount.tmpfs("/x")]) as two:
        one.run(["touch", "/x/y"], check=True)
        assert 0 != two.run(["ls", "/x/y"]).returncode


def test_proc_of_ones_own():
    done = inside(
        "ls /p | grep -c '^[0-9]'; ls /q/sys 2>&1 | head -1", Mount.proc("/p"), Mount.proc("/q", subset="pid")
    )
    lines = done.stdout.splitlines()
    assert int(lines[0]) < 10
    assert "No such file" in lines[1]


@needs_root
def test_proc_that_hides_others():
    with Container(mounts=[Mount.proc("/p", hidepid="invisible")]) as container:
        listed = container.run(["sh", "-c", "ls /p | grep '^[0-9]'"], user="12:12", text=True).stdout.split()
        assert "1" not in listed
        assert len(listed) >= 1


def test_proc_instead_of_the_standard_one():
    assert (
        "hidepid=invisible"
        in inside("grep ' /proc ' /proc/self/mountinfo", Mount.proc("/proc", hidepid="invisible")).stdout
    )


def test_overlay_of_what_is_inside(source):
    mounts = (Mount.tmpfs("/w"), Mount.bind(source, "/l", readonly=True))
    with Container(mounts=mounts) as container:
        assert 0 == container.run(["mkdir", "/w/u", "/w/k"]).returncode


def test_type_that_the_kernel_does_not_know():
    with pytest.raises(SetupError) as caught:
        inside("true", Mount(target="/x", type="nosuchfs"))
    assert (errno.ENODEV, "fsopen", "nosuchfs") == (caught.value.errno, caught.value.operation, caught.value.target)


def test_option_that_the_filesystem_does_not_know():
    with pytest.raises(SetupError) as caught:
        inside("true", Mount(target="/x", type="tmpfs", options=(("nosuchoption", "1"),)))
    assert "nosuchoption=1" in caught.value.target


def test_standard_mounts_may_be_replaced(source):
    done = inside("ls -A /dev/shm; ls /sys", Mount.bind(source, "/dev/shm"), Mount.tmpfs("/sys"))
    assert "file\nsub\n" == done.stdout


def test_dev_may_be_replaced(source):
    assert "file\nsub\n" == inside("ls -A /dev", Mount.bind(source, "/dev")).stdout


def test_mapping_of_other_tools():
    mount = Mount.from_mapping({"type": "tmpfs", "target": "/x"})
    assert ("tmpfs", "/x") == (mount.type, mount.target)
    with pytest.raises(SpecError, match="wrong"):
        Mount.from_mapping({"type": "tmpfs", "target": "/x", "wrong": 1})


# --- Symlinks inside -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["/outside", "../../../../outside", "/proc/self/root/outside", "/etc/../../outside"])
@pytest.mark.parametrize("below", ["", "/deeper"])
def test_target_behind_a_link_lands_inside(tmp_path, source, link, below):
    """A symlink in the root filesystem must not lead a mount out of it (CVE-2021-30465)."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    for name in ("usr", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    outside.mkdir()
    target = link.replace("/outside", str(outside)) if link.startswith("/out") else link
    os.symlink(target, root / "trap")
    try:
        run(["/bin/true"], rootfs=RootFS.dir(root), mounts=[Mount.bind(source, f"/trap{below}")])
    except SetupError as error:
        assert error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EXDEV, errno.EEXIST)  # noqa: PT017 - several errors are acceptable
    assert [] == os.listdir(outside)
    assert not os.path.ismount(outside)


def test_target_behind_a_link_that_stays_inside(tmp_path, source):
    root = tmp_path / "root"
    for name in ("usr", "proc", "sys", "dev", "real"):
        (root / name).mkdir(parents=True)
    os.symlink("/real", root / "link")
    programs = [Mount.bind(f"/{name}", f"/{name}", readonly=True) for name in ("usr", "bin", "lib", "lib64")]
    done = run(["/bin/cat", "/real/x/file"], rootfs=RootFS.dir(root), mounts=[*programs, Mount.bind(source, "/link/x")])
    assert b"content" == done.stdout


# --- Propagation ---------------------------------------------------------------------------------------------------------------


@needs_root
def test_nothing_is_propagated_back(source):
    """Even with a shared source, and if the container may mount."""
    subprocess.run(["mount", "--bind", source, source], check=True)
    subprocess.run(["mount", "--make-shared", source], check=True)
    try:
        may = Capabilities.all()
        with Container(mounts=[Mount.bind(source, "/x")], capabilities=may, seccomp=None) as container:
            done = container.run(["mount", "-t", "tmpfs", "inner", "/x/sub"])
            assert 0 == done.returncode, done.stderr
            container.run(["touch", "/x/sub/seen"], check=True)
            assert [] == os.listdir(source / "sub")
    finally:
        subprocess.run(["umount", source], check=True)


@needs_root
def test_slave_gets_what_the_host_mounts_later(source):
    subprocess.run(["mount", "--bind", source, source], check=True)
    subprocess.run(["mount", "--make-shared", source], check=True)
    try:
        mounts = [Mount(target="/x", source=str(source), propagation="slave"), Mount.bind(source, "/y")]
        with Container(mounts=mounts) as container:
            subprocess.run(["mount", "-t", "tmpfs", "later", source / "sub"], check=True)
            try:
                (source / "sub" / "late").touch()
                assert b"late\n" == container.run(["ls", "/x/sub"]).stdout
                assert b"" == container.run(["ls", "/y/sub"]).stdout
            finally:
                subprocess.run(["umount", source / "sub"], check=True)
    finally:
        subprocess.run(["umount", source], check=True)


@needs_root
def test_a_container_without_user_namespace_of_its_own_mounts_as_well(source):
    done = inside("cat /x/file; stat -c %u /x", Mount.bind(source, "/x"), namespaces=Namespaces(user="host"))
    assert "content0\n" == done.stdout
