"""Set-user-ID programs left on the host: created from inside with each system call, then run by another user outside."""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from attacker import USER, armed, as_user, attempt, attempt_in, become, in_child, outcome, program

from containerkit import Capabilities, Container, Landlock, Mount, Namespaces, RootFS, Sandbox, Seccomp, run
from containerkit.security.landlock import abi

pytestmark = pytest.mark.usefixtures("nothing_left")
becomes_others = pytest.mark.skipif(os.geteuid() != 0, reason="becoming other users takes root")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving ids of the host to a container takes root")
native = os.uname().machine == "x86_64"
BY_MODE = ("chmod", "fchmod", "fchmodat", "fchmodat2")
MAKING = ("openat", "openat-wide", "openat2", "tmpfile", "mknodat", *(("open", "creat", "mknod") if native else ()))
DIRECTORIES = ("mkdirat", *(("mkdir",) if native else ()))
SET_ID = stat.S_ISUID | stat.S_ISGID
BIND = "/shown"


@pytest.fixture
def shown():
    """A directory that every user of the host can enter, with the program ``id`` in it."""
    with tempfile.TemporaryDirectory(prefix="containerkit-set-id-", dir="/var/tmp") as name:
        os.chmod(name, 0o755)
        shutil.copy("/usr/bin/id", f"{name}/program")
        os.chmod(f"{name}/program", 0o755)
        yield Path(name)


def bind(shown):
    return Mount.bind(shown, BIND)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def tried(call, shown, mode="4755", **options):
    """Try one call in a container that has the directory at :data:`BIND`. Return the outcome, and the mode on the host."""
    attack = "set-id" if call in BY_MODE else "make-set-id"
    found = attempt(attack, call, f"{BIND}/program", mode, mounts=[bind(shown)], **options)
    path = shown / "program"
    return found, mode_of(path) & SET_ID if path.exists() else None


# --- Each call


@pytest.mark.parametrize("mode", ["4755", "2755", "6755"])
@pytest.mark.parametrize("call", BY_MODE)
def test_file_that_is_there_gets_no_bit(call, mode, shown):
    assert ("EPERM", 0) == tried(call, shown, mode)
    assert ("done", int(mode, 8) & SET_ID) == tried(call, shown, mode, set_id_bits=True)


@pytest.mark.parametrize("mode", ["4755", "2755"])
@pytest.mark.parametrize("call", MAKING)
def test_file_is_not_made_with_a_bit(call, mode, shown):
    assert ("ENOSYS" if call == "openat2" else "EPERM", None) == tried(call, shown, mode)
    assert ("done", int(mode, 8) & SET_ID) == tried(call, shown, mode, set_id_bits=True)


@pytest.mark.parametrize("call", [*BY_MODE, *MAKING, *DIRECTORIES])
def test_other_modes_can_be_set(call, shown):
    assert "openat2" == call or ("done", 0) == tried(call, shown, "1755")


@pytest.mark.parametrize("call", DIRECTORIES)
def test_directory_is_not_made_with_a_bit(call, shown):
    """The kernel drops the bit from a directory's mode. It is refused anyway, so that nobody relies on it."""
    assert ("EPERM", None) == tried(call, shown, "2755")
    assert ("done", 0) == tried(call, shown, "2755", set_id_bits=True)


def test_directory_inherits_its_group_bit_from_the_one_above(shown):
    """It is the host's own bit, and a directory is not executed, so nothing must be refused."""
    shown.chmod(0o2755)
    assert "done" == attempt("make-set-id", "mkdirat", f"{BIND}/below", "755", mounts=[bind(shown)])
    assert stat.S_ISGID == mode_of(shown / "below") & SET_ID
    assert "done" == attempt("make-set-id", "openat", f"{BIND}/file", "755", mounts=[bind(shown)])
    assert 0 == mode_of(shown / "file") & SET_ID


