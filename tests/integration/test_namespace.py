"""Namespaces of running processes: identity, hierarchy, keeping, and visits by threads that return."""

import errno
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading

import pytest

from containerkit._linux import mountinfo
from containerkit._native import calls
from containerkit._native import constants as k
from containerkit.errors import CleanupError, SetupError, SpecError, StateError, UnsupportedError
from containerkit.namespace import Kind, Namespace

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
NOBODY = 2**22 + 1  # above any pid
VISITABLE = [Kind.CGROUP, Kind.IPC, Kind.UTS, Kind.NETWORK, Kind.MOUNT]


def thread_namespaces():
    return {name: os.stat(f"/proc/thread-self/ns/{name}").st_ino for name in os.listdir("/proc/thread-self/ns")}


def traces():
    gc.collect()
    with open("/proc/thread-self/children") as children:
        return sorted(os.listdir("/proc/self/fd")), children.read(), thread_namespaces(), os.getcwd()


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    """Only mounts below this test's own directory count, because other processes mount at the same time."""
    before = traces()
    yield
    assert before == traces()
    assert not [each for each in mountinfo.read() if each.mount_point.startswith(str(tmp_path))]


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


class Inside:
    """A process in new namespaces, which sleeps until it is told to end."""

    def __init__(self, flags):
        ready, told = os.pipe()
        self.pid = calls.clone(flags)
        if self.pid == 0:
            try:
                if flags & k.CLONE_NEWUTS:
                    calls.sethostname("inside")
                os.write(told, b"!")
                while True:
                    signal.pause()
            finally:
                os._exit(1)
        self.pidfd = calls.pidfd_open(self.pid)
        os.close(told)
        os.read(ready, 1)
        os.close(ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pidfd >= 0:
            calls.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            calls.waitid(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1


@pytest.fixture
def inside():
    flags = k.CLONE_NEWNS | k.CLONE_NEWUTS | k.CLONE_NEWIPC | k.CLONE_NEWPID | k.CLONE_NEWNET | k.CLONE_NEWCGROUP
    with Inside(flags) as process:
        yield process


@pytest.fixture
def inside_user():
    with Inside(k.CLONE_NEWUSER | k.CLONE_NEWPID | k.CLONE_NEWUTS) as process:
        yield process


# --- Identity


@pytest.mark.parametrize("kind", Kind)
def test_namespace_identity_is_that_of_proc(kind):
    status = os.stat(f"/proc/self/ns/{kind.file}")
    with Namespace.of(os.getpid(), kind) as own, Namespace.current(kind.value) as current:
        assert (kind, status.st_dev, status.st_ino) == (own.kind, own.device, own.inode)
        assert own == current
        assert hash(own) == hash(current)
        assert f"<Namespace {kind.value} {status.st_ino}>" == repr(own)


@needs_root
@pytest.mark.parametrize("kind", [*VISITABLE, Kind.PID])
def test_namespace_of_another_process_differs(inside, kind):
    with Namespace.of(inside.pid, kind) as theirs, Namespace.current(kind) as own:
        assert theirs != own
        assert len({theirs, own, Namespace.of(inside.pid, kind)}) == 2


def test_namespace_is_equal_to_namespaces_alone():
    with Namespace.current("uts") as own:
        assert own != own.inode
        assert own.__eq__(3) is NotImplemented


@needs_root
def test_namespace_for_children_differs_once_unshared():
    def body():
        calls.unshare(k.CLONE_NEWTIME)
        return Namespace.current("time") == Namespace.current("time", for_children=True)

    assert not in_thread(body)


@needs_root
def test_namespace_for_children_without_a_first_process_is_reported():
    def body():
        calls.unshare(k.CLONE_NEWPID)
        with pytest.raises(SetupError, match="no process has been created in it yet"):
            Namespace.current("pid", for_children=True)

    in_thread(body)


def test_namespace_from_path_and_fd_and_pidfd_are_the_same(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(f"/proc/{os.getpid()}/ns/net")
    pidfd = os.pidfd_open(os.getpid())
    with (
        Namespace.from_path(link) as by_path,
        open("/proc/self/ns/net") as file,
        Namespace.from_fd(file.fileno(), "network") as by_fd,
        Namespace.from_pidfd(pidfd, Kind.NETWORK) as by_pidfd,
    ):
        assert by_path == by_fd == by_pidfd
        assert by_fd.fileno() != file.fileno()
        assert [False] * 3 == [os.get_inheritable(each.fileno()) for each in (by_path, by_fd, by_pidfd)]
    os.close(pidfd)


def test_namespace_from_path_never_opens_other_files(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # open would block forever
    for path in (fifo, tmp_path, "/dev/null", "/etc/passwd"):
        with pytest.raises(SpecError, match=f"{path} is not a namespace"):
            Namespace.from_path(path)


def test_namespace_of_another_kind_than_expected_is_refused():
    with pytest.raises(SpecError, match="/proc/self/ns/uts is a namespace of kind uts, not network"):
        Namespace.from_path("/proc/self/ns/uts", "network")
    with (
        open("/proc/self/ns/uts") as file,
        pytest.raises(SpecError, match=r"fd \d+ is a namespace of kind uts, not ipc"),
    ):
        Namespace.from_fd(file.fileno(), Kind.IPC)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Namespace.of(NOBODY, "uts"), SetupError, "there is no such process"),
        (lambda: Namespace.of(0, "uts"), SpecError, "positive integer, not 0"),
        (lambda: Namespace.of(-1, "uts"), SpecError, "positive"),
        (lambda: Namespace.of(True, "uts"), SpecError, "positive"),
        (lambda: Namespace.of("self", "uts"), SpecError, "positive"),
        (lambda: Namespace.of(1, "net"), SpecError, "'net'"),
        (lambda: Namespace.from_path("/nowhere/at/all"), SetupError, "/nowhere/at/all: No such file"),
        (lambda: Namespace.from_path("/a\0b"), SpecError, "null byte"),
        (lambda: Namespace.from_fd(999_999), SpecError, "fd 999999 is not a namespace"),
        (lambda: Namespace.from_fd(-1), SpecError, "fd -1 is not a namespace"),
        (lambda: Namespace.from_pidfd(999_999, "uts"), SpecError, "not a pidfd"),
        (lambda: Namespace.from_pidfd(0, "uts"), SpecError, "not a pidfd"),
    ],
)
def test_namespace_from_nothing_is_one_clear_error(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_namespace_from_the_pidfd_of_an_ended_process_is_refused():
    child = subprocess.Popen(["true"])
    pidfd = os.pidfd_open(child.pid)
    child.wait()
    with pytest.raises(SetupError) as caught:
        Namespace.from_pidfd(pidfd, "uts")
    os.close(pidfd)
    assert (errno.ESRCH, f"uts namespace of pidfd {pidfd}") == (caught.value.errno, caught.value.target)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to become another user")
def test_namespace_of_a_foreign_process_hints_at_the_capability():
    def body():
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(SetupError, match="CAP_SYS_PTRACE"):
            Namespace.of(os.getppid(), "network")

    assert 0 == run_in_child(body)


def run_in_child(body):
    """Run in a separate process, which may drop credentials. Return its exit status."""
    pid = calls.clone()
    if pid == 0:
        try:
            body()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- The handle


def test_namespace_close_may_be_called_twice():
    own = Namespace.current("uts")
    fd = own.fileno()
    own.close()
    own.close()
    assert own.closed
    assert repr(own).endswith(" closed>")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for use in (own.fileno, own.__enter__, lambda: own.owner, lambda: own.persist("/x"), own.enter().__enter__):
        with pytest.raises(StateError, match="is closed"):
            use()


def test_namespace_closed_keeps_its_identity():
    own = Namespace.current("uts")
    own.close()
    with Namespace.current("uts") as again:
        assert own == again


def test_namespace_closes_when_collected():
    fd = Namespace.current("uts").fileno()
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_namespace_cannot_be_pickled():
    with Namespace.current("uts") as own, pytest.raises(TypeError, match="path or a pid"):
        pickle.dumps(own)


@needs_root
def test_namespace_lives_as_long_as_its_handle():
    with Inside(k.CLONE_NEWUTS) as process:
        theirs = Namespace.of(process.pid, "uts")
    assert [] == theirs.members()
    with theirs, theirs.enter():
        assert "inside" == os.uname().nodename


# --- The hierarchy


@needs_root
def test_namespace_owner_is_the_user_namespace(inside_user):
    with Namespace.of(inside_user.pid, "user") as user, Namespace.of(inside_user.pid, "uts") as uts:
        assert user == uts.owner
        assert Kind.USER is uts.owner.kind
        assert Namespace.current("user") == user.owner == user.parent
        assert os.geteuid() == user.owner_uid == uts.owner_uid


@needs_root
def test_namespace_parent_of_pid(inside):
    with Namespace.of(inside.pid, "pid") as pid, Namespace.of(inside.pid, "uts") as uts:
        assert Namespace.current("pid") == pid.parent
        assert uts.parent is None


def test_namespace_parent_out_of_sight_is_none():
    with Namespace.current("user") as user, Namespace.current("pid") as pid:
        assert (None, None, None) == (user.parent, user.owner, pid.parent)


@needs_root
def test_namespace_members_are_the_processes_inside(inside):
    with Namespace.of(inside.pid, "uts") as theirs, Namespace.current("uts") as own:
        assert [inside.pid] == theirs.members()
        assert os.getpid() in own.members()
        assert inside.pid not in own.members()


# --- Keeping


@needs_root
def test_namespace_persist_outlives_its_processes(tmp_path):
    kept = tmp_path / "kept"
    with Inside(k.CLONE_NEWUTS) as process, Namespace.of(process.pid, "uts") as theirs:
        inode = theirs.inode
        theirs.persist(kept)
    try:
        with Namespace.from_path(kept, "uts") as again, again.enter():
            assert (inode, "inside") == (again.inode, os.uname().nodename)
    finally:
        Namespace.unpersist(kept)
    assert not kept.exists()


@needs_root
@pytest.mark.parametrize("kind", [*VISITABLE, Kind.PID, Kind.USER])
def test_namespace_persist_takes_each_kind(inside, tmp_path, kind):
    def body():
        # Linux 6.18 numbers namespaces per processor, and considers the one with the higher number the younger.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        calls.unshare(k.CLONE_FS | k.CLONE_NEWNS)
        calls.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
        if kind is Kind.MOUNT:  # younger than this thread's, as the kernel requires
            with Inside(k.CLONE_NEWNS) as younger:
                namespace = Namespace.of(younger.pid, kind)
        else:
            namespace = Namespace.of(inside.pid, kind)
        with namespace:
            namespace.persist(str(tmp_path / "kept"))
            with Namespace.from_path(tmp_path / "kept", kind) as again:
                same = again == namespace
            Namespace.unpersist(tmp_path / "kept")
        return same, os.listdir(tmp_path)

    assert (True, []) == in_thread(body)


@needs_root
def test_namespace_persist_of_an_older_mount_namespace_leaves_no_file(tmp_path):
    with Namespace.current("mount") as own, pytest.raises(SetupError, match="only by an older one"):
        own.persist(tmp_path / "kept")
    assert [] == os.listdir(tmp_path)


@needs_root
def test_namespace_persist_keeps_what_is_kept(tmp_path):
    kept = tmp_path / "kept"
    with Namespace.current("uts") as own, Namespace.current("ipc") as other:
        own.persist(kept)
        try:
            with pytest.raises(SetupError, match="unpersist it first") as caught:
                other.persist(kept)
            assert errno.EEXIST == caught.value.errno
            assert own == Namespace.from_path(kept)
        finally:
            Namespace.unpersist(kept)


@needs_root
def test_namespace_persist_refuses_links_and_directories(tmp_path):
    (tmp_path / "link").symlink_to("/etc/passwd")
    with Namespace.current("uts") as own:
        for name, error in [("link", errno.ELOOP), (".", errno.EISDIR), ("no/file", errno.ENOENT)]:
            with pytest.raises(SetupError) as caught:
                own.persist(tmp_path / name)
            assert (name, error) == (name, caught.value.errno)
    assert ["link"] == os.listdir(tmp_path)


@needs_root
def test_namespace_unpersist_touches_nothing_else(tmp_path):
    file = tmp_path / "file"
    file.write_text("kept")
    for path in (file, tmp_path / "none", "/proc"):
        with pytest.raises(StateError, match="no namespace is mounted there"):
            Namespace.unpersist(path)
    assert "kept" == file.read_text()


def test_namespace_persist_without_the_capability_hints(tmp_path):
    tmp_path.chmod(0o777)
    for directory in list(tmp_path.parents)[:-2]:
        directory.chmod(directory.stat().st_mode | 0o011)

    def body():
        if os.geteuid() == 0:
            os.setresuid(65534, 65534, 65534)
        with Namespace.current("uts") as own, pytest.raises(SetupError, match="CAP_SYS_ADMIN"):
            own.persist(tmp_path / "kept")
        assert os.listdir(tmp_path) == []

    assert 0 == run_in_child(body)


# --- Visits


@needs_root
@pytest.mark.parametrize("kind", VISITABLE)
def test_visit_enters_the_namespace_and_returns(inside, kind):
    def body():
        before = thread_namespaces()
        with Namespace.of(inside.pid, kind) as theirs, theirs.enter() as entered:
            assert entered is theirs
            assert theirs == Namespace.current(kind)
            within = thread_namespaces()
        changed = {name for name in before if before[name] != within[name]}
        return changed, before == thread_namespaces()

    assert ({kind.file}, True) == in_thread(body)


@needs_root
def test_visit_moves_no_other_thread(inside):
    visiting, seen, done = threading.Event(), [], threading.Event()

    def bystander():  # started before the visit: threads of a visitor start in its namespaces
        visiting.wait()
        seen.append(os.uname().nodename)
        done.set()

    thread = threading.Thread(target=bystander)
    thread.start()
    outside = os.uname().nodename
    with Namespace.of(inside.pid, "uts") as theirs, theirs.enter():
        visiting.set()
        done.wait()
        seen.append(os.uname().nodename)
    thread.join()
    assert [outside, "inside"] == seen


@needs_root
def test_visit_returns_when_the_block_raises(inside):
    with (
        pytest.raises(ZeroDivisionError),
        Namespace.of(inside.pid, "uts") as theirs,
        theirs.enter(),
    ):
        1 / 0  # noqa: B018 - it raises
    assert "inside" != os.uname().nodename


@needs_root
def test_visits_nest_and_leave_in_turn(inside):
    def body():
        names = []
        with Inside(k.CLONE_NEWUTS) as other:
            first, second = Namespace.of(inside.pid, "uts"), Namespace.of(other.pid, "uts")
        with first, second, first.enter():
            calls.sethostname("first")
            with second.enter():
                names.append(os.uname().nodename)
            names.append(os.uname().nodename)
        return names

    assert ["inside", "first"] == in_thread(body)


@needs_root
def test_visit_of_mounts_restores_root_and_working_directory(inside, tmp_path):
    def body():
        jail = tmp_path / "jail"
        (jail / "deep").mkdir(parents=True)
        with Namespace.of(inside.pid, "mount") as theirs:
            calls.unshare(k.CLONE_FS)
            os.chroot(jail)
            os.chdir("/deep")
            return body_in_jail(theirs)

    def body_in_jail(theirs):
        os.mkdir("/proc")
        calls.unshare(k.CLONE_NEWNS)
        calls.mount("proc", "/proc", "proc")
        with theirs.enter():
            within = os.getcwd(), os.path.exists("/etc/passwd")
        return within, os.getcwd(), sorted(os.listdir("/"))

    assert (("/", True), "/deep", ["deep", "proc"]) == in_thread(body)


@needs_root
def test_visit_of_mounts_keeps_a_working_directory_that_was_deleted(inside, tmp_path):
    def body():
        calls.unshare(k.CLONE_FS)
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        os.rmdir(tmp_path / "gone")
        with Namespace.of(inside.pid, "mount") as theirs, theirs.enter():
            os.chdir("/etc")
        return os.readlink("/proc/thread-self/cwd")

    assert f"{tmp_path}/gone (deleted)" == in_thread(body)


@needs_root
def test_visit_of_pids_gives_birth_inside(inside):
    def body():
        with Namespace.of(inside.pid, "pid") as theirs:
            with theirs.enter():
                outside = os.getpid()
                born = calls.clone()
                if born == 0:
                    os._exit(0 if os.getpid() != outside and os.getpid() < 10 else 1)
                with pytest.raises(RuntimeError, match="start new thread"):
                    threading.Thread(target=print).start()
            after = calls.clone()
            if after == 0:
                os._exit(0 if os.getpid() > 10 else 1)
        return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in (born, after)]

    assert [0, 0] == in_thread(body)


@needs_root
def test_visit_of_pids_above_is_refused(inside):
    """A process inside can't create children outside."""
    with Namespace.current("pid") as outer:

        def body():
            with pytest.raises(SetupError, match="own pid namespace or one below it"):
                outer.enter().__enter__()

        pid = calls.clone(k.CLONE_NEWPID | k.CLONE_NEWNS)
        if pid == 0:
            try:
                calls.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
                calls.mount("proc", "/proc", "proc")
                body()
                os._exit(0)
            finally:
                os._exit(1)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_root
def test_visit_of_a_user_namespace_is_not_possible(inside_user):
    with (
        Namespace.of(inside_user.pid, "user") as theirs,
        pytest.raises(UnsupportedError, match="leave a user namespace"),
    ):
        theirs.enter().__enter__()
    with Namespace.current("user") as own, own.enter():
        pass


@needs_root
def test_visit_of_time_is_refused_beside_other_threads():
    def body():
        calls.unshare(k.CLONE_NEWTIME)
        with Namespace.current("time", for_children=True) as theirs, pytest.raises(StateError, match="would lose it"):
            theirs.enter().__enter__()

    in_thread(body)
    with (
        SleeperInTime() as sleeper,
        Namespace.of(sleeper.pid, "time") as theirs,
        pytest.raises(UnsupportedError, match="other threads"),
    ):
        in_thread(theirs.enter().__enter__)


class SleeperInTime(Inside):
    """A process whose clocks are 1,000,000 seconds ahead."""

    def __init__(self):
        ready, told = os.pipe()
        self.pid = calls.clone()
        if self.pid == 0:
            calls.unshare(k.CLONE_NEWTIME)
            with open("/proc/self/timens_offsets", "w") as file:
                file.write("monotonic 1000000 0\n")
            os.set_inheritable(told, True)
            os.execv(
                sys.executable, [sys.executable, "-c", f"import os, signal; os.write({told}, b'!'); signal.pause()"]
            )
        self.pidfd = calls.pidfd_open(self.pid)
        os.close(told)
        os.read(ready, 1)
        os.close(ready)


@needs_root
def test_visit_of_time_by_a_process_of_one_thread():
    code = (
        "import os, time\n"
        "from containerkit._native import calls, constants as k\n"
        "from containerkit.namespace import Namespace\n"
        "home = Namespace.current('time')\n"
        "if (pid := os.fork()) == 0:\n"
        "    calls.unshare(k.CLONE_NEWTIME)\n"
        "    open('/proc/self/timens_offsets', 'w').write('monotonic 1000000 0')\n"
        "    if (inner := os.fork()) == 0:\n"
        "        with home.enter(): before = time.monotonic()\n"
        "        os._exit(0 if time.monotonic() - before > 999_000 else 1)\n"
        "    os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_root
def test_visit_without_the_capability_hints_and_stays(inside):
    def body():
        theirs = Namespace.of(inside.pid, "uts")
        calls.capset(0, 0, 0)
        before = thread_namespaces()
        with theirs, pytest.raises(SetupError, match="CAP_SYS_ADMIN over the user namespaces") as caught:
            theirs.enter().__enter__()
        return caught.value.errno, before == thread_namespaces()

    assert (errno.EPERM, True) == in_thread(body)


@needs_root
@pytest.mark.parametrize("kind", [Kind.UTS, Kind.MOUNT])
def test_visit_that_cannot_come_back_raises_over_the_blocks_own_error(inside, kind):
    def body():
        with (
            pytest.raises(CleanupError, match=r"is still inside <Namespace .* and must end") as caught,
            Namespace.of(inside.pid, kind) as theirs,
            theirs.enter(),
        ):
            calls.capset(0, 0, 0)
            _ = {}["lost otherwise"]
        chain = caught.value.__cause__, caught.value.__cause__.__context__
        return [type(error) for error in chain]

    assert [PermissionError, KeyError] == in_thread(body)


@needs_root
def test_visit_is_left_by_its_own_thread_once(inside):
    with Namespace.of(inside.pid, "uts") as theirs:
        visit = theirs.enter()
        assert "not started" in repr(visit)
        with visit:
            assert f"by thread {threading.get_native_id()}" in repr(visit)
            with pytest.raises(StateError, match="only the thread that entered"):
                in_thread(visit.__exit__, None, None, None)
            with pytest.raises(StateError, match="one with block only"):
                visit.__enter__()
        with pytest.raises(StateError, match="once"):
            visit.__exit__(None, None, None)


@needs_root
def test_visits_from_many_threads_at_once_leave_nothing(inside):
    failures = []

    def visit(kind):
        before = thread_namespaces()
        with Namespace.of(inside.pid, kind) as theirs:
            for _ in range(25):
                with theirs.enter():
                    if Namespace.current(kind) != theirs:
                        failures.append("not inside")
        if before != thread_namespaces():
            failures.append("not back")

    threads = [threading.Thread(target=visit, args=(kind,)) for kind in VISITABLE * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures
