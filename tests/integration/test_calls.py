"""The calls on the running kernel, through both backends. Mounts are made in a thread's own mount namespace."""

import errno
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from examples import examples

from containerkit._linux import mountinfo
from containerkit._native import calls, calls_seam
from containerkit._native import constants as k

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
MINE = k.CLONE_FS | k.CLONE_NEWNS


@pytest.fixture(params=["calls_compiled", "calls_ctypes"], autouse=True)
def backend(request, monkeypatch):
    try:
        module = __import__(f"containerkit._native.{request.param}", fromlist=["syscall"])
    except ImportError:
        pytest.skip("the extension is not built")
    monkeypatch.setattr(calls_seam, "backend", module)


def traces(below):
    """Things that a test could leave behind: descriptors, mounts below a directory, children, this thread's namespaces."""
    with open("/proc/self/mountinfo") as mounts, open("/proc/thread-self/children") as children:
        kinds = {kind: os.stat(f"/proc/thread-self/ns/{kind}").st_ino for kind in ("mnt", "uts", "user", "pid")}
        own = [line for line in mounts if str(below) in line]  # others mount something at any moment
        return sorted(os.listdir("/proc/self/fd")), own, children.read(), kinds


@pytest.fixture(autouse=True)
def nothing_left(backend, tmp_path_factory):
    below = tmp_path_factory.getbasetemp()
    before = traces(below)
    yield
    assert before == traces(below)


def in_thread(function, *args):
    """Run in a separate thread, whose namespaces end with it."""
    outcome = []

    def run():
        try:
            outcome.append((function(*args), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def read(path):
    with open(path) as file:
        return file.read()


def mount_entry(path):
    return next(line for line in read("/proc/thread-self/mountinfo").splitlines() if str(path) in line)


def own_mounts():
    calls.unshare(MINE)
    calls.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)


def child(body, flags=0, **options):
    """Clone, run ``body`` in the child, and return its exit status. Kill a child that hangs."""
    pid = calls.clone(flags, **options)
    if pid == 0:
        try:
            os._exit(body() or 0)
        finally:
            os._exit(99)
    pidfd = calls.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], 30)[0]:
            calls.pidfd_send_signal(pidfd, signal.SIGKILL)
        return calls.waitid(pidfd, os.WEXITED | k.WALL)[0].si_status
    finally:
        os.close(pidfd)


# --- Processes


def test_clone_returns_twice_with_copies_of_the_memory():
    value = [1]

    def body():
        value[0] = 2
        return value[0]

    assert (2, [1]) == (child(body), value)


def test_clone_runs_pythons_hooks_of_fork():
    code = (
        "import os; from containerkit._native import calls\n"
        "os.register_at_fork(before=lambda: print('before', flush=True),\n"
        "    after_in_parent=lambda: os.waitid(os.P_ALL, 0, os.WEXITED) and print('parent', flush=True),\n"
        "    after_in_child=lambda: print('child', flush=True))\n"
        "calls.clone() or os._exit(0)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ["before", "child", "parent"] == output.split()


BUSY = """
import os, select, signal, sys, threading
from containerkit._native import calls, calls_seam

calls_seam.backend = __import__(sys.argv[1], fromlist=["syscall"])
if sys.argv[2] == "audited":
    sys.addaudithook(lambda event, arguments: sum(range(20)))

def busy():
    while True:
        sum(range(200))

for _ in range(3):
    threading.Thread(target=busy, daemon=True).start()
sys.setswitchinterval(1e-6)
for _ in range(int(sys.argv[3])):
    pid = calls.clone()
    if pid == 0:
        os._exit(7)
    pidfd = os.pidfd_open(pid)
    if not select.select([pidfd], [], [], 30)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(pidfd)
    if os.waitpid(pid, 0)[1] != 7 << 8:
        os._exit(1)
os._exit(0)
"""


@pytest.mark.parametrize("how", ["plain", "audited"])
def test_clone_beside_busy_threads_never_hangs(how):
    """At nearly every moment a thread has asked for the GIL. A hook is code of Python that runs amid calls of C."""
    command = [sys.executable, "-c", BUSY, calls_seam.backend.__name__, how, f"{examples(ci=40, nightly=200)}"]
    assert 0 == subprocess.run(command, timeout=100).returncode


def test_clone_leaves_threads_that_work_in_the_child():
    def body():
        results = []
        thread = threading.Thread(target=lambda: results.append(5))
        thread.start()
        thread.join()
        return results[0] + threading.active_count()

    assert 6 == child(body)


@needs_root
def test_clone_into_new_namespaces():
    kinds = ("mnt", "uts", "ipc", "pid", "net", "cgroup", "user")
    before = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds}

    def body():
        # /proc belongs to the old pid namespace, where this process has another number
        link = os.open("/proc/self/ns", os.O_RDONLY)
        return sum(os.stat(kind, dir_fd=link).st_ino != before[kind] for kind in kinds) * 10 + os.getpid()

    flags = k.CLONE_NEWNS | k.CLONE_NEWUTS | k.CLONE_NEWIPC | k.CLONE_NEWPID | k.CLONE_NEWNET | k.CLONE_NEWCGROUP
    assert 71 == child(body, flags | k.CLONE_NEWUSER)


