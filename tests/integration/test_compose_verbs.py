"""Verbs of ``containerkit compose`` that look at a running project, or run commands beside it."""

import json
import os
import pty
import subprocess
import sys

import pytest
from image_registry import needs_registry, registry
from image_samples import BUSYBOX, busybox_root
from waiting import wait_for

import forked_commands
from containerkit.image import Image, Store

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static"),
]

COMPOSE = """
services:
  db:
    image: box:1
    command: sleep 1000
    stop_signal: SIGKILL
    healthcheck: {test: "true", interval: 50ms}
  web:
    image: box:1
    command: sh -c "trap 'echo bye; exit 3' TERM; while read line; do echo got $$line; done"
    stdin_open: true
    depends_on: {db: {condition: service_healthy}}
  shell: {image: box:1, command: sh, tty: true, stdin_open: true, stop_signal: SIGKILL, profiles: [shell]}
"""
DETACH = "\x10\x11"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    place = tmp_path_factory.mktemp("store") / "images"
    root = tmp_path_factory.mktemp("root")
    busybox_root(root, "proc", "dev", "sys", "run", "var")
    Image.from_directory(root, "box:1", store=Store(place))
    return place


@pytest.fixture
def cli(images, tmp_path, forked):
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    name = f"verbs{os.getpid()}-{abs(hash(str(tmp_path))) % 10**6}"
    env = {**os.environ, "CONTAINERKIT_IMAGES": str(images), "COMPOSE_PROJECT_NAME": name}

    def run(*words, check=True, **options):
        done = forked_commands.run("containerkit", ["compose", *words], cwd=tmp_path, text=True, env=env, **options)
        assert not check or done.returncode == 0, done.stderr
        return done

    run.name, run.env, run.place = name, env, tmp_path
    run.words = [sys.executable, "-m", "containerkit", "compose"]
    yield run
    run("down", "-v", check=False)


def rows(cli, *words):
    return {row["Name"]: row for row in map(json.loads, cli("ps", "--format", "json", *words).stdout.splitlines())}


def test_created_containers_start_later(cli):
    assert "start    " in cli("--dry-run", "up").stdout
    assert "create " in cli("create").stderr
    assert rows(cli) == {}
    assert {row["State"] for row in rows(cli, "-a").values()} == {"created"}
    assert "start    " in cli("plan").stdout
    cli("start")
    assert [row["State"] for row in rows(cli).values()] == ["running", "running"]
    cli("up", "--no-start", "--force-recreate")
    assert {row["State"] for row in rows(cli, "-a").values()} == {"created"}
    cli("up", "-d", "db")
    assert {name: row["State"] for name, row in rows(cli, "-a").items()} == {
        f"{cli.name}-db-1": "running",
        f"{cli.name}-web-1": "created",
    }


def test_events_are_those_of_the_containers(cli):
    cli("up", "-d")
    cli("pause", "db")
    cli("unpause", "db")
    cli("exec", "db", "true")
    cli("kill", "-s", "KILL", "db")
    cli("wait", "db", check=False)
    cli("rm", "-f", "db")
    told = [
        json.loads(line)
        for line in cli("events", "--json", "--since", "10m", "--until", "0s", "db").stdout.splitlines()
    ]
    assert [event["action"] for event in told] == [
        *("create", "start", "health_status: healthy", "pause", "unpause", "exec_start: true", "kill", "die", "destroy")
    ]
    assert told[-2]["attributes"]["exitCode"] == "137"
    assert {event["service"] for event in told} == {"db"}
    assert f" container start {cli.name}-web-1 (" in cli("events", "--since", "10m", "--until", "0s").stdout


def test_commands_in_the_background(cli):
    name = cli("run", "-d", "--name", "beside", "--no-deps", "web", "sh", "-c", "echo said; sleep 1000").stdout.strip()
    assert name == "beside"
    assert rows(cli) == {}
    assert rows(cli, "-a")["beside"]["State"] == "running"
    wait_for(lambda: "beside | said" in cli("logs").stdout)
    cli("run", "-d", "--rm", "--no-deps", "--name", "short", "web", "true")
    wait_for(lambda: "short" not in rows(cli, "-a"))
    cli("run", "-d", "--no-deps", "--name", "ended", "web", "sh", "-c", "exit 4")
    wait_for(lambda: rows(cli, "-a")["ended"]["ExitCode"] == 4)
    assert cli("rm", "-f").stdout == "ended\n"
    cli("up", "-d", "db")
    assert rows(cli, "-a")["beside"]["State"] == "running"  # it is not one of the service's containers
    assert cli("exec", "-d", "db", "sh", "-c", "sleep 0.1; touch /done").stdout == ""
    wait_for(lambda: cli("exec", "db", "test", "-e", "/done", check=False).returncode == 0)


