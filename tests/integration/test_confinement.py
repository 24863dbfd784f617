"""The confinement of a command: each requested part is applied, or the start fails with the remedy."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from containerkit import (
    CONTINUE,
    AppArmor,
    Capabilities,
    Condition,
    Container,
    Fail,
    Inject,
    Landlock,
    Namespaces,
    Personality,
    Return,
    Seccomp,
    SELinux,
    SetupError,
    SpecError,
    TimeOffsets,
    UnsupportedError,
    run,
)
from containerkit.security import lsm
from containerkit.security.confinement import Confinement
from containerkit.security.landlock import abi

pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")
MODULES = lsm.active()


def said(script, **options):
    return run(["sh", "-c", script], text=True, check=True, **options).stdout.strip()


# --- Invalid values


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"capabilities": "NET_RAW"}, "not a Capabilities"),
        ({"seccomp": "strict"}, "neither 'default', None nor a Seccomp"),
        ({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}, "neither 'default', None nor a Seccomp"),
        ({"landlock": "/tmp"}, "not a Landlock"),
        ({"keyring": "own"}, "neither 'new' nor 'host'"),
        ({"oom_score_adj": 1001}, "not a number from -1000 to 1000"),
        ({"apparmor": ""}, "not an AppArmor profile"),
        ({"apparmor": 5}, "not the name of a profile"),
        ({"selinux": "container_t"}, "not an SELinux context"),
        ({"selinux": 5}, "not a context"),
        ({"personality": "BSD"}, "unknown personality"),
        ({"personality": 8}, "not a Personality"),
    ],
)
def test_wrong_value_is_refused_before_anything_is_made(wrong, message):
    with pytest.raises(SpecError, match=message):
        Container(**wrong)


def test_labels_and_personality_are_given_by_name_too():
    assert AppArmor("docker-default") == Confinement(apparmor="docker-default").apparmor
    assert SELinux("u:r:t:s0") == Confinement(selinux="u:r:t:s0").selinux
    assert Personality("LINUX32") == Confinement(personality="LINUX32").personality


def test_unknown_argument_has_the_nearest_named():
    with pytest.raises(SpecError, match="did you mean 'apparmor'"):
        Container(apparmour="x")


# --- Labels


@pytest.mark.parametrize(
    ("argument", "value"), [("apparmor", "containerkit-test"), ("selinux", "system_u:system_r:container_t:s0")]
)
def test_label_is_set_or_the_start_fails(argument, value):
    with pytest.raises(SetupError) as caught:
        run(["true"], **{argument: value})
    if argument in MODULES:
        assert argument in caught.value.hint or "policy" in caught.value.hint
    else:
        assert isinstance(caught.value, UnsupportedError)
        assert f"pass {argument}=None" in caught.value.hint
    with Container() as container, pytest.raises(SetupError):
        container.run(["true"], **{argument: value})


@pytest.mark.skipif("apparmor" not in MODULES, reason="this kernel does not enforce AppArmor (lsm=apparmor)")
def test_apparmor_profile_is_that_of_the_command():
    assert "unconfined" in said("cat /proc/self/attr/current", apparmor="unconfined")


# --- Personality, securebits


def test_personality_is_kept_through_the_exec():
    assert "00000008" == said("cat /proc/self/personality", personality="LINUX32")
    flags = Personality(flags=["addr_no_randomize"])
    assert "00040000" == said("cat /proc/self/personality", personality=flags)
    with Container(personality="LINUX32") as container:
        machine = container.run(["uname", "-m"], text=True).stdout
        assert "x86_64" not in machine
        assert os.uname().machine + "\n" == container.run(["uname", "-m"], personality=None, text=True).stdout


def test_securebits_are_set():
    bits = Capabilities(securebits=["noroot", "noroot_locked"])
    code = "import ctypes; print(ctypes.CDLL(None).prctl(27, 0, 0, 0, 0))"  # PR_GET_SECUREBITS
    assert f"{3}" == run(["python3", "-c", code], capabilities=bits, text=True, check=True).stdout.strip()
    assert "0" == run(["python3", "-c", code], text=True, check=True).stdout.strip()


def test_root_gains_nothing_by_an_exec_with_noroot():
    """With every capability in the bounding set, and securebits that disable root's: only the ambient set is left."""
    everything = Capabilities.all()
    assert "0000000000000000" != said("grep CapEff /proc/self/status | cut -f2", capabilities=everything)
    import attrs

    noroot = attrs.evolve(everything, securebits=["noroot"])
    assert "0000000000000000" == said("grep CapEff /proc/self/status | cut -f2", capabilities=noroot)


