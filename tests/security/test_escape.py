"""Escapes that worked with other runtimes, attempted by small programs inside.

Each runs as root of the container. With ``mighty`` it has every capability and no filter, so that the other protections
are tested and not only the last one.
"""

import ctypes
import os
import signal
import socket
import subprocess
import time

import pytest
from examples import examples

from containerkit import PIPE, Container, Mount, RootFS, run
from containerkit.security.capabilities import Capabilities

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")

MIGHTY = {"capabilities": Capabilities.all(), "seccomp": None, "no_new_privs": False}


@pytest.fixture
def mighty():
    """A container whose root has every capability and no filter."""
    with Container(**MIGHTY) as container:
        yield container


def python(box, code, **more):
    return box.run(["python3", "-c", code], text=True, timeout=30, **more)


# --- The runtime's own program: CVE-2019-5736 -----------------------------------------------------------------------------


def test_init_is_a_sealed_memfd_and_not_a_file_of_the_host(mighty):
    code = """
import os, fcntl
print(os.readlink("/proc/1/exe"))
for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
    try: fd = os.open("/proc/1/exe", flags); os.write(fd, b"x"); print("written")
    except OSError as e: print("refused")
fd = os.open("/proc/1/exe", os.O_RDONLY)
seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
print(bool(seals & fcntl.F_SEAL_WRITE) and bool(seals & fcntl.F_SEAL_SEAL))
"""
    assert ["/memfd:init (deleted)", "refused", "refused", "refused", "True"] == python(
        mighty, code
    ).stdout.splitlines()


def test_a_program_that_is_started_again_through_its_own_exe_is_the_containers(mighty):
    """With #!/proc/self/exe runc ran itself again inside, with the container's libraries."""
    mighty.files.write("/trap", "#!/proc/self/exe\n", mode=0o755)
    code = "import os\ntry: os.execv('/trap', ['/trap', '-c', 'print(1)'])\nexcept OSError as e: print(e.errno)"
    end = python(mighty, code)
    assert "containerkit" not in end.stdout + end.stderr


WATCHED_S = examples(ci=0.7, nightly=2)
"""How long processes join while one inside looks at them. Both use a processor."""

WATCH = """
import os, sys, time
INTEREST = {"uptime", "sysrq-trigger", "boot", "lower", "newroot", "work", "staging", "usr"}
seen = set()
end = time.monotonic() + float(sys.argv[1])
own = os.getpid()
while time.monotonic() < end:
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) in (1, own): continue
        for what in ("exe", "cwd", "root"):
            try: seen.add((what, os.readlink(f"/proc/{pid}/{what}")))
            except OSError: pass
        try: mem = os.open(f"/proc/{pid}/mem", os.O_RDWR); os.close(mem); seen.add(("mem", "opened"))
        except OSError: pass
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                try: seen.add(("fd", os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0]))
                except OSError: pass
                try: seen.add(("directory", ",".join(sorted(set(os.listdir(f"/proc/{pid}/fd/{fd}")) & INTEREST))))
                except OSError: pass
        except OSError: pass
for what, where in sorted(seen): print(what, where)
"""


def seen_while_others_join(container):
    """Let a process inside inspect every accessible /proc/PID/exe, cwd, root and fd while other processes join."""
    with container.popen(["python3", "-c", WATCH, str(WATCHED_S)], stdout=PIPE, text=True) as watcher:
        while watcher.poll() is None:
            container.run(["true"])
            container.files.read("/etc/passwd")
        return [line.split(" ", 1) for line in watcher.stdout.read().splitlines()]


def test_joining_process_reveals_nothing_to_an_unprivileged_process():
    """Without capabilities not even the sealed init can be inspected, although it still has more privileges while joining."""
    with Container() as container:
        seen = seen_while_others_join(container)
    assert {where for what, where in seen if what == "exe"} <= {"/usr/bin/true"}
    opened = {where for what, where in seen if what == "fd" and not where.startswith(("/etc/ld", "/usr/lib"))}
    assert opened <= {"pipe", "/dev/null"}


