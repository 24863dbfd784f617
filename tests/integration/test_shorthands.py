"""Short forms: callbacks for lines, additional variables, popen without a container, hints for other names."""

import asyncio
import errno
import os
import pickle
import signal
import stat
import sys
import threading
import time
from pathlib import PurePosixPath

import attr
import pytest

import containerkit
from containerkit import (
    PIPE,
    STDOUT,
    Capabilities,
    Container,
    ContainerTimeout,
    Landlock,
    Mount,
    RootFS,
    Sandbox,
    SetupError,
    SpecError,
    aio,
    popen,
    run,
)
from containerkit.image import Store, commit

pytestmark = pytest.mark.usefixtures("warm", "nothing_left")


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Create the objects that a process creates once and keeps: the helper of unprivileged users, the staging for binds."""
    directory = tmp_path_factory.mktemp("warm")
    directory.chmod(0o755)
    with Container(RootFS.tmpfs(), volumes=[f"{directory}:/x"]) as container:
        commit(container, store=Store(directory / "images"))


@pytest.fixture(params=["one shot", "in a container", "template", "sandbox"])
def runner(request):
    if request.param == "one shot":
        yield run
    elif request.param == "in a container":
        with Container() as container:
            yield container.run
    elif request.param == "template":
        with Container.prepare() as template:
            yield template.run
    else:
        yield Sandbox(landlock=Landlock().allow_execute("/usr", "/bin", "/lib", "/lib64").allow_read("/")).run


# --- Callbacks for lines


def test_lines_are_received_while_the_command_runs(runner):
    heard = []
    done = runner(
        ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.2; done; echo e >&2; printf rest"],
        on_stdout=lambda line: heard.append((line, time.monotonic())),
        on_stderr=lambda line: heard.append((line, time.monotonic())),
        text=True,
    )
    assert sorted(line for line, _ in heard) == ["1", "2", "3", "e", "rest"]
    times = dict(heard)
    assert times["3"] - times["1"] > 0.3
    assert (done.stdout, done.stderr) == ("1\n2\n3\nrest", "e\n")


def test_lines_without_text_are_bytes_and_need_not_be_kept(runner):
    heard = []
    script = "import sys; sys.stdout.buffer.write(b'\\xff\\r\\n' + b'x' * 70000 + b'\\n')"
    done = runner(["python3", "-SEc", script], on_stdout=heard.append, capture_output=False, output_limit_bytes=1)
    assert b"\xff" == heard[0]
    assert b"x" * 70000 == b"".join(heard[1:])
    assert done.stdout is None
    assert done.cause == "exit"


def test_characters_are_not_torn_apart(runner):
    heard = []
    script = "import os, time; [os.write(1, bytes([b])) + (time.sleep(0.01) or 0) for b in 'äö€\\n'.encode()]"
    runner(["python3", "-SEc", script], on_stdout=heard.append, text=True, check=True)
    assert heard == ["äö€"]


def test_what_a_listener_raises_ends_the_command(runner):
    def refuse(line):
        raise KeyError(line)

    began = time.monotonic()
    with pytest.raises(KeyError, match="begun"):
        runner(["sh", "-c", "echo begun; sleep 30"], on_stdout=refuse, text=True)
    assert time.monotonic() - began < 10


def test_limit_and_timeout_hold_for_line_callbacks(runner):
    heard = []
    done = runner(["sh", "-c", "while :; do echo y; done"], on_stdout=heard.append, output_limit_bytes=1000)
    assert done.cause == "output"
    assert sum(len(line) + 1 for line in heard) <= 1001
    heard.clear()
    with pytest.raises(ContainerTimeout) as caught:
        runner(["sh", "-c", "echo one; printf two; sleep 30"], on_stdout=heard.append, timeout=1.5, text=True)
    assert heard == ["one", "two"]
    assert "one\ntwo" == caught.value.stdout


def test_listeners_that_cannot_be_are_refused(runner):
    with pytest.raises(SpecError, match=r"^on_stdout: 3 can't be called"):
        runner(["true"], on_stdout=3)
    with pytest.raises(SpecError, match=r"^on_stderr: stderr is redirected"):
        runner(["true"], on_stderr=print, stderr=STDOUT)


# --- Variables


def test_extra_env_adds_and_env_replaces(runner):
    shown = runner(["env"], extra_env={"A": "1"}, text=True).stdout.split()
    assert {"A=1"} < set(shown)
    assert any(line.startswith("PATH=") for line in shown)
    assert runner(["/usr/bin/env"], env={"B": "2"}, extra_env={"A": "1"}, text=True).stdout.split() == ["B=2", "A=1"]
    assert runner(["/usr/bin/env"], env={"A": "2"}, extra_env={"A": "1"}, text=True).stdout.split() == ["A=1"]
    with pytest.raises(SpecError, match=r"^extra_env: must be a mapping"):
        runner(["true"], extra_env=["A=1"])


# --- popen


def test_popen_is_a_command_in_a_container_of_its_own():
    with popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as process:
        process.stdin.write("one line\n")
        process.stdin.flush()
        assert process.stdout.readline() == "one line\n"
        assert os.readlink(f"/proc/{process.pid}/ns/pid") is not None
    assert process.returncode == 0


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"user": "nobody"}, marks=pytest.mark.several_ids), {"pty": True}, {"init": False}],
    ids=str,
)
def test_popen_ends_with_its_command(options):
    process = popen(["sleep", "60"], **options)
    assert process.poll() is None
    process.kill()
    assert process.wait(10) == -9
    process.close()


def test_popen_that_nobody_waits_for_is_ended_with_the_interpreter(left_of):
    def forget():
        code = "from containerkit import popen; popen(['sleep', '60']); popen(['sleep', '60'], user='root')"
        done = containerkit.run(["true"])
        assert done.returncode == 0
        import subprocess
        import sys

        began = time.monotonic()
        subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=30)
        assert time.monotonic() - began < 20

    assert left_of(forget) == {}


def test_popen_refuses_what_cannot_be():
    with pytest.raises(SpecError, match="unknown argument 'timeout'"):
        popen(["true"], timeout=3)
    with pytest.raises(FileNotFoundError):
        popen(["no-such-program"])


def test_end_is_reported_once():
    told = []
    with Container() as container:
        process = container.popen(["true"])
        process.at_end(lambda: told.append(1))
        process.at_end(lambda: told.append(2))
        process.wait()
        process.wait()
        process.at_end(lambda: told.append(3))
    assert told == [1, 2, 3]


# --- Names from other tools, and the hints of errors


@pytest.mark.parametrize(
    ("name", "hint"),
    [("memory", r"Limits\(memory="), ("image", r"RootFS.image\("), ("environment", "extra_env="), ("tty", "pty=True")],
)
def test_names_of_docker_get_a_hint(name, hint):
    with pytest.raises(SpecError, match=f"unknown argument {name!r}; here that is .*{hint}"):
        run(["true"], **{name: "1"})


def test_each_hint_is_for_a_name_that_there_is_not():
    from containerkit.container.arguments import RUN_ARGUMENTS
    from containerkit.spec.container import DESCRIPTION
    from containerkit.spec.elsewhere import ELSEWHERE

    assert not ELSEWHERE.keys() & (RUN_ARGUMENTS | DESCRIPTION | {"init"})


def test_timeout_shows_what_was_written_last():
    with pytest.raises(ContainerTimeout) as caught:
        run(["sh", "-c", "echo why >&2; sleep 30"], timeout=0.3)
    assert str(caught.value).endswith("; the end of its stderr:\n    why")
    assert "timed out after 0.3 seconds (ran 0." in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# --- Files


@pytest.fixture
def live():
    with Container() as container:
        yield container


def test_files_take_paths_and_make_parents(live):
    live.files.write(PurePosixPath("/tmp/a/b/c"), "one\n", parents=True)
    live.files.append("/tmp/a/b/c", b"two\n")
    assert b"one\ntwo\n" == live.files.read(PurePosixPath("/tmp/a/b/c"))
    assert live.files.list("/tmp/a") == live.files.listdir(PurePosixPath("/tmp/a")) == ["b"]
    with pytest.raises(SetupError, match="No such file"):
        live.files.write("/tmp/x/y", "")


def test_stat_returns_the_ids_inside(live):
    script = "echo 12345 > /tmp/f; chown 7:8 /tmp/f; chmod 640 /tmp/f; ln -s f /tmp/l"
    live.run(["sh", "-c", script], capabilities=Capabilities.docker(), check=True)
    told = live.files.stat("/tmp/l")
    assert (told.st_size, stat.S_IMODE(told.st_mode)) == (6, 0o640)
    if os.geteuid() == 0:
        assert (told.st_uid, told.st_gid) == (7, 8)
    assert stat.S_ISLNK(live.files.stat("/tmp/l", follow_symlinks=False).st_mode)
    assert live.files.readlink("/tmp/l") == "f"


def test_remove_takes_a_tree_of_any_depth_and_follows_no_symlink(live):
    script = """
