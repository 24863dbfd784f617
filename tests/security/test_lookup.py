"""No path of a container leads to a program of the caller. Each path is attempted in each way to start a command.

While the kernel looks up a program it follows the path, its symlinks, its ``#!`` line and its ELF interpreter. The
container controls all of them. So the process that executes it must have nothing of the caller: no descriptor
(``/proc/self/fd``) and no program (``/proc/self/exe``).
"""

import contextlib
import itertools
import json
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import lookup_child
import pytest
from examples import examples

import containerkit
from containerkit import RootFS, SetupError, SpecError, run
from containerkit.plan import calls
from containerkit.start import context

MARK = "program of the host"
NUMBERS = range(3, 48)
OTHERS = ("exe", "thread", "task", "init", "cwd", "root", "roots")
KINDS = ("link", "script", "relative", "chain", "elf", "direct")
PRIVILEGED = [
    way
    for way in lookup_child.WAYS
    if any(word in way for word in ("user host", "limits", "full group", "on a network"))
]
# If a start needs its own address space, or the memory of PID 1, it can't run without the remedy at all.
CONTROLS = ["run", "run without init", "run, time host", "container, time host", "sandbox"]

VICTIM = f"""
static long call(long n, long a, long b, long c) {{
    long r;
#if defined(__x86_64__)
    __asm__ volatile("syscall" : "=a"(r) : "0"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
#else
    register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
    r = x0;
#endif
    return r;
}}
#include <sys/syscall.h>
void _start(void) {{
    static const char said[] = "{MARK}\\n";
    call(SYS_write, 1, (long)said, sizeof said - 1);
    call(SYS_exit_group, 0, 0, 0);
    for (;;) {{ }}
}}
"""


def elf(interpreter):
    """Return a program that consists only of the name of its ELF interpreter."""
    name = interpreter.encode() + b"\0"
    machine = {"x86_64": 62, "aarch64": 183}[os.uname().machine]
    header = struct.pack(
        "=16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, machine, 1, 0x400000, 64, 0, 0, 64, 56, 2, 0, 0, 0
    )
    at = 64 + 2 * 56
    segments = struct.pack("=IIQQQQQQ", 3, 4, at, 0x400000 + at, 0, len(name), len(name), 1)
    segments += struct.pack("=IIQQQQQQ", 1, 5, 0, 0x400000, 0, at + len(name), at + len(name), 0x1000)
    return header + segments + name


def write(path, content, mode=0o755):
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())
    os.chmod(path, mode)


@contextlib.contextmanager
def open_directory():
    """A directory that every user can enter. Those of pytest are closed to others."""
    with tempfile.TemporaryDirectory(prefix="containerkit-lookup-") as path:
        os.chmod(path, 0o755)
        yield Path(path)


@pytest.fixture(scope="module")
def victim():
    """A program of the host that is shown to no container."""
    with open_directory() as directory:
        yield compiled_victim(directory)


def compiled_victim(directory):
    source, program = directory / "victim.c", directory / "victim"
    source.write_text(VICTIM)
    flags = ("-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie")
    subprocess.run(["gcc", "-O1", *flags, "-o", str(program), str(source)], check=True)
    assert f"{MARK}\n" == subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    return program


@pytest.fixture(scope="module")
def root(victim):
    """A root filesystem with names that lead to something of the caller, if possible."""
    with open_directory() as directory:
        yield filled_root(directory, victim)


def filled_root(directory, victim):
    for name in ("proc", "sys", "dev", "tmp"):
        (directory / name).mkdir()
    for number in NUMBERS:
        plant(directory, f"{number}", f"/proc/self/fd/{number}" + "/.." * 12 + str(victim))
    paths = [
        "/proc/self/exe",
        "/proc/thread-self/exe",
        "/proc/self/task/1/exe",
        "/proc/1/exe",
        "/proc/self/cwd" + "/.." * 12 + str(victim),
        "/proc/self/root" + "/.." * 12 + str(victim),
        "/proc/1/root" + "/.." * 12 + str(victim),
    ]
    for name, path in zip(OTHERS, paths, strict=True):
        plant(directory, name, path)
    return directory