def test_joining_process_reveals_no_program_of_the_host(mighty, tmp_path):
    (tmp_path / "uptime").touch()
    inherited = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(inherited, True)
    try:
        seen = seen_while_others_join(mighty)
    finally:
        os.close(inherited)
    programs = {where for what, where in seen if what == "exe"}
    assert programs <= {"/usr/bin/true", "/memfd:init (deleted)", "/init (deleted)"}
    assert {where for what, where in seen if what in ("cwd", "root")} <= {"/"}
    # Descriptors of the exec itself: the container's time namespace and root, the tape and the init, and those of ld.so.
    own = {"pipe", "/dev/null", "time", "/", "/memfd", "socket"}
    assert [] == [
        where
        for what, where in seen
        if what == "fd" and where not in own and not where.startswith(("/etc/ld", "/usr/lib"))
    ]
    assert {where for what, where in seen if what == "directory"} <= {"", "usr"}
    assert "venv" not in str(seen)


def test_memory_of_the_caller_cannot_be_read_by_ptrace_while_a_process_joins(mighty):
    """A process that joins shares the caller's memory until its exec, so nobody inside may attach to it."""
    secret = ctypes.create_string_buffer(b"SECRET-" + os.urandom(8).hex().encode())
    code = f"""
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long
address, length, own = {ctypes.addressof(secret)}, 16, os.getpid()
end = time.monotonic() + {WATCHED_S}
tries = found = 0
while time.monotonic() < end:
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) in (1, own): continue
        tries += 1
        try:
            with open(f"/proc/{{pid}}/mem", "rb", buffering=0) as mem:
                if os.pread(mem.fileno(), length, address).startswith(b"SECRET-"): found += 1
        except (OSError, ValueError): pass
        if libc.ptrace(16, int(pid), None, None) == 0:
            try:
                os.waitpid(int(pid), 0x40000000)
                word = libc.ptrace(1, int(pid), address, None)
                if (word & 0xffffffffffffff).to_bytes(8, "little").startswith(b"SECRET-"): found += 1
            except OSError: pass
            libc.ptrace(17, int(pid), None, None)
print(tries > 0, found)
"""
    with mighty.popen(["python3", "-c", code], stdout=PIPE, text=True) as watcher:
        while watcher.poll() is None:
            try:
                mighty.run(["true"], timeout=5)
            except Exception:  # noqa: BLE001 - a process that was attached to may end in any way
                continue
        assert "True 0\n" == watcher.stdout.read()
    assert secret.value.startswith(b"SECRET-")


# --- Descriptors and directories: CVE-2024-21626 --------------------------------------------------------------------------------


def test_no_descriptor_of_a_process_or_of_init_leads_out(mighty):
    code = """
import os
out = []
for pid in ("1", "self"):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        base = f"/proc/{pid}/fd/{fd}"
        for way in ("", "/..", "/../..", "/../../../../..", "/../../../../../root", "/../../../etc/shadow"):
            try: names = os.listdir(base + way)
            except OSError: continue
            out.append((pid, fd, way, sorted(names)))
for pid, fd, way, names in out:
    if "shadow" in names or ".pyenv" in names or "work" in names and "proc" in names and "boot" in names: print("OUT", pid, fd, way, names)
print("end")
"""
    assert "end\n" == python(mighty, code).stdout


def test_init_cannot_be_traced_or_its_descriptors_taken(mighty):
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open(1)
for fd in range(10):
    got = libc.syscall(438, pidfd, fd, 0)
    if got >= 0: print(fd, os.readlink(f"/proc/self/fd/{got}").split(":")[0])
"""
    taken = dict(line.split(" ", 1) for line in python(mighty, code).stdout.splitlines())
    assert set() == {number for number, what in taken.items() if what.startswith("/") and what != "/"}


def test_the_owners_pidfd_gives_no_power_over_the_owner(mighty):
    """PID 1 has a pidfd of its owner, to notice the owner's end. Root inside must not be able to use it."""
    code = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
fd = libc.syscall(438, os.pidfd_open(1), 3, 0)
if fd >= 0:
    for number in (0, signal.SIGUSR1, signal.SIGKILL):
        try: signal.pidfd_send_signal(fd, number); print("SENT", number)
        except OSError as e: print("refused")
    for other in range(20):
        if libc.syscall(438, fd, other, 0) >= 0: print("TOOK", other)
    for kinds in (0x20000, 0x10000000, 0x40000000):
        if libc.setns(fd, kinds) == 0: print("JOINED", kinds)
