"""Shared fixtures and hooks: the interpreter of tapes, the check for leaks, and the summary of skipped tests."""

import contextlib
import faulthandler
import functools
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

import pytest

INTERPRETERS = ("compiled", "reference")

with contextlib.suppress(ImportError):  # guests do without
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "tests",
        max_examples=300 if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else 50,
        deadline=None,  # a loaded machine holds an example up for longer than any
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption(
        "--interpreter",
        choices=(*INTERPRETERS, "both"),
        default="compiled",
        help="who walks the tapes in the tests that start containers (default: compiled)",
    )
    parser.addoption(
        "--beside-root",
        action="store_true",
        help="leave out what root runs too: the modules that find for each user what they find for root, and its own tests",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    _configuration.append(config)
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        # A directory of this run alone. The one that all runs of a user share is closed to other users whenever one
        # begins, also those that tests start; and to remove a deep tree that a killed run left there fails each run.
        directory = tempfile.mkdtemp(prefix="pytest-")  # short, since paths of sockets lie below
        config.option.basetemp = f"{directory}/run"
        config.add_cleanup(functools.partial(_remove_tree, directory))
    if os.geteuid() and "XDG_RUNTIME_DIR" not in os.environ:  # without a session manager there is none
        directory = tempfile.mkdtemp(prefix="containerkit-")
        config.add_cleanup(functools.partial(shutil.rmtree, directory, ignore_errors=True))
        os.environ["XDG_RUNTIME_DIR"] = directory


def _remove_tree(directory):
    with open("/proc/self/mountinfo") as file:
        if any(line.split()[4].startswith(f"{directory}/") for line in file):
            return  # a test may have left mounts there
    if os.geteuid():  # overlayfs makes directories without any rights
        subprocess.run(["chmod", "-R", "u+rwX", "--", directory], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", "--", directory], check=False)  # shutil's removal recurses


def pytest_generate_tests(metafunc):
    if "interpreter" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--interpreter")
        names = INTERPRETERS if chosen == "both" else (chosen,)
        metafunc.parametrize("interpreter", names, indirect=True, scope="function")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers():
    """Use two workers for each processor, because tests wait most of the time, for the kernel and for each other."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return 2 * len(os.sched_getaffinity(0))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from scheduling import Scheduling

    return Scheduling(config, log)


def pytest_ignore_collect(collection_path, config):
    if not config.option.beside_root:
        return None
    from scheduling import SAME_FOR_EVERY_USER

    return True if collection_path.stem in SAME_FOR_EVERY_USER else None


def pytest_collection_modifyitems(config, items):
    """Deselect the slow tests, except in the nightly run and on request, and beside root's run the tests that need root."""
    asked = config.option.markexpr or any("::" in argument for argument in config.args)
    nightly = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
    unwanted = {"slow"} if not (asked or nightly) else set()
    if config.option.beside_root:
        unwanted.add("root")
    kept, left_out = [], []
    for item in items:
        (left_out if any(mark.name in unwanted for mark in item.iter_markers()) else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_collection_finish():
    """Freeze imported objects, so that each test collects only its own garbage. Otherwise this takes half of the run."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    if os.geteuid() == 0:
        _open_directories()
    if item.get_closest_marker("several_ids") is not None and os.geteuid() != 0:
        pytest.skip("root, or a user with more ids than its own: one is mapped here")


@pytest.hookimpl(optionalhook=True)
def pytest_timeout_set_timer(item, settings):
    """End a process whose test takes too long, as pytest-timeout does, with a visible message, and end its children.

    The output of pytest-timeout in a worker is lost. And while a child of the worker lives, it holds the pipe to the
    controller, which then waits for the worker for ever.
    """
    if settings.method != "thread":
        return None
    timer = threading.Timer(settings.timeout, _end_too_long, (item, settings.timeout))
    timer.daemon = True
    item.cancel_timeout = timer.cancel
    timer.start()
    return True


def _end_too_long(item, timeout_s):
    capture = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None:
        capture.suspend_global_capture(in_=True)
    print(f"\n+++ {item.nodeid} takes more than {timeout_s} s, and ends the run or its worker here:", file=sys.stderr)
    faulthandler.dump_traceback(sys.stderr)
    for pid in children():
        _kill_tree(pid)
    os._exit(1)


def _kill_tree(pid):
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts no others in the meantime
        below = children(pid)
        os.kill(pid, signal.SIGKILL)
        for child in below:
            _kill_tree(child)


def _open_directories():
    """Give the other users of some tests access to the tests' directories."""
    path = _configuration[0]._tmp_path_factory.getbasetemp()
    while path.name.startswith(("popen-", "pytest-", "run")):
        path.chmod(0o711)
        path = path.parent


def use_interpreter(name):
    """Compile every later plan for this interpreter."""
    from containerkit import _native
    from containerkit._native import compiled, reference
    from containerkit.container import run
    from containerkit.start import context

    _native._cache["interpreter"] = {"compiled": compiled, "reference": reference}[name]
    context.programs.kept.clear()
    run.recipes.clear()


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


# --- Leaks -----------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"\d+")
_KEPT = re.compile(r"/run/containerkit/ids/|/proc/\d+/mounts$|\(deleted\)$")
_RECORDS = "/run/containerkit/oci"
_OF_ROOTS = {
    "bin",
    "dev",
    "etc",
    "host",
    "lib",
    "lib64",
    "lower",
    "masked",
    "newroot",
    "proc",
    "sbin",
    "sys",
    "upper",
    "usr",
}
"""Where a mount would lie that has come out of a container, or out of what its root is assembled on."""
_configuration = []


def open_descriptors():
    """Return the open files of this process as a count by kind, without inode numbers and pids."""
    found = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not _KEPT.search(target) and f"/proc/{os.getpid()}/fd" != target:
                found[_NUMBER.sub("N", target)] += 1
    return found


def children(pid="self"):
    """Return the pids of all children of this process or of another one, zombies included."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
            found.update(map(int, file.read().split()))
    return found


def own_directory():
    """Return the directory of this run's temporary directories."""
    return str(_configuration[-1]._tmp_path_factory.getbasetemp())


def mounts():
    """Return (id, mount point) of the mounts that may belong to this run. Other programs mount at the same time."""
    with open("/proc/self/mountinfo") as file:
        found = {(line.split()[0], line.split()[4]) for line in file}
    below = f"{own_directory()}/"
    return {
        (number, point)
        for number, point in found
        if point.startswith(below) or (point.split("/")[1] in _OF_ROOTS and not point.startswith("/sys/fs/cgroup"))
    }


def own_cgroups():
    """Return the control groups that this process has made.

    A directory without others in it is not read: it has two links, and many files.
    """
    found, places = set(), ["/sys/fs/cgroup"]
    while places:
        with contextlib.suppress(OSError), os.scandir(places.pop()) as entries:  # others come and go
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name.startswith(f"containerkit.{os.getpid()}."):
                        found.add(entry.path)
                    with contextlib.suppress(OSError):
                        if entry.stat(follow_symlinks=False).st_nlink != 2:
                            places.append(entry.path)
    return found


def run_entries():
    """Return the records of the runtime's containers whose bundles are this run's own.

    Leases, networks and detached containers of other runs come and go beside them in /run/containerkit.
    """
    with contextlib.suppress(FileNotFoundError):
        return {name for name in os.listdir(_RECORDS) if _is_own_record(f"{_RECORDS}/{name}")}
    return set()


def _is_own_record(path):
    """Return whether one of its files names a bundle of this run. Unreadable records belong to others."""
    with contextlib.suppress(OSError):
        for name in os.listdir(path):
            with contextlib.suppress(OSError), open(f"{path}/{name}", "rb") as file:
                if own_directory().encode() in file.read():
                    return True
    return False


def _stagings():
    """Return the stagings of this process. A new one is made when the mounts of the host have changed."""
    from containerkit.start import staging

    return {id(kept) for _, kept in staging._keeper.kept.values()}


def _traces():
    gc.collect()
    return {
        "descriptors": open_descriptors(),
        "children": Counter(children()),
        "mounts": Counter(mounts()),
        "cgroups": Counter(own_cgroups()),
        "run": Counter(run_entries()),
    }


def _before():
    """Return the resources, and freeze the objects of now: garbage is searched for only among those to come."""
    before = _traces()
    gc.freeze()
    return before, _stagings()


def left_behind(before, stagings, patience_s=15):
    """Return the new resources. Wait a little, because the kernel reaps and unmounts lazily.

    The namespaces of a new staging do not count: it is made after other programs have mounted something.
    """
    deadline = time.monotonic() + patience_s
    while True:
        now = _traces()
        left = {kind: now[kind] - before[kind] for kind in before}
        if stagings != _stagings():
            for name in ("mnt:[N]", "user:[N]"):
                del left["descriptors"][name]
        left = {kind: dict(extra) for kind, extra in left.items() if extra}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


@functools.cache
def warm_up():
    """Make the resources that a process makes once and keeps: staging namespaces, the init's memfd, id ranges."""
    from containerkit import Container, ContainerError, Limits, Namespaces, RootFS, run

    release = tuple(int(word) for word in os.uname().release.split("-")[0].split(".")[:2])
    user = "new" if release >= (6, 3) else "host"  # id-mapped tmpfs mounts came with Linux 6.3
    for rootfs in (RootFS.host(), RootFS.tmpfs()):
        with Container(rootfs, namespaces=Namespaces(user=user)):
            pass
    with contextlib.suppress(ContainerError):  # where this user has a place for control groups
        run(["true"], limits=Limits())


@pytest.fixture(scope="session")
def forked():
    """Where ``forked_commands.run`` forks. It is there before a test's own fixtures look for what is left behind."""
    import forked_commands

    with forked_commands.started():
        yield


@pytest.fixture
def nothing_left():
    """Check that a test leaves no descriptor, child, mount, control group or file of containerkit behind."""
    warm_up()
    before, stagings = _before()
    yield
    assert left_behind(before, stagings) == {}


@pytest.fixture
def left_of():
    """A function that calls another one and returns the resources that it left behind; see :func:`left_behind`."""

    def watch(do):
        before, stagings = _before()
        do()
        return left_behind(before, stagings)

    return watch


# --- The skips ---------------------------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter):
    """Print how many tests were skipped for which reason, and how busy the workers were."""
    scheduling = sys.modules.get("scheduling")  # of the controller
    if scheduling is not None and scheduling.BUSY_S:
        busy = ", ".join(f"{name} {busy_s:.0f} s" for name, busy_s in sorted(scheduling.BUSY_S.items()))
        terminalreporter.line(f"time in tests: {busy}")
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
