"""``containerkit compose`` and ``containerkit kube``, as people type them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from image_samples import BUSYBOX, busybox_root

from containerkit.image import Image, Store
from containerkit.project.supervisor import socket_path

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


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    place = tmp_path_factory.mktemp("store") / "images"
    root = tmp_path_factory.mktemp("root")
    busybox_root(root, "proc", "dev", "sys", "run", "var", "src")
    Image.from_directory(root, "box:1", store=Store(place))
    return place


@pytest.fixture
def cli(images, tmp_path):
    (tmp_path / "compose.yaml").write_text(COMPOSE)
    (tmp_path / "src").mkdir()
    name = f"cli{os.getpid()}-{abs(hash(str(tmp_path))) % 10**6}"
    env = {**os.environ, "CONTAINERKIT_IMAGES": str(images), "COMPOSE_PROJECT_NAME": name}

    def run(*words, check=True, kind="compose", **options):
        done = subprocess.run(
            [sys.executable, "-m", "containerkit", kind, *words],
            cwd=tmp_path, env={**env, **options.pop("more", {})}, capture_output=True, text=True, timeout=60, **options,
        )  # fmt: skip
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
    cli("up", more={"WHO": "you"})
    assert cli("logs", "--no-log-prefix", "-n", "1", "web").stdout == "you\n"
    cli("stop", "web")
    assert cli("ps", "--services").stdout.split() == ["db"]
    cli("start", "web")
    cli("kill", "-s", "KILL", "web")
    assert cli("wait", "web", check=False).stdout == f"{cli.name}-web-1 137\n"
    cli("down")
    assert "it is not up" in cli("ps", check=False).stderr
    assert not os.path.exists(socket_path(cli.name))


def test_up_in_the_foreground_ends_with_a_signal(cli):
    with subprocess.Popen(
        [sys.executable, "-m", "containerkit", "compose", "up"], cwd=cli.place, env=cli.env, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert {process.stdout.readline().split(" | ")[1] for _ in range(2)} == {"ready\n", "world\n"}
        assert cli("up", "-d", check=False).returncode == 0  # it asks the one that is there
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert "it is not up" in cli("ps", check=False).stderr


def test_the_status_of_one_can_be_that_of_all(cli):
    (cli.place / "compose.yaml").write_text(
        "services:\n  test: {image: box:1, command: sh -c 'exit 7'}\n  db: {image: box:1, command: sleep 1000, stop_signal: KILL}\n"
    )
    assert cli("up", "--exit-code-from", "test", check=False).returncode == 7


def test_config_is_what_the_files_mean(cli):
    model = json.loads(cli("config", "--format", "json").stdout)
    assert model["services"]["web"]["environment"] == {"WHO": "world"}
    assert model["services"]["web"]["command"][2] == "echo $$WHO; exec sleep 1000"
    assert set(model["services"]) == {"db", "web"}
    assert cli("--profile", "extra", "config", "--services").stdout.split() == ["db", "web", "extra"]
    (cli.place / "again.yaml").write_text(cli("config").stdout)
    assert json.loads(cli("-f", "again.yaml", "config", "--format", "json").stdout) == model
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


def test_a_killed_supervisor_takes_all_with_it(cli):
    cli("up", "-d")
    rows = [json.loads(line) for line in cli("ps", "--format", "json").stdout.splitlines()]
    supervisor = next(
        int(pid)
        for pid in os.listdir("/proc")
        if pid.isdecimal() and _command(pid)[1:3] == ["-m", "containerkit.project.detached"] and _env(pid) == cli.name
    )
    os.kill(supervisor, signal.SIGKILL)
    end = time.monotonic() + 10
    while any(_command(row["Pid"])[:1] == ["sleep"] for row in rows):
        assert time.monotonic() < end
    assert "it is not up" in cli("ps", check=False).stderr
    assert cli.name not in cli("ls", "-q").stdout.split()
    cli("up", "-d")


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
    (cli.place / "compose.yaml").write_text(
        "services: {a: {image: box:1, command: [sleep, '9'], ports: ['8080:80'], mem_limit: 64m, volumes: [data:/d]}}\nvolumes: {data: }"
    )
    (cli.place / "pod.yaml").write_text(cli("generate", kind="kube").stdout)
    from containerkit.project.kube import load_kube

    keys = load_kube(str(cli.place / "pod.yaml")).model["services"][f"{cli.name}-a"]
    assert keys["command"] == ["sleep", "9"]
    assert keys["mem_limit"] == "67108864"
    assert (keys["ports"][0]["published"], keys["ports"][0]["target"]) == ("8080", 80)
    (cli.place / "compose.yaml").write_text("services: {a: {image: box:1, gpus: all}}")
    assert "a Pod can't say it" in cli("generate", kind="kube", check=False).stderr
