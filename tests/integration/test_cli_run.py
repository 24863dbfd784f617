"""The command line against the kernel, without a terminal."""

import json
import os
import select
import signal
import subprocess
import sys
import time

import pytest

import forked_commands

pytestmark = pytest.mark.usefixtures("forked")
CLI = [sys.executable, "-m", "containerkit"]


def run(*words, **options):
    return subprocess.run([*CLI, "run", *map(str, words)], capture_output=True, timeout=60, **options)


def output(*words, **options):
    """For what the options do; how the program starts and ends is seen by the others."""
    done = forked_commands.run("containerkit", ["run", *words], text=True, **options)
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def start(*words, **options):
    return subprocess.Popen([*CLI, "run", *words], **options)


# --- Exit status


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["true"], 0),
        (["false"], 1),
        (["sh", "-c", "exit 77"], 77),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["sh", "-c", "kill -SEGV $$"], 128 + signal.SIGSEGV),
    ],
)
def test_run_ends_as_the_command_does(words, expected):
    done = run("--", *words)
    assert (expected, b"", b"") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("words", "expected", "message"),
    [
        (["no-such-program"], 127, "execve no-such-program: No such file or directory"),
        (["/etc/passwd"], 126, "execve /etc/passwd: Permission denied"),
        (["/usr"], 126, "execve /usr: Permission denied"),
        (["--cwd", "/nowhere", "true"], 125, "/nowhere: No such file or directory"),
        (["--user", "nobody-knows-me", "true"], 125, "the container's /etc/passwd has no 'nobody-knows-me'"),
        (["--bind", "/nonexistent", "true"], 125, "/nonexistent"),
    ],
)
def test_run_names_the_program_that_could_not_be_started(words, expected, message):
    done = run(*words, text=True)
    assert expected == done.returncode
    assert done.stderr.startswith("containerkit: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1 + (expected == 127), "one line, and a hint to --image for what may be one"


def test_run_refuses_a_nul_in_a_word():
    # execve can't pass such an argument, so the function is called.
    code = r"from containerkit.cli import main; raise SystemExit(main(['run', '--', 'echo', 'a\0b']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (125, "containerkit: command: 'a\\x00b' contains a NUL byte\n") == (done.returncode, done.stderr)


# --- Streams


def test_run_passes_bytes_through_untouched():
    data = os.urandom(1 << 20)
    done = run("cat", input=data)
    assert (0, b"") == (done.returncode, done.stderr)
    assert data == done.stdout


def test_run_keeps_the_outputs_apart():
    done = run("--", "sh", "-c", "echo out; echo err >&2")
    assert (b"out\n", b"err\n") == (done.stdout, done.stderr)


def test_run_leaves_the_rest_of_its_input_alone():
    done = subprocess.run(
        ["sh", "-c", '"$@" head -c 4; cat', "sh", *CLI, "run", "--"], input=b"1234rest", capture_output=True, timeout=60
    )
    assert b"1234rest" == done.stdout


def test_run_shows_output_as_it_comes():
    with start("--", "sh", "-c", "echo first; read x", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"first\n"
        process.communicate(b"\n", timeout=30)
    assert process.returncode == 1 or process.returncode == 0


@pytest.mark.parametrize(
    ("closing", "closed"), [("<&-", [0]), (">&-", [1]), ("2>&-", [2]), ("<&- >&- 2>&-", [0, 1, 2])]
)
def test_run_hands_on_nothing_where_a_stream_is_closed(closing, closed, tmp_path):
    script = 'for fd in 0 1 2; do seen="$seen$(readlink /proc/$$/fd/$fd)|"; done; echo "$seen" >/seen/streams'
    words = [*CLI, "run", "--bind", f"{tmp_path}:/seen", "--", "sh", "-c", script]
    tmp_path.chmod(0o777)
    assert subprocess.run(["sh", "-c", f'"$@" {closing}', "sh", *words], timeout=60).returncode == 0
    seen = (tmp_path / "streams").read_text().split("|")
    assert ["/dev/null"] * len(closed) == [seen[fd] for fd in closed]


def test_run_gives_the_command_no_descriptor_of_the_caller():
    with open("/etc/hostname") as file:
        shown = run("--", "ls", "/proc/self/fd", pass_fds=[file.fileno()], text=True).stdout
    assert ["0", "1", "2", "3"] == shown.split()  # 3 is the directory that ls reads


@pytest.mark.parametrize("words", [["explain", "true"], ["--help"]])
def test_a_reader_that_leaves_is_no_error(words):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*CLI, *words], stdout=write, stderr=subprocess.PIPE, timeout=60)
    os.close(write)
    assert (141, b"") == (done.returncode, done.stderr)