@pytest.mark.skipif(os.geteuid() != 0, reason="a user alone has no other user")
def test_ambient_capability_of_another_user():
    fields = {"user": "1000:1000", "capabilities": Capabilities.of("NET_RAW", ambient=True)}
    assert "0000000000002000" == said("grep CapEff /proc/self/status | cut -f2", **fields)


# --- A kernel without support


def test_capability_that_the_kernel_does_not_know_is_an_error(monkeypatch):
    from containerkit.security import confinement

    monkeypatch.setattr(confinement, "_last", [37])
    with pytest.raises(UnsupportedError, match=r"drop\('CAP_AUDIT_READ'\)|drop\('CAP_BPF'\)|newer kernel"):
        run(["true"], capabilities=Capabilities.all())


def test_capability_that_the_caller_cannot_give_is_an_error():
    if os.geteuid() != 0:
        pytest.skip("sharing the user namespace takes root")
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff"))
    missing = [name for name in ("SYS_RESOURCE", "SYS_MODULE", "MAC_ADMIN") if not effective >> number_of(name) & 1]
    if not missing:
        pytest.skip("this root has every capability")
    with pytest.raises(SetupError) as caught:
        run(["true"], namespaces=Namespaces(user="host"), capabilities=Capabilities.of(missing[0]))
    assert caught.value.hint


def number_of(name):
    from containerkit.security.capabilities import NAMES

    return NAMES.index(f"CAP_{name}")


def test_landlock_that_the_kernel_cannot_hold_is_an_error(monkeypatch):
    from containerkit.security import landlock

    monkeypatch.setattr(landlock, "abi", lambda: 3)
    with pytest.raises(UnsupportedError, match="strict=False"):
        run(["true"], landlock=Landlock())


def test_filter_without_no_new_privs():
    """The kernel then requires CAP_SYS_ADMIN, so the filter is installed before the capabilities are dropped."""
    done = run(["grep", "Seccomp:", "/proc/self/status"], no_new_privs=False, text=True)
    assert "2" == done.stdout.split()[1]


# --- The filter


def test_cause_is_seccomp_when_a_call_killed_it():
    done = run(["mkdir", "/tmp/x"], seccomp=Seccomp.default().kill("mkdir"))
    assert (-signal.SIGSYS, "seccomp") == (done.returncode, done.cause)


def test_calls_are_denied_and_allowed_by_name():
    filtered = Seccomp.default().deny("mkdir", errno=5)
    assert "Input/output error" in run(["mkdir", "/tmp/x"], seccomp=filtered, text=True).stderr
    assert 0 == run(["mkdir", "/tmp/x"], seccomp=filtered.allow("mkdir")).returncode


def test_calls_are_judged_by_their_arguments():
    only = Seccomp.default().deny("socket", errno=97, when=[Condition(argument=0, value=10)])
    code = "import socket; socket.socket(); socket.socket(socket.AF_INET6)"
    assert "97" in run(["python3", "-c", code], seccomp=only, text=True).stderr


def test_handler_decides():
    """The program sees each answer: a failure, a value, an injected descriptor, a continuation."""
    code = (
        "import os\n"
        "print(os.getppid())\n"
        "try: os.mkdir('/tmp/no')\n"
        "except OSError as e: print(e.errno)\n"
        "os.mkdir('/tmp/yes'); print(os.path.isdir('/tmp/yes'))\n"
        "print(os.read(os.open('/tmp/from-outside', os.O_RDONLY), 20))\n"
    )
    threads = set()
    read_end, write_end = os.pipe()
    os.write(write_end, b"from outside")
    os.close(write_end)

    def handler(request):
        threads.add(threading.current_thread())
        if request.name == "getppid":
            return Return(4711)
        path = request.read_text(request.args[1 if request.name == "openat" else 0])
        if path == "/tmp/no":
            return Fail(28)
        return Inject(descriptor=read_end) if path == "/tmp/from-outside" else CONTINUE

    filtered = Seccomp.default().notify("getppid", "mkdir", "openat")
    try:
        done = run(["python3", "-S", "-c", code], seccomp=filtered, syscall_handler=handler, text=True, timeout=60)
    finally:
        os.close(read_end)
    assert ["4711", "28", "True", "b'from outside'"] == done.stdout.split("\n")[:4], done.stderr
    assert threading.main_thread() not in threads


