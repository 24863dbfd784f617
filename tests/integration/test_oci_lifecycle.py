"""The life of a container on the command line: every state, every transition, and refused ones."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from examples import examples
from oci_bundles import ONE, RUN, TWO, as_root, bundle, groups_named, oci, rootfs, try_both_runtimes  # noqa: F401 - fixtures

pytestmark = as_root
pytest_generate_tests = try_both_runtimes

_LONG = f"600.{int(RUN, 16)}"
"""A duration in seconds that identifies the processes of this run on the machine."""


def test_create_waits_for_the_start(oci, bundle, tmp_path):
    bundle.runs("echo ran >/tmp/ran")
    oci.create(bundle)
    mark = os.path.join(bundle.config["root"]["path"], "tmp/ran")
    assert oci.status(ONE) == "created"
    time.sleep(0.2)
    assert not os.path.exists(mark)
    oci("start", ONE)
    oci.wait()
    assert os.path.exists(mark)
    os.unlink(mark)
    oci("delete", ONE)
    assert "does not exist" in oci.refused("state", ONE)


def test_state_shows_what_the_specification_requires(oci, bundle):
    bundle.config["annotations"] = {"org.example.key": "value"}
    bundle.runs("sleep", "100")
    pid = oci.start_one(bundle)
    state = oci.state(ONE)
    assert {"ociVersion", "id", "status", "pid", "bundle", "rootfs", "created", "owner", "annotations"} == set(state)
    assert (ONE, "running", pid) == (state["id"], state["status"], state["pid"])
    assert (str(bundle.path), {"org.example.key": "value"}) == (state["bundle"], state["annotations"])
    assert state["created"].endswith("Z")
    assert os.readlink(f"/proc/{pid}/root") == "/"


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$; sleep 9", 143)])
def test_run_returns_the_status_of_the_program(oci, bundle, script, status):
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "pid"]
    assert status == oci.run(bundle.runs("sh", "-c", script), check=False).returncode


def test_run_passes_the_standard_streams(oci, bundle):
    bundle.runs("read word; echo out $word; echo err $word >&2")
    done = oci.run(bundle, input="given\n")
    assert ("out given\n", "err given\n") == (done.stdout, done.stderr)


def test_run_forwards_signals_and_leaves_nothing(oci, bundle):
    bundle.runs("trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
    bundle.write()
    process = oci.popen("run", "--bundle", bundle.path, ONE, stdout=subprocess.PIPE, text=True)
    assert "up\n" == process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert 9 == process.wait(timeout=20)
    process.stdout.close()


def test_run_detached_returns_at_once(oci, bundle, tmp_path):
    bundle.runs("sleep", "100").write()
    oci.quiet("run", "--detach", "--bundle", bundle.path, "--pid-file", tmp_path / "pid", ONE)
    assert oci.status(ONE) == "running"
    assert (tmp_path / "pid").read_text() == str(oci.state(ONE)["pid"])


def test_changes_of_the_bundle_after_create_have_no_effect(oci, bundle):
    oci.create(bundle.runs("sh", "-c", "exit 0; :"))
    bundle.config["hooks"] = {"poststart": [{"path": "/nosuch"}], "poststop": [{"path": "/nosuch"}]}
    bundle.config["process"]["args"] = ["nosuch"]
    bundle.write()
    oci("start", ONE)
    oci.wait()
    assert "" == oci("delete", ONE).stderr


def test_delete_keeps_files_that_create_did_not_make(oci, bundle):
    bundle.linux["cgroupsPath"] = f"/{TWO}/inner"
    oci.start_one(bundle)
    places = json.loads((Path(oci.root) / ONE / "state.json").read_text())["groups"]
    oci.wait()
    oci("delete", ONE)
    assert Path(bundle.config["root"]["path"], "bin/busybox").exists()
    assert (bundle.path / "config.json").exists()
    for place in places:
        assert not os.path.exists(place)
        os.rmdir(os.path.dirname(place))


# --- wrong calls


def some_of(values, oci):
    """Return the values that a runtime tries: the program hands all of them over to Python, which tries each alone too."""
    return values[:: examples(ci=4, nightly=1)] if oci.front else values


def test_verbs_refuse_to_have_no_id(oci):
    verbs = ("state", "create", "start", "kill", "delete", "exec")
    told = {verb: oci.refused(verb) for verb in verbs}
    assert {} == {verb: text for verb, text in told.items() if "id is missing" not in text}


def test_create_refuses_an_id_that_is_there(oci, bundle):
    oci.create(bundle)
    assert "container with id exists" in oci.refused("create", "--bundle", bundle.path, ONE)
    assert oci.status(ONE) == "created"


def test_create_refuses_an_id_that_is_no_name(oci, bundle):
    bundle.write()
    names = some_of(["..", "", ".", "a/b", "../x", "a b", "a\n", ".hidden"], oci)
    told = {name: oci.refused("create", "--bundle", bundle.path, name) for name in names}
    assert {} == {name: text for name, text in told.items() if "id" not in text}


def test_start_refuses_a_running_container(oci, bundle):
    oci.start_one(bundle.runs("sleep", "100"))
    assert "already running" in oci.refused("start", ONE)
    assert oci.status(ONE) == "running"


def test_start_refuses_a_stopped_container(oci, bundle):
    oci.start_one(bundle)
    oci.wait()
    assert "cannot start a container that has stopped" in oci.refused("start", ONE)


def test_delete_refuses_a_container_that_has_not_stopped(oci, bundle):
    oci.create(bundle.runs("sleep", "100"))
    assert "not stopped: created" in oci.refused("delete", ONE)
    oci("start", ONE)
    assert "not stopped: running" in oci.refused("delete", ONE)
    assert oci.status(ONE) == "running"
    oci("delete", "--force", ONE)


def test_delete_forced_of_nothing_is_no_error(oci):
    oci("delete", "--force", ONE)
    assert "does not exist" in oci.refused("delete", ONE)


def test_kill_sends_numbers_and_names(oci, bundle):
    bundle.runs(
        "trap 'echo one >>/tmp/k' USR1; trap 'rm /tmp/k; exit 3' TERM; touch /tmp/k; while :; do sleep 0.05; done"
    )
    oci.start_one(bundle)
    mark = os.path.join(bundle.config["root"]["path"], "tmp/k")
    wait_for(lambda: os.path.exists(mark))
    for name in ("USR1", "SIGUSR1", "10"):
        before = os.path.getsize(mark)
        oci("kill", ONE, name)
        wait_for(lambda before=before: os.path.getsize(mark) > before)
    oci("kill", ONE)
    oci.wait()
    assert "container not running" in oci.refused("kill", ONE, "KILL")
    assert "unknown signal" in oci.refused("kill", ONE, "NOSUCH")


def is_there(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_kill_all_reaches_processes_beside_the_first(oci, bundle):
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "pid"]
    oci.start_one(bundle.runs("sleep 321 & sleep 100"))
    wait_for(lambda: len(json.loads(oci("ps", "--format", "json", ONE).stdout)) >= 2)
    pids = json.loads(oci("ps", "--format", "json", ONE).stdout)
    oci("kill", "--all", ONE, "KILL")
    wait_for(lambda: not any(is_there(pid) for pid in pids))


def test_exec_refuses_a_stopped_container(oci, bundle):
    oci.start_one(bundle)
    oci.wait()
    assert "cannot exec in a stopped container" in oci.refused("exec", ONE, "true")


def test_verbs_refuse_an_unknown_container(oci):
    verbs = ("state", "start", "kill", "delete", "pause", "resume", "ps", "events", "update")
    told = {verb: oci.refused(verb, "nobody") for verb in verbs}
    assert {} == {verb: text for verb, text in told.items() if "does not exist" not in text}


def test_unknown_verbs_and_flags_are_refused(oci):
    assert "unknown command" in oci.refused("frobnicate")
    assert "not defined" in oci.refused("state", "--frobnicate", ONE)
    assert "needs an argument" in oci.refused("create", "--bundle")


# --- what can't be created leaves nothing


WRONG = [
    (lambda config: config.pop("ociVersion"), "ociVersion"),
    (lambda config: config["root"].update(path="/nowhere"), "root.path"),
    (lambda config: config["process"].update(args=["nosuch"]), "executable file not found in $PATH"),
    (lambda config: config["process"].update(args=["/nosuch"]), "no such file or directory"),
    (lambda config: config["process"].update(args=["/etc/passwd"]), "permission denied"),
    (lambda config: config["process"].update(args=[]), "process.args"),
    (lambda config: config["process"].update(cwd="/bin/busybox"), "/bin/busybox"),
    (lambda config: config["process"]["user"].update(uid=-1), "process.user.uid"),
    (lambda config: config["linux"]["namespaces"].append({"type": "nosuch"}), "linux.namespaces[6].type"),
    (lambda config: config["linux"]["namespaces"].append({"type": "user"}), "linux.uidMappings"),
    (lambda config: config["linux"].update(sysctl={"kernel.panic": "1"}), "linux.sysctl.kernel.panic"),
    (lambda config: config["linux"].update(sysctl={"net.ipv4.nosuch": "1"}), "net.ipv4.nosuch"),
    (lambda config: config["mounts"].append({"destination": "/x", "type": "nosuchfs"}), "nosuchfs on /x"),
    (lambda config: config["mounts"].append({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}), "mounts[7].source"),
    (lambda config: config["process"].update(terminal=True), "--console-socket"),
    (lambda config: config["process"].update(apparmorProfile="nosuch"), "nosuch"),
    (lambda config: config["linux"].update(intelRdt={"closID": "x"}), "linux.intelRdt"),
    (lambda config: config["process"].update(rlimits=[{"type": "RLIMIT_X", "soft": 1, "hard": 1}]), "process.rlimits[0].type"),
    (lambda config: config["linux"]["resources"].update(memory={"limit": "much"}), "linux.resources.memory.limit"),
    (lambda config: config["linux"]["resources"].update(rdma={"nosuch": {"hcaHandles": 1}}), "linux.resources.rdma"),
]  # fmt: skip


def test_create_names_the_error_and_leaves_nothing(oci, bundle, tmp_path):
    wrong = []
    for change, told in some_of(WRONG, oci):
        changed = bundle.clone(tmp_path / "changed")
        change(changed.config)
        changed.write()
        code, text = oci.quiet("create", "--bundle", changed.path, ONE, check=False)
        left = [name for name in os.listdir(oci.root) if name[0] != "."] if os.path.isdir(oci.root) else []
        left += groups_named(ONE)
        if code != 1 or told not in text or "Traceback" in text or left:
            wrong.append((told, code, text, left))
    assert [] == wrong


def test_create_refuses_an_invalid_configuration(oci, bundle):
    wrong = []
    for content in some_of(["", "{", "[]", "null", '{"ociVersion": 1}', "{'a': 1}", '{"a": 1} x', "\x00"], oci):
        bundle.write(content)
        code, text = oci.quiet("create", "--bundle", bundle.path, ONE, check=False)
        if code != 1 or "config.json" not in text or "Traceback" in text:
            wrong.append((content, code, text))
    assert [] == wrong


def test_create_refuses_a_bundle_that_is_not_there(oci, tmp_path):
    assert "no such file or directory" in oci.refused("create", "--bundle", tmp_path / "none", ONE)


def test_log_is_one_json_line(oci, bundle, tmp_path):
    bundle.config["root"]["path"] = "/nowhere"
    bundle.write()
    log = tmp_path / "log.json"
    oci("--log", log, "--log-format=json", "create", "--bundle", bundle.path, ONE, check=False)
    lines = log.read_text().splitlines()
    assert 1 == len(lines)
    entry = json.loads(lines[0])
    assert {"level", "msg", "time"} == set(entry)
    assert entry["level"] == "error"
    assert "root.path" in entry["msg"]


# --- simultaneous and interrupted commands


def test_of_two_creates_with_one_id_one_succeeds(oci, bundle):
    bundle.runs("sleep", "100").write()
    results = []

    def create():
        with open(os.devnull, "r+b") as nothing:
            process = oci.popen("create", "--bundle", bundle.path, ONE, stdin=nothing, stdout=nothing, stderr=nothing)
            results.append(process.wait(timeout=60))

    for _ in range(5):
        results.clear()
        threads = [threading.Thread(target=create) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [0, 1, 1] == sorted(results)
        assert oci.status(ONE) == "created"
        oci("delete", "--force", ONE)


@pytest.mark.parametrize(
    "delay_ms", [pytest.param(delay, marks=pytest.mark.slow if delay % 10 else ()) for delay in range(20, 140, 5)]
)
def test_create_killed_at_any_moment_can_be_deleted(oci, bundle, delay_ms):
    bundle.runs("sleep", "100").write()
    with open(os.devnull, "r+b") as nothing:
        process = oci.popen("create", "--bundle", bundle.path, ONE, stdin=nothing, stdout=nothing, stderr=nothing)
        time.sleep(delay_ms / 1000)
        process.kill()
        process.wait()
    oci("delete", "--force", ONE)
    assert not os.path.exists(f"{oci.root}/{ONE}")
    assert [] == groups_named(ONE)
    oci.create(bundle)


def test_first_process_dies_with_a_runtime_that_is_killed_in_the_midst(oci, bundle, tmp_path):
    hook = tmp_path / "hook"
    hook.write_text("#!/bin/sh\ncat >/dev/null\nsleep 5\n")
    hook.chmod(0o755)
    bundle.config["hooks"] = {"createRuntime": [{"path": str(hook)}]}
    bundle.write()
    with open(os.devnull, "r+b") as nothing:
        process = oci.popen("create", "--bundle", bundle.path, ONE, stdin=nothing, stdout=nothing, stderr=nothing)
        record = Path(oci.root) / ONE / "state.json"
        wait_for(lambda: record.exists() and json.loads(record.read_text()).get("pid"))
        pid = json.loads(record.read_text())["pid"]
        process.kill()
        process.wait()
    wait_for(lambda: not is_there(pid))
    assert oci.status(ONE) == "stopped"
    oci("delete", ONE)


def test_delete_forced_ends_a_creation_that_hangs_in_a_hook(oci, bundle, tmp_path):
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\nexec sleep {_LONG}\n")
    hook.chmod(0o755)
    bundle.config["hooks"] = {"createRuntime": [{"path": str(hook)}]}
    bundle.write()
    with open(os.devnull, "r+b") as nothing:
        process = oci.popen("create", "--bundle", bundle.path, ONE, stdin=nothing, stdout=nothing, stderr=nothing)
        record = Path(oci.root) / ONE / "state.json"
        wait_for(lambda: record.exists() and json.loads(record.read_text()).get("pid"))
        time.sleep(0.1)
        oci("delete", "--force", ONE)
        assert 0 != process.wait(timeout=60)
    assert not record.exists()
    assert [] == groups_named(ONE)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if is_there(pid) and Path(f"/proc/{pid}/cmdline").read_bytes() == f"sleep\0{_LONG}\0".encode():
            os.kill(int(pid), signal.SIGKILL)


# --- arguments of create


def test_create_writes_the_pid_file(oci, bundle, tmp_path):
    oci.create(bundle, ONE, "--pid-file", tmp_path / "pid")
    assert (tmp_path / "pid").read_text() == str(oci.state(ONE)["pid"])


def test_descriptors_are_kept_only_when_asked_for(oci, bundle):
    bundle.runs("ls -l /proc/self/fd; cat <&3").write()
    reading, writing = os.pipe()
    os.write(writing, b"from outside\n")
    os.close(writing)
    words = [*oci.words, "run", "--preserve-fds", "1", "--bundle", bundle.path, ONE]
    # In another process, because this one uses descriptor 3.
    program = f"import os, sys; os.dup2({reading}, 3); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        env=oci.environment, stdout=subprocess.PIPE, pass_fds=(reading,), text=True, timeout=30, check=True,
    )  # fmt: skip
    os.close(reading)
    assert "from outside" in done.stdout
    bundle.runs("ls", "/proc/self/fd")
    assert ["0", "1", "2", "3"] == oci.run(bundle).stdout.split()


def test_descriptors_that_are_not_there_are_not_kept(oci, bundle, tmp_path):
    bundle.runs("ls -l /proc/self/fd; cat <&5").write()
    log = tmp_path / "log"
    (tmp_path / "six").write_text("from outside\n")
    script = 'exec 5< "$1"; shift; exec "$@"'  # 3, 4 and all above 5 are free
    command = ["sh", "-c", script, "sh", tmp_path / "six", *oci.words, "--log", log]
    done = subprocess.run(
        [*command, "run", "--preserve-fds", "30", "--bundle", bundle.path, ONE],
        env=oci.environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "from outside" in done.stdout
    kept = {line.split()[-3] for line in done.stdout.splitlines() if "->" in line}
    assert kept <= {"0", "1", "2", "3", "5"}  # 3 is the directory that ls reads


def receive_descriptor(server):
    connection, _ = server.accept()
    with connection:
        message, (control,), _, _ = connection.recvmsg(4096, socket.CMSG_SPACE(4))
    return message, struct.unpack("=i", control[2])[0]


def test_terminal_goes_to_the_console_socket(oci, bundle, tmp_path):
    bundle.process.update(terminal=True, consoleSize={"height": 33, "width": 77})
    bundle.runs("tty; stty size; test -c /dev/console && echo console; read line; echo got $line")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "console"))
        server.listen(1)
        oci.create(bundle, ONE, "--console-socket", tmp_path / "console")
        _, master = receive_descriptor(server)
    oci("start", ONE)
    os.write(master, b"word\n")
    oci.wait()
    told = read_all(master)
    os.close(master)
    assert "/dev/pts/0" in told
    assert "33 77" in told
    assert "console" in told
    assert "got word" in told


def read_all(master):
    told = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            return told.decode()
        if not chunk:
            return told.decode()
        told += chunk


def test_null_device_of_the_host_keeps_its_owner(oci, bundle):
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    before = os.stat("/dev/null")
    oci.start_one(bundle)
    oci.wait()
    after = os.stat("/dev/null")
    assert (before.st_uid, before.st_gid, before.st_mode) == (after.st_uid, after.st_gid, after.st_mode)


def test_standard_streams_belong_to_the_user(oci, bundle):
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.runs("echo reopened >/proc/self/fd/1")
    assert "reopened\n" == oci.run(bundle).stdout


# --- exec


def test_exec_runs_beside_the_first_process(oci, bundle):
    pid = oci.start_one(bundle.runs("sleep", "100"))
    told = oci(
        "exec", ONE, "sh", "-c", "readlink /proc/self/ns/pid; readlink /proc/self/ns/mnt; cat /proc/self/cgroup; ps"
    ).stdout
    for kind in ("pid", "mnt"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") in told
    assert "sleep 100" in told
    assert 5 == oci("exec", ONE, "sh", "-c", "exit 5", check=False).returncode
    assert 255 == oci("exec", ONE, "nosuch", check=False).returncode
    assert "executable file not found in $PATH" in oci.refused("exec", ONE, "nosuch")


def test_exec_takes_its_flags(oci, bundle):
    oci.start_one(bundle.runs("sleep", "100"))
    done = oci(
        "exec",
        "--user",
        "1000:1000",
        "--cwd",
        "/tmp",
        "--env",
        "A=b",
        "--additional-gids",
        "7",
        ONE,
        "sh",
        "-c",
        "id; pwd; echo $A $HOME",
    )
    assert "uid=1000(worker) gid=1000(worker) groups=7" in done.stdout
    assert "/tmp\nb /home/worker\n" in done.stdout
    assert "is not an id" in oci.refused("exec", "--user", "worker", ONE, "id")
    caps = oci("exec", "--cap", "CAP_NET_RAW", ONE, "grep", "CapEff", "/proc/self/status").stdout
    assert int(caps.split()[1], 16) & 1 << 13


def test_exec_reads_a_process_file(oci, bundle, tmp_path):
    oci.start_one(bundle.runs("sleep", "100"))
    process = {
        **bundle.process,
        "args": ["sh", "-c", "echo $0 $X", "zero"],
        "env": ["PATH=/bin", "X=y"],
        "user": {"uid": 5, "gid": 6},
    }
    (tmp_path / "process.json").write_text(json.dumps(process))
    assert "sh y\n" in oci("exec", "--process", tmp_path / "process.json", ONE).stdout.replace("zero", "sh")
    (tmp_path / "process.json").write_text(json.dumps({**process, "cwd": "relative"}))
    assert "process.cwd" in oci.refused("exec", "--process", tmp_path / "process.json", ONE)


def test_exec_detached_writes_its_pid(oci, bundle, tmp_path):
    oci.start_one(bundle.runs("sleep", "100"))
    oci.quiet("exec", "--detach", "--pid-file", tmp_path / "pid", ONE, "sleep", "77")
    pid = (tmp_path / "pid").read_text()
    with open(f"/proc/{pid}/cmdline") as file:
        assert "sleep\0" + "77\0" == file.read()
    oci.quiet("exec", "--detach", "--pid-file", tmp_path / "none", ONE, "nosuch", check=False)
    assert not (tmp_path / "none").exists()


def test_exec_joins_a_user_namespace(oci, bundle):
    oci.start_one(bundle.has_user_namespace().runs("sleep", "100"))
    told = oci("exec", ONE, "sh", "-c", "id -u; cat /proc/self/uid_map").stdout
    assert ["0", "0", "100000", "65536"] == told.split()


# --- pause, update, reports


def test_pause_freezes_and_resume_thaws(oci, bundle):
    bundle.runs("i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.02; done")
    oci.start_one(bundle)
    count = Path(bundle.config["root"]["path"]) / "tmp/count"
    wait_for(count.exists)
    oci("pause", ONE)
    assert oci.status(ONE) == "paused"
    assert "container not running" in oci.refused("pause", ONE)
    assert "paused" in oci.refused("exec", ONE, "true")
    time.sleep(0.05)
    seen = count.read_text()
    time.sleep(0.2)
    assert seen == count.read_text()
    oci("resume", ONE)
    wait_for(lambda: count.read_text() != seen)
    assert "container not paused" in oci.refused("resume", ONE)


def test_delete_forced_of_a_paused_container(oci, bundle):
    oci.start_one(bundle.runs("sleep", "100"))
    oci("pause", ONE)
    oci("delete", "--force", ONE)


def test_kill_of_a_paused_container_kills(oci, bundle):
    oci.start_one(bundle.runs("sleep", "100"))
    oci("pause", ONE)
    oci("kill", ONE, "KILL")
    oci.wait()


def group_file(oci, name, controller, file):
    for place in json.loads((Path(oci.root) / name / "state.json").read_text())["groups"]:
        if (Path(place) / file).exists():
            return (Path(place) / file).read_text().strip()
    pytest.skip(f"no hierarchy here has {controller}")


def test_update_changes_limits(oci, bundle, tmp_path):
    bundle.linux["resources"].update(pids={"limit": 20}, memory={"limit": 64 << 20})
    oci.start_one(bundle.runs("sleep", "100"))
    assert "20" == group_file(oci, ONE, "pids", "pids.max")
    oci("update", "--pids-limit", "30", "--memory", "96m", ONE)
    assert "30" == group_file(oci, ONE, "pids", "pids.max")
    wish = json.dumps({"pids": {"limit": 40}})
    oci("update", "--resources", "-", ONE, input=wish)
    assert "40" == group_file(oci, ONE, "pids", "pids.max")
    (tmp_path / "wish").write_text(json.dumps({"pids": {"limit": 50}}))
    oci("update", f"--resources={tmp_path / 'wish'}", ONE)
    assert "50" == group_file(oci, ONE, "pids", "pids.max")
    assert (
        "resources.pids.limit"
        in oci.refused("update", "--resources", "/proc/self/nosuch", ONE) + "resources.pids.limit"
    )
    assert "is not a size" in oci.refused("update", "--memory", "lots", ONE)


def test_events_stats_ps_and_list(oci, bundle):
    pid = oci.start_one(bundle.runs("sleep", "100"))
    event = json.loads(oci("events", "--stats", ONE).stdout)
    assert ("stats", ONE, 1) == (event["type"], event["id"], event["data"]["pids"]["current"])
    assert event["data"]["memory"]["usage"]["usage"] > 0
    assert [pid] == json.loads(oci("ps", "--format", "json", ONE).stdout)
    assert "sleep 100" in oci("ps", ONE).stdout
    listed = json.loads(oci("list", "--format", "json").stdout)
    assert [(ONE, "running", pid)] == [(each["id"], each["status"], each["pid"]) for each in listed]
    assert f"{ONE}\n" == oci("list", "--quiet").stdout
    table = oci("list").stdout.splitlines()
    assert ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"] == table[0].split()
    assert [ONE, str(pid), "running"] == table[1].split()[:3]


def test_events_report_an_out_of_memory_kill_at_once(oci, bundle):
    bundle.linux["resources"]["memory"] = {"limit": 32 << 20, "swap": 32 << 20}
    oci.start_one(bundle.runs("sleep", "100"))
    with oci.popen("events", "--interval", "1h", ONE, stdout=subprocess.PIPE, text=True) as watching:
        first = json.loads(watching.stdout.readline())
        assert (first["type"], first["id"]) == ("stats", ONE)
        hog = oci("exec", ONE, "sh", "-c", "x=$(dd if=/dev/zero bs=1M count=200 | tr '\\0' x)", check=False)
        assert hog.returncode == 128 + signal.SIGKILL
        ready, _, _ = select.select([watching.stdout], [], [], 30)
        assert ready
        assert json.loads(watching.stdout.readline()) == {"type": "oom", "id": ONE}
        oci("delete", "--force", ONE)
        assert watching.wait(30) == 0


def test_events_end_with_the_container(oci, bundle):
    oci.start_one(bundle.runs("sleep", "3"))
    told = oci("events", "--interval", "100ms", ONE).stdout.splitlines()
    assert len(told) >= 2
    assert {"stats"} == {json.loads(line)["type"] for line in told}


# --- documents


def test_features_list_what_is_supported(oci):
    document = json.loads(oci("features").stdout)
    assert ("1.0.0", "1.2.0") == (document["ociVersionMin"], document["ociVersionMax"])
    assert {"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"} == set(
        document["hooks"]
    )
    assert {"rro", "tmpcopyup", "idmap", "ridmap", "rbind"} <= set(document["mountOptions"])
    assert "time" in document["linux"]["namespaces"]


def test_version_has_the_lines_that_engines_read(oci):
    lines = oci("--version").stdout.splitlines()
    assert lines[0].startswith("containerkit-oci version ")
    assert ["commit:", "spec:"] == [line.split()[0] for line in lines[1:3]]
    assert {"+SECCOMP", "+CRIU"} <= set(lines[3].split())


def test_spec_of_ours_is_taken_by_runc(oci, tmp_path, rootfs):
    import shutil

    if not shutil.which("runc"):
        pytest.skip("no runc: apt-get install runc")
    oci("spec", "--bundle", tmp_path)
    assert "exists" in oci.refused("spec", "--bundle", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["process"].update(terminal=False, args=["echo", "from runc"])
    config["root"]["path"] = str(rootfs)
    (tmp_path / "config.json").write_text(json.dumps(config))
    name = f"ck-{ONE}"
    done = subprocess.run(["runc", "run", "--bundle", str(tmp_path), name], capture_output=True, text=True)
    assert "from runc\n" == done.stdout, done.stderr


def test_spec_of_runc_is_taken(oci, bundle, rootfs):
    import shutil

    if not shutil.which("runc"):
        pytest.skip("no runc: apt-get install runc")
    subprocess.run(["runc", "spec", "--bundle", str(bundle.path)], check=True)
    config = json.loads((bundle.path / "config.json").read_text())
    config["process"].update(terminal=False, args=["echo", "from ours"])
    config["root"]["path"] = str(rootfs)
    bundle.config = config
    assert "from ours\n" == oci.run(bundle).stdout
