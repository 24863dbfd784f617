"""Running projects: order, health, networks, volumes, logs, changes, the end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from image_samples import BUSYBOX, busybox_root

from containerkit import Pod, Project, Service, Stack
from containerkit.errors import ContainerTimeout, SpecError, StateError
from containerkit.image import Image
from containerkit.project import volumes
from containerkit.project.remote import Remote
from containerkit.project.sockets import socket_path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
    pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static"),
]

SLEEP = ("sleep", "1000")
AT_ONCE = {"stop_signal": "SIGKILL"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    place = tmp_path_factory.mktemp("store")
    before = os.environ.get("CONTAINERKIT_IMAGES")
    os.environ["CONTAINERKIT_IMAGES"] = str(place / "images")
    root = tmp_path_factory.mktemp("root")
    busybox_root(root, "proc", "dev", "sys", "run", "var", "seed")
    (root / "seed" / "file").write_text("from the image\n")
    Image.from_directory(root, "box:1")
    yield place
    if before is None:
        del os.environ["CONTAINERKIT_IMAGES"]
    else:
        os.environ["CONTAINERKIT_IMAGES"] = before


@pytest.fixture
def name(images, request):
    return f"t{os.getpid()}-{abs(hash(request.node.name)) % 10**6}"


def project(name, networks=None, **services):
    made = {key: Service(image="box:1", **{**AT_ONCE, **keys}) for key, keys in services.items()}
    return Project(name=name, services=made, networks=networks)


def lines(stack, service):
    return [line.text for line in stack.logs(service)]


def until(look, seconds=10):
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_project_runs_and_is_gone(name):
    with project(name, a={"command": SLEEP}, b={"command": SLEEP}).up(wait=10) as stack:
        assert isinstance(stack, Stack)
        pids = [each.pid for each in stack.containers()]
        assert [each.name for each in stack.containers()] == [f"{name}-a-1", f"{name}-b-1"]
        assert stack["a"].run(["echo", "hi"], text=True).stdout == "hi\n"
        assert stack["a"].run(["nslookup", "b"], text=True).returncode == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    with pytest.raises(StateError, match="it is down"):
        stack.apply()


def test_conditions_of_dependencies_are_met(name):
    made = project(
        name,
        db={"command": ["sh", "-c", "sleep 0.3; touch /ok; exec sleep 1000"],
            "healthcheck": {"test": "test -e /ok", "interval": "50ms", "retries": 100}},
        init={"command": ["sh", "-c", "sleep 0.2; date +%s%N > /made; echo made"]},
        web={"command": SLEEP, "depends_on": {"db": {"condition": "service_healthy"},
                                              "init": {"condition": "service_completed_successfully"}}},
    )  # fmt: skip
    with made.up() as stack:
        assert stack["db"].health == "healthy"
        assert (stack["init"].status, stack["init"].exit_code) == ("exited", 0)
        assert stack["web"].started_at - stack["db"].started_at > 0.3
        assert stack["web"].started_at - stack["init"].started_at > 0.2


@pytest.mark.parametrize(
    ("condition", "keys", "message"),
    [
        ("service_completed_successfully", {"command": ["sh", "-c", "exit 3"]}, "it should complete, but has ended with status 3"),
        ("service_healthy", {"command": SLEEP}, "it should become healthy, but has no health check"),
        ("service_healthy", {"command": SLEEP, "healthcheck": {"test": "false", "interval": "10ms", "retries": 2}}, "is unhealthy"),
        ("service_healthy", {"command": ["true"], "healthcheck": {"test": "false", "interval": "1s"}}, "has ended with status 0"),
    ],
)  # fmt: skip
def test_a_condition_that_is_never_met_ends_all(name, condition, keys, message):
    made = project(name, first=keys, second={"command": SLEEP, "depends_on": {"first": {"condition": condition}}})
    with pytest.raises(StateError, match=message):
        made.up()


def test_what_cannot_be_had_is_refused_before_anything_is_made(name):
    for keys in (
        {"gpus": "all"}, {"devices": ["a/b=c"]}, {"logging": {"driver": "syslog"}}, {"network_mode": "container:x"},
        {"security_opt": ["label=type:x"]}, {"pid": "service:b"}, {"cgroup_parent": "x"},
    ):  # fmt: skip
        made = project(name, a={"command": SLEEP, **keys}, b={"command": SLEEP})
        for attempt in (made.plan, made.up, made.detach):
            with pytest.raises(SpecError, match=rf"services\.a\.{next(iter(keys))}"):
                attempt()
    with pytest.raises(SpecError, match="network_mode and networks exclude"):
        project(name, a={"command": SLEEP, "network_mode": "none", "networks": ["n"]}, networks={"n": {}})


def test_restart_policies(name):
    with project(
        name,
        always={"command": ["sh", "-c", "echo x >> /n; exit 1"], "restart": "on-failure:2"},
        never={"command": ["false"]},
    ).up() as stack:
        codes = stack.wait(timeout=20)
        assert codes == {f"{name}-always-1": 1, f"{name}-never-1": 1}
        assert (stack["always"].restarts, stack["never"].restarts) == (2, 0)
    with pytest.raises(SpecError, match="restart: 'sometimes'"):
        project(name, a={"command": SLEEP, "restart": "sometimes"}).up()


def test_a_restart_keeps_the_container(name):
    with project(name, a={"command": ["sh", "-c", "echo again >> /log; cat /log; exec sleep 1000"]}).up() as stack:
        until(lambda: lines(stack, "a"))
        first = stack["a"].pid
        stack.restart("a")
        until(lambda: lines(stack, "a") == ["again", "again", "again"])
        assert stack["a"].pid != first
        with pytest.raises(ContainerTimeout):
            stack.wait("a", timeout=0.05)


def test_logs_lose_no_line(name):
    count = 50_000
    made = project(name, a={"command": ["sh", "-c", f"seq {count}; printf rest; echo no >&2"]})
    with made.up() as stack:
        stack.wait(timeout=60)
        found = [line for line in stack.logs("a") if line.stream == "stdout"]
        assert [line.text for line in found] == [*map(str, range(1, count + 1)), "rest"]
        assert [line.text for line in stack.logs() if line.stream == "stderr"] == ["no"]
        assert [line.text for line in stack.logs("a", tail=1)] in (["rest"], ["no"])


def test_a_follower_sees_lines_at_once_and_ends_with_the_project(name):
    with project(name, a={"command": ["sh", "-c", "while sleep 0.05; do echo x; done"]}).up() as stack:
        follower = stack.logs("a", follow=True)
        assert next(follower).text == "x"
        assert time.time() - next(follower).time < 0.5
        stack.down()
        list(follower)


def test_scaling_and_changing(name):
    with project(name, a={"command": SLEEP}, b={"command": SLEEP, "depends_on": ["a"]}).up() as stack:
        kept = stack["b"].pid
        stack.scale("a", 3)
        assert len(stack.containers("a")) == 3
        found = stack["b"].run(["nslookup", "a"], text=True).stdout
        assert sum(line.startswith("Address") for line in found.splitlines()) >= 4  # the server, and three
        stack.scale("a", 1)
        assert [each.name for each in stack.containers("a")] == [f"{name}-a-1"]
        plan = stack.apply(project(name, a={"command": SLEEP}, b={"command": SLEEP, "depends_on": ["a"]}))
        assert not plan.steps, str(plan)
        changed = stack["a"].pid
        stack.apply(
            project(name, a={"command": SLEEP, "environment": {"N": "1"}}, b={"command": SLEEP, "depends_on": ["a"]})
        )
        assert stack["b"].pid == kept  # its dependents are not replaced
        assert stack["a"].pid != changed
        stack.apply(project(name, b={"command": SLEEP}))
        assert [each.service for each in stack.containers()] == ["b"]
        with pytest.raises(SpecError, match="no service 'c'"):
            stack.scale("c", 1)


def test_dependents_follow_what_is_replaced(name):
    def version(number):
        return project(
            name, db={"command": SLEEP, "environment": {"N": number}},
            again={"command": SLEEP, "depends_on": {"db": {"condition": "service_started", "restart": True}}},
            inside={"command": SLEEP, "network_mode": "service:db"}, plain={"command": SLEEP, "depends_on": ["db"]},
        )  # fmt: skip

    with version("1").up() as stack:
        (again,), (inside,) = stack.containers("again"), stack.containers("inside")
        stack["again"].run(["touch", "/kept"], check=True)
        before = {each.service: each.pid for each in stack.containers()}
        stack.apply(version("2"), services=["db"])
        assert {each.service for each in stack.containers() if each.pid == before[each.service]} == {"plain"}
        assert stack["again"] is again  # restarted: its files stay
        assert stack["again"].run(["test", "-e", "/kept"]).returncode == 0
        assert stack["inside"] is not inside  # its network is that of the new container
        same = [os.readlink(f"/proc/{stack[service].pid}/ns/net") for service in ("db", "inside")]
        assert same[0] == same[1]
        assert not stack.apply().steps


def test_a_command_that_fails_at_once_is_not_ready(name):
    with pytest.raises(StateError, match="it has ended with status 3"):
        project(name, a={"command": ["sh", "-c", "sleep 0.05; exit 3"]}).up(wait=10)


def test_volumes_are_filled_once_and_stay(name):
    keys = {"command": SLEEP, "volumes": ["data:/seed", "/anon"]}
    made = Project(name=name, services={"a": Service(image="box:1", **AT_ONCE, **keys)}, volumes={"data": {}})
    with made.up() as stack:
        assert stack["a"].run(["cat", "/seed/file"], text=True).stdout == "from the image\n"
        stack["a"].run(["sh", "-c", "echo mine > /seed/file; echo x > /anon/x"], check=True)
    with made.up() as stack:
        assert stack["a"].run(["cat", "/seed/file"], text=True).stdout == "mine\n"
        assert stack["a"].run(["ls", "/anon"], text=True).stdout == ""
        stack.down(remove_volumes=True)
    assert not os.path.exists(volumes.path_of(f"{name}_data"))


def test_a_name_has_several_addresses_and_a_profile_is_beside_the_file(name, tmp_path):
    (tmp_path / "deny.json").write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}'
    )
    (tmp_path / "compose.yaml").write_text(
        "services: {a: {image: 'box:1', command: sleep 1000, stop_signal: KILL, extra_hosts: ['h=10.0.0.1', 'h=10.0.0.2'], "
        "security_opt: ['seccomp:./deny.json']}}"
    )
    with Project.load(tmp_path / "compose.yaml", name=name, env={}).up() as stack:
        assert stack["a"].run(["grep", "-c", "h$", "/etc/hosts"], text=True).stdout == "2\n"
        assert stack["a"].run(["mkdir", "/x"]).returncode == 1


def test_configs_secrets_and_settings_arrive(name, tmp_path):
    (tmp_path / "secret").write_text("hush")
    made = Project(
        name=name,
        services={
            "a": Service(
                image="box:1", command=SLEEP, **AT_ONCE, secrets=["s"],
                configs=["c", {"source": "c", "target": "/etc/mine", "mode": 0o400, "uid": "7"}],
                environment={"A": "b"}, user="7", working_dir="/tmp", hostname="named", tmpfs="/mem:size=1m",
                read_only=False, mem_limit="64m", pids_limit=50, ulimits={"nofile": 77}, extra_hosts=["x=10.0.0.9"],
                cap_drop=["ALL"], shm_size="2m",
            )
        },
        secrets={"s": {"file": str(tmp_path / "secret")}}, configs={"c": {"content": "configured"}},
    )  # fmt: skip
    script = (
        "cat /run/secrets/s /c /etc/mine; echo; id -u; pwd; hostname; echo $A; ulimit -n; grep CapBnd /proc/self/status"
    )
    with made.up() as stack:
        found = stack["a"].run(
            ["sh", "-c", script], user=7, cwd="/tmp", env={"A": "b", "PATH": "/bin"}, text=True, rlimits={"nofile": 77}
        )
        assert found.stdout.split() == [
            "hushconfiguredconfigured", "7", "/tmp", "named", "b", "77", "CapBnd:", "0000000000000000",
        ]  # fmt: skip
        assert "10.0.0.9" in stack["a"].run(["cat", "/etc/hosts"], text=True).stdout
        usage = stack["a"].run(["sh", "-c", "df /mem /dev/shm | tail -2"], text=True).stdout.split()
        assert (usage[1], usage[7]) == ("1024", "2048")


def test_services_share_a_network_and_publish(name):
    pod = Pod(
        name,
        web=Service(image="box:1", command=["sh", "-c", "echo hi > /i; exec httpd -f -p 80 -h /"], **AT_ONCE),
        side=Service(image="box:1", command=SLEEP, ports=["127.0.0.1::80"], **AT_ONCE),
    )
    with pod.project().up() as stack:
        until(lambda: stack["side"].run(["wget", "-q", "-O", "-", "http://127.0.0.1/i"], text=True).stdout == "hi\n")
        host, port = stack.port("web", 80)
        assert host == "127.0.0.1"
        done = subprocess.run(
            [BUSYBOX, "wget", "-q", "-O", "-", f"http://127.0.0.1:{port}/i"], capture_output=True, text=True
        )
        assert done.stdout == "hi\n"
        with pytest.raises(StateError, match="port 81/tcp is not published"):
            stack.port("web", 81)


def test_services_share_volumes_and_ipc(name):
    made = Pod(
        name,
        {
            "a": Service(image="box:1", command=SLEEP, volumes=["v:/v"], ipc="shareable", **AT_ONCE),
            "b": Service(image="box:1", command=SLEEP, volumes_from=["a:ro"], **AT_ONCE),
        },
        share=["network", "ipc"],
    ).project(volumes={"v": {}})
    with made.up() as stack:
        stack["a"].run(["sh", "-c", "echo shared > /v/f"], check=True)
        assert stack["b"].run(["cat", "/v/f"], text=True).stdout == "shared\n"
        assert stack["b"].run(["sh", "-c", "echo x > /v/f"], text=True).returncode != 0
        same = {stack[each].run(["readlink", "/proc/self/ns/ipc"], text=True).stdout for each in "ab"}
        assert len(same) == 1
        stack.down(remove_volumes=True)


def test_the_kernels_own_filesystems_are_shown_too(name):
    keys = {"command": SLEEP, "volumes": ["/sys:/outside/sys:ro", "/proc:/outside/proc:ro", "/dev/zero:/mine"],
            "device_cgroup_rules": ["c 1:3 rwm"], "devices": ["/dev/zero:/dev/nought", "/dev/fuse:/dev/only:r"]}  # fmt: skip
    with project(name, a=keys).up() as stack:
        assert stack["a"].run(["head", "-c", "1", "/dev/nought"]).returncode == 0
        assert b"not permitted" in stack["a"].run(["sh", "-c", "exec 3> /dev/only"], stderr=subprocess.STDOUT).stdout
        assert stack["a"].run(["sh", "-c", "exec 3< /dev/only"]).returncode == 0
        assert stack["a"].run(["head", "-c", "2", "/mine"]).stdout == b"\0\0"
        assert stack["a"].run(["ls", "/outside/sys/kernel", "/outside/proc/1/comm"]).returncode == 0


def test_logs_are_kept_as_the_service_asks(name):
    script = ["sh", "-c", "seq 1000"]
    with project(
        name,
        none={"command": script, "logging": {"driver": "none"}},
        few={"command": script, "logging": {"options": {"max-size": "10", "max-file": "2"}}},
    ).up() as stack:
        stack.wait(timeout=20)
        assert lines(stack, "none") == []
        assert lines(stack, "few") == ["997", "998", "999", "1000"]


def test_an_update_that_fails_is_rolled_back(name):
    deploy = {"replicas": 2, "update_config": {"failure_action": "rollback", "monitor": "100ms"}}
    with project(name, a={"command": SLEEP, "deploy": deploy}).up() as stack:
        second = stack.containers("a")[1].pid
        with pytest.raises(StateError, match="has ended with status 1") as caught:
            stack.apply(project(name, a={"command": ["false"], "deploy": deploy}))
        assert "run again" in caught.value.__notes__[0]
        assert [each.argv for each in stack.containers("a")] == [SLEEP, SLEEP]
        assert stack.containers("a")[1].pid == second
        assert not stack.apply().steps


def test_networks_keep_services_apart(name):
    with project(
        name, {"one": {}, "two": {"internal": True}},
        a={"command": SLEEP, "networks": ["one"]}, b={"command": SLEEP, "networks": ["two"]},
        c={"command": SLEEP, "networks": {"one": None, "two": {"aliases": ["other"]}}},
    ).up() as stack:  # fmt: skip
        assert stack["a"].run(["nslookup", "b"]).returncode != 0
        assert stack["c"].run(["nslookup", "b"]).returncode == 0
        assert stack["b"].run(["nslookup", "other"]).returncode == 0


def test_a_service_gets_its_grace(name):
    script = "trap 'sleep 0.2; echo bye; exit 0' TERM; echo up; while :; do sleep 0.02; done"
    with project(
        name, a={"command": ["sh", "-c", script], "stop_signal": "TERM", "stop_grace_period": "5s"}
    ).up() as stack:
        until(lambda: lines(stack, "a"))
        stack.stop("a")
        assert lines(stack, "a") == ["up", "bye"]
        assert (stack["a"].status, stack["a"].exit_code) == ("exited", 0)
        stack.wait_ready(5)
        stack.apply()
        until(lambda: lines(stack, "a") == ["up", "bye", "up"])


def test_an_image_is_built(name, tmp_path):
    (tmp_path / "Dockerfile").write_text(
        'FROM box:1\nARG WHO\nLABEL X=0\nRUN echo "built for $WHO" > /who\nCMD ["cat", "/who"]\n'
    )
    made = Project(
        name=name,
        services={
            "a": Service(
                build={
                    "context": str(tmp_path),
                    "args": {"WHO": "me"},
                    "network": "none",
                    "labels": {"X": "1", "Y": "2"},
                }
            )
        },
    )
    with made.up() as stack:
        stack.wait(timeout=20)
        assert lines(stack, "a") == ["built for me"]
    assert Image.get(f"{name}-a", pull="never").config.defaults.labels == {"X": "1", "Y": "2"}


def test_a_build_uses_directories_and_images_of_other_services(name, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "file").write_text("from the directory")
    text = """