print("end")
"""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        said = python(mighty, code).stdout.split()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert {"refused", "end"} >= set(said)


@pytest.mark.parametrize(
    "cwd", ["/proc/self/fd/3", "/proc/self/fd/7", "/proc/self/cwd", "/proc/1/cwd", "/proc/self/root"]
)
def test_cwd_through_magic_links_is_refused(box, cwd):
    from containerkit import SetupError

    with pytest.raises(SetupError) as caught:
        box.run(["pwd"], cwd=cwd)
    assert caught.value.errno in (40, 2, 13)


def test_the_old_root_is_gone(mighty):
    code = """
import os
print(open("/proc/self/mountinfo").read().count("\\n"))
with open("/proc/self/mountinfo") as f: points = [l.split()[4] for l in f]
print(sorted(p for p in points if p.startswith(("/lower", "/upper", "/newroot", "/host", "/skeleton"))))
root = os.stat("/")
os.chroot("/tmp")
for _ in range(100):
    try: os.chdir("..")
    except OSError: break
os.chroot(".")
print((os.stat("/").st_dev, os.stat("/").st_ino) == (root.st_dev, root.st_ino), os.path.exists("/lower"))
"""
    count, covered, same = python(mighty, code).stdout.splitlines()
    assert "[]" == covered
    assert "True False" == same
    assert int(count) < 40


def test_unmounting_uncovers_nothing_of_the_host(mighty):
    """There is no procfs of the host below /proc, and nothing at all below /."""
    script = "for i in 1 2 3 4 5; do for m in /proc /sys /dev /usr; do umount -l $m 2>/dev/null; done; done; umount -l / 2>/dev/null; echo /proc/[0-9]* /sys/* ; echo /usr/*"
    said = mighty.run(["sh", "-c", script], text=True).stdout
    assert str(os.getpid()) not in said.replace("/proc/", " ").split()


# --- Files of the host --------------------------------------------------------------------------------------------------------


def test_home_directories_and_secrets_are_not_visible(mighty):
    script = "cat /etc/shadow /etc/gshadow /root/.bash_history /root/.ssh/* /var/log/* /run/* 2>/dev/null; ls -A /home /root /run /srv /opt | grep -v lock; true"
    said = mighty.run(["sh", "-c", script], text=True).stdout
    words = [word for word in said.split() if not word.startswith("/") and word]
    assert [] == words


@needs_root
def test_files_that_only_root_may_read_stay_so(tmp_path):
    """Root inside is another user outside, so a file without a mapping does not belong to it."""
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    with Container(mounts=[Mount.bind(tmp_path, "/x", idmap=False)], **MIGHTY) as container:
        assert 0 != container.run(["cat", "/x/secret"]).returncode


@needs_root
def test_set_user_id_programs_give_nothing(mighty, tmp_path):
    program = tmp_path / "sh"
    subprocess.run(["cp", "/bin/sh", program], check=True)
    os.chown(program, 1234, 1234)
    program.chmod(0o6755)
    with Container(mounts=[Mount.bind(tmp_path, "/x")], no_new_privs=False) as container:
        assert b"0\n" == container.run(["/x/sh", "-c", "id -u"]).stdout


@needs_root
def test_devices_of_the_host_cannot_be_made_or_opened(mighty):
    for number in ("8 0", "254 0", "1 1", "5 1", "10 200"):
        script = f"mknod /tmp/d b {number} || mknod /tmp/d c {number} && head -c1 /tmp/d"
        done = mighty.run(["sh", "-c", script])
        assert 0 != done.returncode
    listed = mighty.run(["sh", "-c", "find /dev -type b; find /dev -type c | sort"], text=True).stdout.split()
    assert [] == [
        name
        for name in listed
        if name.split("/")[2] not in {"null", "zero", "full", "random", "urandom", "tty", "console", "pts"}
    ]


def test_console_is_no_console_of_the_host(mighty):
    """It is a bind of null, so data written to it is lost (CVE-2025-52565)."""
    done = mighty.run(["sh", "-c", "echo x >/dev/console; stat -L -c %t:%T /dev/console"], text=True)
    assert (0, "1:3\n") == (done.returncode, done.stdout)


# --- Kernel interfaces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/kernel/panic",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
    ],
)
def test_kernel_parameters_of_the_host_cannot_be_written(mighty, path):
    if not os.path.exists(path):
        pytest.skip(f"this kernel has no {path}")
    assert 0 != mighty.run(["sh", "-c", f"echo 0 >{path}"]).returncode


def test_memory_of_the_kernel_cannot_be_read(mighty):
    for path in ("/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/kmsg"):
        assert 0 != mighty.run(["head", "-c", "1", path]).returncode


@needs_root
def test_release_agent_cannot_be_set(mighty):
    """CVE-2022-0492: mount a version-1 hierarchy and name a program for the host to run."""
    script = "mkdir -p /tmp/c && mount -t cgroup -o memory c /tmp/c 2>/dev/null || mount -t cgroup -o rdma c /tmp/c && echo /x >/tmp/c/release_agent"
    assert 0 != mighty.run(["sh", "-c", script]).returncode


def test_mounts_stay_in_the_container(mighty):
    def points():
        with open("/proc/self/mountinfo") as file:
            return {line.split()[4] for line in file}

    before = points()
    assert (
        0
        == mighty.run(
            ["sh", "-c", "mount -t tmpfs mine /mnt && mount --make-rshared / && mount -t tmpfs more /opt"]
        ).returncode
    )
    assert "/mnt" not in points() - before
    assert "/opt" not in points() - before


# --- Other processes ---------------------------------------------------------------------------------------------------------------


def test_processes_of_the_host_are_not_seen_or_signalled(mighty):
    code = f"""
