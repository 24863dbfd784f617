"""The plugin for pytest: fixtures, tests that run in a container, and a look at what tests leave behind.

It is found by its entry point, and does nothing in suites that don't use it. It is made for pytest 8 and later.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import warnings
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from containerkit.pytest_plugin.fixtures import container, container_factory, image, network, project

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from containerkit.container.lifecycle import Container
    from containerkit.spec.mount import Mount

__all__ = ["container", "container_factory", "image", "network", "project"]

_MARK: Final = "container"
_LEAKS: Final = "containerkit leaks"
_OWN: Final = frozenset({"timeout", "writable", "user", "rootfs"})
"""The arguments of the marker that are no options of containers."""

_PATIENCE_S: Final = 5.0
"""The kernel reaps, closes and unmounts lazily."""

_DESCRIBED: Final = (
    "container(rootfs=None, *, timeout=None, writable=(), user=None, **options): run the test function itself in a "
    "fresh container; the options are those of containerkit.Container (limits, mounts, namespaces, ...), timeout is in "
    "seconds, writable are directories of the host that it can write to beside its tmp_path"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--container-leaks``."""
    group = parser.getgroup("containerkit", "containers")
    group.addoption(
        "--container-leaks",
        action="store_true",
        help="fail tests that leave mounts, children, control groups, descriptors or namespaces behind",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tell of the marker."""
    config.addinivalue_line("markers", _DESCRIBED)
    _leave_as_it_is(config)
    if config.getoption("--container-leaks", default=False):
        config.pluginmanager.register(_Leaks(), _LEAKS)


def _leave_as_it_is(config: pytest.Config) -> None:
    """Let pytest not rewrite the assertions of the whole library, as of all that comes with a plugin: that is slow."""
    hook = getattr(config.pluginmanager, "rewrite_hook", None)
    for name in ("_must_rewrite", "_marked_for_rewrite_cache"):
        known = getattr(hook, name, None)
        if isinstance(known, set):
            known.discard("containerkit")
        elif isinstance(known, dict):
            known.clear()


# --- Tests that run in a container


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test with the marker in a container of its own."""
    marker = item.get_closest_marker(_MARK)
    if marker is None or _is_left_out(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    leaks: _Leaks | None = item.config.pluginmanager.get_plugin(_LEAKS)
    if leaks is not None:
        leaks.look()
    reports = _reports(item, marker)
    if leaks is not None and (left := leaks.left()):
        reports.append(_failed(item, left, "teardown"))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # Fixtures of wider scope that tests before it have set up here, and that no test needs any more.
    item.session._setupstate.teardown_exact(nextitem)  # noqa: SLF001 - nobody else does it, since the test was not set up here
    return True


def _is_left_out(item: pytest.Item) -> bool:
    """Return whether no test is run, as with ``--setup-plan`` and the like."""
    return bool(item.config.getoption("setuponly", default=False) or item.config.getoption("setupplan", default=False))


def _reports(item: pytest.Item, marker: pytest.Mark) -> list[Any]:
    from containerkit.errors import ContainerError

    began = time.monotonic()
    try:
        told, why = _Place(item, marker).run()
    except (ContainerError, OSError) as error:
        told, why = [], f"the container of this test: {type(error).__name__}: {error}"
    hook = item.config.hook
    reports = [hook.pytest_report_from_serializable(config=item.config, data=_tuples(each)) for each in told]
    if why:
        reports.append(_lost(item, why, time.monotonic() - began))
    return reports


def _lost(item: pytest.Item, why: str, duration: float) -> pytest.TestReport:
    """Return the report of a test that ended without one, with its output so far."""
    from _pytest.skipping import evaluate_xfail_marks

    report = _failed(item, why, "call", duration)
    capture: Any = item.config.pluginmanager.getplugin("capturemanager")
    if capture is not None and capture.is_globally_capturing():
        # The file that its output went to is pytest's own, and the fork had the same.
        for name, text in zip(("stdout", "stderr"), capture.read_global_capture(), strict=True):
            if text:
                report.sections.append((f"Captured {name} call", text))
    expected = None if item.config.getoption("runxfail", default=False) else evaluate_xfail_marks(item)
    if expected is not None and expected.raises is None:
        report.outcome, report.wasxfail = "skipped", expected.reason
    return report


def _tuples(told: dict[str, Any]) -> dict[str, Any]:
    """Make tuples again of what JSON has made lists of."""
    for name in ("location", "longrepr"):
        if isinstance(told.get(name), list):
            told[name] = tuple(told[name])
    for name in ("sections", "user_properties"):
        told[name] = [tuple(each) for each in told.get(name, ())]
    return told


def _failed(item: pytest.Item, why: str, when: Literal["call", "teardown"], duration: float = 0.0) -> pytest.TestReport:
    keywords: dict[str, Literal[1]] = dict.fromkeys(item.keywords, 1)
    return pytest.TestReport(item.nodeid, item.location, keywords, "failed", why, when, duration=duration)


class _Place:
    """The container of one test.

    Args:
        item: the test.
        marker: what it says of the container.

    Raises:
        SpecError: a value is invalid.
    """

    def __init__(self, item: pytest.Item, marker: pytest.Mark) -> None:
        from containerkit.container.lifecycle import Container
        from containerkit.errors import SpecError

        if len(marker.args) > 1:
            raise SpecError("container: the marker takes one argument without a name, the root filesystem")
        given = {**dict(zip(("rootfs",), marker.args, strict=False)), **marker.kwargs}
        options = {name: value for name, value in given.items() if name not in _OWN}
        options["mounts"] = [*_shown(item, given.get("writable", ())), *options.get("mounts", ())]
        self.item = item
        self.timeout: float | None = given.get("timeout")
        self.user = given.get("user")
        self.container = Container(given.get("rootfs"), **options)

    def run(self) -> tuple[list[Any], str]:
        """Run the test, and return its reports as data, and what went wrong beside."""
        with self.container:
            joining = _Joining(self.container, self.user)
            read, write = os.pipe2(os.O_CLOEXEC)
            try:
                child = _forked()
                if child == 0:
                    _middle(joining, write, lambda: _tested(self.item))
                os.close(write)
                write = -1
                text, overdue = self._heard(read, child)
            finally:
                joining.close()
                os.close(read)
                if write >= 0:
                    os.close(write)
            cgroup = self.container.cgroup
            used = None if cgroup is None else cgroup.usage()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if overdue:
            return [], f"the test took longer than {self.timeout} seconds: its container was killed"
        try:
            return json.loads(text), ""
        except ValueError:
            how = f"exited with {status}" if status >= 0 else f"was ended by signal {-status}"
            oom = " (out of memory)" if used is not None and used.oom_killed else ""
            return [], f"the process of the test {how} before it had reported{oom}"

    def _heard(self, fd: int, child: int) -> tuple[bytes, bool]:
        """Read until the process of the test has ended: what it has left running may hold the pipe."""
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        os.set_blocking(fd, False)
        heard = bytearray()
        ended = False
        pidfd = os.pidfd_open(child)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            while True:
                left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
                ready = dict(poll.poll(left))
                if not ready:
                    return b"", True
                if fd in ready or pidfd in ready:
                    ended = ended or _read(fd, heard)
                if ended and fd in ready:
                    poll.unregister(fd)
                if pidfd in ready:
                    return bytes(heard), False
        finally:
            os.close(pidfd)


def _read(fd: int, heard: bytearray) -> bool:
    """Read the available bytes. Return True at the end."""
    with suppress(BlockingIOError):
        while chunk := os.read(fd, 65536):
            heard += chunk
        return True
    return False


def _shown(item: pytest.Item, writable: Any) -> list[Mount]:
    """Return the mounts by which a test finds its modules, to be read, and its temporary directory."""
    from containerkit.executor._calling import shown_directories
    from containerkit.spec.mount import Mount

    config = item.config
    directories = [str(config.rootpath), *(each for each in sys.path if os.path.isdir(each))]
    own = [str(config._tmp_path_factory.getbasetemp())] if hasattr(config, "_tmp_path_factory") else []  # noqa: SLF001 - there is no public one outside of fixtures
    places = [os.path.realpath(os.fspath(each)) for each in (*own, *writable)]
    read = [Mount.bind(each, each, readonly=True) for each in shown_directories(directories)]
    return [*read, *(Mount.bind(each, each) for each in places)]


class _Joining:
    """What a process needs to come into a container, opened beforehand; the modules are imported, too."""

    def __init__(self, container: Container, user: Any) -> None:
        import ctypes  # noqa: F401 - perform() wants it, and each child would import it anew

        from containerkit._native import constants as k
        from containerkit.compile.payload import be_root
        from containerkit.container.arguments import describe
        from containerkit.executor.zygote import confinement_of, group_files
        from containerkit.namespace import Kind
        from containerkit.plan import calls
        from containerkit.plan.operation import Slot
        from containerkit.security.direct import perform

        kinds = sum(kind.flag for kind in Kind if container.spec.namespaces[kind] != "host")
        command = describe(container.spec, ["pytest"], {"user": user})
        self._perform = perform
        self._files: list[int] = []
        self._time = container.namespace("time") if kinds & k.CLONE_NEWTIME else None
        group_files(container, self._files)
        with open(f"/proc/{container.pid}/setgroups", encoding="ascii") as file:
            sets_groups = file.read().strip() == "allow"
        join = calls.setns(Slot("target"), kinds & ~k.CLONE_NEWTIME, "the container's namespaces", "it has stopped")
        clock = [] if self._time is None else [calls.setns(Slot("time"), 0, "the time namespace", "it has stopped")]
        self._slots = {"target": container.fileno()}
        if self._time is not None:
            self._slots["time"] = self._time.fileno()
        self._enter = [join, *(be_root() if kinds & k.CLONE_NEWUSER else ()), *clock]
        self._confine = confinement_of(command, sets_groups=sets_groups)

    def enter(self) -> None:
        """Join the groups and namespaces; the pid namespace is that of the next child."""
        for fd in self._files:
            os.write(fd, b"0")
        self._perform(self._enter, self._slots)

    def confine(self) -> None:
        """Give up what a command has not."""
        self._perform(self._confine)

    def close(self) -> None:
        """Close what was opened."""
        from containerkit.descriptors import close_all

        close_all(self._files)
        if self._time is not None:
            self._time.close()


def _forked() -> int:
    with warnings.catch_warnings():  # of other threads: the child has none of them, and only runs a test
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _middle(joining: _Joining, write: int, do: Callable[[], bytes]) -> None:
    """Come into the container, and let a child do the rest, which is in its pid namespace; wait for it."""
    code = 1
    try:
        where = os.getcwd()
        joining.enter()
        child = _forked()
        if child == 0:
            joining.confine()
            with suppress(OSError):  # it is not shown
                os.chdir(where)
            text = memoryview(do())
            while text:
                text = text[os.write(write, text) :]
            code = 0
        else:
            os.close(write)
            ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if ended < 0:  # it ends as the test did
                with suppress(OSError, ValueError):
                    signal.signal(-ended, signal.SIG_DFL)
                os.kill(os.getpid(), -ended)
            code = ended
    except BaseException as error:  # noqa: BLE001 - there is no other way to tell of it
        os.write(2, f"containerkit: the container of this test: {error}\n".encode())
    finally:
        os._exit(code)


def _tested(item: pytest.Item) -> bytes:
    """Run a test, here, and return its reports. Only what it set up by itself is taken down again: its parent stays."""
    import gc

    from _pytest.runner import runtestprotocol

    gc.freeze()  # a look through all that pytest holds would copy the memory of it
    parent: Any = item.parent
    reports = runtestprotocol(item, log=False, nextitem=parent)
    hook = item.config.hook
    told = [hook.pytest_report_to_serializable(config=item.config, report=each) for each in reports]
    return json.dumps(told, default=repr).encode()


# --- What tests leave behind


class _Leaks:
    """Holds tests to leaving nothing behind."""

    def __init__(self) -> None:
        self._before: dict[str, Counter[Any]] = {}
        self._owner = os.getpid()

    def look(self) -> None:
        """Take note of what there is."""
        if not self._before:
            _warm_up()
        self._before = _traces()

    def left(self) -> str:
        """Return what there is besides, as a message; nothing where there is nothing."""
        left = _left(self._before)
        return f"the test has left behind: {left}" if left else ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:  # noqa: ARG002 - the hook's
        """Take note of what there is."""
        if os.getpid() == self._owner:  # else it is inside a container, with which all goes
            self.look()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:  # noqa: ARG002 - the hook's
        """Look what there is besides."""
        result = yield
        if os.getpid() == self._owner and (left := self.left()):
            pytest.fail(left, pytrace=False)
        return result


def _warm_up() -> None:
    """Let the library make what it makes once and keeps."""
    from containerkit import Container, ContainerError, Limits

    for limits in (None, Limits(pids=100)):
        with suppress(ContainerError), Container(limits=limits):
            pass


def _left(before: dict[str, Counter[Any]]) -> dict[str, dict[Any, int]]:
    until = time.monotonic() + _PATIENCE_S
    while True:
        now = _traces()
        left = {kind: dict(now[kind] - before[kind]) for kind in before if now[kind] - before[kind]}
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.02)


def _traces() -> dict[str, Counter[Any]]:
    import gc

    gc.collect()
    return {
        "descriptors": _descriptors(),
        "children": _children(),
        "mounts": _mounts(),
        "control groups": _groups(),
        "namespaces": Counter(f"{name} {os.readlink(f'/proc/self/ns/{name}')}" for name in os.listdir("/proc/self/ns")),
    }


def _descriptors() -> Counter[Any]:
    """Count descriptors by what they are; numbers of inodes and processes do not matter."""
    import re

    found: Counter[Any] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if not target.startswith(("/run/containerkit/ids/", f"/proc/{os.getpid()}/fd")):
                found[re.sub(r"\d+", "N", target)] += 1
    return found


def _children() -> Counter[Any]:
    found: Counter[Any] = Counter()
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError), open(f"/proc/self/task/{thread}/children", encoding="ascii") as file:
            found.update(int(each) for each in file.read().split())
    return found


def _mounts() -> Counter[Any]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return Counter(line.split()[4] for line in file)


def _groups() -> Counter[Any]:
    """Count the control groups of this process: its pid is in their names."""
    found: Counter[Any] = Counter()
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        found.update(f"{directory}/{name}" for name in names if name.startswith(f"containerkit.{os.getpid()}."))
    return found