def test_clone_without_exit_signal_is_waited_for_with_wall():
    assert 4 == child(lambda: 4, exit_signal=0)


def test_clone_with_parent_makes_a_sibling():
    """A process that is cloned with CLONE_PARENT is a child of the caller's parent."""
    reader, writer = os.pipe()

    def body():
        sibling = calls.clone(k.CLONE_PARENT)
        if sibling == 0:
            os._exit(6)
        os.write(writer, sibling.to_bytes(4, sys.byteorder))

    assert 0 == child(body)
    sibling = int.from_bytes(os.read(reader, 4), sys.byteorder)
    pidfd = calls.pidfd_open(sibling)
    assert 6 == calls.waitid(pidfd, os.WEXITED | k.WALL)[0].si_status
    for fd in (reader, writer, pidfd):
        os.close(fd)


@needs_root
def test_clone_is_born_into_a_cgroup():
    tree = next((mount for mount in mountinfo.read() if mount.filesystem == "cgroup2" and not mount.read_only), None)
    if tree is None:
        pytest.skip("no cgroup2 is mounted here")
    directory = f"{tree.mount_point}/containerkit-test-{os.getpid()}"
    os.mkdir(directory)
    try:
        group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        name = os.path.basename(directory)
        assert 0 == child(lambda: f"/{name}\n" not in read("/proc/self/cgroup"), cgroup_fd=group)
        os.close(group)
    finally:
        os.rmdir(directory)


def test_clone_of_flags_that_exclude_each_other_is_refused():
    with pytest.raises(OSError) as caught:
        calls.clone(k.CLONE_NEWNS | k.CLONE_FS)
    assert (errno.EINVAL, "flags 0x20200") == (caught.value.errno, caught.value.filename)


def test_pidfd_reports_the_end_and_then_refuses_signals():
    pid = calls.clone()
    if pid == 0:
        while True:
            signal.pause()
    pidfd = calls.pidfd_open(pid)
    assert not os.get_inheritable(pidfd)
    calls.pidfd_send_signal(pidfd, 0)
    assert calls.waitid(pidfd, os.WEXITED | os.WNOHANG) is None
    calls.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert [pidfd] == select.select([pidfd], [], [], 5)[0]
    ended, usage = calls.waitid(pidfd)
    assert (pid, os.CLD_KILLED, signal.SIGKILL) == (ended.si_pid, ended.si_code, ended.si_status)
    assert 0 < usage.ru_maxrss
    with pytest.raises(ProcessLookupError):
        calls.pidfd_send_signal(pidfd, 0)
    os.close(pidfd)


def test_pidfd_open_of_nobody_names_the_pid():
    with pytest.raises(ProcessLookupError) as caught:
        calls.pidfd_open(2**22 + 1)
    assert "pid 4194305" == caught.value.filename


