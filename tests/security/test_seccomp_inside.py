"""System calls that allowed escapes, tried from inside, and again without the filter, to prove that the tests can fail."""

import errno
import os
import signal

import pytest
from attacker import EVERYTHING, attempt

from containerkit import Capabilities, Container, Seccomp
from containerkit.security.seccomp.architecture import architecture, calls_of

pytestmark = pytest.mark.usefixtures("nothing_left")
CALLS = calls_of(architecture(os.uname().machine).table)
NEWUSER, NEWNS, NEWNET = 0x10000000, 0x00020000, 0x40000000
x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has other entries")


def read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return ""


@pytest.mark.parametrize("attack", ["io-uring", "userfaultfd", "perf-event", "add-key"])
def test_call_is_refused_and_made_without_the_filter(attack):
    if attack == "io-uring" and read("/proc/sys/kernel/io_uring_disabled") not in ("0", "1"):
        pytest.skip("this host forbids io_uring")
    assert "EPERM" == attempt(attack)
    assert "done" == attempt(attack, seccomp=None)


def test_call_that_is_allowed_by_name_is_the_only_one():
    one = Seccomp.default().allow("io_uring_setup")
    assert ("done", "EPERM") == (attempt("io-uring", seccomp=one), attempt("userfaultfd", seccomp=one))


@pytest.mark.parametrize("attack", ["clone", "unshare"])
def test_nested_user_namespace_is_refused_twice(attack):
    """The filter refuses it, and also the limit of the user namespace. Each can be disabled by name."""
    assert "EPERM" == attempt(attack, NEWUSER)
    assert "ENOSPC" == attempt(attack, NEWUSER, seccomp=None)
    assert "EPERM" == attempt(attack, NEWUSER, nested_userns=True)
    assert "done" == attempt(attack, NEWUSER, seccomp=None, nested_userns=True)


def test_clone3_cannot_hide_its_flags_from_the_filter():
    assert "ENOSYS" == attempt("clone3", NEWUSER)
    assert "ENOSYS" == attempt("clone3", 0)
    assert "done" == attempt("clone3", 0, seccomp=None)


@pytest.mark.parametrize("flag", [NEWNS, NEWNET])
def test_no_other_namespace_can_be_made_either(flag):
    assert "EPERM" == attempt("unshare", flag)
    assert "EPERM" == attempt("unshare", flag, seccomp=None)
    assert "done" == attempt("unshare", flag, **EVERYTHING)


def test_namespaces_of_others_cannot_be_joined():
    assert "EACCES" == attempt("join", "/proc/1/ns/net")
    assert "EPERM" == attempt("join", "/proc/self/ns/uts")
    assert "EPERM" == attempt("join", "/proc/self/ns/uts", seccomp=None)
    assert "done" == attempt("join", "/proc/self/ns/uts", **EVERYTHING)


@x86_64
def test_32_bit_entry_kills():
    """A filter that checks only numbers would take i386's getppid for another call."""
    assert "killed by seccomp" == attempt("i386-entry")
    if attempt("i386-entry", seccomp=None) != "done":
        pytest.skip("the kernel has no CONFIG_IA32_EMULATION: only the default could be tried")


@x86_64
def test_x32_entry_kills():
    assert "killed by seccomp" == attempt("x32-entry")
    assert attempt("x32-entry", seccomp=None) in ("done", "ENOSYS")


@pytest.mark.parametrize(
    "name",
    [
        "acct", "add_key", "bpf", "clock_settime", "create_module", "delete_module", "fanotify_init",
        "finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_mempolicy", "init_module", "io_uring_enter",
        "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load", "keyctl",
        "lookup_dcookie", "lsm_set_self_attr", "mbind", "migrate_pages", "mount", "mount_setattr", "move_mount",
        "move_pages", "nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open",
        "pidfd_getfd", "pivot_root", "process_madvise", "process_vm_readv", "process_vm_writev",
        "ptrace", "quotactl", "quotactl_fd", "reboot", "request_key", "set_mempolicy", "setdomainname", "sethostname",
        "setns", "settimeofday", "swapoff", "swapon", "syslog", "umount2", "unshare", "uselib", "userfaultfd", "ustat",
        "vhangup",
    ],
)  # fmt: skip
def test_call_of_known_escapes_is_refused(name):
    """The arguments are all ones, which none of these calls accepts. The error number identifies the filter."""
    if name not in CALLS:
        pytest.skip(f"{os.uname().machine} has no {name}")
    assert attempt("call", CALLS[name], -1, -1, -1, -1, -1, -1) in ("EPERM", "ENOSYS")


