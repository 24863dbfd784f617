"""The commands for detached containers."""

import json
import os
import pty
import select
import subprocess
import sys
import time

import pytest
from detached_samples import Kept, needs_groups, needs_root
from image_samples import BUSYBOX, busybox_root
from waiting import wait_for

import forked_commands
from containerkit import volume as volumes
from containerkit.cli.detached.attaching import keys_of
from containerkit.cli.generate import quoted
from containerkit.detached.container import find
from containerkit.errors import SpecError, StateError
from containerkit.image import Defaults, Image, Store

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def kept():
    made = Kept()
    yield made
    made.remove()


@pytest.fixture
def name():
    return f"c{os.getpid()}-{time.monotonic_ns()}"


def ck(*words, status=0, **options):
    done = forked_commands.run("containerkit", words, text=True, **options)
    assert status == done.returncode, done
    return done.stdout if status == 0 else done.stderr


@needs_groups
def test_run_detached_prints_the_id_and_goes_on(kept, name, tmp_path):
    said = ck(
        *(
            "run",
            "-d",
            "--name",
            name,
            "-l",
            "a=b",
            "--cidfile",
            str(tmp_path / "cid"),
            "--pidfile",
            str(tmp_path / "pid"),
        ),
        *("--pids", "50", "--", "sleep", "100"),
    )
    one = find(name)
    assert f"{one.id}\n" == said
    assert (one.id, f"{one.keeper}\n") == ((tmp_path / "cid").read_text(), (tmp_path / "pid").read_text())
    assert ("running", {"a": "b"}) == (one.status, one.labels)
    (row,) = [row for row in json.loads(ck("ps", "--json")) if row["id"] == one.id]
    assert (name, "running", ["sleep", "100"], "detached") == (row["name"], row["status"], row["command"], row["kind"])
    assert f"{one.id} {name}\n" == ck("ps", "--filter", f"name={name}", "--format", "{{.ID}} {{.Names}}")
    assert f"{one.id}\n" == ck("ps", "-q", "-f", f"id={one.id}", "-f", "label=a=b")
    assert ck("ps", "-q", "-f", f"id={one.id}", "-f", "label=a=c") == ""


@needs_groups
def test_life_by_commands(kept, name):
    ck("run", "-d", "--name", name, "--pids", "50", "--", "sh", "-c", "echo out; echo err >&2; sleep 100")
    assert f"{name}\n" == ck("pause", name)
    assert ck("inspect", "-f", "{{.State.Status}} {{.State.Paused}}", name) == "paused true\n"
    ck("unpause", name)
    assert ck("exec", name, "cat", "/proc/2/comm") == "sh\n"
    assert (
        ck("exec", "-i", "-e", "A=b", "-w", "/tmp", name, "sh", "-c", "cat; echo $A $PWD", input="in\n")
        == "in\nb /tmp\n"
    )
    assert ck("exec", name, "sh", "-c", "exit 9", status=9) == ""
    assert "sleep 100" in ck("top", name)
    assert name in ck("stats", name)
    assert f"{name}\n" == ck("stop", "-t", "0", name)
    assert ck("wait", name) == "143\n"
    assert "exited (143)" in ck("ps", "-a")
    ck("start", name)
    ck("start", name)  # already running is not an error
    ck("update", "--pids", "60", "--restart", "on-failure:4", name)
    assert (
        ck("inspect", "-f", "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Limits.pids}}", name) == "on-failure 60\n"
    )
    ck("rename", name, f"{name}b")
    ck("kill", f"{name}b")
    assert "it does not run" in ck("kill", f"{name}b", status=1)
    ck("rm", f"{name}b")
    assert "no such container" in ck("rm", f"{name}b", status=1)


def test_logs_go_to_their_streams(kept, name):
    ck("run", "-d", "--name", name, "--", "sh", "-c", "echo one; echo two >&2; sleep 0.2; echo three")
    ck("wait", name)
    wait_for(lambda: find(name).status == "exited")
    done = subprocess.run([sys.executable, "-m", "containerkit", "logs", "-f", name], capture_output=True, check=True)
    assert (b"one\nthree\n", b"two\n") == (done.stdout, done.stderr)
    assert ck("logs", "-n", "1", name) == "three\n"
    assert ck("logs", "-t", name).startswith("20")


def test_files_are_copied_both_ways(kept, name, tmp_path):
    ck("run", "-d", "--name", name, "--", "sleep", "100")
    (tmp_path / "file").write_text("content")
    ck("cp", str(tmp_path / "file"), f"{name}:/tmp/")
    assert ck("exec", name, "cat", "/tmp/file") == "content"
    ck("cp", f"{name}:/tmp/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "content"
    assert "one argument must be" in ck("cp", "/a", "/b", status=125)


def test_terminal_is_attached_and_detached(kept, name):
    ck("run", "-dit", "--name", name, "--", "sh")
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "containerkit", "attach", name]
    attached = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    try:
        time.sleep(0.7)
        os.write(master, b"echo $((6 * 7)); stty size\n")
        seen = b""
        deadline = time.monotonic() + 20
        while b"42" not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 0.1)[0]:
                seen += os.read(master, 4096)
        os.write(master, b"\x10\x11")
        assert attached.wait(20) == 0
    finally:
        attached.kill()
        attached.wait()
        os.close(master)
    assert find(name).status == "running"