def test_waitid_counts_the_time_that_the_child_used():
    def body():
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    pid = calls.clone()
    if pid == 0:
        body()
        os._exit(0)
    pidfd = calls.pidfd_open(pid)
    ended, usage = calls.waitid(pidfd)
    os.close(pidfd)
    assert (os.CLD_EXITED, 0, signal.SIGCHLD) == (ended.si_code, ended.si_status, ended.si_signo)
    assert 0.05 <= usage.ru_utime + usage.ru_stime < 1


def test_waitid_of_a_stranger_is_refused():
    pidfd = calls.pidfd_open(os.getppid())
    with pytest.raises(ChildProcessError):
        calls.waitid(pidfd)
    os.close(pidfd)


def test_pidfd_getfd_takes_a_descriptor_out_of_another_process():
    reader, writer = os.pipe()
    pid = calls.clone()
    if pid == 0:
        os.write(writer, b"theirs")
        signal.pause()
    pidfd = calls.pidfd_open(pid)
    taken = calls.pidfd_getfd(pidfd, reader)
    assert b"theirs" == os.read(taken, 10)
    assert os.path.sameopenfile(taken, reader)
    calls.pidfd_send_signal(pidfd, signal.SIGKILL)
    calls.waitid(pidfd)
    for fd in (pidfd, taken, reader, writer):
        os.close(fd)


def test_close_range_closes_all_of_a_child():
    def body():
        calls.close_range(3)
        try:
            os.fstat(pipe[0])
        except OSError:
            return 8
        return 1

    pipe = os.pipe()
    assert 8 == child(body)
    for fd in pipe:
        os.close(fd)


def test_close_range_marks_for_the_exec():
    fd = os.dup(0)
    os.set_inheritable(fd, True)
    calls.close_range(fd, fd, k.CLOSE_RANGE_CLOEXEC)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_close_range_upside_down_is_refused():
    with pytest.raises(OSError) as caught:
        calls.close_range(9, 3)
    assert (errno.EINVAL, "fd 9 to 3") == (caught.value.errno, caught.value.filename)


def test_prctl_sets_and_gets():
    def body():
        calls.prctl(k.PR_SET_NO_NEW_PRIVS, 1)
        return calls.prctl(k.PR_GET_NO_NEW_PRIVS)

    assert (0, 1) == (calls.prctl(k.PR_GET_NO_NEW_PRIVS), child(body))


def test_prctl_of_an_unknown_option_is_refused():
    with pytest.raises(OSError) as caught:
        calls.prctl(0x7FFF)
    assert errno.EINVAL == caught.value.errno