def plant(directory, name, path):
    """Make programs that name a path in each way that the kernel follows: of each of KINDS but the last, one."""
    code = f"print({MARK!r})\n"
    (directory / f"link-{name}").symlink_to(path)
    write(directory / f"script-{name}", f"#!{path}\n{code}")
    write(directory / f"relative-{name}", f"#!{path[1:]}\n{code}")
    write(directory / f"chain-{name}", f"#!/script-{name}\n{code}")
    write(directory / f"elf-{name}", elf(path))


def programs(root):
    return sorted(f"/{entry.name}" for entry in root.iterdir() if "-" in entry.name)


def direct(victim):
    """Return paths to the same files outside the root, for use as argv[0]."""
    above = "/.." * 12 + str(victim)
    return ["/proc/self/exe", "/proc/1/exe", *[f"/proc/self/fd/{number}{above}" for number in NUMBERS]]


class Caller:
    """A process that starts programs as it is asked, in one way after another."""

    def __init__(self, root, guard, prefix=()):
        environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(containerkit.__file__))}
        command = [*prefix, sys.executable, lookup_child.__file__, str(root), guard]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def ask(self, way, names):
        self.process.stdin.write(f"{json.dumps([way, names])}\n".encode())
        self.process.stdin.flush()

    def answer(self):
        """Return the results by name."""
        line = self.process.stdout.readline()
        assert line, "the caller has ended"
        return json.loads(line)

    def has_answered(self):
        return bool(select.select([self.process.stdout], [], [], 0)[0])


@contextlib.contextmanager
def callers(root, prefix=()):
    """Yield a function that returns the caller with or without the remedy. It starts those that are not there, or no more."""
    started = {}

    def of(guard):
        if guard not in started or started[guard].process.poll() is not None:
            started[guard] = Caller(root, guard, prefix)
        return started[guard]

    yield of
    for each in started.values():
        with each.process:
            each.process.stdin.close()


@pytest.fixture(scope="module")
def attempts(root):
    """A function that starts programs in a way, and returns the results by name."""
    with callers(root) as of:

        def attempt(way, names, guard="guarded"):
            caller = of(guard)
            caller.ask(way, names)
            return caller.answer()

        yield attempt


@pytest.fixture
def way(request):
    if request.param in PRIVILEGED and os.geteuid() != 0:
        pytest.skip(f"{request.param}: root")
    return request.param


def some(way, names):
    """Return the names that are attempted in a way.

    In two ways, and in the nightly run, these are all: each descriptor's number, and each other path, by each kind of
    name. In each of the other ways a path is attempted by one kind of name, the next kind in the next way: how a path came
    about decides how the kernel follows it, and the way to start decides which descriptors it may find.
    """
    if examples(ci=way in ("run", "sandbox"), nightly=True):
        return names
    turn = list(lookup_child.WAYS).index(way)
    kept = []
    for name in names:
        found = re.fullmatch(r"/(?:([a-z]+)-|proc/self/fd/)([0-9]+|[a-z]+)(?:/\.\..*)?", name)
        if found is None:
            wanted = True
        elif found[2].isdigit():
            wanted = (found[1] or "direct") == KINDS[(int(found[2]) + turn) % len(KINDS)]
        else:
            wanted = found[1] == KINDS[(OTHERS.index(found[2]) + turn) % (len(KINDS) - 1)]
        if wanted:
            kept.append(name)
    return kept


def test_each_path_is_attempted_with_each_kind_of_name():
    names = [f"/{kind}-{path}" for kind in KINDS[:-1] for path in (*NUMBERS, *OTHERS)]
    names += direct("/victim")
    others = [way for way in lookup_child.WAYS if way not in ("run", "sandbox", *PRIVILEGED)]
    assert len(KINDS) * (len(NUMBERS) + len(OTHERS)) - len(OTHERS) + 2 == len(names)
    assert set(names) == {name for way in others for name in some(way, names)}
    for way in others:
        tried = {re.search(r"(?:-|/fd/)(\w+)", name) for name in some(way, names)}
        assert {*map(str, NUMBERS), *OTHERS} == {found[1] for found in tried if found}


