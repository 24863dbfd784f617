"""``containerkit compose`` and ``containerkit kube`` on the command line."""

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

import pytest
from image_samples import BUSYBOX, busybox_root
from waiting import wait_for

import forked_commands
from containerkit import Project, Stack
from containerkit._linux.listeners import has_listener, listener_of
from containerkit.errors import StateError
from containerkit.image import Image, Store
from containerkit.project import sockets
from containerkit.project.sockets import socket_path
from containerkit.project.supervisor import Supervisor

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static"),
]

COMPOSE = """
services:
  db:
    image: box:1
    command: sh -c "touch /ok; echo ready; exec sleep 1000"
    healthcheck: {test: test -e /ok, interval: 50ms}
    volumes: [data:/data]
    stop_signal: SIGKILL
  web:
    image: box:1
    command: sh -c "echo $$WHO; exec sleep 1000"
    environment: {WHO: "${WHO:-world}"}
    depends_on: {db: {condition: service_healthy}}
    stop_signal: SIGKILL
    develop: {watch: [{path: ./src, target: /src, action: sync}]}
  extra: {image: box:1, command: "true", profiles: [extra]}
volumes: {data: }
"""


GENTLE = """
services:
  db: {image: box:1, command: sh -c "echo ready; exec sleep 1000", stop_signal: SIGKILL}
  web: {image: box:1, command: "sh -c \'trap \\"echo bye; exit\\" TERM; echo world; while :; do sleep 0.05; done\'"}
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    place = tmp_path_factory.mktemp("store") / "images"
    root = tmp_path_factory.mktemp("root")
    busybox_root(root, "proc", "dev", "sys", "run", "var", "src")
    Image.from_directory(root, "box:1", store=Store(place))
    return place


@pytest.fixture
def cli(images, tmp_path, forked):
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    (tmp_path / "src").mkdir()
    name = f"cli{os.getpid()}-{abs(hash(str(tmp_path))) % 10**6}"
    env = {**os.environ, "CONTAINERKIT_IMAGES": str(images), "COMPOSE_PROJECT_NAME": name}

    def run(*words, check=True, kind="compose", **options):
        options["env"] = {**env, **options.pop("more", {})}
        done = forked_commands.run("containerkit", [kind, *words], cwd=tmp_path, text=True, **options)
        assert not check or done.returncode == 0, done.stderr
        return done

    run.name, run.env, run.place = name, env, tmp_path
    yield run
    run("down", "-v", check=False)


def test_a_project_from_up_to_down(cli):
    assert "wait     db  service_healthy" in cli("plan").stdout
    cli("up", "-d", "--wait")
    assert [json.loads(line)["State"] for line in cli("ps", "--format", "json").stdout.splitlines()] == ["running"] * 2
    assert cli("ps", "-q").stdout.split() == [f"{cli.name}-db-1", f"{cli.name}-web-1"]
    assert cli("logs", "--no-log-prefix", "web").stdout == "world\n"
    done = cli("exec", "-e", "A=1", "web", "sh", "-c", "echo $A; cat; exit 3", check=False, input="in\n")
    assert (done.stdout, done.returncode) == ("1\nin\n", 3)
    assert cli("run", "-e", "A=2", "web", "sh", "-c", "echo $A $WHO").stdout == "2 world\n"
    assert "sleep 1000" in cli("top", "web").stdout
    cli("scale", "web=2")
    assert len(cli("ps", "-q", "web").stdout.split()) == 2
    cli("restart", "db")
    assert cli.name in cli("ls", "-q").stdout.split()
    (listed,) = (each for each in json.loads(cli("ls", "--format", "json").stdout) if each["Name"] == cli.name)
    assert listed == {"Name": cli.name, "Status": "running(3)", "ConfigFiles": str(cli.place / "compose.yaml")}
    cli("up", more={"WHO": "you"})
    assert cli("logs", "--no-log-prefix", "-n", "1", "web").stdout == "you\n"
    (cli.place / "file").write_text("carried")
    cli("cp", "file", "web:/file")
    cli("cp", "web:/file", "back")
    assert (cli.place / "back").read_text() == "carried"
    assert cli("volumes", "-q").stdout.split() == [f"{cli.name}_data"]
    cli("up", "--force-recreate", "--no-deps", "web", more={"WHO": "you"})
    cli("exec", "web", "touch", "/kept")
    cli("stop", "web")
    assert cli("ps", "--services").stdout.split() == ["db"]
    cli("start", "web")
    cli("exec", "web", "test", "-e", "/kept")
    cli("kill", "-s", "KILL", "web")
    assert cli("wait", "web", check=False).stdout == f"{cli.name}-web-1 137\n"
    assert cli("rm", "-f").stdout == f"{cli.name}-web-1\n"
    cli("up", "-d", "web", more={"WHO": "you"})
    cli("down", "db")
    assert "NAME" in cli("ps", "-a").stdout
    assert cli("ps", "-aq").stdout == ""
    cli("down")
    assert "it is not up" in cli("ps", check=False).stderr
    assert not os.path.exists(socket_path(cli.name))


def holder_of(name):
    """Return the pid of the process that holds a project."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(socket_path(name))
        return listener_of(connection)[0]