def test_capget_agrees_with_proc():
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    expected = tuple(int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapInh"))
    assert expected == calls.capget() == calls.capget(os.getpid())


@needs_root
def test_capset_drops_for_this_thread_alone():
    def drop():
        _, permitted, _ = calls.capget()
        calls.capset(0, permitted, 0)
        with pytest.raises(PermissionError):
            calls.sethostname("x")
        return calls.capget()[0]

    assert (0, True) == (in_thread(drop), calls.capget()[0] != 0)


@needs_root
def test_capset_never_raises_capabilities_that_are_not_permitted():
    def grow():
        calls.capset(0, 0, 0)
        with pytest.raises(PermissionError):
            calls.capset(1, 1, 0)

    in_thread(grow)


def test_keyctl_joins_a_session_keyring_of_its_own():
    def body():
        session = -3  # KEY_SPEC_SESSION_KEYRING
        try:
            joined = calls.keyctl(k.KEYCTL_JOIN_SESSION_KEYRING, "of-a-test")
        except OSError as error:
            return error.errno
        description = bytearray(100)
        calls.syscall("keyctl", k.KEYCTL_DESCRIBE, session, description, len(description))
        return 0 if joined > 0 and b";of-a-test" in description else 1

    status = child(body)
    if status == errno.ENOSYS:
        pytest.skip("this kernel has no keyrings")
    assert 0 == status


# --- Namespaces


@needs_root
def test_unshare_and_setns_move_one_thread():
    def move():
        home = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        calls.unshare(k.CLONE_NEWUTS)
        calls.sethostname("inner")
        calls.setdomainname("domain")
        inner = os.uname().nodename, read("/proc/sys/kernel/domainname")
        calls.setns(home, k.CLONE_NEWUTS)
        os.close(home)
        return inner, os.uname().nodename

    outer = os.uname().nodename
    assert ((("inner", "domain\n"), outer), outer) == (in_thread(move), os.uname().nodename)


@needs_root
def test_setns_of_a_pidfd_joins_several_at_once():
    ready, done = os.pipe()
    pid = calls.clone(k.CLONE_NEWUTS | k.CLONE_NEWIPC)
    if pid == 0:
        calls.sethostname("joined")
        os.write(done, b"!")
        signal.pause()
    os.read(ready, 1)
    pidfd = calls.pidfd_open(pid)

    def join():
        calls.setns(pidfd, k.CLONE_NEWUTS | k.CLONE_NEWIPC)
        return os.uname().nodename

    assert "joined" == in_thread(join)
    calls.pidfd_send_signal(pidfd, signal.SIGKILL)
    calls.waitid(pidfd)
    for fd in (ready, done, pidfd):
        os.close(fd)


def test_setns_of_another_kind_names_the_namespace():
    with open("/proc/self/ns/uts") as namespace, pytest.raises(OSError) as caught:
        calls.setns(namespace.fileno(), k.CLONE_NEWNET)
    assert errno.EINVAL == caught.value.errno
    assert caught.value.filename.startswith("uts:[")


def test_ns_ioctls_return_kind_owner_and_parent():
    with open("/proc/self/ns/uts") as uts, open("/proc/self/ns/user") as user:
        assert k.CLONE_NEWUTS == calls.ns_get_nstype(uts.fileno())
        owner = calls.ns_get_userns(uts.fileno())
        assert os.path.sameopenfile(owner, user.fileno())
        assert not os.get_inheritable(owner)
        os.close(owner)
        with pytest.raises(OSError) as caught:
            calls.ns_get_parent(uts.fileno())
        assert errno.EINVAL == caught.value.errno
        assert 0 == calls.ns_get_owner_uid(user.fileno())
        with pytest.raises(PermissionError):
            calls.ns_get_parent(user.fileno())


# --- Mounts


@needs_root
def test_mount_and_umount2(tmp_path):
    def body():
        own_mounts()
        calls.mount("words", tmp_path, "tmpfs", k.MS_NOSUID | k.MS_NODEV, "size=1m,mode=0711")
        entry = mount_entry(tmp_path)
        mode = os.stat(tmp_path).st_mode & 0o777
        calls.umount2(tmp_path, k.UMOUNT_NOFOLLOW)
        return entry, mode, str(tmp_path) in read("/proc/thread-self/mountinfo")

    entry, mode, left = in_thread(body)
    assert (0o711, False) == (mode, left)
    assert "rw,nosuid,nodev" in entry
    assert "tmpfs words rw,size=1024k" in entry


@needs_root
@pytest.mark.parametrize(
    ("call", "expected", "target"),
    [
        (lambda path: calls.mount("x", path / "none", "tmpfs"), errno.ENOENT, "none"),
        (lambda path: calls.mount("x", path, "nosuchfs"), errno.ENODEV, ""),
        (calls.umount2, errno.EINVAL, ""),
        (lambda path: calls.pivot_root(path, path), errno.EBUSY, ""),
        (lambda path: calls.open_tree(k.AT_FDCWD, path / "none"), errno.ENOENT, "none"),
        (lambda path: calls.openat2(k.AT_FDCWD, path / "none"), errno.ENOENT, "none"),
        (lambda path: calls.mount_setattr(k.AT_FDCWD, path, attr_set=k.MOUNT_ATTR_RDONLY), errno.EINVAL, ""),
        (lambda path: calls.fspick(k.AT_FDCWD, path), errno.EINVAL, ""),
    ],
)
def test_mount_refusals_name_the_path(tmp_path, call, expected, target):
    def body():
        own_mounts()
        with pytest.raises(OSError) as caught:
            call(tmp_path)
        return caught.value.errno, caught.value.filename

    assert (expected, str(tmp_path / target)) == in_thread(body)


@needs_root
def test_move_mount_refusal_names_both_ends(tmp_path):
    def body():
        own_mounts()
        with pytest.raises(OSError) as caught:
            calls.move_mount(k.AT_FDCWD, tmp_path, k.AT_FDCWD, tmp_path / "none")
        return caught.value.errno, caught.value.filename, caught.value.filename2

    assert (errno.ENOENT, str(tmp_path), str(tmp_path / "none")) == in_thread(body)


@needs_root
def test_new_mount_api_from_context_to_read_only(tmp_path):
    def body():
        own_mounts()
        context = calls.fsopen("tmpfs")
        calls.fsconfig_set_string(context, "size", "1m")
        calls.fsconfig_set_string(context, "source", "of-a-test")
        calls.fsconfig_create(context)
        made = calls.fsmount(context, k.MOUNT_ATTR_NOSUID)
        assert [False] * 2 == [os.get_inheritable(fd) for fd in (context, made)]
        calls.move_mount(made, "", k.AT_FDCWD, tmp_path, k.MOVE_MOUNT_F_EMPTY_PATH)
        (tmp_path / "file").write_text("kept")
        calls.mount_setattr(made, "", k.AT_EMPTY_PATH, attr_set=k.MOUNT_ATTR_RDONLY, attr_clr=k.MOUNT_ATTR_NOSUID)
        with pytest.raises(OSError) as caught:
            (tmp_path / "file").write_text("lost")
        again = calls.fspick(k.AT_FDCWD, tmp_path)
        calls.fsconfig_set_flag(again, "ro")
        calls.fsconfig_reconfigure(again)
        entry = mount_entry(tmp_path)
        for fd in (context, made, again):
            os.close(fd)
        return caught.value.errno, entry.split(" - ")[0].split()[5], entry.split(" - ")[1].split()

    error, attributes, (kind, source, options) = in_thread(body)
    assert (errno.EROFS, "ro,relatime") == (error, attributes)
    assert ("tmpfs", "of-a-test") == (kind, source)
    assert "ro" == options.split(",")[0]


@needs_root
def test_open_tree_clones_a_detached_copy(tmp_path):
    def body():
        own_mounts()
        source, target = tmp_path / "source", tmp_path / "target"
        source.mkdir()
        target.mkdir()
        (source / "file").write_text("seen twice")
        tree = calls.open_tree(k.AT_FDCWD, source, k.OPEN_TREE_CLONE | k.AT_RECURSIVE)
        place = os.open(target, os.O_PATH | os.O_CLOEXEC)
        calls.move_mount(tree, "", place, "", k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH)
        os.close(tree)
        os.close(place)
        return (target / "file").read_text()

    assert "seen twice" == in_thread(body)


@needs_root
def test_fsconfig_refusal_carries_the_filesystems_own_words():
    context = calls.fsopen("tmpfs")
    with pytest.raises(OSError) as caught:
        calls.fsconfig_set_string(context, "size", "a lot")
    os.close(context)
    assert (errno.EINVAL, "size") == (caught.value.errno, caught.value.filename)
    assert "tmpfs: Bad value for 'size'" in str(caught.value)


@needs_root
def test_fsconfig_paths_and_descriptors_reach_the_filesystem(tmp_path):
    def body():
        own_mounts()
        for name in ("lower", "upper", "work"):
            (tmp_path / name).mkdir()
        (tmp_path / "lower" / "file").write_text("from below")
        calls.mount("t", tmp_path / "upper", "tmpfs")
        for name in ("upper", "work"):
            (tmp_path / "upper" / name).mkdir()
        context = calls.fsopen("overlay")
        calls.fsconfig_set_string(context, "lowerdir", os.fsencode(tmp_path / "lower"))
        upper = os.open(tmp_path / "upper" / "upper", os.O_PATH | os.O_CLOEXEC)
        try:
            calls.fsconfig_set_fd(context, "upperdir", upper)
        except OSError:  # before Linux 6.13 overlay takes paths only
            calls.fsconfig_set_string(context, "upperdir", os.fsencode(tmp_path / "upper" / "upper"))
        os.close(upper)
        calls.fsconfig_set_string(context, "workdir", os.fsencode(tmp_path / "upper" / "work"))
        calls.fsconfig_create(context)
        made = calls.fsmount(context)
        with open(os.open("file", os.O_RDONLY, dir_fd=made)) as file:
            text = file.read()
        with pytest.raises(OSError, match="'source'"):
            calls.fsconfig_set_path(context, "source", tmp_path)
        os.close(context)
        os.close(made)
        return text

    assert "from below" == in_thread(body)


@needs_root
def test_mount_setattr_maps_ids(tmp_path):
    reader, writer = os.pipe()
    pid = calls.clone(k.CLONE_NEWUSER)
    if pid == 0:
        os.read(reader, 1)
        os._exit(0)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write("0 70000 1000")
    userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)

    def body():
        own_mounts()
        context = calls.fsopen("tmpfs")
        calls.fsconfig_create(context)
        made = calls.fsmount(context)
        try:
            calls.mount_setattr(made, "", k.AT_EMPTY_PATH, userns_fd=userns)
            return os.stat(made).st_uid
        finally:
            os.close(context)
            os.close(made)

    try:
        assert 70000 == in_thread(body)
    finally:
        os.write(writer, b"!")
        pidfd = calls.pidfd_open(pid)
        calls.waitid(pidfd)
        for fd in (reader, writer, userns, pidfd):
            os.close(fd)


