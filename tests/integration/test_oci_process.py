"""The program's environment, sockets of the caller, and capabilities; verbs for many containers."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import termios
import time
from pathlib import Path

import pytest
from oci_bundles import ONE, TWO, as_root, bundle, oci, rootfs, try_python_alone  # noqa: F401 - fixtures

from containerkit.oci.cgroups import hierarchies

pytestmark = as_root
pytest_generate_tests = try_python_alone


def test_last_value_of_a_variable_counts(oci, bundle):
    bundle.process["env"] += ["NAME=first", "OTHER=x", "NAME=last=one"]
    assert ["NAME=last=one"] == oci.run(bundle.runs("env | grep NAME=")).stdout.splitlines()
    oci.start_one(bundle.runs("sleep", "100"), TWO)
    assert "NAME=new\n" == oci("exec", "--env", "NAME=new", TWO, "sh", "-c", "env | grep NAME=").stdout


def test_socket_activation_names_the_programs_own_pid(oci, bundle):
    bundle.runs("echo $$ $LISTEN_PID $LISTEN_FDS $LISTEN_FDNAMES; ls -l /proc/self/fd/3 | grep -c socket:").write()
    with socket.socket() as server:
        server.listen()
        script = f'exec 3<&{server.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "sh", *oci.words, "run", "--bundle", str(bundle.path), ONE],
            env=oci.environment, pass_fds=[server.fileno()], capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    assert ["1 1 1 web", "1"] == done.stdout.splitlines()


def test_socket_activation_leaves_a_shared_pid_namespace_alone(oci, bundle):
    """The pid is not known before the program starts, and another pid would be wrong."""
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "pid"]
    oci.environment["LISTEN_FDS"] = "1"
    assert "none\n" == oci.run(bundle.runs("echo ${LISTEN_PID:-none}")).stdout


def test_unknown_capability_is_a_warning(oci, bundle, tmp_path):
    for names in bundle.process["capabilities"].values():
        names.append("CAP_NOSUCH")
    done = oci.run(bundle.runs("echo", "up"))
    assert "up\n" == done.stdout
    assert 1 == done.stderr.count("unknown, ignored: CAP_NOSUCH")
    log = tmp_path / "log"
    oci("--log", log, "--log-format", "json", "run", "--bundle", bundle.path, ONE)
    (line,) = log.read_text().splitlines()
    assert ("warning", True) == (json.loads(line)["level"], "CAP_NOSUCH" in json.loads(line)["msg"])


def test_verb_that_fails_logs_its_error_alone(oci, bundle, tmp_path):
    """podman reads the whole file as one object."""
    for names in bundle.process["capabilities"].values():
        names.append("CAP_NOSUCH")
    bundle.runs("nosuch").write()
    log = tmp_path / "log"
    oci.refused("--log", log, "--log-format", "json", "run", "--bundle", bundle.path, ONE)
    assert "error" == json.loads(log.read_text())["level"]


def test_kill_and_delete_take_a_regular_expression(oci, bundle):
    for name in ("web-1", "web-2", "base"):
        oci.start_one(bundle.clone(bundle.path.parent / name).runs("sleep", "100"), name)
    oci("kill", "--regex", "^web-[0-9]$", "KILL")
    for name in ("web-1", "web-2"):
        oci.wait(name)
    assert "running" == oci.status("base")
    oci("kill", "--regex", "web", "KILL")
    oci("delete", "--regex", "^web")
    assert ["base"] == oci("list", "--quiet").stdout.split()
    assert "--regex: '(' is not a regular expression" in oci.refused("kill", "--regex", "(")
    oci("delete", "--force", "--regex", "a.e$")
    assert "" == oci("list", "--quiet").stdout


def test_group_ids_are_there_once(oci, bundle):
    bundle.process["user"]["additionalGids"] = [70_007, 70_008, 70_007]
    assert ["Groups:", "70007", "70008"] == oci.run(bundle.runs("grep Groups /proc/self/status")).stdout.split()


def test_log_that_cannot_be_written_is_reported(oci, bundle, tmp_path):
    bundle.write()
    told = oci.refused("--log", tmp_path / "missing/log", "run", "--bundle", bundle.path, ONE)
    assert f"--log {tmp_path}/missing/log: no such file or directory" in told
    assert "--log /dev/full: no space left on device" in oci.refused("--log", "/dev/full", "state", ONE)


def test_ps_hands_its_options_on(oci, bundle):
    oci.start_one(bundle.runs("sleep", "100"))
    lines = oci("ps", ONE, "-e", "-o", "pid,args").stdout.splitlines()
    assert [str(oci.state(ONE)["pid"]), "sleep", "100"] == lines[1].split()
    assert oci("ps", ONE, "-e", "-x").stdout.count("sleep 100") == 1


def test_exec_joins_a_group_of_one_controller(oci, bundle):
    bundle.linux["cgroupsPath"] = f"/{ONE}"
    oci.start_one(bundle.runs("sleep", "100"))
    first = [each for each in hierarchies() if each.version == 1]
    if len(first) < 2:
        pytest.skip("version 1 has fewer than two hierarchies here: all controllers have one group")
    chosen, other = first[0], first[1]
    inner = Path(chosen.place(f"/{ONE}/inner"))
    inner.mkdir()
    shown = "cat /proc/self/cgroup"
    found = oci("exec", "--cgroup", f"{chosen.names[0]}:inner", ONE, "sh", "-c", shown).stdout.splitlines()
    assert f"{','.join(chosen.names)}:/inner" in [line.partition(":")[2] for line in found]
    assert f"{','.join(other.names)}:/" in [line.partition(":")[2] for line in found]
    assert "no group of the nosuch controller" in oci.refused("exec", "--cgroup", "nosuch:inner", ONE, "true")
    assert "must not have '..'" in oci.refused("exec", "--cgroup", f"{chosen.names[0]}:../x", ONE, "true")


def test_capability_that_cannot_be_ambient_is_a_warning(oci, bundle):
    sets = bundle.process["capabilities"]
    for which in ("bounding", "permitted", "effective"):
        sets[which] = ["CAP_CHOWN", "CAP_KILL"]
    sets["inheritable"], sets["ambient"] = ["CAP_KILL"], ["CAP_KILL", "CAP_CHOWN"]
    done = oci.run(bundle.runs("grep CapAmb /proc/self/status"))
    assert int(done.stdout.split()[1], 16) == 1 << 5
    assert "capabilities.ambient: not both permitted and inheritable, ignored: CAP_CHOWN" in done.stderr


def test_exec_adds_ambient_capabilities_where_they_are_inheritable(oci, bundle):
    sets = bundle.process["capabilities"]
    for which in ("bounding", "permitted", "effective"):
        sets[which] = ["CAP_KILL"]
    sets["bounding"] = ["CAP_KILL", "CAP_CHOWN"]
    sets["inheritable"], sets["ambient"] = ["CAP_CHOWN"], []
    oci.start_one(bundle.runs("sleep", "100"))
    for name, expected in (("CAP_CHOWN", 1 << 0), ("CAP_FOWNER", 0)):
        done = oci("exec", "--cap", name, ONE, "grep", "CapAmb", "/proc/self/status")
        assert int(done.stdout.split()[1], 16) == expected
        assert done.stderr == ""


def test_host_name_is_no_kernel_parameter(oci, bundle):
    bundle.linux["sysctl"] = {"kernel.hostname": "other"}
    bundle.write()
    told = oci.refused("run", "--bundle", bundle.path, ONE)
    assert "linux.sysctl.kernel.hostname: is set by hostname in the configuration" in told
    bundle.linux["sysctl"] = {"kernel.domainname": "other"}
    assert oci.run(bundle.runs("cat", "/proc/sys/kernel/domainname")).stdout == "other\n"


def processors(text):
    found = set()
    for part in text.split(":")[1].strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def test_callers_affinity_is_not_the_containers(oci, bundle):
    own = os.sched_getaffinity(0)
    if len(own) < 2:
        pytest.skip("this process may use one processor only: there is nothing to widen")

    def pin():
        os.sched_setaffinity(0, {min(own)})

    shown = ("grep", "Cpus_allowed_list", "/proc/self/status")
    assert processors(oci.run(bundle.runs(*shown), preexec_fn=pin).stdout) >= own
    oci.start_one(bundle.runs("sleep", "100"))
    assert processors(oci("exec", ONE, *shown, preexec_fn=pin).stdout) >= own
    described = {
        "args": list(shown), "cwd": "/", "env": ["PATH=/bin"], "execCPUAffinity": {"initial": str(min(own))}
    }  # fmt: skip
    (bundle.path / "process.json").write_text(json.dumps(described))
    done = oci("exec", "--process", bundle.path / "process.json", ONE)
    assert processors(done.stdout) == {min(own)}


def test_callers_groups_are_kept_if_an_annotation_asks_for_it(oci, bundle):
    bundle.runs("grep Groups /proc/self/status")
    bundle.process["user"]["additionalGids"] = [70_007]
    assert oci.run(bundle, extra_groups=[70_010, 70_011]).stdout.split() == ["Groups:", "70007"]
    for value, expected in (("0", ["70007"]), ("1", ["70010", "70011"])):
        bundle.config["annotations"] = {"run.oci.keep_original_groups": value}
        assert oci.run(bundle, extra_groups=[70_010, 70_011]).stdout.split() == ["Groups:", *expected]


def test_empty_home_is_none(oci, bundle):
    bundle.process["env"] += ["HOME=/first", "HOME="]
    assert oci.run(bundle.runs("env | grep HOME")).stdout == "HOME=/root\n"
    oci.start_one(bundle.runs("sleep", "100"))
    assert oci("exec", "--env", "HOME=", ONE, "sh", "-c", "env | grep HOME").stdout == "HOME=/root\n"
    assert oci("exec", "--env", "HOME=/x", ONE, "sh", "-c", "env | grep HOME").stdout == "HOME=/x\n"


def test_working_directory_that_only_root_may_enter(oci, bundle, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o700)
    bundle.mounts("/tmp", "bind", str(tmp_path / "closed"), "bind")
    bundle.process["cwd"] = "/tmp"
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    assert oci.run(bundle.runs("readlink", "/proc/self/cwd")).stdout == "/tmp\n"
    bundle.has_user_namespace().write()  # whose root has no privileges there
    told = oci.refused("run", "--bundle", bundle.path, ONE)
    assert 'chdir to cwd ("/tmp") set in process.cwd: permission denied' in told
    (tmp_path / "closed").chmod(0o711)
    assert oci.run(bundle).stdout == "/tmp\n"


def test_output_of_a_terminal_has_carriage_returns_only_on_a_terminal(oci, bundle):
    bundle.process["terminal"] = True
    bundle.runs("echo one; echo two").write()
    words = ("run", "--bundle", bundle.path, ONE)
    with oci.popen(*words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as run:
        assert run.communicate(timeout=60)[0] == b"one\ntwo\n"
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen, open(theirs, "rb", buffering=0) as terminal:
        before = termios.tcgetattr(terminal)
        with oci.popen(*words, stdin=terminal, stdout=terminal) as run:
            shown = b""
            while shown.count(b"\n") < 2:
                shown += screen.read(100)
            assert run.wait(60) == 0
        assert shown == b"one\r\ntwo\r\n"
        assert termios.tcgetattr(terminal) == before


def test_processes_that_outlive_the_first_are_killed_and_listed(oci, bundle):
    """Without its own pid namespace the container's first process is not PID 1."""
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "pid"]
    pid = oci.start_one(bundle.runs("sleep", "100"))
    oci.quiet("exec", "--detach", ONE, "sleep", "200")
    os.kill(pid, signal.SIGKILL)
    oci.wait(ONE)
    (left,) = json.loads(oci("ps", "--format", "json", ONE).stdout)
    assert Path(f"/proc/{left}/cmdline").read_bytes() == b"sleep\x00200\x00"
    assert "container not running" in oci.refused("kill", ONE, "TERM")
    oci("kill", ONE, "KILL")
    end = time.monotonic() + 10
    while json.loads(oci("ps", "--format", "json", ONE).stdout):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert "container not running" in oci.refused("kill", ONE, "KILL")
    assert len(oci("ps", ONE).stdout.splitlines()) == 1