import os
os.makedirs('/tmp/kept'); open('/tmp/kept/file', 'w').close()
os.makedirs('/tmp/t/empty'); os.symlink('/tmp/kept', '/tmp/t/link')
for n in range(300): open(f'/tmp/t/{n}', 'w').close()
os.chdir('/tmp/t')
for n in range(40): os.mkdir('d' * 200); os.chdir('d' * 200)
"""
    live.run(["python3", "-SEc", script], check=True)
    with pytest.raises(SetupError, match="pass recursive=True") as caught:
        live.files.remove("/tmp/t")
    assert caught.value.errno == errno.ENOTEMPTY
    live.files.remove("/tmp/t", recursive=True)
    assert live.files.listdir("/tmp") == ["kept"]
    assert live.files.listdir("/tmp/kept") == ["file"]
    with pytest.raises(SetupError) as caught:
        live.files.remove("/tmp/t")
    assert caught.value.errno == errno.ENOENT
    live.files.remove("/tmp/t", missing_ok=True)
    live.files.remove("/tmp/kept/file")
    live.files.remove("/tmp/kept")
    with pytest.raises(SpecError):
        live.files.remove("/")


def test_removed_links_of_a_container_lead_nowhere_outside(live, tmp_path):
    """A symlink to a path of the host is resolved inside."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("x")
    live.run(["ln", "-s", str(precious), "/tmp/out"], check=True)
    live.files.remove("/tmp/out", recursive=True)
    assert (precious / "file").exists()
    live.run(["ln", "-s", str(tmp_path), "/tmp/out"], check=True)
    with pytest.raises(SetupError):
        live.files.remove("/tmp/out/precious", recursive=True)
    assert (precious / "file").exists()