import os
print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit())[-1] < 1000)
for pid in ({os.getpid()}, {os.getppid()}, -1):
    try: os.kill(pid, 9) if pid != -1 else None; print('SENT' if pid != -1 else 'ok')
    except ProcessLookupError: print('ok')
"""
    assert ["True", "ok", "ok", "ok"] == python(mighty, code).stdout.split()


def test_kill_of_everybody_hits_the_container_alone(mighty):
    with Container() as other:
        witness = other.popen(["sleep", "30"])
        mighty.run(["sh", "-c", "kill -9 -1"])
        assert None is witness.poll()
        assert "running" == other.state
        assert "running" == mighty.state
        witness.close()


def test_abstract_sockets_of_the_host_are_out_of_reach(mighty):
    """CVE-2020-15257: the shim's abstract socket."""
    name = f"\0containerkit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        code = f"import socket\ntry: socket.socket(socket.AF_UNIX).connect({name!r}); print('CONNECTED')\nexcept OSError as e: print('refused')"
        assert "refused\n" == python(mighty, code).stdout


def test_shared_memory_of_the_host_is_out_of_reach(mighty):
    name = f"containerkit-test-{os.getpid()}"
    with open(f"/dev/shm/{name}", "w") as file:
        file.write("ours")
    try:
        assert name not in mighty.files.listdir("/dev/shm")
        assert 0 == mighty.run(["sh", "-c", "echo x >/dev/shm/theirs"]).returncode
        assert not os.path.exists("/dev/shm/theirs")
        assert "" == mighty.run(["sh", "-c", "ipcs -m | grep 0x; ipcs -q | grep 0x; true"], text=True).stdout
    finally:
        os.unlink(f"/dev/shm/{name}")


def test_network_of_the_host_is_out_of_reach(mighty):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 2); print('CONNECTED')\nexcept OSError: print('refused')"
        assert "refused\n" == python(mighty, code).stdout


@needs_root
def test_containers_have_different_ids_and_cannot_signal_each_other():
    with Container(**MIGHTY) as one, Container(**MIGHTY) as two:
        uids = []
        for container in (one, two):
            with open(f"/proc/{container.pid}/status") as file:
                uids.append(next(line.split()[1] for line in file if line.startswith("Uid:")))
    assert uids[0] != uids[1]


# --- Bombs ----------------------------------------------------------------------------------------------------------------------------