def test_volume_outlives_containers(kept, name):
    volume = f"v{name}"
    ck("volume", "create", "-l", "a=b", volume)
    try:
        ck("run", "-v", f"{volume}:/data", "--", "sh", "-c", "echo x > /data/file")
        ck("run", "-d", "--name", name, "-v", f"{volume}:/data", "--", "cat", "/data/file")
        assert ck("wait", name) == "0\n"
        assert "uses it" in ck("volume", "rm", volume, status=125)
        (found,) = json.loads(ck("volume", "inspect", volume))
        assert ({"a": "b"}, [find(name).id]) == (found["Labels"], found["UsedBy"])
        assert volume in ck("volume", "ls", "-q").split()
        with pytest.raises(StateError, match="already"):
            volumes.create(volume)
        ck("rm", "-f", name)
    finally:
        volumes.get(volume).remove()
    with pytest.raises(StateError, match="no such volume"):
        volumes.get(volume)


@needs_root
@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static")
def test_image_is_run_changed_and_committed(kept, name, tmp_path):
    environment = {**os.environ, "CONTAINERKIT_IMAGES": str(tmp_path / "store")}
    busybox_root(tmp_path / "root")
    defaults = Defaults(command=("/bin/sh", "-c", "echo x >> /made; cat /made; exec sleep 100"), env={"MINE": "1"})
    made = Image.from_directory(tmp_path / "root", defaults=defaults, store=Store(tmp_path / "store")).tag("mine:1")
    ck("run", "-d", "--name", name, "--image", "mine:1", env=environment)
    wait_for(lambda: ck("logs", name) == "x\n")
    assert ck("exec", name, "sh", "-c", "echo $MINE", env=environment) == "1\n"
    assert "mine:1" in ck("ps")
    assert "A /made" in ck("diff", name)
    assert ck("commit", name, "mine:2", env=environment).startswith("sha256:")
    assert ck("run", "--image", "mine:2", "--", "cat", "/made", env=environment) == "x\n"
    ck("restart", "-t", "0", name, env=environment)
    wait_for(lambda: ck("logs", name) == "x\nx\nx\n")
    ck("stop", "-t", "0", name)
    (tmp_path / "copied").write_text("from outside")
    ck("cp", str(tmp_path / "copied"), f"{name}:/copied", env=environment)
    assert ck("commit", name, "mine:3", env=environment).startswith("sha256:")
    assert ck("run", "--image", "mine:3", "--", "cat", "/made", "/copied", env=environment) == "x\nx\nfrom outside"
    ck("start", name, env=environment)
    (tmp_path / "root/other").write_text("another layer")
    Image.from_directory(tmp_path / "root", store=made.store).tag("mine:1")
    assert "other layers" in ck("restart", "-t", "0", name, status=1, env=environment)


@needs_groups
def test_unit_of_systemd_makes_it_again(kept, name):
    ck("run", "-d", "--name", name, "--pids", "50", "--", "sh", "-c", 'echo "a b" $HOME 5%; sleep 100')
    unit = ck("generate", "systemd", name)
    assert f"PIDFile=/run/containerkit-{name}.pid" in unit
    assert f'--pids 50 --name {name} -- sh -c "echo \\"a b\\" $$HOME 5%%; sleep 100"' in unit
    made = kept.make("sleep", "100", name=f"{name}-python")
    assert "created from Python" in ck("generate", "systemd", made.name, status=125)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "--privileged", "--", "true"), "pass what it needs"),
        (("run", "-d", "--network", "cni:nosuch", "--", "true"), "a CNI network must be removed"),
        (("run", "--device", "/etc/passwd", "--", "true"), "--bind"),
        (("run", "--gpus", "none-such", "--", "true"), "CDI"),
        (("run", "--name", "x", "--timeout", "3", "--", "true"), "--name makes a recorded container"),
        (("run", "-d", "--timeout", "3", "--", "true"), "can't be used with --detach"),
        (("run", "-d", "--restart", "often", "--", "true"), "on-failure"),
        (("run", "--ip", "10.0.0.1", "--", "true"), "--network NAME"),
        (("ps", "--format", "{{range .}}"), "without 'end'"),
        (("ps", "-f", "colour=red"), "choose from name"),
        (("rm",), "name a container"),
    ],
)
def test_options_that_differ_from_docker_name_the_replacement(kept, words, said):
    assert said in ck(*words, status=125)
    assert [] == kept.new()


def test_name_of_an_image_gets_a_hint():
    assert "containerkit run --image alpine" in ck("run", "alpine", "sh", status=127)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command(shell):
    said = ck("completion", shell)
    assert all(
        verb in said for verb in ("run", "logs", "volume", "prune", "detach-keys" if shell == "fish" else "--follow")
    )


def test_completion_of_bash_completes():
    script = 'eval "$(%s -m containerkit completion bash)"; COMP_WORDS=(containerkit lo); COMP_CWORD=1; _containerkit; echo ${COMPREPLY[@]}'
    done = subprocess.run(["bash", "-c", script % sys.executable], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["load", "login", "logout", "logs"]


# --- Values


def test_keys_that_detach():
    assert (b"\x10\x11", b"a", b"") == (keys_of("ctrl-p,ctrl-q"), keys_of("a"), keys_of(""))
    for text in ("ctrl-", "ctrl-é", "ab", "ctrl-1"):
        with pytest.raises(SpecError):
            keys_of(text)


@pytest.mark.parametrize(
    ("word", "expected"), [("a", "a"), ("", '""'), ("a b", '"a b"'), ("$x%", "$$x%%"), ('"\\', '"\\"\\\\"')]
)
def test_words_of_units_are_quoted(word, expected):
    assert expected == quoted(word)