def test_path_is_used_as_one_of_pathlib(live):
    path = live.path("/tmp") / "a" / "b.txt"
    path.parent.mkdir()
    assert not path.exists()
    assert path.write_text("hello") == 5
    assert (path.read_text(), path.read_bytes()) == ("hello", b"hello")
    assert (path.name, path.stem, path.suffix, str(path)) == ("b.txt", "b", ".txt", "/tmp/a/b.txt")
    assert [path.exists(), path.is_file(), path.is_dir(), path.is_symlink()] == [True, True, False, False]
    assert list(path.parent.iterdir()) == [path]
    assert path.with_suffix(".md") == live.path("/tmp/a/b.md")
    path.with_name("t").touch()
    with pytest.raises(SetupError, match="File exists"):
        path.parent.mkdir()
    path.parent.mkdir(exist_ok=True)
    with pytest.raises(SetupError, match="parents=True"):
        live.path("/tmp/x/y").mkdir()
    live.path("/tmp/x/y").mkdir(parents=True)
    live.path("/tmp/x/y").rmdir()
    path.unlink()
    path.unlink(missing_ok=True)
    with pytest.raises(SetupError):
        path.parent.unlink()
    live.run(["ln", "-s", "a", "/tmp/l"], check=True)
    assert live.path("/tmp/l").is_symlink()
    assert str(live.path("/tmp/l").readlink()) == "a"
    with pytest.raises(TypeError):
        os.stat(path)  # outside it would be another file
    with pytest.raises(SpecError):
        live.path("relative")


# --- Lives


