"""Operations that need a capability, tried by root of a container without it, and again with only that capability."""

import os

import pytest
from attacker import EVERYTHING, USER, armed, attempt, attempt_in, in_child

from containerkit import Capabilities, Container, Mount, run
from containerkit._native import calls

pytestmark = pytest.mark.usefixtures("nothing_left")
INET, PACKET, RAW, STREAM, ICMP = 2, 17, 3, 1, 1


@pytest.mark.parametrize("words", [(INET, RAW, ICMP), (PACKET, RAW)])
def test_raw_socket(words):
    assert "EPERM" == attempt("make-socket", *words)
    assert "EPERM" == attempt("make-socket", *words, seccomp=None)
    assert "done" == attempt("make-socket", *words, capabilities=Capabilities.of("NET_RAW"))


def test_network_interface_cannot_be_changed():
    assert "EPERM" == attempt("set-link")
    assert "done" == attempt("set-link", capabilities=Capabilities.of("NET_ADMIN"))


def test_mount_of_any_kind():
    for attack in (("mount-tmpfs", "/mnt"), ("new-mount-api",), ("clone-mount", "/"), ("mount-type", "/mnt", "proc")):
        assert "EPERM" == attempt(*attack)
        assert "EPERM" == attempt(*attack, seccomp=None), "the capability is the second wall"
        assert "done" == attempt(*attack, capabilities=Capabilities.of("SYS_ADMIN"))


def test_mounts_cannot_be_removed_or_made_writable():
    for attack in (("unmount", "/proc/sys"), ("unmount", "/proc"), ("remount-writable", "/proc/sys")):
        assert "EPERM" == attempt(*attack)
        assert "EPERM" == attempt(*attack, seccomp=None)


def test_pivot_root():
    assert ("EPERM", "EPERM") == (attempt("pivot"), attempt("pivot", seccomp=None))


def test_device_cannot_be_made_even_with_every_capability():
    """In a user namespace no process can create devices. Docker's containers without one can, if their group allows it."""
    for directory in ("/tmp", "/dev/shm", "/etc"):
        assert "EPERM" == attempt("make-device", f"{directory}/null")
        assert "EPERM" == attempt("make-device", f"{directory}/null", **EVERYTHING)


@pytest.mark.several_ids
def test_change_of_user():
    assert "EPERM" == attempt("become", 1)
    assert "done" == attempt("become", 1, capabilities=Capabilities.of("SETUID"))


def test_hard_limit_cannot_be_raised():
    """setrlimit ignores CAP_SYS_RESOURCE of a user namespace."""
    assert "EPERM" == attempt("raise-limit")
    assert "EPERM" == attempt("raise-limit", **EVERYTHING)


def test_init_cannot_be_traced_read_or_used():
    for attack in (
        ("attach", 1),
        ("read-memory", 1, "0x400000"),
        ("read-file", "/proc/1/exe"),
        ("read-file", "/proc/1/maps"),
        ("read-file", "/proc/1/environ"),
        ("read-file", "/proc/1/root/etc/passwd"),
        ("read-file", "/proc/1/fd/3"),
        ("write-file", "/proc/1/mem", "x"),
        ("join", "/proc/1/ns/mnt"),
    ):
        assert attempt(*attack) in ("EPERM", "EACCES")
        assert attempt(*attack, seccomp=None) in ("EPERM", "EACCES")
    # In a running container, because with a command of its own PID 1 may not be the init yet.
    reading = ("read-file", "/proc/1/exe")
    for words, capabilities in ((("attach", 1), Capabilities.all()), (reading, Capabilities.of("SYS_PTRACE"))):
        with Container(mounts=armed(), capabilities=capabilities) as container:
            assert "done" == attempt_in(container, *words)


def test_init_is_not_killed_by_its_container():
    """The kernel does not deliver signals to PID 1 for which it has no handler."""
    with Container(mounts=armed()) as container:
        assert "done" == attempt_in(container, "signal", 1, 9)
        assert "done" == attempt_in(container, "signal", 1, 6)
        assert "running" == container.state


def test_chroot_is_no_way_out():
    """Leaving a chroot with an older descriptor leads to the root of the container, and no further."""
    assert "EPERM" == attempt("break-out", "/attacks")
    assert "done" == attempt("break-out", "/attacks", capabilities=Capabilities.of("SYS_CHROOT"))
    assert "ENOENT" == attempt("break-out", __file__, capabilities=Capabilities.of("SYS_CHROOT"))


@pytest.mark.root
def test_setuid_program(tmp_path):
    """A set-user-ID program of root, run by another user: the mount and no_new_privs each disable the bit."""
    if os.geteuid():
        pytest.skip("needs root: who else would own it")
    import shutil

    from attacker import program

    tmp_path.chmod(0o755)
    shutil.copy(program(), tmp_path / "setuid")
    (tmp_path / "setuid").chmod(0o4755)

    def who(nosuid, **options):
        mount = Mount.bind(tmp_path, "/opt", nosuid=nosuid)
        return run(["/opt/setuid", "who"], user="1000:1000", mounts=[mount], text=True, **options).stdout.split()[:2]

    assert ["1000", "1000"] == who(nosuid=True)
    assert ["1000", "1000"] == who(nosuid=False)
    assert ["1000", "1000"] == who(nosuid=True, no_new_privs=False)
    assert ["1000", "0"] == who(nosuid=False, no_new_privs=False)


@pytest.mark.several_ids
def test_setuid_bit_on_a_file_of_the_containers_own():
    """Its own root made it in the writable layer, but the overlay is nosuid."""
    script = "cp /attacks /tmp/setuid && chmod 4755 /tmp/setuid && ls -l /tmp/setuid"
    with Container(mounts=armed(), no_new_privs=False) as container:
        container.run(["sh", "-c", script], check=True)
        done = container.run(["/tmp/setuid", "who"], user="1000:1000", text=True)
    assert ["1000", "1000"] == done.stdout.split()[:2]


@pytest.mark.root
def test_capabilities_of_the_caller_are_not_inherited():
    """Inheritable and ambient sets of the caller (CVE-2022-27650)."""
    if os.geteuid():
        pytest.skip("needs capabilities to pass on")
    from struct import pack

    def work():
        calls.syscall("capset", bytearray(pack("=Ii", 0x20080522, 0)), bytearray(pack("=6I", *with_inheritable())))
        calls.prctl(47, 2, 13)  # PR_CAP_AMBIENT_RAISE CAP_NET_RAW
        with open("/proc/self/status") as file:
            outside = [line.split()[1] for line in file if line.startswith(("CapInh", "CapAmb"))]
        return outside, run(["grep", "^Cap", "/proc/self/status"], text=True).stdout.split()[1::2]

    outside, inside = in_child(work)
    assert ["0000000000002000"] * 2 == outside
    assert ["0000000000000000"] * 5 == inside


def with_inheritable():
    """The present effective and permitted sets, with NET_RAW also inheritable, as arguments of capset."""
    fields = {}
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("Cap"):
                name, _, mask = line.partition(":")
                fields[name] = int(mask, 16)
    effective, permitted, inheritable = fields["CapEff"], fields["CapPrm"], 1 << 13
    low = [mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    return [*low, *high]


@pytest.mark.several_ids
def test_other_user_has_none_either():
    done = run(["grep", "^Cap", "/proc/self/status"], user=f"{USER}:{USER}", text=True)
    assert {"0000000000000000"} == set(done.stdout.split()[1::2])
