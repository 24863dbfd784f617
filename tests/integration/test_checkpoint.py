"""Checkpoints and restores, by a CRIU that supports this kernel. CONTAINERKIT_CRIU names it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oci_bundles import BUSYBOX, make_rootfs

from containerkit import (
    Container,
    Landlock,
    Limits,
    Mount,
    Namespaces,
    RootFS,
    SetupError,
    StateError,
    UnsupportedError,
)
from containerkit.security import landlock

CRIU = os.environ.get("CONTAINERKIT_CRIU", "")
PATIENCE_S = 60


def why_not():
    if os.geteuid() != 0:
        return "CRIU takes root"
    if not CRIU:
        return "CONTAINERKIT_CRIU names no criu of version 4: Debian 12's 3.17 fails on the vDSO of newer kernels"
    if not shutil.which(BUSYBOX):
        return "busybox is not installed"
    checked = subprocess.run([CRIU, "check"], capture_output=True, text=True, check=False)
    return f"criu check: {checked.stderr.strip()}" if checked.returncode else ""


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(reason := why_not()), reason=reason),
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture(scope="module", autouse=True)
def _known_places():
    """Open the directories of groups, which a process does once, before descriptors are counted."""
    with Container(limits=Limits(pids=50)) as c:
        c.pause()


COUNTS = "i=0; while true; do i=$((i+1)); echo $i >/dev/shm/new; mv /dev/shm/new /dev/shm/count; sleep 0.02; done"


@pytest.fixture
def root(tmp_path):
    return make_rootfs(tmp_path / "root")


@pytest.fixture
def images(tmp_path):
    return tmp_path / "images"


def owner(path):
    status = path.stat()
    return status.st_uid, status.st_gid


def connections(container):
    """Return the states of its TCP sockets by their local port, in hexadecimal. Source: proc_pid_net(5)."""
    written = container.run(["sh", "-c", "cat /proc/net/tcp /proc/net/tcp6"], text=True).stdout
    lines = [line.split() for line in written.splitlines() if "local_address" not in line]
    return [(line[1].rpartition(":")[2], line[3]) for line in lines]


def is_connected(container):
    return ("270F", "01") in connections(container)


def until(condition):
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)
    return found


def background(container, script):
    """Run a shell in the background, as a child of the container's init."""
    container.run(["sh", "-c", f"({script}) </dev/null >/dev/null 2>&1 &"], check=True)


def count(container):
    done = container.run(["cat", "/dev/shm/count"], text=True)
    return int(done.stdout or 0) if done.returncode == 0 else 0


def goes_on(container):
    reached = count(container)
    return until(lambda: count(container) > reached)


def find(container, name):
    """Return the pid, outside, of the process of that name. If there are several, of the one that is the init's child."""
    named = [pid for pid in container.members() if comm(pid) == name]
    (found,) = [pid for pid in named if f"PPid:\t{container.pid}\n" in status_of(pid)] or named
    return found


def status_of(pid):
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has ended
        return ""


def comm(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:  # it has ended
        return ""


def fields(pid, *names):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: status[name] for name in names}