# --- Isolation, and the options that relax it


def test_run_isolates():
    script = "hostname; id -u; ls /home /root | wc -w; env | sort; cat /proc/[0-9]*/comm | sort -u"
    shown = output("--", "sh", "-c", script, env={**os.environ, "SECRET": "x"}).splitlines()
    assert shown[:2] == ["container", "0"]
    assert "SECRET=x" not in shown
    assert {"cat", "init", "sh", "sort"} >= set(shown[shown.index("PWD=/") + 1 :])


def test_run_takes_names_and_variables():
    words = ["--hostname", "h1", "--domainname", "d1", "-e", "A=b c", "-e", "FROM_HERE", "--cwd", "/tmp", "--umask=077"]
    script = "hostname; cat /proc/sys/kernel/domainname; echo $A $FROM_HERE; pwd; umask"
    assert ["h1", "d1", "b c yes", "/tmp", "0077"] == output(
        *words, "--", "sh", "-c", script, env={**os.environ, "FROM_HERE": "yes"}
    ).splitlines()


def test_run_takes_roots(tmp_path):
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    for directory in (lower, upper):
        directory.mkdir()
    (lower / "file").write_text("below\n")
    for name in ("usr", "bin", "lib", "lib64"):
        place = lower / name
        if os.path.islink(f"/{name}"):
            place.symlink_to(os.readlink(f"/{name}"))
        elif os.path.isdir(f"/{name}"):
            place.mkdir()
    programs = ["--bind", "/usr:/usr:ro"]
    assert "below\n" == output("--rootfs", lower, *programs, "cat", "/file")
    assert "below\n" == output("--overlay", lower, *programs, "cat", "/file")
    output("--overlay", lower, "--upper", upper, *programs, "--", "sh", "-c", "echo above > /file")
    assert ("below\n", "above\n") == ((lower / "file").read_text(), (upper / "file").read_text())
    assert run("--rootfs", lower, "--readonly", *programs, "--", "sh", "-c", "echo x > /file").returncode != 0
    assert "below\n" == (lower / "file").read_text()


def test_run_takes_a_root_in_memory():
    programs = [f"--bind=/{name}:/{name}:ro" for name in ("usr", "bin", "lib", "lib64") if os.path.isdir(f"/{name}")]
    words = ["--tmpfs-root", "--root-size=1M", *programs]
    assert ["1024"] == output(*words, "--", "df", "--output=size", "/").split()[-1:]


def test_run_takes_mounts(tmp_path):
    (tmp_path / "in").write_text("seen\n")
    shown = output("--bind", f"{tmp_path}:/data:ro", "--tmpfs", "/scratch:1M", "--mount",
                   "type=tmpfs,target=/more,size=2m,mode=700", "--", "sh", "-c",
                   "cat /data/in; touch /data/x 2>/dev/null || echo refused; df --output=size /scratch /more | tail -n 2;"
                   " stat -c %a /more")  # fmt: skip
    assert ["seen", "refused", "1024", "2048", "700"] == shown.split()
    assert ["in"] == os.listdir(tmp_path)


def test_run_takes_a_relative_bind(tmp_path):
    (tmp_path / "in").write_text("seen\n")
    assert "seen\n" == output("--bind", ".:/w", "--cwd", "/w", "cat", "in", cwd=tmp_path,
                              env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path[1:]))})  # fmt: skip


def test_run_takes_users():
    assert ["0", "0"] == output("--", "sh", "-c", "id -u; id -g").split()
    if os.geteuid() == 0:
        assert ["7", "8"] == output("--user", "7:8", "--", "sh", "-c", "id -u; id -g").split()
        assert ["65534"] == output("--user", "nobody", "id", "-u").split()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="other users take root")
