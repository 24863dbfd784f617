"""Every kind of root filesystem: visible files, writes, and isolation from the host."""

import errno
import os
import stat
import subprocess

import attrs
import pytest

from containerkit import Change, Container, Mount, RootFS, SetupError, SpecError, StateError, run
from containerkit.security.capabilities import Capabilities

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN: id-mapped mounts")
pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")

HOST_PROGRAMS = [
    Mount.bind(f"/{name}", f"/{name}", readonly=True)
    for name in ("usr", "bin", "lib", "lib64")
    if os.path.isdir(f"/{name}")
]


@pytest.fixture
def layers(tmp_path):
    """A function that creates directories with files, for layers of an overlay."""

    def make(name, **files):
        directory = tmp_path / name
        directory.mkdir()
        for path, content in files.items():
            (directory / path).write_text(content)
        return directory

    return make


@pytest.fixture
def small_root(tmp_path):
    """A directory with a shell. The host's own programs are bound over it."""
    root = tmp_path / "root"
    for name in ("usr", "etc", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), root / name)
        else:
            (root / name).mkdir()
    (root / "etc" / "mark").write_text("mine")
    return root


def run_in(rootfs, script, **more):
    return run(["sh", "-c", script], rootfs=rootfs, mounts=[*HOST_PROGRAMS, *more.pop("mounts", ())], text=True, **more)


# --- The host's ---------------------------------------------------------------------------------------------------------


def test_host_shows_programs_and_hides_home_directories(box):
    listed = set(box.files.listdir("/"))
    assert {"usr", "bin", "etc", "dev", "proc", "sys", "tmp", "root", "home", "run", "var"} <= listed
    for hidden in ("/root", "/home", "/run", "/srv", "/mnt", "/opt"):
        assert [] == [name for name in box.files.listdir(hidden) if name != "lock"]


def test_host_shows_no_secrets(box):
    names = set(box.files.listdir("/etc"))
    assert set() == names & {
        "shadow",
        "gshadow",
        "shadow-",
        "gshadow-",
        "sudoers",
        "sudoers.d",
        "ssh",
        "machine-id",
        "crypttab",
        "fstab",
    }
    assert {"passwd", "group", "hosts", "nsswitch.conf"} & names
    found = box.run(
        ["sh", "-c", "find /etc -type f ! -perm -004; find /etc -name '*key*' -path '*private*'"], text=True
    )
    assert "" == found.stdout


@needs_root  # an unprivileged user's container has no id for the owner of the machine's /usr
def test_host_takes_writes_and_keeps_none(box):
    script = "echo x >/etc/new && echo y >>/etc/passwd && rm /usr/bin/env && mkdir /usr/share/mine && echo z >/usr/share/mine/f"
    assert 0 == box.run(["sh", "-c", script]).returncode
    assert not os.path.exists("/etc/new")
    assert not os.path.exists("/usr/share/mine")
    assert os.path.exists("/usr/bin/env")
    with open("/etc/passwd") as file:
        assert "y\n" not in file.readlines()


def test_host_is_new_for_each_container(box):
    box.files.write("/tmp/x", "1")
    with Container() as other:
        assert not other.files.exists("/tmp/x")


def test_host_readonly_takes_none():
    done = run(
        ["sh", "-c", "touch /x; touch /usr/x; touch /etc/x; touch /tmp/x; true"],
        rootfs=RootFS.host(readonly=True),
        text=True,
    )
    assert 4 == done.stderr.count("Read-only file system")


def test_host_size_is_kept():
    done = run(
        ["sh", "-c", "head -c 8M /dev/zero >/tmp/big; ls -l /tmp/big | wc -l"], rootfs=RootFS.host(size="1M"), text=True
    )
    assert "No space left" in done.stderr


@pytest.mark.several_ids
def test_host_files_belong_to_root_inside(box):
    assert b"0:0\n0:0\n" == box.run(["stat", "-c", "%u:%g", "/usr/bin/env", "/etc/passwd"]).stdout