@pytest.mark.parametrize("way", lookup_child.WAYS, indirect=True)
def test_no_resource_of_the_caller_can_be_executed(way, root, victim, attempts):
    names = some(way, programs(root) + (direct(victim) if way != "sandbox" else []))
    found = attempts(way, names)
    assert set(names) == set(found)
    if way == "sandbox":  # it has the host's files, if they are allowed; only the caller's own things count
        found = {name: told for name, told in found.items() if not re.search("-(cwd|root|roots|init)$", name)}
    assert {} == {name: told for name, told in found.items() if MARK in told or "status 0" in told}


@pytest.mark.parametrize("way", CONTROLS, indirect=True)
def test_resources_of_the_caller_can_be_executed_without_the_remedy(way, root, attempts):
    names = [name for name in programs(root) if not re.search("-([6-9]|[1-9][0-9])$", name)]  # it has 3 and 4
    found = attempts(way, names, "unguarded")
    reached = {re.sub("[0-9]+", "N", name) for name, told in found.items() if MARK in told}
    assert {"/link-N", "/script-N", "/elf-N"} <= reached, found
    if way != "sandbox":  # it has the host's names: no /script-N, and no procfs in its working directory
        assert {"/chain-N", "/script-exe", "/relative-N"} <= reached, found


def test_no_resource_of_the_caller_can_be_the_working_directory(root, victim):
    """CVE-2024-21626."""
    shutil.copy(victim, root / "quick")
    for number in NUMBERS:
        for below, error in (("", SetupError), ("/..", SpecError), ("/tmp", SetupError)):
            with pytest.raises(error, match=r"/proc/self/fd"):
                run(["/quick"], rootfs=RootFS.dir(root), cwd=f"/proc/self/fd/{number}{below}", init=number % 2 == 0)


def test_program_that_is_the_sealed_init_says_so(root):
    done = run(["/script-exe"], rootfs=RootFS.dir(root), text=True, timeout=60)
    assert (126, "containerkit: the sealed init of a container is not an interpreter\n") == (
        done.returncode,
        done.stderr,
    )


@pytest.mark.parametrize("init", [True, False])
def test_no_program_is_looked_up_in_memory_that_is_shared(root, victim, monkeypatch, init):
    """A plan that does not enter the init does not reach its exec."""
    shutil.copy(victim, root / "quick")
    monkeypatch.setattr(calls, "enter", lambda *_, **__: calls.call("getuid"))
    context.programs.kept.clear()
    try:
        with pytest.raises(SetupError, match=r"strip .*Invalid argument"):
            run(["/quick"], rootfs=RootFS.dir(root), init=init)
    finally:
        context.programs.kept.clear()


def test_argument_that_names_a_mode_of_the_init_has_no_effect(root):
    """Run ``#!/proc/self/exe walk``. At most it starts the init's mode, as the container's own process."""
    for mode in ("walk", "run", "stay"):
        write(root / f"mode-{mode}", f"#!/proc/self/exe {mode}\n")
        done = run([f"/mode-{mode}", "0", "0"], rootfs=RootFS.dir(root), text=True, timeout=60)
        assert done.cause in ("exit", "signal")
        assert done.returncode != 0


# --- Names that change under the look-up --------------------------------------------------------------------------------


def test_program_that_is_replaced_during_its_lookup(root, victim):
    """A process outside continuously exchanges a harmless program and one that names the host's."""
    write(root / "harmless", victim.read_bytes().replace(MARK.encode(), b"h" * len(MARK)))
    ended = threading.Event()

    def swap():
        turn = 0
        targets = ["harmless", *[f"script-{number}" for number in range(14, 24)], "script-exe"]
        while not ended.is_set():
            turn += 1
            other = root / "swapped.new"
            other.symlink_to(targets[turn % len(targets)])
            other.rename(root / "swapped")

    (root / "swapped").symlink_to("harmless")
    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for turn in range(examples(ci=100, nightly=300)):
            try:
                done = run(["/swapped"], rootfs=RootFS.dir(root), text=True, timeout=10, init=turn % 2 == 0)
                seen.add(done.stdout.strip())
            except OSError:
                seen.add("refused")
    finally:
        ended.set()
        thread.join()
    assert MARK not in seen
    assert "h" * len(MARK) in seen  # the harmless one was executed too