def test_run_sets_the_home_of_the_user():
    def home(*options):
        return output(*options, "--", "sh", "-c", "echo $HOME $A")

    assert ["/root\n", "/usr/sbin\n", "/\n"] == [home(), home("--user", "daemon"), home("--user", "1")]
    assert "/usr/sbin b\n" == home("--user", "daemon", "--env", "A=b")
    assert "/x\n" == home("--user", "daemon", "--env", "HOME=/x")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="id maps of other ids than one's own take root")
def test_run_takes_id_maps():
    shown = output("--uid-map", "0:7000:10", "--gid-map", "0:8000:10", "--", "sh", "-c", "cat /proc/self/?id_map")
    assert ["0", "8000", "10", "0", "7000", "10"] == shown.split()


def test_run_takes_namespaces():
    def mine(kind):
        return os.readlink(f"/proc/self/ns/{kind}")

    assert mine("uts") == output("--namespace", "uts=host", "readlink", "/proc/self/ns/uts").strip()
    assert mine("net") == output("--share-net", "readlink", "/proc/self/ns/net").strip()
    assert mine("net") != output("readlink", "/proc/self/ns/net").strip()


def test_run_joins_the_namespace_of_a_process():
    with start("--", "sh", "-c", "echo ready; read x", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"ready\n"
        with open(f"/proc/{other.pid}/task/{other.pid}/children") as file:
            pid = file.read().split()[-1]
        if os.geteuid() == 0:
            joined = output("--namespace", f"ipc={pid}", "--namespace", f"user={pid}", "readlink", "/proc/self/ns/ipc")
            assert os.readlink(f"/proc/{pid}/ns/ipc") == joined.strip()
        other.communicate(b"\n", timeout=30)


def test_run_takes_limits_of_a_process():
    script = "ulimit -n; nice; cat /proc/sys/net/ipv4/ip_default_ttl"
    words = ["--rlimit", "nofile=64", "--nice", "5", "--sysctl", "net.ipv4.ip_default_ttl=33"]
    assert ["64", "5", "33"] == output(*words, "--", "sh", "-c", script).split()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="making control groups takes root")
def test_run_takes_limits():
    done = run("--memory=64M", "--pids=20", "--cpus=1.5", "--time", "tail", "/dev/zero", text=True)
    assert (137, "") == (done.returncode, done.stdout)
    assert "containerkit: tail: the kernel killed it because it was out of memory\n" in done.stderr
    assert "\nmemory   " in done.stderr


def test_run_takes_capabilities():
    def held(*words):
        return int(output(*words, "sed", "-n", "s/^CapEff:.//p", "/proc/self/status"), 16)

    assert (0, 1 << 10, 0xA80425FB) == (held(), held("--cap", "net_bind_service"), held("--cap", "docker"))
    assert 1 << 10 | 1 << 12 == held("--cap", "CAP_NET_ADMIN", "--cap=net_bind_service")