FROM base
COPY --from=more file /file
RUN --mount=type=bind,from=more,target=/m cat /m/file /made > /all; ulimit -n > /limit; cat /etc/hosts > /hosts
CMD cat /all /limit /hosts; df -k /dev/shm
"""
    build = {
        "context": str(tmp_path), "dockerfile_inline": text, "ulimits": {"nofile": 77}, "shm_size": "2m",
        "extra_hosts": ["far.example:10.9.9.9"], "ssh": ["default"],
        "additional_contexts": {"more": str(tmp_path / "more"), "base": "service:base"},
    }  # fmt: skip
    base = {"context": str(tmp_path), "dockerfile_inline": "FROM box:1\nONBUILD RUN echo ' and the base' > /made\n"}
    made = Project(
        name=name,
        services={"app": Service(build=build), "base": Service(build={**base, "labels": ["l=1"]}, command="true")},
    )
    with made.up() as stack:
        stack.wait(timeout=20)
        shown = lines(stack, "app")
    assert shown[:2] == ["from the directory and the base", "77"]
    assert "10.9.9.9\tfar.example" in shown
    assert Image.get(f"{name}-base", pull="never").config.defaults.labels == {"l": "1"}
    for contexts, said in (
        ({"x": "service:none"}, "there is no 'service none'"),
        ({"x": "git://h/r"}, "is not supported; use a"),
    ):
        with pytest.raises(SpecError, match=said):
            Project(name=name, services={"a": Service(build={**build, "additional_contexts": contexts})}).up()


STAYS = f"""
echo $(($(cat /count) + 1)) > /count
sleep 1001.{os.getpid()} & unshare -p -f sleep 1002.{os.getpid()} &
exec sleep 1000
"""


def sleepers():
    """Return the arguments of the processes that this test's service has started in the background."""
    from containerkit._linux import procfs

    found = set()
    for pid in procfs.pids():
        with contextlib.suppress(ProcessLookupError):
            found.add(procfs.cmdline(pid))
    return {each for each in found if each[:1] == ("sleep",) and each[-1].endswith(f".{os.getpid()}")}


