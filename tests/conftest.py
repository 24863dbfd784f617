"""What all tests share: which interpreter walks the tapes, what a test must not leave behind, what was skipped and why."""

import contextlib
import gc
import os
import re
import time
from collections import Counter

import pytest

INTERPRETERS = ("compiled", "reference")


def pytest_addoption(parser):
    parser.addoption(
        "--interpreter",
        choices=(*INTERPRETERS, "both"),
        default="compiled",
        help="who walks the tapes in the tests that start containers (default: compiled)",
    )


def pytest_generate_tests(metafunc):
    if "interpreter" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--interpreter")
        names = INTERPRETERS if chosen == "both" else (chosen,)
        metafunc.parametrize("interpreter", names, indirect=True, scope="function")


def pytest_collection_finish():
    """Let each test collect its own garbage alone: to look through all that was imported took half of the run."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    if item.get_closest_marker("several_ids") is not None and os.geteuid() != 0:
        pytest.skip("root, or a user with more ids than its own: one is mapped here")


def use_interpreter(name):
    """Let every plan be compiled for that interpreter from now on."""
    from containerkit import _native, ground
    from containerkit._native import compiled, reference

    _native._cache["interpreter"] = {"compiled": compiled, "reference": reference}[name]
    ground.programs.kept.clear()


@pytest.fixture
def interpreter(request):
    """The name of the interpreter that this test runs with."""
    from containerkit import _native

    before = _native.interpreter().NAME
    if before != request.param:
        use_interpreter(request.param)
    yield request.param
    if before != request.param:
        use_interpreter(before)


# --- What is left behind -----------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\d+")
_KEPT = re.compile(r"/run/containerkit/ids/|/proc/\d+/mounts$|\(deleted\)$")
_RUN = "/run/containerkit"


def open_descriptors():
    """Return what this process has open, as a count by kind: numbers of inodes and processes do not matter."""
    found = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not _KEPT.search(target) and f"/proc/{os.getpid()}/fd" != target:
                found[_NUMBER.sub("N", target)] += 1
    return found


def children():
    """Return the pids of all children of this process, zombies included."""
    found = set()
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            found.update(map(int, file.read().split()))
    return found


def mounts():
    """Return the (id, mount point) pairs of this process's mount namespace; other people's folders are not looked at."""
    with open("/proc/self/mountinfo") as file:
        found = {(line.split()[0], line.split()[4]) for line in file}
    return {
        (number, point)
        for number, point in found
        if "/pytest-of-" in point or not point.startswith(("/tmp/", "/var/tmp/"))
    }


def own_cgroups():
    """Return the control groups that this process has made."""
    found = set()
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        found.update(f"{folder}/{name}" for name in names if name.startswith(f"containerkit.{os.getpid()}."))
    return found


def run_entries():
    """Return what lies in containerkit's folder below /run, without the lock files."""
    found = set()
    for folder, names, files in os.walk(_RUN):
        found.update(f"{folder}/{name}" for name in (*names, *files) if folder != f"{_RUN}/ids")
    return found - {f"{_RUN}/ids"}


def _traces():
    gc.collect()
    return {
        "descriptors": open_descriptors(),
        "children": Counter(children()),
        "mounts": Counter(mounts()),
        "cgroups": Counter(own_cgroups()),
        "run": Counter(run_entries()),
    }


def left_behind(before, patience_s=1.5):
    """Return what is there now and was not before; waits a little, since the kernel reaps and unmounts lazily."""
    deadline = time.monotonic() + patience_s
    while True:
        now = _traces()
        left = {kind: now[kind] - before[kind] for kind in before}
        left = {kind: dict(extra) for kind, extra in left.items() if extra}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def warm_up():
    """Make what a process makes once and keeps: the staging namespaces, init's memfd, the locked id ranges."""
    from containerkit import Container, Namespaces, RootFS

    release = tuple(int(word) for word in os.uname().release.split("-")[0].split(".")[:2])
    user = "new" if release >= (6, 3) else "host"  # id-mapped tmpfs mounts came with Linux 6.3
    for rootfs in (RootFS.host(), RootFS.tmpfs()):
        with Container(rootfs, namespaces=Namespaces(user=user)):
            pass


_warm = []


@pytest.fixture
def nothing_left():
    """Hold a test to leaving no descriptor, child, mount, control group or file of containerkit's behind."""
    if not _warm:
        warm_up()
        _warm.append(True)
    before = _traces()
    yield
    assert left_behind(before) == {}


# --- The skips ---------------------------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter):
    """Say how many tests were skipped for what."""
    reasons = Counter()
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("skipped, by reason")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5} {reason}")


# --- Containers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def box():
    """A running default container."""
    from containerkit import Container

    with Container() as container:
        yield container


_EXITING = 0x4  # PF_EXITING in the kernel's include/linux/sched.h


def _is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] not in "ZX" and not int(fields[6]) & _EXITING


@pytest.fixture
def is_alive():
    """Tells whether a process still runs; a zombie that the machine's init has not reaped, or a PID 1 that waits for
    such zombies in its exit, does not."""
    return _is_alive