def test_open_checks_its_mode_only_if_it_creates_a_file(shown):
    """Without O_CREAT the third register of a program can contain anything."""
    done = run(["/attacks", "call", "257", "-100", "0", "0", "-1"], mounts=armed([bind(shown)]), text=True)
    assert "EFAULT" == outcome(done)  # caused by the path; the filter allows the call


# --- The consequences


@needs_root
def test_user_of_the_host_is_not_made_root(shown):
    """The complete attack: any user who runs the program that a container left is root of the host."""
    path = shown / "program"

    def euid():
        return in_child(run_as_user)

    def run_as_user():
        become(USER)
        return subprocess.run([path, "-u"], capture_output=True, text=True, check=True).stdout.strip()

    script = ["sh", "-c", f"cp /usr/bin/id {BIND}/new && chmod 4755 {BIND}/new && mv {BIND}/new {BIND}/program"]
    refused = run(script, mounts=[bind(shown)], text=True)
    assert (1, True, str(USER)) == (refused.returncode, "not permitted" in refused.stderr, euid())
    assert 0 == run(script, mounts=[bind(shown)], set_id_bits=True).returncode
    assert (0, 0o4755, "0") == (path.stat().st_uid, mode_of(path), euid())


@needs_root
@pytest.mark.parametrize("call", ["setxattr", "lsetxattr", "fsetxattr", "setxattrat"])
def test_file_capabilities_are_refused(call, shown):
    """In an idmapped bind the kernel writes them for the host's root, so any user of the host would gain them."""
    options = {"mounts": [bind(shown)], "capabilities": Capabilities.docker()}
    attack = ("set-capability", call, f"{BIND}/program")
    refused, path = attempt(*attack, **options), shown / "program"
    assert ("EPERM", []) == (refused, os.listxattr(path))
    given = attempt(*attack, **options, set_id_bits=True)
    if call == "setxattrat" and given == "ENOSYS":
        pytest.skip("setxattrat came with Linux 6.13")
    assert ("done", ["security.capability"]) == (given, os.listxattr(path))
    assert "EPERM" == attempt(*attack, mounts=[bind(shown)], set_id_bits=True), "without CAP_SETFCAP by the kernel"


@needs_root
def test_file_capabilities_would_count_on_the_host(shown):
    shutil.copy("/usr/bin/grep", shown / "program")
    options = {"mounts": [bind(shown)], "capabilities": Capabilities.docker(), "set_id_bits": True}
    assert "done" == attempt("set-capability", "setxattr", f"{BIND}/program", **options)

    def effective():
        done = subprocess.run(
            [shown / "program", "CapEff", "/proc/self/status"], capture_output=True, text=True, check=True
        )
        return int(done.stdout.split()[1], 16)

    assert 0 != in_child(effective, prepare=lambda: become(USER))


def test_other_attributes_are_refused_only_with_the_capability(shown):
    script = f"import os; os.setxattr('{BIND}/program', 'user.name', b'x')"
    command = ["/usr/bin/python3", "-c", script]
    assert 0 == run(command, mounts=[bind(shown)]).returncode
    assert 1 == run(command, mounts=[bind(shown)], capabilities=Capabilities.docker()).returncode


# --- When it is refused


def chmod(container=None, path="/program", **options):
    """Try chmod on a separate copy of the attacks, at a path inside."""
    script = f"cp /usr/bin/id {path} && chmod 4755 {path}"
    done = (run if container is None else container.run)(["sh", "-c", script], text=True, **options)
    assert done.returncode == 0 or "not permitted" in done.stderr, done.stderr
    return "done" if done.returncode == 0 else "EPERM"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mounts": [Mount.tmpfs("/memory"), Mount.bind("/usr", "/mnt", readonly=True)]},
        {"capabilities": Capabilities.docker()},
        {"rootfs": RootFS.overlay("/"), "namespaces": Namespaces(user="host")},
    ],
    ids=["default", "read-only bind", "capabilities", "overlay in memory"],
)  # fmt: skip
@needs_root
def test_packages_can_be_installed_if_no_host_file_is_writable(options):
    """As dpkg and apk do it. The root is in memory, so no user of the host can run its files."""
    assert "done" == chmod(path="/usr/program", **options)
    with Container(**options) as container:
        assert "done" == chmod(container, path="/usr/program")
        assert "EPERM" == chmod(container, path="/usr/program", set_id_bits=False)