def test_host_device_nodes(box):
    listed = box.run(
        ["sh", "-c", "cd /dev; stat -L -c '%n %F %t:%T %a' null zero full random urandom tty ptmx"], text=True
    ).stdout
    expected = {
        "null": "1:3",
        "zero": "1:5",
        "full": "1:7",
        "random": "1:8",
        "urandom": "1:9",
        "tty": "5:0",
        "ptmx": "5:2",
    }
    found = {line.split()[0]: line.split()[-2:] for line in listed.splitlines()}
    assert {name: [numbers, "666"] for name, numbers in expected.items()} == found


def test_host_devices_work(box):
    script = "echo x >/dev/null && head -c 3 /dev/zero | od -An -tx1 && head -c 9 /dev/urandom | wc -c && ! echo x >/dev/full"
    assert b" 00 00 00\n9\n" == box.run(["sh", "-c", script]).stdout


def test_host_links_in_dev(box):
    listed = box.run(["sh", "-c", "cd /dev; readlink fd stdin stdout stderr ptmx"], text=True).stdout
    assert ["/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx"] == listed.split()


def test_host_standard_filesystems(box):
    lines = [line.split() for line in box.run(["cat", "/proc/self/mountinfo"], text=True).stdout.splitlines()]
    kinds = {line[4]: (line[line.index("-") + 1], set(line[5].split(","))) for line in lines}
    assert {
        "proc": "proc",
        "sys": "sysfs",
        "dev": "tmpfs",
        "dev/pts": "devpts",
        "dev/shm": "tmpfs",
        "dev/mqueue": "mqueue",
    } == {name: kinds[f"/{name}"][0] for name in ("proc", "sys", "dev", "dev/pts", "dev/shm", "dev/mqueue")}
    for name in ("/proc", "/sys", "/dev/shm", "/dev/mqueue"):
        assert {"nosuid", "nodev", "noexec"} <= kinds[name][1]
    assert "ro" in kinds["/sys"][1]


# --- A directory -------------------------------------------------------------------------------------------------------------


def test_dir_takes_writes_that_the_host_sees(small_root):
    done = run_in(RootFS.dir(small_root), "cat /etc/mark; echo inside >/etc/new; stat -c %u:%g /etc/mark")
    assert "mine0:0\n" == done.stdout
    assert "inside\n" == (small_root / "etc" / "new").read_text()
    assert os.geteuid() == (small_root / "etc" / "new").stat().st_uid


def test_dir_readonly_takes_none(small_root):
    done = run_in(RootFS.dir(small_root, readonly=True), "echo x >/etc/new || cat /etc/mark")
    assert "mine" == done.stdout
    assert "Read-only" in done.stderr
    assert ["mark"] == os.listdir(small_root / "etc")


@needs_root
def test_dir_shows_ids_as_they_are_outside(small_root):
    os.chown(small_root / "etc" / "mark", 33, 44)
    done = run_in(
        RootFS.dir(small_root),
        "stat -c %u:%g /etc/mark; touch /etc/new; chown 55:66 /etc/new",
        capabilities=Capabilities.of("CHOWN"),
    )
    assert "33:44\n" == done.stdout
    status = (small_root / "etc" / "new").stat()
    assert (55, 66) == (status.st_uid, status.st_gid)


@needs_root
def test_dir_without_idmap_shows_nobody(small_root):
    done = run_in(RootFS.dir(small_root, idmap=False), "stat -c %u:%g /etc/mark; touch /etc/new 2>&1 || true")
    assert done.stdout.startswith("65534:65534\n")
    assert "Permission denied" in done.stdout