def test_a_stopped_service_starts_in_its_container_again(name):
    keys = {"command": ["sh", "-c", STAYS], "privileged": True}
    with project(name, a=keys, b={"command": SLEEP}).up() as stack:
        first = stack["a"]
        until(lambda: len(sleepers()) == 2)
        other = stack["b"].pid
        stack.stop("a")
        assert (first.status, first.pid, first.exit_code) == ("exited", None, 137)
        assert sleepers() == set()  # neither a process in the background nor one in its own pid namespace
        assert "start" in str(stack.apply(services=("a",)))
        assert stack["a"] is first
        assert first.status == "running"
        until(lambda: stack["a"].files.read("/count") == b"2\n")
        assert stack["b"].pid == other
        stack.stop("a")
        stack.apply(services=("a",), recreate=True)
        assert stack["a"].container is not first.container
        until(lambda: len(sleepers()) == 2)  # after it has counted
        assert stack["a"].files.read("/count") == b"1\n"
        stack.stop("a")
        kept = stack["a"].container.pid
        assert stack.forget("a") == [f"{name}-a-1"]
        assert not os.path.exists(f"/proc/{kept}")
        stack.apply()
        stack.stop("a")
        kept = stack["a"].container.pid
    assert not os.path.exists(f"/proc/{kept}")