@needs_root
def test_set_id_program_in_memory_has_no_effect_outside():
    """This makes it safe: through another's root the kernel ignores the bits, even on a mount that is not nosuid."""
    mounts = [Mount.tmpfs("/memory", nosuid=False, mode=0o755)]
    with Container(mounts=mounts, namespaces=Namespaces(user="host")) as container:
        assert "done" == chmod(container, path="/memory/program")
        directory = os.open(f"/proc/{container.pid}/root/memory", os.O_PATH)
        try:
            work = lambda: subprocess.run(  # noqa: E731 - one expression is easier to read here
                [f"/proc/self/fd/{directory}/program", "-u"], capture_output=True, text=True, check=True,
                pass_fds=[directory],
            ).stdout  # fmt: skip
            assert f"{USER}\n" == in_child(work, prepare=lambda: become(USER))
        finally:
            os.close(directory)


@needs_root
@pytest.mark.parametrize("relaxed", [False, True])
@pytest.mark.parametrize("where", ["dir", "upper", "user host", "not id-mapped", "read-only with SYS_ADMIN"])
def test_every_way_to_write_to_the_host_counts(where, relaxed, shown):
    (shown / "lower/usr").mkdir(parents=True)
    (shown / "upper").mkdir()
    programs = [Mount.bind(f"/{name}", f"/{name}", readonly=True) for name in ("usr", "bin", "lib", "lib64")]
    shown.chmod(0o777)
    options = {
        "dir": {"rootfs": RootFS.dir(shown), "mounts": programs},
        "upper": {"rootfs": RootFS.overlay("/", upper=shown / "upper")},
        "user host": {"mounts": [bind(shown)], "namespaces": Namespaces(user="host")},
        "not id-mapped": {"mounts": [Mount.bind(shown, BIND, idmap=False)]},
        "read-only with SYS_ADMIN": {
            "mounts": [Mount.bind(shown, BIND, readonly=True)],
            "capabilities": Capabilities.of("SYS_ADMIN"),
        },
    }[where]
    path = "/new" if where in ("dir", "upper") else f"{BIND}/new"
    path = "/run/new" if "read-only" in where else path  # there is one filter for everything that it can reach
    assert ("done" if relaxed else "EPERM") == chmod(path=path, **options, **({"set_id_bits": True} if relaxed else {}))


@needs_root
def test_mount_namespace_of_the_host_counts(shown):
    names = Namespaces(user="host", mount="host")
    assert "EPERM" == chmod(path=f"{shown}/new", namespaces=names)
    assert "done" == chmod(path=f"{shown}/new", namespaces=names, set_id_bits=True)
    assert 0o4755 == mode_of(shown / "new")


def test_custom_filter_is_restricted_too(shown):
    assert ("EPERM", 0) == tried("chmod", shown, seccomp=Seccomp.permissive())
    assert ("EPERM", 0) == tried("chmod", shown, seccomp=Seccomp.default().allow("chmod"))
    assert ("done", stat.S_ISUID) == tried("chmod", shown, seccomp=None), "without a filter nothing is refused"


@needs_root
def test_command_whose_filter_comes_early_still_gets_its_working_directory(shown):
    """Without no_new_privs the filter is installed before openat2 is called for the working directory."""
    options = {"mounts": [bind(shown)], "no_new_privs": False, "cwd": BIND}
    assert f"{BIND}\n" == run(["pwd"], text=True, **options).stdout
    assert ("EPERM", 0) == tried("chmod", shown, no_new_privs=False)
    assert ("ENOSYS", None) == tried("openat2", shown, no_new_privs=False)
    assert ("done", stat.S_ISUID) == tried("openat2", shown, no_new_privs=False, set_id_bits=True)