@needs_root
def test_dir_shows_what_is_mounted_below_it(small_root):
    (small_root / "tmp" / "deep").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "deep", small_root / "tmp" / "deep"], check=True)
    try:
        (small_root / "tmp" / "deep" / "file").write_text("below")
        assert "below" == run_in(RootFS.dir(small_root), "cat /tmp/deep/file").stdout
        done = run_in(RootFS.dir(small_root, readonly=True), "touch /tmp/deep/x")
        assert "Read-only" in done.stderr
    finally:
        subprocess.run(["umount", small_root / "tmp" / "deep"], check=True)


def test_dir_of_a_strange_name(tmp_path, small_root):
    strange = tmp_path / "a b,c:d\\e\n\udcff"
    os.rename(small_root, strange)
    assert "mine" == run_in(RootFS.dir(strange), "cat /etc/mark").stdout


def test_dir_makes_places_for_the_standard_filesystems(tmp_path):
    done = run_in(RootFS.dir(tmp_path), "ls /")
    assert {"dev", "proc", "sys", "usr"} <= set(done.stdout.split())


# --- Unions ----------------------------------------------------------------------------------------------------------------


def test_overlay_topmost_first(layers):
    top, bottom = layers("top", one="top"), layers("bottom", one="bottom", two="bottom")
    done = run_in(RootFS.overlay(top, bottom), "cat /one /two; echo new >/one; cat /one")
    assert "topbottomnew\n" == done.stdout
    assert ("top", ["one"]) == ((top / "one").read_text(), os.listdir(top))


def test_overlay_to_an_upper_directory_keeps_the_changes(layers, tmp_path):
    lower = layers("lower", keep="k", drop="d", edit="e")
    upper = tmp_path / "upper"
    upper.mkdir()
    rootfs = RootFS.overlay(lower, upper=upper)
    assert (
        "" == run_in(rootfs, "rm /drop; echo more >>/edit; echo n >/new; mkdir /directory; echo f >/directory/f").stderr
    )
    assert "emore\n" == (upper / "edit").read_text()
    assert "n\n" == (upper / "new").read_text()
    assert os.path.isdir(tmp_path / "upper.work")
    assert "ls: cannot access '/drop': No such file or directory\n" == run_in(rootfs, "cat /edit; ls /drop").stderr
    assert ["drop", "edit", "keep"] == sorted(os.listdir(lower))


@needs_root
def test_overlay_to_an_upper_directory_writes_ids_as_inside(layers, tmp_path):
    upper = tmp_path / "upper"
    upper.mkdir()
    may = Capabilities.of("CHOWN")
    run_in(RootFS.overlay(layers("lower"), upper=upper), "touch /a; touch /b; chown 12:34 /b", capabilities=may)
    found = {name: ((upper / name).stat().st_uid, (upper / name).stat().st_gid) for name in ("a", "b")}
    assert {"a": (0, 0), "b": (12, 34)} == found


@pytest.mark.parametrize("name", ["a,b", "a:b", "a\\b", "a b", "lowerdir=x", "ü", "a,upperdir=x", "a,b\\,c"])
def test_overlay_of_directories_with_strange_names(layers, tmp_path, name):
    lower = layers(f"lower {name}", file="seen")
    upper = tmp_path / name
    upper.mkdir()
    done = run_in(RootFS.overlay(lower, upper=upper), "cat /file; echo x >/new")
    assert ("seen", "") == (done.stdout, done.stderr)
    assert "x\n" == (upper / "new").read_text()


def test_overlay_with_a_work_directory_of_ones_own(layers, tmp_path):
    upper, work = tmp_path / "u" / "upper", tmp_path / "w" / "work"
    upper.mkdir(parents=True)
    work.mkdir(parents=True)
    run_in(RootFS.overlay(layers("lower"), upper=upper, work=work), "echo x >/new")
    assert "x\n" == (upper / "new").read_text()


@pytest.mark.parametrize("count", [2, 64, 65, 200, 500])
def test_overlay_of_many_layers(tmp_path, count):
    directories = []
    for number in range(count):
        directory = tmp_path / f"layer{number}"
        directory.mkdir()
        (directory / f"f{number}").write_text(str(number))
        (directory / "top").write_text(str(number))
        directories.append(directory)
    done = run_in(RootFS.overlay(*directories), "ls -d /f* | wc -l; cat /top")
    assert f"{count}\n0" == done.stdout