def test_personality_cannot_be_changed_to_one_that_weakens():
    addr_no_randomize, read_implies_exec, query = 0x0040000, 0x0400000, 0xFFFFFFFF
    for flag in (addr_no_randomize, read_implies_exec):
        assert "EPERM" == attempt("call", CALLS["personality"], flag)
        assert "done" == attempt("call", CALLS["personality"], flag, seccomp=None)
    assert "done" == attempt("call", CALLS["personality"], query)


REACHABLE = 301
"""The number of x86_64 system calls that the default container allows, for some arguments. Give a reason for a change."""


def numbers(entry, last, **options):
    """Make every call from inside. Return the error, or the signal, with which each ended."""
    lines = attempt("numbers", entry, last, **options).splitlines()
    return {int(number): int(answer) for number, answer in map(str.split, lines)}


@x86_64
def test_every_number_by_the_native_entry():
    """The second filter of the attack returns ENOSYS for allowed calls. The container's own returns EPERM."""
    names = {number: name for name, number in CALLS.items()}
    answers = numbers("native", 1023)
    assert {errno.EPERM, errno.ENOSYS} == set(answers.values())
    denied = {names[number] for number, answer in answers.items() if answer == errno.EPERM}
    profile = Seccomp.default()
    allowed = {name for rule in profile.rules if rule.action.permits for name in rule.names}
    unheard_of = {name for rule in profile.rules if rule.action.data == errno.ENOSYS for name in rule.names}
    for_other_arguments = {"personality", "clone", "ioctl", "socket", "socketpair"}
    known = set(CALLS) - {"uretprobe", "uprobe"}
    assert denied - for_other_arguments == known - allowed - unheard_of
    assert REACHABLE == len(known - (denied - for_other_arguments) - (unheard_of - {"clone"}))
    assert {errno.ENOSYS} == set(numbers("native", 1023, seccomp=None).values()), "without it nothing is denied"


@x86_64
@pytest.mark.parametrize(("entry", "last"), [("int80", 470), ("x32", 560)])
def test_every_number_by_another_entry_kills(entry, last):
    answers = numbers(entry, last)
    assert (last + 1, {signal.SIGSYS}) == (len(answers), set(answers.values()))


@pytest.mark.parametrize("attack", ["push-input", "push-input-wide"])
def test_input_cannot_be_pushed_into_the_callers_terminal(attack):
    """TIOCSTI on a terminal of the caller; the second time with bits that the kernel ignores."""
    master, slave = os.openpty()
    try:
        assert "EPERM" == attempt(attack, "x", stdin=slave)
        assert "EPERM" == attempt(attack, "x", stdin=slave, capabilities=Capabilities.of("SYS_TTY_CONFIG"))
        # Without the filter the separate session protects: the terminal is not the controlling one.
        assert attempt(attack, "x", stdin=slave, seccomp=None) in ("EPERM", "EIO")
        assert not os.get_blocking(slave) or not _readable(slave)
    finally:
        os.close(master)
        os.close(slave)


def _readable(fd):
    import select

    return bool(select.select([fd], [], [], 0.1)[0])


def test_input_can_be_pushed_without_the_filter():
    if read("/proc/sys/dev/tty/legacy_tiocsti") == "0":
        pytest.skip("the kernel has no TIOCSTI (dev.tty.legacy_tiocsti=0)")
    from attacker import armed

    with Container(mounts=armed()) as container:
        for filtered, expected in (({}, b"EPERM"), ({"seccomp": None}, b"done")):
            with container.popen(["/attacks", "push-input", "x"], pty=True, **filtered) as process:
                said, _ = process.communicate(timeout=60)
            assert expected in said