# --- What exists at the exec --------------------------------------------------------------------------------------------

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")
SCANNED = [way for way in lookup_child.WAYS if "full group" not in way] + list(lookup_child.FLEETS)


def at_the_exec(process, belongs=None, is_over=None):
    """Return the descriptors of processes that are about to execute a program by path, where strace stops them.

    Args:
        process: the caller. The search ends with it.
        belongs: tells of a pid, and of the caller, whether it is one of them (default: by descent).
        is_over: tells whether the search ends before the caller does.
    """
    found = set()
    while process.poll() is None and not (is_over and is_over()):
        for pid in below(process.pid) if belongs is None else filter(str.isdigit, os.listdir("/proc")):
            try:
                call, path = Path(f"/proc/{pid}/syscall").read_text().split()[:2]
                if path == "0x0":  # it has just executed the init, which the kernel reports as an execve too
                    continue
                program = os.readlink(f"/proc/{pid}/exe")
                if call != EXECVE or (belongs is not None and not belongs(pid, process.pid)):
                    continue
                if "memfd:init" in program:
                    found.update(os.listdir(f"/proc/{pid}/fd"))
                elif "python" in program:
                    found.add("the interpreter")
            except (OSError, ValueError):
                continue
        time.sleep(0.02)  # strace holds each of them up for fifteen times as long
    return found


EXECVE = {"x86_64": "59", "aarch64": "221"}[os.uname().machine]


def below(ancestor):
    """Return the pids of all that descend from a process."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{ancestor}/task"):
            with contextlib.suppress(OSError):
                found += Path(f"/proc/{ancestor}/task/{thread}/children").read_text().split()
    return [*found, *itertools.chain(*map(below, found))]


@pytest.fixture(scope="module")
def scan(root, victim):
    """A function that starts a program in a way, and returns what :func:`at_the_exec` finds."""
    shutil.copy(victim, root / "quick")
    delay = ("-e", "trace=execve", "-e", "inject=execve:delay_enter=300000")
    with callers(root, ("strace", "-f", "-q", "-o", "/dev/null", *delay)) as of:

        def look(way, guard):
            if "on a network" in way:
                of(guard).ask(way, ["/quick"])  # opens the network
                of(guard).answer()
            for _ in range(4):  # on a busy machine it may be over before it is inspected
                caller = of(guard)
                caller.ask(way, ["/quick"])
                found = at_the_exec(caller.process, is_over=caller.has_answered)
                caller.answer()
                if found:
                    break
            return found

        yield look


@needs_strace
@pytest.mark.parametrize("way", SCANNED, indirect=True)
def test_command_has_only_its_own_descriptors_at_its_exec(way, scan):
    if os.geteuid() != 0 and ("sandbox" in way or "joined" in way):
        pytest.skip(f"{way}: root: such a process is out of an unprivileged user's sight until its exec")
    assert {"0", "1", "2"} == scan(way, "guarded")


@needs_strace
@pytest.mark.parametrize("way", lookup_child.INTERPRETERS)
def test_interpreter_holds_its_socket_too_at_its_exec(way, scan):
    """The forks of a zygote and of an interpreter execute nothing: see test_forks.py."""
    found = scan(way, "guarded")
    assert ({"0", "1", "2"}, 4) == (found & {"0", "1", "2"}, len(found))


by_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="root: such a process is out of an unprivileged user's sight until its exec"
)


@needs_strace
@pytest.mark.parametrize("way", ["run", pytest.param("held by a fleet, time host", marks=by_root), "task of a fleet"])
def test_command_has_more_descriptors_without_the_remedy(way, scan):
    assert "the interpreter" in scan(way, "unguarded")