def test_overlay_of_too_many_layers(tmp_path):
    with pytest.raises(SpecError, match="at most 500"):
        RootFS.overlay(*[tmp_path] * 501)


@needs_root
def test_overlay_whose_upper_is_another_filesystem_than_its_work(layers, tmp_path):
    """Silent writes to the files hidden below the mount would be the worst outcome."""
    upper = tmp_path / "upper"
    upper.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "disk", upper], check=True)
    try:
        with pytest.raises((SpecError, SetupError)):
            run_in(RootFS.overlay(layers("lower"), upper=upper), "echo x >/new")
        assert [] == os.listdir(upper)
    finally:
        subprocess.run(["umount", upper], check=True)
    assert [] == os.listdir(upper)


def test_overlay_that_is_one_directory_twice_is_one_clear_error(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    with pytest.raises(SetupError) as caught:
        run_in(RootFS.overlay(inner, tmp_path), "true")
    assert "overlay" in str(caught.value)


# --- Memory ------------------------------------------------------------------------------------------------------------------


def test_tmpfs_is_empty_and_of_the_given_size():
    done = run_in(RootFS.tmpfs("4M"), "ls / | tr '\\n' ' '; head -c 8M /dev/zero >/big 2>/dev/null || echo full")
    assert done.stdout.endswith("full\n")
    assert "etc" not in done.stdout.split()


@pytest.mark.parametrize("size", ["big", "-1", 0, "0", 1.5, True, "1x", "M"])
def test_sizes_that_are_none_are_refused(size):
    for make in (RootFS.tmpfs, lambda size: RootFS.host(size=size), lambda size: RootFS.overlay("/usr", size=size)):
        with pytest.raises(SpecError, match="size"):
            make(size)


# --- Changes -----------------------------------------------------------------------------------------------------------


@needs_root
def test_changes_of_the_host_kind(box):
    script = "echo x >/etc/new; echo y >>/etc/passwd; rm /etc/hosts; mkdir -p /opt/a/b; rm /usr/bin/env; echo z >/usr/bin/mine"
    box.run(["sh", "-c", script], check=True)
    wanted = {
        Change("/etc/new", "added"),
        Change("/etc/passwd", "changed"),
        Change("/etc/hosts", "deleted"),
        Change("/opt/a", "added"),
        Change("/opt/a/b", "added"),
        Change("/usr/bin/env", "deleted"),
        Change("/usr/bin/mine", "added"),
    }
    assert wanted == set(box.changes())


def test_changes_of_nothing(box):
    box.run(["true"])
    assert [] == list(box.changes())


def test_changes_of_an_overlay(layers):
    top, bottom = layers("top", one="1"), layers("bottom", two="2", three="3")
    (bottom / "directory").mkdir()
    (bottom / "directory" / "in").write_text("x")
    with Container(RootFS.overlay(top, bottom), mounts=HOST_PROGRAMS) as box:
        box.run(
            [
                "sh",
                "-c",
                "rm /one; echo >>/two; rm -r /directory; mkdir /directory; echo >/directory/other; echo >/four",
            ],
            check=True,
        )
        found = {change for change in box.changes() if not change.path.startswith(("/usr", "/bin", "/lib"))}
    wanted = {
        Change("/one", "deleted"),
        Change("/two", "changed"),
        Change("/directory", "changed"),
        Change("/directory/other", "added"),
        Change("/four", "added"),
    }
    assert wanted == found


def test_changes_of_an_upper_directory(layers, tmp_path):
    upper = tmp_path / "upper"
    upper.mkdir()
    with Container(RootFS.overlay(layers("lower", a="1"), upper=upper), mounts=HOST_PROGRAMS) as box:
        box.run(["sh", "-c", "rm /a; echo >/b"], check=True)
        found = {change for change in box.changes() if change.path in ("/a", "/b")}
    assert {Change("/a", "deleted"), Change("/b", "added")} == found


def test_changes_of_a_tmpfs():
    with Container(RootFS.tmpfs(), mounts=HOST_PROGRAMS) as box:
        box.run(["sh", "-c", "mkdir /x; echo >/x/y"], check=True)
        found = set(box.changes())
    assert {Change("/x", "added"), Change("/x/y", "added")} == found


@pytest.mark.parametrize("kind", ["dir", "read-only"])
def test_changes_where_there_is_no_writable_layer(kind, tmp_path):
    rootfs = RootFS.dir(tmp_path) if kind == "dir" else RootFS.host(readonly=True)
    with Container(rootfs, mounts=HOST_PROGRAMS if kind == "dir" else ()) as box, pytest.raises(StateError):
        list(box.changes())


def test_changes_do_not_follow_links(box):
    """A symlink that the container made is not followed outside: it is listed as a symlink."""
    box.run(["sh", "-c", "ln -s /root /opt/link; ln -s /proc/1/root /opt/other"], check=True)
    assert {Change("/opt/link", "added"), Change("/opt/other", "added")} == set(box.changes())


def test_readonly_root_is_read_only_to_the_root_inside(box):
    with Container(RootFS.host(readonly=True)) as other:
        for options in ("remount,rw", "remount,bind,rw"):
            assert 0 != other.run(["mount", "-o", options, "/"]).returncode
            assert 0 != other.run(["mount", "-o", options, "/usr"]).returncode
        assert 0 != other.run(["touch", "/written"]).returncode
        assert 0 != other.run(["touch", "/usr/written"]).returncode
    assert not os.path.exists("/usr/written")


def test_readonly_directory_without_mount_points_is_reported(tmp_path):
    with pytest.raises(SetupError) as caught:
        run(["true"], rootfs=RootFS.dir(tmp_path, readonly=True))
    assert (errno.EROFS, "mkdirat") == (caught.value.errno, caught.value.operation)
    assert "read-only" in caught.value.hint
    assert [] == os.listdir(tmp_path)


def test_readonly_roots_take_the_places_of_mounts_and_keep_them_to_themselves(tmp_path):
    """The skeleton that all containers share must not change."""
    mounts = [Mount.bind(tmp_path, "/made/for/this"), Mount.tmpfs("/made/other")]
    (tmp_path / "f").write_text("x")
    for readonly in (True, False):
        assert b"x" == run(["cat", "/made/for/this/f"], rootfs=RootFS.host(readonly=readonly), mounts=mounts).stdout
    assert b"" == run(["sh", "-c", "ls -d /made 2>/dev/null; true"], rootfs=RootFS.host(readonly=True)).stdout
    assert b"" == run(["sh", "-c", "ls -d /made 2>/dev/null; true"]).stdout


def test_lower_layers_are_never_written_to(layers, tmp_path):
    lower = layers("lower", file="x")
    mounts = [*HOST_PROGRAMS, Mount.tmpfs("/made/for/this")]
    for rootfs in (RootFS.overlay(lower), attrs.evolve(RootFS.overlay(lower), readonly=True)):
        assert 0 == run(["sh", "-c", "test -d /made/for/this"], rootfs=rootfs, mounts=mounts).returncode
    assert ["file"] == os.listdir(lower)


def test_upper_layer_behind_links(layers, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "upper").mkdir()
    os.symlink("real", tmp_path / "link")
    os.symlink("upper", tmp_path / "real" / "other")
    run_in(RootFS.overlay(layers("lower"), upper=tmp_path / "link" / "other"), "echo x >/new")
    assert "x\n" == (tmp_path / "real" / "upper" / "new").read_text()


def test_mode_of_the_root(box):
    assert 0o755 == stat.S_IMODE(int(box.run(["stat", "-c", "%f", "/"], text=True).stdout, 16))
