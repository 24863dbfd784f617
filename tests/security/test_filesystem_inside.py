"""Files and mounts, attacked from inside, and again with a single protection disabled by name."""

import os

import pytest
from attacker import EVERYTHING, armed, attempt, attempt_in

from containerkit import Capabilities, Container, Landlock, Mount, RootFS, run
from containerkit._native import calls
from containerkit.security.paths import MASKED, READONLY

pytestmark = pytest.mark.usefixtures("nothing_left")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")


def content(path):
    try:
        with open(path, "rb") as file:
            return file.read(64)
    except OSError:
        return b""


def mount_table(**options):
    """Return the (mount point, flags) of each mount inside."""
    lines = run(["cat", "/proc/self/mounts"], text=True, **options).stdout.splitlines()
    return {line.split()[1]: set(line.split()[3].split(",")) for line in lines}


# --- Default mounts


def test_every_mount_is_nosuid(tmp_path):
    tmp_path.chmod(0o755)
    mounts = [Mount.bind(tmp_path, "/bound"), Mount.tmpfs("/scratch"), Mount.proc("/other")]
    table = mount_table(mounts=mounts)
    assert [] == [point for point, flags in table.items() if "nosuid" not in flags]
    assert {"/bound", "/scratch", "/other", "/", "/proc", "/sys", "/dev", "/dev/console"} <= table.keys()


def test_only_dev_has_devices():
    table = mount_table(mounts=[Mount.tmpfs("/scratch")])
    with_devices = {point for point, flags in table.items() if "nodev" not in flags}
    masked = {path for path in MASKED if os.path.isfile(path)}  # by the null device
    single = {"/dev/console", *(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))}
    assert with_devices <= {"/dev", "/dev/pts"} | masked | single


def test_kernel_filesystems_cannot_be_executed_from():
    table = mount_table()
    for point in ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"):
        assert "noexec" in table[point]


@pytest.mark.parametrize("path", ["/sys/kernel", "/sys/fs", "/sys/class/net", "/sys/power/state"])
def test_sys_is_read_only(path):
    if not os.path.exists(path):
        pytest.skip(f"this kernel has no {path}")
    attack = ("create-file", f"{path}/attack") if os.path.isdir(path) else ("write-file", path, "mem")
    assert attempt(*attack) in ("EROFS", "EACCES")
    assert attempt(*attack, **EVERYTHING) in ("EROFS", "EACCES")


def test_sys_shows_no_network_interface_of_the_host():
    inside = run(["ls", "/sys/class/net"], text=True).stdout.split()
    assert ["lo"] == inside


@pytest.mark.several_ids
def test_writes_to_programs_stay_in_the_container():
    """RootFS.host() shows the machine's own /usr. Writes go to a layer of the container."""
    before = content("/usr/bin/true")
    with Container() as container:
        container.run(["sh", "-c", "echo '#!/bin/sh' > /usr/bin/true && echo 'exit 7' >> /usr/bin/true"], check=True)
        assert 7 == container.run(["true"]).returncode
    assert before == content("/usr/bin/true")


# --- Masked and read-only paths


@pytest.mark.parametrize("path", [path for path in MASKED if os.path.exists(path)])
def test_masked_path_shows_nothing(path):
    with Container(mounts=armed()) as container:
        if os.path.isdir(path):
            assert "" == container.run(["ls", "-A", path], text=True, check=True).stdout
        else:
            assert "empty" == attempt_in(container, "read-file", path)
    if os.path.isdir(path):
        bare = run(["ls", "-A", path], masked_paths=(), text=True).stdout.split()
        assert sorted(os.listdir(path)) == sorted(bare)
    else:
        assert attempt("read-file", path, masked_paths=()) in ("done", "EPERM", "EACCES")


def test_masks_of_sys_cover_files_and_directories():
    """They are attached after the old root is unmounted. One of these paths is nowhere."""
    paths = ("/sys/kernel/mm", "/sys/kernel/uevent_seqnum", "/sys/kernel/no-such-path")
    content = "ls -A /sys/kernel/mm; cat /sys/kernel/uevent_seqnum"
    look = ["sh", "-c", f"{content}; grep -c ' /sys/' /proc/self/mountinfo"]
    assert "2\n" == run(look, masked_paths=paths, text=True).stdout
    with Container(masked_paths=paths) as container:
        assert "2\n" == container.run(look, text=True).stdout
    assert len(run(["sh", "-c", content], masked_paths=(), text=True).stdout) > 4