@needs_root
def test_fork_bomb_is_held_by_its_limit_of_processes():
    """RLIMIT_NPROC counts only the ids of this container, so others are not affected."""
    bomb = "import os\nn = 0\nwhile True:\n    try:\n        if os.fork() == 0:\n            import time; time.sleep(30); os._exit(0)\n        n += 1\n    except OSError as e:\n        print(n, e.errno, flush=True); os._exit(0)\n"
    with Container() as container, Container() as other:
        done = container.run(["python3", "-c", bomb], rlimits={"nproc": 50}, user="1000:1000", text=True, timeout=60)
        count, number = map(int, done.stdout.split())
        assert 11 == number
        assert 20 < count <= 50
        assert 0 == other.run(["true"], rlimits={"nproc": 50}, user="1000:1000").returncode
        began = time.monotonic()
    assert time.monotonic() - began < 10


def test_descriptor_bomb_is_held(box):
    code = "import os\nn = 0\ntry:\n    while True: os.dup(0); n += 1\nexcept OSError as e: print(e.errno, n < 70)"
    assert "24 True\n" == python(box, code, rlimits={"nofile": 64}).stdout


def test_memory_filesystems_are_bounded(box):
    done = box.run(["sh", "-c", "head -c 200M /dev/zero >/dev/shm/big"], text=True)
    assert "No space left" in done.stderr


def test_setgroups_cannot_drop_a_group_that_denies():
    """It must be denied in an unprivileged user's container (CVE-2014-8989). A privileged one's range has no such group."""
    done = run(["cat", "/proc/self/setgroups"], text=True)
    groups = run(["id", "-G"], text=True).stdout.split()
    assert ["0"] == groups[:1]
    if os.geteuid():
        # newgidmap(1) maps a granted range, and may allow it then.
        ids = run(["cat", "/proc/self/gid_map"], text=True).stdout.splitlines()
        assert ("deny\n" if len(ids) == 1 else "allow\n") == done.stdout
    else:
        assert ["0"] == groups


def test_default_container_has_no_capabilities():
    done = run(["grep", "-E", "^(Cap|NoNewPrivs|Seccomp:)", "/proc/self/status"], text=True)
    found = dict(line.split(":\t") for line in done.stdout.splitlines())
    assert {"0000000000000000"} == {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert ("1", "2") == (found["NoNewPrivs"], found["Seccomp"])


def test_another_user_namespace_cannot_be_made(box):
    for kinds in (0x10000000, 0x10020000):
        code = f"import ctypes, os; l = ctypes.CDLL(None, use_errno=True); print(l.unshare({kinds}), l.syscall(56, {kinds} | 17, 0, 0, 0, 0))"
        assert "-1 -1\n" == python(box, code).stdout


def test_template_roots_are_fresh_for_each_start():
    """Changes of one container to the shared parts of its root are invisible in others."""
    script = "echo evil >/etc/ld.so.preload; echo evil >/usr/bin/evil; mkdir /host; rm -f /dev/null; echo evil >/dev/evil; chmod 777 /dev; echo evil >/dev/console"
    run(["sh", "-c", script], **MIGHTY)
    done = run(
        [
            "sh",
            "-c",
            "cat /etc/ld.so.preload /usr/bin/evil /dev/evil 2>/dev/null; stat -c %a /dev; echo ok >/dev/null && echo ok",
        ],
        text=True,
    )
    assert "755\nok\n" == done.stdout
    assert "1:3\n" == run(["stat", "-c", "%t:%T", "/dev/null"], rootfs=RootFS.host(), text=True).stdout


def test_dev_is_not_writable_even_with_all_capabilities(mighty):
    """All containers share it. Each has its own view, which it may remount, but can't change the nodes."""
    script = "mount -o remount,bind,rw /dev 2>/dev/null; mount -o remount,rw /dev 2>/dev/null; echo x >/dev/evil; rm -f /dev/full; chmod 600 /dev/null"
    mighty.run(["sh", "-c", script])
    with Container() as other:
        names = other.files.listdir("/dev")
        assert "evil" not in names
        assert "full" in names
        assert b"666\n" == other.run(["stat", "-c", "%a", "/dev/null"]).stdout
    assert 0o666 == os.stat("/dev/null").st_mode & 0o777
