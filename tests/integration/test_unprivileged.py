"""As an unprivileged user, with a single id and with ranges: the same tests, and the differences."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

HERE = os.path.dirname(__file__)
USER = 54_321 + os.getpid() % 4000  # other test runs kill the processes of their own user
CHOSEN = {
    "test_process.py": "run_captures or returncode_is or text_and or pass_fds or timeout_kills or output_limit or pty_is_a or fifty_side or user_names_that_are_not or umask or rlimits or stop_and",
    "test_container.py": "state_from or stop_ends or forked_child_may or garbage or default_container or command_that_is_not or hundred or stop_while or exec_is",
    "test_mounts.py": "bind_of or bind_readonly or targets_are_made or tmpfs_size or lands_inside or many_binds",
    "test_rootfs.py": "host_shows or host_takes or dir_takes or dir_readonly or overlay_topmost or overlay_to_an_upper or tmpfs_is or changes_of or many_layers",
    "test_fuse.py": "in_memory or commas or is_killed or where_it_can or takes_its_container",
    "test_files.py": "write_and_read or put_and_get or links_lead",
    "test_failures.py": "each_operation or first_steps",
    "test_namespaces_in_container.py": "sysctls_are_set or time_offsets or loopback",
    "test_interpreters.py": "random_plans",
}


@pytest.fixture(scope="session")
def python_for_all():
    """An interpreter with pytest that an unprivileged user can read, and the directories of its modules."""
    if os.geteuid():
        pytest.skip("these tests become another user, which needs CAP_SETUID")
    check = "import pytest, hypothesis, attrs, cffi, pytest_timeout, containerkit._native.compiled"
    paths = os.pathsep.join(path for path in sys.path if path)
    candidates = [
        (sys.executable, None),
        ("/usr/bin/python3", None),
        (sys.executable, paths),
        ("/usr/bin/python3", paths),
    ]
    for program, path in candidates:
        env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": path or os.environ.get("PYTHONPATH", ""),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/",
        }
        try:
            done = subprocess.run(
                [program, "-c", check],
                env=env,
                cwd="/",
                user=USER,
                group=USER,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if done.returncode == 0:
            return program, env
    pytest.skip("no interpreter with pytest and this package that an ordinary user can read")


@pytest.fixture
def home():
    """A directory of that user, beside those of the tests, which only root can access."""
    directory = tempfile.mkdtemp(prefix="containerkit-user-")
    os.chown(directory, USER, USER)
    yield pathlib.Path(directory)
    shutil.rmtree(directory)


def as_user(python, words, directory):
    program, env = python
    return subprocess.run(
        [program, *words],
        env={**env, "TMPDIR": str(directory)},
        cwd=directory,
        user=USER,
        group=USER,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
@pytest.mark.parametrize("interpreter_name", ["compiled", "reference"])
@pytest.mark.parametrize("file", CHOSEN)
@pytest.mark.timeout(240)
def test_the_same_tests_with_a_single_id(python_for_all, file, interpreter_name, home):
    if interpreter_name == "reference" and file not in ("test_process.py", "test_mounts.py"):
        pytest.skip("the reference interpreter is tried with a part of them")
    words = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "60",
        "--basetemp",
        f"{home}/base",
    ]
    done = as_user(
        python_for_all, [*words, "--interpreter", interpreter_name, "-k", CHOSEN[file], f"{HERE}/{file}"], home
    )
    assert 0 == done.returncode, done.stdout[-5000:] + done.stderr[-1000:]
    if file == "test_fuse.py" and "this user may not open /dev/fuse" in done.stdout:
        pytest.skip("this user may not open /dev/fuse")
    assert " passed" in done.stdout


def said(python, code, home):
    done = as_user(python, ["-c", code], home)
    assert "" == done.stderr
    return done.stdout


def test_single_id_is_root_inside(python_for_all, home):
    code = "from containerkit import run\nprint(run(['sh', '-c', 'id -u; id -g; cat /proc/self/uid_map /proc/self/setgroups'], text=True).stdout)"
    words = said(python_for_all, code, home).split()
    assert ["0", "0", "0", "0", "1", "deny"] == words


def test_error_of_other_ids_names_what_is_missing(python_for_all, home):
    code = "from containerkit import run\ntry: run(['true'], user='5:5')\nexcept Exception as e: print(type(e).__name__, e)"
    text = said(python_for_all, code, home)
    assert text.startswith(("SetupError", "SpecError"))
    assert "hint" in text or "subuid" in text


def test_files_of_other_users_keep_their_owners(python_for_all, home):
    secret = home / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    code = f"from containerkit import run, Mount\nprint(run(['cat', '/x/secret'], mounts=[Mount.bind({str(home)!r}, '/x')], text=True))"
    assert "Permission denied" in said(python_for_all, code, home)


def test_what_the_user_makes_is_the_users(python_for_all, home):
    code = f"from containerkit import run, Mount\nprint(run(['touch', '/x/made'], mounts=[Mount.bind({str(home)!r}, '/x')]).returncode)"
    assert "0\n" == said(python_for_all, code, home)
    assert USER == (home / "made").stat().st_uid


def test_host_user_namespace_is_refused_with_the_reason(python_for_all, home):
    code = "from containerkit import run, Namespaces\ntry: run(['true'], namespaces=Namespaces(user='host'))\nexcept Exception as e: print(type(e).__name__, e)"
    text = said(python_for_all, code, home)
    assert text.startswith("UnsupportedError")
    assert "privileged" in text


def test_nothing_is_left_of_a_user(python_for_all, home):
    before = {pid for pid in os.listdir("/proc") if pid.isdecimal()}
    code = "from containerkit import Container, run\nfor _ in range(5):\n    run(['true'])\n    with Container() as c: c.popen(['sleep', '99'])\nprint('ok')"
    assert "ok\n" == said(python_for_all, code, home)
    left = []
    for pid in set(filter(str.isdecimal, os.listdir("/proc"))) - before:
        try:
            if os.stat(f"/proc/{pid}").st_uid == USER:
                left.append(pid)
        except FileNotFoundError:
            continue
    assert [] == left


_COMMITTED = """
import io, os, tarfile
os.environ["CONTAINERKIT_IMAGES"] = "{home}/images"
from containerkit import Container, Image, RootFS
from containerkit.image import commit
buffer = io.BytesIO()
with tarfile.open(fileobj=buffer, mode="w") as archive:
    with open("/bin/busybox", "rb") as program:
        member = archive.gettarinfo(fileobj=program, arcname="bin/busybox")
        member.uid = member.gid = 0
        archive.addfile(member, program)
    kinds = ("dir", tarfile.DIRTYPE, 0o555), ("kept", tarfile.REGTYPE, 0o4755), ("set", tarfile.REGTYPE, 0o644)
    for name, kind, mode in kinds:
        member = tarfile.TarInfo(name)
        member.type, member.mode, member.uid, member.gid = kind, mode, 1000, 1001
        archive.addfile(member)
open("layer.tar", "wb").write(buffer.getvalue())
Image.import_tar("layer.tar", "base:1")
box = "/bin/busybox"
with Container(RootFS.image("base:1")) as container:
    container.run([box, "chmod", "750", "/dir"], check=True)
    container.run([box, "chmod", "600", "/set"], check=True)
    container.run([box, "touch", "/kept"], check=True)
    made = commit(container, "made:1")
made.export("made.tar")
with tarfile.open("made.tar") as archive:
    for name in ("dir", "kept", "set"):
        member = archive.getmember(name)
        print(name, oct(member.mode)[2:], member.uid, member.gid)
"""


def test_modes_that_a_container_has_changed_are_committed(python_for_all, home):
    expected = "dir 750 1000 1001\nkept 4755 1000 1001\nset 600 1000 1001\n"
    assert expected == said(python_for_all, _COMMITTED.format(home=home), home)