def test_run_takes_seccomp_profiles(tmp_path):
    profile = tmp_path / "profile.json"
    rules = [{"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    mode = ["sed", "-n", "s/^Seccomp:.//p", "/proc/self/status"]
    assert ["2", "0"] == [output(*mode).strip(), output("--seccomp", "none", *mode).strip()]
    done = run("--seccomp", profile, "uname", text=True)
    assert "Function not implemented" in done.stderr
    assert run("--seccomp", tmp_path / "nothing", "true").returncode == 125


def test_run_takes_new_privileges():
    status = ["sed", "-n", "s/^NoNewPrivs:.//p", "/proc/self/status"]
    assert ["1", "0"] == [output(*status).strip(), output("--new-privs", *status).strip()]


def test_run_takes_set_id_bits(tmp_path):
    (tmp_path / "program").touch()
    command = ["--bind", f"{tmp_path}:/shown", "chmod", "4755", "/shown/program"]
    refused = run(*command, text=True)
    assert (1, True) == (refused.returncode, "Operation not permitted" in refused.stderr)
    assert 0 == run("--set-id-bits", *command).returncode
    assert 0o4755 == (tmp_path / "program").stat().st_mode & 0o7777


# --- Time and signals


def test_run_kills_at_the_timeout_and_reports_it():
    began = time.monotonic()
    done = run("--timeout", "0.3", "--", "sh", "-c", "echo begun; sleep 60 & sleep 60", text=True)
    assert (124, "begun\n", "containerkit: sh: the timeout of 0.3 s expired\n") == (
        done.returncode, done.stdout, done.stderr,
    )  # fmt: skip
    assert time.monotonic() - began < 20


def test_run_reports_the_time():
    done = run("--time", "--", "sh", "-c", "sleep 0.2; exit 4", text=True)
    figures = {line[:8].strip(): line[8:].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 4
    assert {"start", "real", "user", "sys"} <= set(figures)
    assert 0.2 <= float(figures["real"].split()[0]) < 20


@pytest.fixture
def heeded():
    """Reset an ignored signal for started processes. This process ignores it in the background of a script or under nohup."""
    former = {}
    yield lambda number: former.setdefault(number, signal.signal(number, signal.SIG_DFL))
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]
)
def test_run_passes_signals_on(number, heeded):
    heeded(number)
    script = f"trap 'echo got; exit 9' {number.value}; echo ready; while :; do sleep 0.05; done"
    with start("--", "sh", "-c", script, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        rest = process.communicate(timeout=30)
    assert (9, b"got\n", b"") == (process.returncode, *rest)


def test_run_ends_by_the_signal_that_the_command_does_not_handle():
    with start("--", "sh", "-c", "echo ready; exec sleep 60", stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM


def test_run_keeps_ignoring_what_it_was_started_to_ignore():
    script = "echo ready; sleep 0.5; exit 3"
    with start("--", "sh", "-c", script, stdout=subprocess.PIPE,
               preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as process:  # fmt: skip
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        assert process.wait(30) == 3


def test_run_leaves_nothing_when_it_is_killed():
    script = "echo ready; sleep 60 & setsid sleep 60 & sleep 60"
    with start("--", "sh", "-c", script, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        began = time.monotonic()
        # All processes inside have the pipe open, so it ends when all have ended.
        assert select.select([process.stdout], [], [], 10)[0]
        assert process.stdout.read() == b""
        assert time.monotonic() - began < 20
    assert process.returncode == -signal.SIGKILL


def test_run_ends_what_the_command_leaves_running():
    began = time.monotonic()
    done = run("--", "sh", "-c", "sleep 60 & echo done")
    assert (0, b"done\n") == (done.returncode, done.stdout)
    assert time.monotonic() - began < 20


# --- The other commands


def test_explain_lists_what_is_done_and_does_not_do_it(tmp_path):
    done = subprocess.run(
        [*CLI, "explain", "--hostname", "h1", "--bind", f"{tmp_path}:/w", "--", "touch", "/w/made"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (0, "") == (done.returncode, done.stderr)
    first, second = done.stdout.split("\n\n")
    assert first.startswith("the container: ")
    assert second.startswith("the command: ")
    steps = [line.split(maxsplit=1)[1] for line in first.splitlines()[1:]]
    assert "sethostname h1" in steps
    assert steps.index(f"open_tree {tmp_path}") < steps.index("move_mount /w") < steps.index("pivot_root .")
    assert "execve" in second.splitlines()[-1]
    assert [] == os.listdir(tmp_path)


def test_probe_reports_for_people_and_for_programs():
    shown = subprocess.run([*CLI, "probe"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.startswith(f"Linux {os.uname().release} on {os.uname().machine}, ")
    report = json.loads(subprocess.run([*CLI, "probe", "--json"], capture_output=True, timeout=60, check=True).stdout)
    assert os.uname().release == report["kernel"]
    assert report["user_namespaces"]["available"] is True
    assert sorted(report["namespace_kinds"]) == report["namespace_kinds"]


def test_gc_finds_nothing_to_do():
    done = subprocess.run([*CLI, "gc"], capture_output=True, text=True, timeout=60)
    assert (0, "") == (done.returncode, done.stderr)
    again = subprocess.run([*CLI, "gc", "--quiet"], capture_output=True, text=True, timeout=60)
    assert (0, "", "") == (again.returncode, again.stdout, again.stderr)


def test_version_is_the_package_s():
    from containerkit import __version__

    shown = subprocess.run([*CLI, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert f"containerkit {__version__}\n" == shown