@needs_root
def test_pivot_root_leaves_the_old_root_behind(tmp_path):
    def body():
        calls.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
        calls.mount("t", tmp_path, "tmpfs")
        (tmp_path / "here").write_text("")
        os.chdir(tmp_path)
        calls.pivot_root(".", ".")
        calls.umount2(".", k.MNT_DETACH)
        os.chdir("/")
        return 0 if os.listdir("/") == ["here"] else 1

    assert 0 == child(body, k.CLONE_NEWNS)


def test_openat2_stays_inside(tmp_path):
    (tmp_path / "inside").write_text("mine")
    (tmp_path / "out").symlink_to("/etc/passwd")
    (tmp_path / "round").symlink_to("/inside")
    root = os.open(tmp_path, os.O_PATH | os.O_CLOEXEC)
    refusals = {}
    for name, resolve in [
        ("out", k.RESOLVE_IN_ROOT),
        ("../etc", k.RESOLVE_BENEATH),
        ("out", k.RESOLVE_BENEATH),
        ("round", k.RESOLVE_NO_SYMLINKS),
    ]:
        with pytest.raises(OSError) as caught:
            calls.openat2(root, name, os.O_RDONLY, resolve=resolve)
        refusals[name, resolve] = caught.value.errno, caught.value.filename
    with open(calls.openat2(root, "round", os.O_RDONLY, resolve=k.RESOLVE_IN_ROOT)) as file:
        assert not os.get_inheritable(file.fileno())
        text = file.read()
    os.close(root)
    assert {
        ("out", k.RESOLVE_IN_ROOT): (errno.ENOENT, f"{tmp_path}/out"),
        ("../etc", k.RESOLVE_BENEATH): (errno.EXDEV, f"{tmp_path}/../etc"),
        ("out", k.RESOLVE_BENEATH): (errno.EXDEV, f"{tmp_path}/out"),
        ("round", k.RESOLVE_NO_SYMLINKS): (errno.ELOOP, f"{tmp_path}/round"),
    } == refusals
    assert "mine" == text


def test_openat2_makes_a_file_with_its_mode(tmp_path):
    os.close(calls.openat2(k.AT_FDCWD, tmp_path / "made", os.O_CREAT | os.O_WRONLY, 0o640))
    assert 0o640 == os.stat(tmp_path / "made").st_mode & 0o777