def test_a_service_that_was_stopped_is_checked_again(name):
    check = {"test": ["CMD", "test", "-e", "/run/ok"], "interval": "20ms", "retries": 1, "start_period": "20s"}
    command = [
        "sh",
        "-c",
        "test -e /once || touch /once /run/ok; exec sleep 1000",
    ]  # only the first one makes it healthy
    with project(name, a={"command": command, "healthcheck": check}).up(wait=20) as stack:
        stack.stop("a")
        stack.apply()
        stack.wait_ready(20)
        stack["a"].files.remove("/run/ok")
        until(lambda: stack["a"].health == "unhealthy")


def test_nothing_is_left_of_a_start_that_fails(name):
    made = project(name, a={"command": SLEEP}, b={"command": ["nothing-like-that"], "depends_on": ["a"]})
    before = set(os.listdir("/proc"))
    with pytest.raises(FileNotFoundError, match="nothing-like-that"):
        made.up()
    born = [pid for pid in set(os.listdir("/proc")) - before if pid.isdecimal()]
    until(lambda: not [pid for pid in born if _is_ours(pid)])


def _is_ours(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return "sleep\0001000" in file.read()
    except OSError:
        return False


def test_all_die_with_a_killed_owner(name, images):
    program = textwrap.dedent(
        f"""
        from containerkit.project import Project, Service
        stack = Project(name={name!r}, services={{n: Service(image="box:1", command=["sleep", "1000"]) for n in "abc"}}).up()
        print(*[each.pid for each in stack.containers()], flush=True)
        import time; time.sleep(1000)
        """
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pids = owner.stdout.readline().split()
    assert len(pids) == 3
    until(lambda: all(_is_ours(pid) for pid in pids))  # each may still be before its exec
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    until(lambda: not any(_is_ours(pid) for pid in pids))


def test_an_answer_is_read_even_if_it_comes_before_the_request_is_left(name, monkeypatch):
    place, closed = socket_path(name), threading.Event()
    os.makedirs(os.path.dirname(place), exist_ok=True)

    def answer():
        listening.accept()[0].close()  # whether it is up
        connection, _ = listening.accept()
        _, fds, _, _ = socket.recv_fds(connection, 65536, 3)
        connection.sendall(b'{"done": 5}\n')
        connection.close()
        for fd in fds:
            os.close(fd)
        closed.set()

    def send(*given, send=socket.send_fds):
        sent = send(*given)
        assert closed.wait(10)
        return sent

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(place)
        listening.listen()
        answering = threading.Thread(target=answer)
        answering.start()
        monkeypatch.setattr(socket, "send_fds", send)
        try:
            assert Remote(name).ask("exec", fds=(0,)) == 5
        finally:
            answering.join()
            os.unlink(place)