def test_masked_path_shows_something_without_the_mask():
    """Check that at least one attempt succeeds, so that the tests above can fail."""
    seen = [path for path in MASKED if attempt("read-file", path, masked_paths=()) == "done"]
    if not any(content(path) for path in MASKED if os.path.isfile(path)):
        pytest.skip("this kernel shows none of the masked files")
    assert seen


def test_mask_cannot_be_written_through_or_removed():
    path = next((path for path in MASKED if os.path.isfile(path)), None)
    if path is None:
        pytest.skip("this kernel has none of the masked files")
    with Container(mounts=armed()) as container:
        assert attempt_in(container, "unmount", path) == "EPERM"
        assert attempt_in(container, "change-mode", path, "777") in ("EROFS", "EPERM")
        assert "empty" == attempt_in(container, "read-file", path)


def test_kernel_parameter_cannot_be_written():
    net_admin = {"capabilities": Capabilities.of("NET_ADMIN")}
    attack = ("write-file", "/proc/sys/net/ipv4/ip_forward", "1")
    assert attempt(*attack) in ("EACCES", "EROFS")
    assert "EROFS" == attempt(*attack, **net_admin)
    assert "done" == attempt(*attack, **net_admin, readonly_paths=()), "its own network namespace's, so harmless"


@pytest.mark.parametrize("path", [path for path in READONLY if os.path.exists(path)])
def test_read_only_path_takes_no_file(path):
    attack = ("create-file", f"{path}/attack") if os.path.isdir(path) else ("write-file", path, "h")
    assert attempt(*attack) in ("EROFS", "EACCES", "ENOENT")


@pytest.mark.parametrize(
    "path",
    ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/panic_on_oom", "/proc/sysrq-trigger"],
)
def test_host_parameter_cannot_be_opened_for_writing_with_all_capabilities(path):
    """It is opened, never written. Paths or capabilities of a user namespace must not be the only protection."""
    if not os.path.exists(path):
        pytest.skip(f"this kernel has no {path}")
    assert attempt("write-file", path, "") in ("EROFS", "EACCES")
    assert "EACCES" == attempt("write-file", path, "", **EVERYTHING, readonly_paths=(), masked_paths=())


# --- /proc with options


def test_proc_of_processes_alone():
    done = run(["sh", "-c", "ls /proc"], text=True, mounts=[Mount.proc(subset="pid")])
    assert {"self", "thread-self", "1"} <= set(done.stdout.split())
    assert [] == [name for name in done.stdout.split() if not name.isdecimal() and "self" not in name]
    assert "meminfo" in run(["ls", "/proc"], text=True).stdout.split()


@pytest.mark.parametrize(("hidepid", "seen"), [("invisible", False), ("noaccess", True)])
def test_proc_hides_the_processes_of_others(hidepid, seen):
    user = {"user": "1000:1000"} if os.geteuid() == 0 else {}
    if not user:
        pytest.skip("takes a second user in the container")
    with Container(mounts=[Mount.proc(hidepid=hidepid)]) as container, container.popen(["sleep", "30"]) as sleeper:
        listed = container.run(["ls", "/proc"], text=True, **user).stdout.split()
        pid = container.run(["pidof", "sleep"], text=True).stdout.strip()
        status = container.run(["cat", f"/proc/{pid}/status"], **user)
        sleeper.kill()
    assert (seen, True) == (pid in listed, status.returncode != 0)


# --- Binds


@pytest.fixture
def nested(tmp_path):
    """A directory with another filesystem mounted below it."""
    tmp_path.chmod(0o777)
    (tmp_path / "below").mkdir()
    calls.mount("below", str(tmp_path / "below"), "tmpfs")
    os.chmod(tmp_path / "below", 0o777)
    yield tmp_path
    calls.umount2(str(tmp_path / "below"))