def test_a_project_goes_down_even_if_the_one_who_asked_for_it_was_killed(cli):
    (cli.place / "compose.yaml").write_text(GENTLE)
    cli("up", "-d")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.connect(socket_path(cli.name))
        asking.sendall(b'{"verb": "down", "grace_s": 0.5}\n')
    wait_for(lambda: not os.path.exists(socket_path(cli.name)))
    cli("up", "-d")


def test_a_stopped_process_of_a_project_is_named(cli):
    (cli.place / "compose.yaml").write_text(GENTLE)
    cli("up", "-d")
    holder = holder_of(cli.name)
    os.kill(holder, signal.SIGSTOP)
    try:
        assert f"its process {holder} is stopped" in cli("ps", check=False).stderr
        assert f"its process {holder} is stopped" in cli("ls").stderr
    finally:
        os.kill(holder, signal.SIGCONT)


def test_only_one_process_holds_a_project_and_no_killed_one_leaves_a_socket(cli):
    (cli.place / "compose.yaml").write_text(GENTLE)
    cli("up", "-d")
    with pytest.raises(StateError, match="it is already up"):
        Supervisor(Stack(Project.load(cli.place / "compose.yaml", name=cli.name)))
    holder = holder_of(cli.name)
    os.kill(holder, signal.SIGKILL)
    left = [socket_path(cli.name), f"{socket_path(cli.name)}.{holder}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as unnamed:
        unnamed.bind(left[1])  # as one that was killed before it gave the socket its name
    wait_for(lambda: not has_listener(left[0]))
    assert set(left) <= set(sockets.sweep())
    assert not any(map(os.path.exists, left))
    cli("up", "-d")


@contextlib.contextmanager
def interrupts(handler):
    """Let programs inherit how SIGINT is treated, whatever this process has inherited."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def up_in_the_foreground(cli):
    process = subprocess.Popen(
        [sys.executable, "-m", "containerkit", "compose", "up"], cwd=cli.place, env=cli.env, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with process:
        try:
            assert {process.stdout.readline().split(" | ")[1] for _ in range(2)} == {"ready\n", "world\n"}
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_up_in_the_foreground_ends_with_a_signal(cli, number, status):
    with interrupts(signal.SIG_DFL), up_in_the_foreground(cli) as process:
        assert cli("up", "-d", check=False).returncode == 0  # it uses the running project
        process.send_signal(number)
        assert process.wait(20) == status
    assert "it is not up" in cli("ps", check=False).stderr


def test_up_in_the_background_of_a_script_ends_with_sigterm(cli):
    (cli.place / "compose.yaml").write_text(GENTLE)
    with interrupts(signal.SIG_IGN), up_in_the_foreground(cli) as process:
        process.send_signal(signal.SIGINT)  # of the terminal, for the program in the foreground
        assert cli("ps", "-q").returncode == 0
        process.send_signal(signal.SIGTERM)
        assert "bye" in process.stdout.read()  # the service had its time to end
        assert process.wait(20) == 143


def test_a_command_runs_in_a_project_that_is_not_up(cli):
    (cli.place / "compose.yaml").write_text(
        "services:\n  db: {image: box:1, command: sleep 1000, stop_signal: KILL}\n"
        "  web: {image: box:1, command: [echo, said], depends_on: [db], networks: [n]}\n  one: {image: box:1}\n"
        "networks: {n: }\n"
    )
    assert cli("run", "one", "cat", input="in").stdout == "in"
    assert cli("run", "--no-deps", "web").stdout == "said\n"
    assert cli("run", "--rm", "web", "nslookup", "db", check=False).returncode != 0  # the name is on another network
    assert "it is not up" in cli("ps", check=False).stderr


def test_a_command_in_a_new_container_takes_nothing_from_the_service(cli):
    text = "services: {web: {image: box:1, command: sleep 1000, stop_signal: KILL, ports: ['127.0.0.1:PORT:80']}}"
    (cli.place / "compose.yaml").write_text(text.replace("PORT", ""))
    cli("up", "-d")
    port = cli("port", "web", "80").stdout.strip().rpartition(":")[2]
    (cli.place / "compose.yaml").write_text(text.replace("PORT", port))
    (cli.place / "vars").write_text("B=2\n")
    words = ("--name", "mine", "-l", "a=b", "-e", "A=1", "--env-from-file", "vars", "--cap-drop", "CHOWN")
    script = "hostname; echo $A $B; chown 1:1 /bin/sh 2>/dev/null || echo denied; nslookup web | grep -c ^Address"
    assert cli("run", *words, "web", "sh", "-c", script).stdout == "mine\n1 2\ndenied\n2\n"  # the server, the service
    assert cli("run", "--use-aliases", "web", "sh", "-c", "nslookup web | grep -c ^Address").stdout == "3\n"
    for words in (("-P",), ("-p", f"127.0.0.1:{port}:81")):
        assert "in use" in cli("run", *words, "web", "true", check=False).stderr


@pytest.mark.parametrize("words", [("exec",), ("run", "--no-deps")])
def test_a_command_gets_a_terminal_of_its_own(cli, words):
    cli("up", "-d")
    pid, master = pty.fork()
    if pid == 0:
        try:
            os.chdir(cli.place)
            program = [sys.executable, "-m", "containerkit", "compose", *words, "web", "sh"]
            os.execve(program[0], program, cli.env)
        finally:
            os._exit(1)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    seen_on(master, b"# ")
    os.write(master, b"tty; echo ready$((1+2)); sleep 1000; echo after$((1+1))\n")
    assert b"/dev/pts/" in seen_on(master, b"ready3")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 99, 0, 0))
    shown = b""
    for _ in range(20):  # a shell that has just forked may lose the key, and one that sets up its line the text
        os.write(master, b"\x03")  # Ctrl-C ends the sleep, and the rest of its line
        time.sleep(0.1)
        os.write(master, b"stty size; echo done$((1+3))\n")
        while b"done4" not in shown and select.select([master], [], [], 1)[0]:
            shown += os.read(master, 4096)
        if b"done4" in shown:
            break
    assert b"44 99" in shown
    assert b"after2" not in shown
    os.write(master, b"exit 5\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    os.close(master)


def seen_on(master, mark, seconds=20):
    found, end = b"", time.monotonic() + seconds
    while mark not in found:
        assert select.select([master], [], [], max(0, end - time.monotonic()))[0], found
        found += os.read(master, 4096)
    return found


def test_what_is_not_up_has_nothing_to_show_or_stop(cli):
    for words in ("ps",), ("ps", "-q"), ("logs",), ("stop",), ("down",), ("down", "-v", "--rmi", "local"):
        assert cli(*words).stdout == ""
    assert "it is not up" in cli("exec", "web", "true", check=False).stderr
    cli("--ansi", "never", "up", "-d", "--no-build", "--quiet-pull", "-y")
    names = [f"{cli.name}-db-1 running", f"{cli.name}-web-1 running"]
    assert cli("ps", "--format", "{{.Name}} {{.State}}").stdout.splitlines() == names
    assert cli("ps", "-q", "--status", "exited").stdout == cli("ps", "-q", "--filter", "status=paused").stdout == ""
    assert "only status=STATE" in cli("ps", "--filter", "name=x", check=False).stderr
    assert cli("images", "-q").stdout.split()
    cli("config", "-o", "out")
    assert f"name: {cli.name}" in (cli.place / "out").read_text()
    cli("down", "--rmi", "local")
    cli("run", "--no-deps", "web", "true")  # its image has a name in the file, and is kept


def test_the_status_of_one_can_be_that_of_all(cli):
    (cli.place / "compose.yaml").write_text(
        "services:\n  test: {image: box:1, command: sh -c 'exit 7'}\n  db: {image: box:1, command: sleep 1000, stop_signal: KILL}\n"
    )
    assert cli("up", "--exit-code-from", "test", check=False).returncode == 7
    (cli.place / "compose.yaml").write_text(
        "services:\n  quick: {image: box:1, command: 'true'}\n"
        "  test: {image: box:1, command: sh -c \"trap 'exit 9' TERM; while :; do sleep 0.1; done\"}\n"
    )
    assert cli("up", "--exit-code-from", "test", check=False).returncode == 9  # it is stopped when another one ends


def test_config_is_what_the_files_mean(cli):
    model = json.loads(cli("config", "--format", "json").stdout)
    assert model["services"]["web"]["environment"] == {"WHO": "world"}
    assert model["services"]["web"]["command"][2] == "echo $$WHO; exec sleep 1000"
    assert set(model["services"]) == {"db", "web"}
    assert cli("--profile", "extra", "config", "--services").stdout.split() == ["db", "web", "extra"]
    (cli.place / "again.yaml").write_text(cli("config").stdout)
    assert json.loads(cli("-f", "again.yaml", "config", "--format", "json").stdout) == model
    assert "echoed" in cli("-f", "-", "config", input="services: {a: {image: box:1, command: echoed}}").stdout
    (cli.place / "bad.yaml").write_text("services: {a: {imagee: x}}")
    done = cli("-f", "bad.yaml", "config", "-q", check=False)
    assert (done.returncode, "did you mean 'image'?" in done.stderr) == (125, True)


def test_watch_carries_files_inside(cli):
    cli("up", "-d")
    with subprocess.Popen(
        [sys.executable, "-m", "containerkit", "compose", "watch", "--interval", "0.05"], cwd=cli.place, env=cli.env,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout.readline() == "watching 1 paths\n"
            (cli.place / "src" / "new").write_text("content")
            assert process.stdout.readline() == "web: sync: new\n"
            end = time.monotonic() + 10
            while cli("exec", "web", "cat", "/src/new", check=False).stdout != "content":
                assert time.monotonic() < end
        finally:
            process.terminate()


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.3, None])
def test_a_killed_supervisor_takes_all_with_it(cli, after_s):
    """It is killed at a random moment of the start, or after it."""
    mark = f"9{os.getpid()}"
    (cli.place / "compose.yaml").write_text(COMPOSE.replace("sleep 1000", f"sleep {mark}"))
    starting = subprocess.Popen(
        [sys.executable, "-m", "containerkit", "compose", "up", "-d"], cwd=cli.place, env=cli.env, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    until(lambda: _supervisors(cli.name) or starting.poll() is not None)
    if after_s is None:
        starting.wait(60)
    else:
        time.sleep(after_s)
    for pid in _supervisors(cli.name):
        os.kill(pid, signal.SIGKILL)
    told = starting.communicate(timeout=60)[1]
    assert starting.returncode == 0 or "its supervisor ended while it started" in told
    until(lambda: not [pid for pid in os.listdir("/proc") if pid.isdecimal() and _command(pid)[:2] == ["sleep", mark]])
    assert "it is not up" in cli("ps", check=False).stderr
    if after_s is None:
        assert cli.name not in cli("ls", "-q").stdout.split()
        cli("up", "-d")


def until(look, seconds=30):
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def _supervisors(name):
    """Return the process that holds a project, which is the leader of a session."""
    return [
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdecimal() and _command(pid)[1:4] == ["-m", "containerkit", "compose"] and _env(pid) == name
        and _session(pid) == int(pid)
    ]  # fmt: skip


def _session(pid):
    try:
        return os.getsid(int(pid))
    except OSError:
        return None


def _command(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().split("\0")
    except OSError:
        return []


def _env(pid):
    try:
        with open(f"/proc/{pid}/environ") as file:
            return dict(each.partition("=")[::2] for each in file.read().split("\0")).get("COMPOSE_PROJECT_NAME")
    except OSError:
        return None


POD = """
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {greeting: hello, file.txt: "content\\n"}
---
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 0
  initContainers:
  - {name: init, image: "box:1", command: [sh, -c, "echo made > /w/f"], volumeMounts: [{name: w, mountPath: /w}]}
  containers:
  - name: web
    image: box:1
    command: [httpd, -f, -p, "80", -h, /w]
    volumeMounts: [{name: w, mountPath: /w}]
    readinessProbe: {httpGet: {path: /f, port: 80}, periodSeconds: 1}
  - name: side
    image: box:1
    args: [sh, -c, "echo $(G); cat /c/file.txt; exec sleep 1000"]
    env: [{name: G, valueFrom: {configMapKeyRef: {name: conf, key: greeting}}}]
    volumeMounts: [{name: c, mountPath: /c}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    securityContext: {runAsUser: 1000, readOnlyRootFilesystem: true}
  volumes:
  - {name: w, emptyDir: {}}
  - {name: c, configMap: {name: conf}}
"""


def test_a_pod_is_played(cli):
    name = cli.name
    (cli.place / "pod.yaml").write_text(POD.replace("NAME", name))
    cli("play", "--wait", "pod.yaml", kind="kube")
    try:
        service = f"{name}-side"
        end = time.monotonic() + 10
        while cli("-p", name, "logs", "--no-log-prefix", service).stdout != "hello\ncontent\n":
            assert time.monotonic() < end
        done = cli("-p", name, "exec", service, "wget", "-q", "-O", "-", "http://127.0.0.1/f")
        assert done.stdout == "made\n"
        assert cli("-p", name, "exec", service, "id", "-u").stdout == "1000\n"
    finally:
        cli("down", "pod.yaml", kind="kube")
    (cli.place / "pod.yaml").write_text(POD.replace("readinessProbe", "readynessProbe"))
    assert "did you mean 'readinessProbe'" in cli("play", "pod.yaml", kind="kube", check=False).stderr


def test_a_pod_is_written(cli):
    (cli.place / "secret").write_text("hush")
    (cli.place / "compose.yaml").write_text(
        """
        services:
          first: {image: box:1, command: [sh, -c, "echo $$(HOME) > /d/f"], volumes: ["data:/d"]}
          a:
            image: box:1
            command: [sleep, '9']
            ports: ['8080:80']
            expose: [81]
            mem_limit: 64m
            cpu_shares: 512
            volumes: ["data:/d:ro", /own]
            tmpfs: /t:size=1m
            environment: {A: b}
            labels: {l: v}
            stop_grace_period: 10s
            healthcheck: {test: "true", interval: 2s, timeout: 1s, start_period: 10s}
            depends_on: {first: {condition: service_completed_successfully}}
            secrets: [s]
            configs: [{source: c, target: /c, mode: 0440}]
            user: "1:2"
            security_opt: ["no-new-privileges:true"]
            post_start: [{command: ["true"]}]
            extra_hosts: ["h=10.0.0.9"]
        volumes: {data: }
        secrets: {s: {file: ./secret}}
        configs: {c: {content: told}}
        """
    )
    (cli.place / "pod.yaml").write_text(cli("generate", kind="kube").stdout)
    from containerkit.project.kube import load_kube

    model = load_kube(str(cli.place / "pod.yaml")).model
    keys = model["services"][f"{cli.name}-a"]
    assert keys["command"] == ["sleep", "9"]
    assert (keys["mem_limit"], keys["cpu_shares"], keys["user"], keys["stop_grace_period"]) == (
        "67108864",
        512,
        "1:2",
        "10s",
    )
    assert (keys["ports"][0]["published"], keys["ports"][0]["target"]) == ("8080", 80)
    assert (keys["environment"], keys["labels"], keys["extra_hosts"]) == ({"A": "b"}, {"l": "v"}, ["h=10.0.0.9"])
    assert keys["depends_on"] == {
        f"{cli.name}-first": {"condition": "service_completed_successfully", "required": True}
    }
    assert model["services"][f"{cli.name}-first"]["command"][2] == "echo $(HOME) > /d/f"
    probes = keys["x-probes"]
    assert (probes["ready"]["interval_s"], probes["started"]["retries"], probes["started"]["interval_s"]) == (2, 5, 5)
    assert keys["security_opt"] == ["no-new-privileges:true"]
    assert keys["post_start"][0]["command"] == ["true"]
    assert {each["target"]: each["type"] for each in keys["volumes"]} == {
        "/d": "volume",
        "/own": "volume",
        "/t": "tmpfs",
    }
    files = {each["target"]: model["configs"][each["source"]]["content"] for each in keys["configs"]}
    assert files == {"/run/secrets/s": "hush", "/c": "told"}
    assert [each.get("mode") for each in keys["configs"]] == ["0440", None]
    for key, message in (("gpus: all", "a Pod has no such field"), ("restart: 'on-failure:3'", "the number of restarts"), ("scale: 2", "one container"),
                         ("networks: {default: {aliases: [x]}}", "one network"), ("stop_grace_period: 1500ms", "whole seconds")):  # fmt: skip
        (cli.place / "compose.yaml").write_text(f"services: {{a: {{image: box:1, {key}}}}}")
        assert message in cli("generate", kind="kube", check=False).stderr


def test_probes_keep_a_container_alive(cli):
    (cli.place / "pod.yaml").write_text(
        f"""
        kind: Pod
        apiVersion: v1
        metadata: {{name: {cli.name}}}
        spec:
          terminationGracePeriodSeconds: 0
          containers:
          - name: a
            image: "box:1"
            command: [sh, -c, "echo begun; rm -f /ok; touch /up; exec httpd -f -p 80 -h /"]
            startupProbe: {{exec: {{command: [test, -e, /up]}}, periodSeconds: 1}}
            livenessProbe: {{httpGet: {{path: /up, port: 80}}, periodSeconds: 1, failureThreshold: 1}}
            readinessProbe: {{tcpSocket: {{port: 80}}, periodSeconds: 1}}
        """
    )
    cli("play", "--wait", "pod.yaml", kind="kube")
    try:
        service = f"{cli.name}-a"
        cli("-p", cli.name, "exec", service, "rm", "/up")
        end = time.monotonic() + 20
        while cli("-p", cli.name, "logs", "--no-log-prefix", service).stdout != "begun\nbegun\n":
            assert time.monotonic() < end
    finally:
        cli("down", "pod.yaml", kind="kube")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("enableServiceLinks: true", "no services of a cluster"),
        ("initContainers: [{name: i, image: x, readinessProbe: {exec: {command: [x]}}}]", "readinessProbe"),
        ("volumes: [{name: v, hostPath: {path: /etc/hostname, type: Directory}}]", "is not a Directory"),
        ("volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]", "it requires medium: Memory"),
        ("dnsPolicy: None", "dnsPolicy"),
    ],
)  # fmt: skip
def test_what_a_pod_cannot_have_is_refused(tmp_path, text, message):
    from containerkit.errors import SpecError
    from containerkit.project.kube import load_kube

    containers = (
        "[{name: a, image: x, volumeMounts: [{name: v, mountPath: /v}]}]"
        if "volumes" in text
        else "[{name: a, image: x}]"
    )
    (tmp_path / "p.yaml").write_text(f"kind: Pod\nmetadata: {{name: p}}\nspec:\n  containers: {containers}\n  {text}\n")
    with pytest.raises(SpecError, match=message):
        load_kube(str(tmp_path / "p.yaml"))