def group_of_pids(pid):
    """Return the control group that counts a process."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return next(path for _, names, path in lines if names in ("pids", "")) if lines else None


def mounts_of(container):
    """Return the mounts inside, without the numbers that change."""
    found = []
    for line in Path(f"/proc/{container.pid}/mountinfo").read_text().splitlines():
        words = line.split()
        options = [word for word in words[5].split(",") if word != "idmapped"]
        found.append((words[4], tuple(options), words[words.index("-") + 1]))
    return sorted(found)


def test_container_goes_on_where_it_was(root, images):
    with Container(RootFS.dir(root), limits=Limits(pids=50)) as c:
        background(c, COUNTS)
        goes_on(c)
        c.checkpoint(images, criu=CRIU)
        assert "stopped" == c.state
    with Container.restore(images, criu=CRIU) as c:
        assert "running" == c.state
        assert count(c) > 0
        goes_on(c)
        assert "9\n" == c.run(["sh", "-c", "echo $((4+5))"], text=True, check=True).stdout
        with c.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert b"said" == process.communicate(b"said")[0]
        c.files.write("/tmp/written", b"by the caller")
        assert b"by the caller" == c.files.read("/tmp/written")
        c.pause()
        c.resume()
        goes_on(c)
        assert c.stats().pids.current >= 3
    assert "stopped" == c.state


def test_container_is_held_as_before(root, images):
    """Mounts, ids, namespaces, capabilities, filter, limits and working directory are restored."""
    seen = "NoNewPrivs", "Seccomp", "Seccomp_filters", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "Uid", "Gid"
    with Container(RootFS.dir(root), limits=Limits(pids=50), hostname="restored") as c:
        background(c, COUNTS)
        goes_on(c)
        of_init, of_counter = fields(c.pid, *seen), fields(find(c, "sh"), *seen, "Umask")
        mounts = mounts_of(c)
        refused = c.run(["mount", "-t", "tmpfs", "none", "/tmp"]).returncode
        c.checkpoint(images, criu=CRIU)
    with Container.restore(images, criu=CRIU) as c:
        assert of_init == fields(c.pid, *seen)
        assert of_counter == fields(find(c, "sh"), *seen, "Umask")
        assert "2" == of_counter["Seccomp"]
        assert mounts == mounts_of(c)
        for kind in ("pid", "net", "ipc", "uts", "mnt", "cgroup", "user", "time"):
            assert os.readlink(f"/proc/self/ns/{kind}") != os.readlink(f"/proc/{c.pid}/ns/{kind}")
        assert "restored\n" == c.run(["hostname"], text=True).stdout
        assert refused == c.run(["mount", "-t", "tmpfs", "none", "/tmp"]).returncode != 0
        assert os.readlink(f"/proc/{c.pid}/exe").startswith("/memfd:init")
        assert 50 == c.stats().pids.limit
        groups = {group_of_pids(pid) for pid in (c.pid, find(c, "sh"))}
        assert 1 == len(groups)
        assert groups != {group_of_pids("self")}


def test_limits_are_set_anew(root, images):
    with Container(RootFS.dir(root)) as c:
        background(c, COUNTS)
        goes_on(c)
        c.checkpoint(images, criu=CRIU)
    with Container.restore(images, criu=CRIU, limits=Limits(pids=33, memory="256M")) as c:
        goes_on(c)
        assert 33 == c.stats().pids.limit
        c.update(Limits(pids=44))
        assert 44 == c.stats().pids.limit
    with pytest.raises(ValueError, match=r"limits: '1G' is not a containerkit\.Limits"):
        Container.restore(images, criu=CRIU, limits="1G")
    with Container.restore(images, criu=CRIU) as c:
        assert c.cgroup is None
        goes_on(c)


def test_another_process_brings_it_back_and_is_its_owner(root, images):
    with Container(RootFS.dir(root)) as c:
        background(c, COUNTS)
        goes_on(c)
        c.checkpoint(images, criu=CRIU)
    program = f"""