def test_single_command_can_be_relaxed(shown):
    with Container(mounts=armed([bind(shown)])) as container:
        attack = ("set-id", "chmod", f"{BIND}/program", "4755")
        assert "EPERM" == attempt_in(container, *attack)
        assert "done" == attempt_in(container, *attack, set_id_bits=True)
        assert "EPERM" == attempt_in(container, *attack)


# --- An unprivileged user: its own ids are the host's


@becomes_others
def test_users_own_program_is_not_left_for_others(shown):
    os.chown(shown, USER, USER)
    os.chown(shown / "program", USER, USER)

    def work():
        return [tried("chmod", shown), tried("chmod", shown, set_id_bits=True)]

    assert [["EPERM", 0], ["done", stat.S_ISUID]] == as_user(work, ranges=False)
    assert (USER, 0o4755) == ((shown / "program").stat().st_uid, mode_of(shown / "program"))


@becomes_others
@pytest.mark.parametrize("how", ["stdout", "pass_fds"])
def test_file_passed_in_by_an_unprivileged_user_gets_no_bit(how, shown):
    """The descriptor is of its own file, which belongs to root inside: fchmod needs no path."""
    os.chown(shown, USER, USER)
    containers = []

    def attack(path, **more):
        found = []
        for start in (run, *(container.run for container in containers)):
            with open(path, "w") as file:
                given = {"stdout": file.fileno()} if how == "stdout" else {"pass_fds": [file.fileno()]}
                script = "/attacks set-id descriptor 9 4755 9>&1 >/dev/null"  # a write would clear the bit
                by_number = ["/attacks", "set-id", "descriptor", file.fileno(), "4755"]
                words = ["sh", "-c", script] if how == "stdout" else list(map(str, by_number))
                mounts = {"mounts": armed()} if start is run else {}
                start(words, **given, **mounts, **more)
            found.append(mode_of(path) & SET_ID)
            path.chmod(0o755)
        return found

    def work():
        with Container(mounts=armed()) as container:
            containers.append(container)
            return [attack(shown / "held"), attack(shown / "relaxed", set_id_bits=True)]

    assert [[0, 0], [stat.S_ISUID, stat.S_ISUID]] == as_user(work, ranges=False)


@needs_root
def test_file_passed_in_by_root_has_no_owner_inside(shown):
    """Root's file has no owner in a user namespace with other ids, so nothing must be refused for it."""
    with open(shown / "log", "w") as log:
        script = "chmod 4755 /proc/self/fd/1; cp /usr/bin/id /usr/x && chmod 4755 /usr/x"
        assert 0 == run(["sh", "-c", script], stdout=log).returncode
    assert 0 == mode_of(shown / "log") & SET_ID


# --- The sandbox without namespaces: its ids are always the host's


@pytest.mark.skipif(abi() == 0, reason="the kernel has no Landlock (Linux 5.13, lsm=landlock)")
def test_sandbox_gives_no_bit(shown):
    rules = Landlock(strict=False).allow_execute("/usr", "/bin", "/lib", os.path.dirname(program()))
    rules = rules.allow_execute("/lib64", optional=True).allow_write(shown)
    attack = [program(), "set-id", "chmod", f"{shown}/program", "4755"]
    assert "EPERM" == outcome(Sandbox(landlock=rules).run(attack, text=True))
    assert "EPERM" == outcome(Sandbox(landlock=rules, seccomp=Seccomp.default()).run(attack, text=True))
    assert 0 == mode_of(shown / "program") & SET_ID
    assert "done" == outcome(Sandbox(landlock=rules, set_id_bits=True).run(attack, text=True))
    assert stat.S_ISUID == mode_of(shown / "program") & SET_ID