def test_coroutine_decides():
    async def handler(request):
        import asyncio

        await asyncio.sleep(0.001)
        return Return(4712) if request.name == "getppid" else CONTINUE

    filtered = Seccomp.default().notify("getppid")
    code = "import os; print(os.getppid())"
    done = run(["python3", "-c", code], seccomp=filtered, syscall_handler=handler, text=True, timeout=60)
    assert "4712\n" == done.stdout


def test_handler_that_fails_denies_and_its_error_is_reported():
    def handler(request):
        raise RuntimeError(request.name)

    with pytest.raises(RuntimeError, match="getppid"):
        run(
            ["python3", "-c", "import os; print(os.getppid())"],
            seccomp=Seccomp.default().notify("getppid"),
            syscall_handler=handler,
            timeout=60,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seccomp": Seccomp.default().notify("mkdir")}, "pass syscall_handler="),
        ({"syscall_handler": print}, "reports no call to it"),
        ({"seccomp": Seccomp.default().notify("mkdir"), "syscall_handler": 5}, "can't be called"),
    ],
)
def test_filter_that_notifies_and_handler_go_together(options, message):
    with pytest.raises(SpecError, match=message), Container() as container:
        container.run(["true"], **options)


# --- Landlock inside


@pytest.mark.skipif(abi() == 0, reason="the kernel has no Landlock (Linux 5.13, lsm=landlock)")
def test_landlock_and_the_user_go_together():
    walls = Landlock(strict=False).allow_execute("/").allow_read("/")
    user = {"user": "1000:1000"} if os.geteuid() == 0 else {}
    done = run(["sh", "-c", "id -u; echo x > /tmp/x"], landlock=walls, text=True, **user)
    assert ("1000" if user else "0") == done.stdout.strip()
    assert "Permission denied" in done.stderr


# --- Recording


def record(tmp_path, *words):
    profile = tmp_path / "profile.json"
    command = [sys.executable, "-m", "containerkit", "seccomp", "record", "--output", str(profile)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=60)
    return done, profile


def test_record_makes_the_profile_of_a_command(tmp_path):
    done, profile = record(tmp_path, "--", "wc", "-c", "/etc/passwd")
    assert (0, "") == (done.returncode, done.stderr)
    recorded = Seccomp.from_oci(profile)
    assert 0 == run(["wc", "-c", "/etc/passwd"], seccomp=recorded).returncode
    assert 0 != run(["mkdir", "/tmp/x"], seccomp=recorded).returncode, "a call that wc does not make"


def test_record_ends_as_the_command_does(tmp_path):
    assert 7 == record(tmp_path, "--", "sh", "-c", "exit 7")[0].returncode
    missing, _ = record(tmp_path, "--", "no-such-program")
    assert (127, True) == (missing.returncode, "no-such-program" in missing.stderr)


def test_record_counts(tmp_path):
    done, _ = record(tmp_path, "--count", "--", "sh", "-c", "umask; umask; umask")
    counted = dict(reversed(line.split()) for line in done.stderr.splitlines())
    assert int(counted["umask"]) >= 3


def test_record_follows_children_and_takes_the_options_of_run(tmp_path):
    done, profile = record(tmp_path, "--tmpfs", "/scratch", "--", "sh", "-c", "mkdir /scratch/x; ls /scratch")
    assert "x\n" == done.stdout
    names = {name for entry in Seccomp.from_oci(profile).rules for name in entry.names}
    assert {"mkdir", "getdents64"} <= names


def test_record_to_stdout(tmp_path):
    done, _ = record(tmp_path, "--output", "-", "--", "true")
    import json

    assert "SCMP_ACT_ERRNO" == json.loads(done.stdout)["defaultAction"]


# --- Commands that need a separate address space and join


def test_score_and_time_offsets_go_together():
    offsets = TimeOffsets(boottime_s=1_000_000)
    script = "cat /proc/self/oom_score_adj; cut -d. -f1 /proc/uptime"
    done = run(
        ["sh", "-c", script], namespaces=Namespaces(time="new"), time_offsets=offsets, oom_score_adj=900, text=True
    )
    score, uptime = done.stdout.split()
    assert ("900", True) == (score, int(uptime) >= 1_000_000)