import time
from containerkit import Container
c = Container.restore({str(images)!r}, criu={CRIU!r})
print(c.pid, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        try:
            pid = int(owner.stdout.readline())
            pidfd = os.pidfd_open(pid)
        finally:
            owner.kill()
    try:
        until(lambda: not is_alive(pidfd))
    finally:
        os.close(pidfd)


def is_alive(pidfd):
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return False
    return True


# --- What continues


def test_container_runs_on_when_asked_to(root, images):
    with Container(RootFS.dir(root), limits=Limits(pids=50)) as c:
        background(c, COUNTS)
        goes_on(c)
        c.checkpoint(images, leave_running=True, criu=CRIU)
        assert "running" == c.state
        goes_on(c)
        with Container.restore(images, criu=CRIU) as twin, Container.restore(images, criu=CRIU) as triplet:
            for each in (twin, triplet, c):
                goes_on(each)
            assert 3 == len({Path(f"/proc/{each.pid}/uid_map").read_text() for each in (c, twin, triplet)})
        c.checkpoint(images.with_name("again"), leave_running=True, criu=CRIU)
        goes_on(c)
    for each in (images, images.with_name("again"), images):
        with Container.restore(each, criu=CRIU) as c:
            goes_on(c)


def test_container_is_checkpointed_again(root, images):
    """A restored container can be checkpointed and restored again."""
    with Container(RootFS.dir(root), limits=Limits(pids=50)) as c:
        background(c, COUNTS)
        goes_on(c)
        c.checkpoint(images, criu=CRIU)
    reached = 0
    for number in range(2):
        with Container.restore(images, criu=CRIU) as c:
            assert reached <= count(c)
            goes_on(c)
            reached = count(c)
            images = images.with_name(f"images{number}")
            c.checkpoint(images, criu=CRIU)


def test_clocks_go_on(root, images):
    """The clocks since boot stop between checkpoint and restore. Processes inside see no jump."""
    uptime = ["cut", "-d.", "-f1", "/proc/uptime"]
    with Container(RootFS.dir(root)) as c:
        background(c, COUNTS)
        goes_on(c)
        before = int(c.run(uptime, text=True).stdout)
        c.checkpoint(images, criu=CRIU)
    with Container.restore(images, criu=CRIU) as c:
        assert before <= int(c.run(uptime, text=True).stdout) < before + PATIENCE_S


@pytest.mark.parametrize("kept", ["host network", "host ids", "bound", "read-only"])
def test_files_outside_are_found_again(root, images, tmp_path, kept):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/name").write_text("outside")
    mounts = [Mount.bind(tmp_path / "shared", "/srv"), Mount.bind(tmp_path / "shared/name", "/etc/name", readonly=True)]
    names = {"host network": {"network": "host"}, "host ids": {"user": "host"}}.get(kept, {})
    rootfs = RootFS.dir(root, readonly=kept == "read-only")
    if kept == "read-only":
        make_rootfs(root)
        (root / "srv").mkdir()
        (root / "etc/name").touch()
    with Container(rootfs, mounts=mounts, namespaces=Namespaces(**names)) as c:
        background(c, f"exec 3</srv/name; {COUNTS}")
        goes_on(c)
        before = mounts_of(c)
        c.checkpoint(images, criu=CRIU)
    with Container.restore(images, criu=CRIU) as c:
        goes_on(c)
        assert before == mounts_of(c)
        assert "outside" == c.run(["cat", "/etc/name"], text=True).stdout
        assert (os.readlink("/proc/self/ns/net") == os.readlink(f"/proc/{c.pid}/ns/net")) == (kept == "host network")
        assert 0 != c.run(["sh", "-c", "echo more >> /etc/name"]).returncode
        assert 0 == c.run(["sh", "-c", "echo more > /srv/made"]).returncode
        assert (kept == "read-only") == (c.run(["touch", "/tmp/made"]).returncode != 0)
    assert 0 == (tmp_path / "shared/made").stat().st_uid


def test_root_filesystem_may_have_moved(root, images):
    with Container(RootFS.dir(root)) as c:
        background(c, COUNTS)
        goes_on(c)
        c.checkpoint(images, criu=CRIU)
    root.rename(root.with_name("moved"))
    with pytest.raises(ValueError, match="is missing, or not a directory"):
        Container.restore(images, criu=CRIU)
    with Container.restore(images, rootfs=RootFS.dir(root.with_name("moved")), criu=CRIU) as c:
        goes_on(c)


@pytest.mark.parametrize("user", ["new", "host"])
def test_overlay_is_made_again(root, images, tmp_path, user):
    """Written files are in the upper directory, with the ids that they have inside."""
    (tmp_path / "upper,1").mkdir()
    shutil.copytree(root / "etc", tmp_path / "above/etc")
    (root / "tmp").chmod(0o1777)
    (tmp_path / "above/etc/above").touch()
    rootfs = RootFS.overlay(tmp_path / "above", root, upper=tmp_path / "upper,1")
    with Container(rootfs, namespaces=Namespaces(user=user)) as c:
        c.run(["sh", "-c", "rm -r /var; rm /etc/group; mkdir /srv; echo before >/srv/file"], check=True)
        background(c, f"exec 3</srv/file 4</bin/busybox; {COUNTS}")
        goes_on(c)
        before = mounts_of(c)
        c.checkpoint(images, criu=CRIU)
    with Container.restore(images, criu=CRIU) as c:
        goes_on(c)
        assert before == mounts_of(c)
        script = (
            "test ! -e /var && test ! -e /etc/group && test -e /etc/above && cat /srv/file && echo after >>/srv/file"
        )
        assert "before\n" == c.run(["sh", "-c", script], text=True, check=True).stdout
        assert 0 == c.run(["sh", "-c", "echo else >>/etc/passwd"]).returncode
        assert 0 == c.run(["touch", "/tmp/mine"], user="1000:1000").returncode
        changes = {change.path: change.kind for change in c.changes()}
        assert "deleted" == changes["/var"]
        assert "changed" == changes["/etc/passwd"]
    assert "before\nafter\n" == (tmp_path / "upper,1/srv/file").read_text()
    assert (0, 0) == owner(tmp_path / "upper,1/srv/file")
    assert (0, 0) == owner(tmp_path / "upper,1/etc/passwd")
    assert (1000, 1000) == owner(tmp_path / "upper,1/tmp/mine")
    assert not (root / "srv").exists()


# --- Owners


def test_owner_that_dies_takes_the_container_with_it_after_a_checkpoint(root, images):
    program = f"""
import time
from containerkit import Container, RootFS
c = Container(RootFS.dir({str(root)!r})).start()
c.checkpoint({str(images)!r}, leave_running=True, criu={CRIU!r})
print(c.pid, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        try:
            pid = int(owner.stdout.readline())
            pidfd = os.pidfd_open(pid)
            assert is_alive(pidfd)
        finally:
            owner.kill()
    try:
        until(lambda: not is_alive(pidfd))
    finally:
        os.close(pidfd)


def test_owner_that_dies_with_a_fork_alive_takes_the_container_with_it(root, images):
    """A fork of the owner has copies of its descriptors, but is not the owner."""
    program = f"""
import os, time
from containerkit import Container, RootFS
c = Container(RootFS.dir({str(root)!r})).start()
c.checkpoint({str(images)!r}, leave_running=True, criu={CRIU!r})
fork = os.fork()
if not fork:
    time.sleep(1000)
print(c.pid, fork, flush=True)
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as owner:
        try:
            pid, fork = map(int, owner.stdout.readline().split())
            pidfd = os.pidfd_open(pid)
        finally:
            owner.kill()
            owner.stdout.close()
    try:
        until(lambda: not is_alive(pidfd))
        os.kill(fork, 0)
    finally:
        os.kill(fork, signal.SIGKILL)
        os.close(pidfd)


# --- What fails


def test_dump_that_fails_leaves_the_container_running(root, images, tmp_path):
    """CRIU saves open connections only on request."""
    with Container(RootFS.dir(root)) as c:
        background(c, COUNTS)
        goes_on(c)
        background(c, "sleep 1000 | nc -l -p 9999")
        until(lambda: ("270F", "0A") in connections(c))
        background(c, "sleep 1000 | nc 127.0.0.1 9999")
        until(lambda: is_connected(c))
        with pytest.raises(SetupError, match=r"criu dump: exit status 1: .*Error") as caught:
            c.checkpoint(images, criu=CRIU)
        assert "tcp" in str(caught.value).lower()
        assert not images.exists()
        goes_on(c)
        images.mkdir()
        with pytest.raises(SetupError, match="criu dump"):
            c.checkpoint(images, criu=CRIU)
        assert [] == list(images.iterdir())
        goes_on(c)
        if shutil.which("iptables-restore") is None:  # CRIU blocks the connections by firewall rules
            return
        c.checkpoint(images, tcp_established=True, criu=CRIU)
    with Container.restore(images, criu=CRIU) as c:
        goes_on(c)
        assert is_connected(c)


@pytest.mark.skipif(not os.path.exists("/usr/bin/flock"), reason="flock is not installed: apt-get install util-linux")
def test_locks_are_kept_when_asked_for(root, images):
    for name in ("lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    held = "exec 3>/tmp/lock; /usr/bin/flock -n 3"
    usr = Mount.bind("/usr", "/usr", readonly=True, recursive=False)
    with Container(RootFS.dir(root), mounts=[usr]) as c:
        background(c, f"{held}; {COUNTS}")
        goes_on(c)
        with pytest.raises(SetupError, match="lock"):
            c.checkpoint(images, criu=CRIU)
        c.checkpoint(images, file_locks=True, criu=CRIU)
    with Container.restore(images, criu=CRIU) as c:
        goes_on(c)
        assert 1 == c.run(["sh", "-c", held]).returncode


@pytest.mark.parametrize("after_s", [0.01, 0.05, 0.1, 0.2, 0.4])
def test_signal_handler_that_raises_leaves_all_or_nothing(root, images, after_s):
    with Container(RootFS.dir(root), limits=Limits(pids=50)) as c:
        background(c, COUNTS)
        goes_on(c)
        raised = interrupted(after_s, lambda: c.checkpoint(images, leave_running=True, criu=CRIU))
        assert raised is None or isinstance(raised, InterruptionError)
        goes_on(c)
        if not images.exists():
            c.checkpoint(images, leave_running=True, criu=CRIU)
    restored = []
    interrupted(after_s, lambda: restored.append(Container.restore(images, criu=CRIU)))
    for c in restored:
        goes_on(c)
        c.stop()


class InterruptionError(Exception):
    pass


def interrupted(after_s, do):
    """Run an operation while a signal handler raises. Return the exception."""

    def handler(number, frame):
        raise InterruptionError

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, after_s)
        do()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except InterruptionError as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return None


def test_restore_that_fails_leaves_nothing(root, images):
    with Container(RootFS.dir(root), limits=Limits(pids=50)) as c:
        background(c, COUNTS)
        goes_on(c)
        c.checkpoint(images, criu=CRIU)
    (pages,) = (images / "images").glob("core-1.img")
    content = pages.read_bytes()
    pages.write_bytes(content[:-7])
    with pytest.raises(SetupError, match=f"restore {images}: .*criu restore: exit status"):
        Container.restore(images, criu=CRIU)
    pages.write_bytes(content)
    shutil.rmtree(root / "dev")  # CRIU misses it after it has created the first process
    with pytest.raises(SetupError, match="criu restore: exit status"):
        Container.restore(images, criu=CRIU)
    (root / "dev").mkdir()
    with Container.restore(images, criu=CRIU) as c:
        goes_on(c)


def test_directory_that_others_can_write_to_is_refused(root, images):
    with Container(RootFS.dir(root)) as c:
        c.checkpoint(images, criu=CRIU)
    assert 0o700 == images.stat().st_mode & 0o777
    for path in (images, images / "containerkit.json"):
        mode = path.stat().st_mode
        path.chmod(mode | 0o020)
        with pytest.raises(SetupError, match="it must belong to root, and only root may write to it"):
            Container.restore(images, criu=CRIU)
        path.chmod(mode)
        os.chown(path, 1234, -1)
        with pytest.raises(SetupError, match="it must belong to root, and only root may write to it"):
            Container.restore(images, criu=CRIU)
        os.chown(path, 0, -1)
    with Container.restore(images, criu=CRIU) as c:
        assert 0 == c.run(["true"]).returncode


def test_file_that_is_no_record_is_refused(tmp_path):
    with pytest.raises(SetupError, match="must be the directory of a checkpoint"):
        Container.restore(tmp_path / "missing", criu=CRIU)
    with pytest.raises(SetupError, match=r"containerkit.json: No such file.*Container.checkpoint\(\) writes it"):
        Container.restore(tmp_path, criu=CRIU)
    for text, told in (
        ("{", "not JSON"),
        ("[]", "not a checkpoint of version 1"),
        ('{"version": 9}', "not a checkpoint of"),
    ):
        (tmp_path / "containerkit.json").write_text(text)
        with pytest.raises(SetupError, match=told):
            Container.restore(tmp_path, criu=CRIU)
    for record in ({"class": "os:system"}, {"class": "container:Container"}, {"class": "spec:Spec"}, {"class": 3}, 7):
        (tmp_path / "containerkit.json").write_text(json.dumps({"version": 1, "record": record}))
        with pytest.raises(ValueError, match=r"containerkit\.json"):
            Container.restore(tmp_path, criu=CRIU)


# --- What is refused


def test_commands_of_the_caller_are_refused(root, images):
    with Container(RootFS.dir(root)) as c:
        with c.popen(["sleep", "1000"]) as process:
            with pytest.raises(StateError, match=r"sleep 1000' running>: it is a child of the caller"):
                c.checkpoint(images, criu=CRIU)
            process.kill()
        assert not images.exists()
        c.checkpoint(images, criu=CRIU)


@pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")
def test_command_that_landlock_restricted_is_refused(root, images):
    """Files that were left behind would be missing after the restore."""
    with Container(RootFS.dir(root)) as c:
        c.run(["true"], landlock=Landlock().allow_execute("/"))
        with pytest.raises(UnsupportedError, match="CRIU does not see Landlock rules"):
            c.checkpoint(images, criu=CRIU)
        assert "running" == c.state
    assert not images.exists()


def test_what_joined_from_outside_is_refused(root, images):
    with Container(RootFS.dir(root)) as c:
        words = ["nsenter", "--target", str(c.pid), "--pid", "--mount", "--user", "sleep", "1000"]
        with subprocess.Popen(words) as stranger:
            try:
                until(lambda: len(c.members()) > 1)
                with pytest.raises(StateError, match="joined the container from the host"):
                    c.checkpoint(images, criu=CRIU)
            finally:
                for pid in c.members():
                    if pid != c.pid:
                        os.kill(pid, signal.SIGKILL)
                stranger.kill()
        assert not images.exists()


def test_descriptors_that_lead_outside_are_refused(root, images, tmp_path):
    reading, writing = os.pipe()
    try:
        with open(tmp_path / "log", "wb") as log, Container(RootFS.dir(root)) as c:
            for stdout, told in ((log, f"the file {tmp_path}/log"), (writing, "a pipe")):
                with c.popen(["sh", "-c", "sleep 1000 </dev/null 2>/dev/null &"], stdout=stdout) as process:
                    process.wait()
                until(lambda: [pid for pid in c.members() if comm(pid) == "sleep"])
                with pytest.raises(StateError, match=f"its descriptor 1 leads outside: {told}"):
                    c.checkpoint(images, criu=CRIU)
                assert not images.exists()
                os.kill(find(c, "sleep"), signal.SIGKILL)
                until(lambda: len(c.members()) == 1)
            background(c, "sleep 1000 | cat")
            until(lambda: len(c.members()) > 2)
            c.checkpoint(images, criu=CRIU)
    finally:
        os.close(reading)
        os.close(writing)
    with Container.restore(images, criu=CRIU) as c:
        assert find(c, "cat")


def test_directory_in_use_is_refused(root, images):
    images.mkdir()
    (images / "here").touch()
    with Container(RootFS.dir(root)) as c:
        with pytest.raises(ValueError, match="is not empty: choose an empty directory"):
            c.checkpoint(images, criu=CRIU)
        assert "running" == c.state
    assert ["here"] == [each.name for each in images.iterdir()]