@needs_root
def test_read_only_bind_is_so_at_every_depth(nested):
    mount = Mount.bind(nested, "/bound", readonly=True)
    assert "EROFS" == attempt("create-file", "/bound/attack", mounts=[mount])
    assert "EROFS" == attempt("create-file", "/bound/below/attack", mounts=[mount])
    assert "EROFS" == attempt("create-file", "/bound/below/attack", mounts=[mount], **EVERYTHING)
    assert [] == list((nested / "below").iterdir())
    writable = Mount.bind(nested, "/bound")
    assert "done" == attempt("create-file", "/bound/below/attack", mounts=[writable])


@needs_root
def test_read_only_bind_cannot_be_made_writable_again(nested):
    mount = Mount.bind(nested, "/bound", readonly=True)
    assert "EPERM" == attempt("remount-writable", "/bound", mounts=[mount])
    assert "EPERM" == attempt("remount-writable", "/bound", mounts=[mount], seccomp=None)
    # Whoever has CAP_SYS_ADMIN controls the container's mounts.
    assert "done" == attempt("remount-writable", "/bound", mounts=[mount], capabilities=Capabilities.of("SYS_ADMIN"))


@needs_root
def test_nested_user_namespace_cannot_change_what_it_was_given(nested):
    """nested_userns grants capabilities over new mounts only: the kernel locks the existing ones."""
    loosened = {"seccomp": None, "nested_userns": True, "mounts": [Mount.bind(nested, "/bound", readonly=True)]}
    assert "EPERM" == attempt("nested", "remount-writable", "/bound", **loosened)
    assert "EPERM" == attempt("nested", "remount-writable", "/bound/below", **loosened)
    assert "EPERM" == attempt("nested", "remount-writable", "/proc/sys", **loosened)
    for path in ("/proc/sys", "/proc/keys"):
        if os.path.exists(path):
            assert "EINVAL" == attempt("nested", "unmount", path, **loosened)
    assert "EINVAL" == attempt("nested", "unmount", "/bound/below", **loosened)
    assert "done" == attempt("nested", "mount-tmpfs", "/mnt", **loosened)
    assert "EPERM" == attempt("nested", "mount-tmpfs", "/mnt")


@needs_root
def test_device_node_in_a_bind_cannot_be_opened(tmp_path):
    tmp_path.chmod(0o755)
    os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
    os.chmod(tmp_path / "null", 0o666)
    assert "EACCES" == attempt("read-file", "/bound/null", mounts=[Mount.bind(tmp_path, "/bound")])
    assert "empty" == attempt("read-file", "/bound/null", mounts=[Mount.bind(tmp_path, "/bound", nodev=False)])


@needs_root
@pytest.mark.parametrize("kind", ["overlay", "dir"])
def test_device_node_in_a_root_cannot_be_opened(tmp_path, kind):
    tmp_path.chmod(0o755)
    os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
    os.chmod(tmp_path / "null", 0o666)
    for name in ("proc", "sys", "dev"):
        (tmp_path / name).mkdir()
    root = RootFS.overlay(tmp_path) if kind == "overlay" else RootFS.dir(tmp_path)
    assert "EACCES" == attempt("read-file", "/null", rootfs=root)
    assert "EACCES" == attempt("read-file", "/null", rootfs=root, **EVERYTHING)


# --- Landlock as a second protection

INSIDE = Landlock(strict=False).allow_execute("/").allow_write("/tmp").allow_read("/proc")


def landlocked():
    from containerkit.security.landlock import abi

    if abi() == 0:
        pytest.skip("the kernel has no Landlock (Linux 5.13, lsm=landlock)")
    return INSIDE


@pytest.mark.parametrize("attack", ["write-file", "write-from-thread"])
def test_landlock_holds_in_a_container(attack):
    """In the kernel it belongs to threads. A thread that is created later has it too."""
    walls = landlocked()
    with Container(mounts=armed()) as container:
        container.files.write("/etc/attack", b"")
        container.files.write("/tmp/attack", b"")
        assert "EACCES" == attempt_in(container, attack, "/etc/attack", "x", landlock=walls)
        assert "done" == attempt_in(container, attack, "/tmp/attack", "x", landlock=walls)
        assert "done" == attempt_in(container, attack, "/etc/attack", "x")