def test_wait_is_for_all_commands_and_kill_is_for_all_that_runs(live):
    live.popen(["sleep", "0.3"])
    live.popen(["sh", "-c", "sleep 0.3"])
    with pytest.raises(ContainerTimeout):
        live.wait(0.05)
    live.wait(10)
    assert live.state == "running"
    process = live.popen(["sh", "-c", "trap 'exit 7' USR1; echo; while :; do sleep 0.05; done"], stdout=PIPE)
    process.stdout.readline()
    live.kill(signal.SIGUSR1)
    assert process.wait(10) == 7
    process.close()
    process = live.popen(["sleep", "60"])
    live.kill()
    live.wait(10)
    assert process.returncode == -9
    deadline = time.monotonic() + 30
    while live.state != "stopped" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert live.state == "stopped"


def test_commit_is_that_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTAINERKIT_IMAGES", str(tmp_path / "images"))
    with Container(RootFS.tmpfs()) as container:
        container.files.write("/etc/hello", "x", parents=True)
        image = container.commit("mine:1", message="why", command=("sh",))
    assert image.defaults.command == ("sh",)
    assert image.history()[-1].comment == "why"


# --- Short forms of mounts


def test_volumes_are_binds_in_short(tmp_path):
    (tmp_path / "f").write_text("x")
    tmp_path.chmod(0o755)
    for volumes in ([f"{tmp_path}:/data:ro"], {str(tmp_path): "/data:ro"}, {tmp_path: "/data:ro"}):
        done = run(["sh", "-c", "cat /data/f; touch /data/g"], volumes=volumes)
        assert (done.stdout, done.returncode) == (b"x", 1)
    with Container.prepare(volumes=[f"{tmp_path}:/data"], mounts=[Mount.tmpfs("/t")]) as template:
        assert template.run(["ls", "/data", "/t"]).returncode == 0
    for wrong in ("/etc:/x", ["a:b:c:d"], {"x": "y"}, [":"], ["/etc:/x:hm"], [3], 3):
        with pytest.raises(SpecError, match=r"volumes|mount target"):
            run(["true"], volumes=wrong)


def test_virtual_environment_of_the_caller_is_shown(tmp_path):
    code = "import attr, sys; print(sys.prefix, attr.__file__)"
    shown = run([sys.executable, "-c", code], rootfs=RootFS.host(python=sys.prefix), text=True, check=True).stdout
    assert shown == f"{sys.prefix} {attr.__file__}\n"
    for wrong in (tmp_path, tmp_path / "missing"):
        with pytest.raises(SpecError, match="is not an installation of Python"):
            RootFS.host(python=wrong)
    done = run([sys.executable, "-c", f"open({sys.prefix!r} + '/x', 'w')"], rootfs=RootFS.host(python=sys.prefix))
    assert b"Read-only file system" in done.stderr or b"Permission denied" in done.stderr


# --- In asyncio


@pytest.fixture(params=["one shot", "in a container"])
def async_run(request):
    def call(*arguments, **options):
        async def do():
            if request.param == "one shot":
                return await aio.run(*arguments, **options)
            async with aio.AsyncContainer() as container:
                return await container.run(*arguments, **options)

        return asyncio.run(do())

    return call


def test_lines_are_received_in_the_event_loop(async_run):
    heard = []
    script = "for i in 1 2 3; do echo $i; sleep 0.2; done; echo e >&2; head -c 200000 /dev/zero | tr '\\0' x; printf '\\nrest'"
    threads = set()

    def hear(line):
        threads.add(threading.get_ident())
        heard.append(line)

    done = async_run(["sh", "-c", script], on_stdout=hear, on_stderr=hear, text=True)
    assert [line for line in heard if "x" not in line and line != "e"] == ["1", "2", "3", "rest"]
    assert "".join(line for line in heard if "x" in line) == "x" * 200000
    assert heard.count("e") == 1
    assert threads == {threading.get_ident()}
    assert done.stdout.endswith("\nrest")
    assert async_run(["echo", "x"], on_stdout=hear, capture_output=False).stdout is None


def test_listener_that_raises_ends_the_command_in_asyncio(async_run):
    def refuse(line):
        raise KeyError(line)

    began = time.monotonic()
    with pytest.raises(KeyError, match="begun"):
        async_run(["sh", "-c", "echo begun; sleep 30"], on_stdout=refuse, text=True)
    assert time.monotonic() - began < 10
    with pytest.raises(SpecError):
        async_run(["true"], on_stdout=3)