def test_attached_input_output_and_signals(cli):
    cli("up", "-d")
    words, options = [*cli.words, "attach"], {"cwd": cli.place, "env": cli.env, "stdout": subprocess.PIPE}
    with subprocess.Popen([*words, "web"], stdin=subprocess.PIPE, **options) as attached:
        attached.stdin.write(b"one\ntwo\n")
        attached.stdin.flush()
        assert [attached.stdout.readline(), attached.stdout.readline()] == [b"got one\n", b"got two\n"]
        attached.stdin.write(DETACH.encode())
        attached.stdin.flush()
        assert attached.wait(30) == 0
    assert cli("logs", "--no-log-prefix", "--index", "1", "web").stdout == "got one\ngot two\n"
    with subprocess.Popen([*words, "--no-stdin", "web"], **options) as attached:
        wait_for(lambda: cli("events", "--since", "10m", "--until", "0s", "web").stdout.count(" attach ") == 2)
        attached.terminate()  # the signal goes to the command
        assert attached.communicate(timeout=30)[0] == b"bye\n"
    assert attached.returncode == 3
    assert "is not running" in cli("attach", "web", check=False).stderr


def test_attached_terminal(cli):
    cli("up", "-d", "shell")
    pid, fd = pty.fork()
    if pid == 0:
        os.chdir(cli.place)
        os.execve(sys.executable, [*cli.words, "attach", "shell"], cli.env)
    shown = b""
    os.write(fd, b"echo $((40 + 2))\n")
    while b"\r\n42\r\n" not in shown:
        shown += os.read(fd, 4096)
    os.write(fd, DETACH.encode())
    assert os.waitpid(pid, 0)[1] == 0
    os.close(fd)
    assert rows(cli)[f"{cli.name}-shell-1"]["State"] == "running"


def test_usage_of_containers_with_and_without_limits(cli):
    (cli.place / "compose.yaml").write_text(
        COMPOSE.replace("    command: sleep 1000\n", "    command: sleep 1000\n    pids_limit: 50\n")
    )
    cli("up", "-d")
    told = cli("stats", "--no-stream", "--format", r"table {{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.PIDs}}").stdout
    head, *lines = told.splitlines()
    assert head.split() == ["NAME", "CPU", "%", "MEM", "USAGE", "/", "LIMIT", "PIDS"]
    for line, service in zip(lines, ("db", "web"), strict=True):
        name, cpu, memory, pids = line.split()
        assert name == f"{cli.name}-{service}-1"
        assert cpu.endswith("%")
        assert int(pids) >= 1
        assert service == "db" or int(memory) > 0
    assert "no service 'none'" in cli("stats", "none", check=False).stderr


@needs_registry
def test_images_are_committed_and_pushed(cli, tmp_path):
    with registry(tmp_path / "registry") as server:
        (cli.place / "compose.yaml").write_text(
            f"services:\n  app: {{image: '{server}/app:1', build: {{dockerfile_inline: FROM box:1}}, command: sleep 1000,"
            f" stop_signal: KILL}}\n  gone: {{image: '{server}/gone:1', build: .}}\n"
        )
        assert f"{server}/app:1@sha256:" in cli("build", "--push", "app").stdout
        assert f"{server}/app:1@sha256:" in cli("push", "-q", "app").stdout
        assert cli("push", "-q", "--ignore-push-failures", check=False).returncode == 1
        assert cli("pull", "-q", "--ignore-pull-failures", check=False).returncode == 1
        cli("up", "-d", "app")
        cli("exec", "app", "touch", "/mark")
        cli("commit", "-m", "marked", "app", "app:2")
        words = ["run", "--image", "app:2", "test", "-e", "/mark"]
        assert forked_commands.run("containerkit", words, env=cli.env, text=True).returncode == 0


def test_what_docker_has_and_this_has_not_names_the_replacement(cli):
    for words, remedy in (
        (("export", "web"), "image export"),
        (("build", "--sbom", "true"), "containerkit build"),
        (("config", "--variables"), "--environment"),
        (("cp", "-a", "x", "web:/"), "chown"),
        (("up", "-d", "--watch"), "compose watch"),
        (("--dry-run", "down"), "compose plan"),
        (("ls", "--filter", "status=x"), "only name=TEXT"),
        (("attach", "--sig-proxy", "no", "web"), "is not up"),
    ):
        done = cli(*words, check=False)
        assert done.returncode != 0
        assert remedy in done.stderr, words
